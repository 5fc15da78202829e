"""A task as data: where its rows are, its prompts and its label words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Protocol, get_args

import yaml

from dfolora.data.metric import METRICS
from dfolora.errors import UserError
from dfolora.validation import (
    check_keys,
    choice,
    file_name,
    flag,
    mapping,
    text,
    text_or_none,
    texts,
)

Kind = Literal["masked", "causal"]
"""How a model answers: by filling a mask, or by continuing the prompt."""

BEFORE = "a"
"""What a natural label word follows, to see which tokens it then has."""
SPACES = ("\u0120", "\u2581")
"""How tokenizers spell a space before a word; people copy it from their vocabularies."""
LabelWordStyle = Literal["released", "natural"]
"""``released``: the bare word, as in the authors' code; ``natural``: with a space before it."""

MASK, FILLER = "mask", "filler"
"""Placeholders of a pattern that are not fields of the row."""
HOLE = "hole"
"""A placeholder for a mask that does not answer; the genetic search fills it with a word."""

OWN = Path(__file__).parents[1] / "tasks"
"""The task files that come with this package: those of ``conf/task``."""

REQUIRED = ("name", "title", "dataset", "fields", "label", "classes", "metric", "prompts")
"""Required keys of a task."""


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that label words need."""

    name_or_path: str
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def convert_ids_to_tokens(self, ids: list[int]) -> str | list[str]:
        """The pieces behind token ids."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where a task's rows come from."""

    path: str
    """Repository on the hub, a local folder by its whole path, or ``mini`` for the embedded mini
    world, ``mini:1`` for another."""
    name: str | None = None
    """The repository's configuration, such as ``sst2`` of GLUE."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    train: str = "train"
    """The split that train and dev rows are drawn from; of a folder, its file without ending."""
    test: str = "test"
    """The split that is tested on; where it is that of ``train`` too, a fifth of it."""

    @property
    def is_folder(self) -> bool:
        """Whether the rows are files on this machine."""
        return Path(self.path).is_absolute()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt pattern and its label words."""

    kind: Kind
    pattern: str
    """Text with ``{field}`` placeholders, ``{mask}`` where a masked model answers, and ``{filler}``
    for the 50 filler words of the released code."""
    label_words: tuple[str, ...]
    """One word per class, in the order of the task's classes."""
    more_words: tuple[tuple[str, ...], ...] = ()
    """Other words of each class, the best first, for searches with several a class."""
    prefix: str = "{filler} . "
    """Text put before the pattern by methods that need filler words."""
    slots: tuple[str, ...] | None = None
    """Placeholders before which a prompt search may insert words (``mask``: also at the end of a
    causal pattern); None for all."""

    def __post_init__(self) -> None:
        masks = self.placeholders.count(MASK)
        if self.kind == "masked" and masks != 1:
            raise UserError(
                f"Masked pattern {self.pattern!r} has {masks} {{mask}}; write it exactly once, "
                f"where the model answers."
            )
        if self.kind == "causal" and masks:
            raise UserError(
                f"Causal pattern {self.pattern!r} has a {{mask}}; remove it: "
                f"a causal model answers after the last token."
            )
        if unknown := sorted({*(self.slots or ())} - {*self.placeholders, MASK}):
            raise UserError(
                f"Pattern {self.pattern!r} has no {unknown}, so no slots before them; choose from "
                f"{sorted({*self.placeholders, MASK})}."
            )

    def prefixed(self) -> "Prompt":
        """The prompt with filler words at its start, unless it has some."""
        if FILLER in self.placeholders:
            return self
        return replace(self, pattern=self.prefix + self.pattern)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The names in braces, in order."""
        try:
            parts = [part[1:] for part in Formatter().parse(self.pattern) if part[1] is not None]
        except ValueError as error:
            raise UserError(f"Pattern {self.pattern!r} cannot be read: {error}.") from error
        for name, spec, conversion in parts:
            if spec or conversion:
                raise UserError(
                    f"Placeholder {{{name}}} of pattern {self.pattern!r} has a format or "
                    f"conversion; write the bare name."
                )
        return tuple(str(name) for name, _, _ in parts)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task as plain data; a new one is a YAML file and no Python."""

    name: str
    """The task's name, and that of its folder of local files."""
    title: str
    """Its name in tables."""
    dataset: Dataset
    fields: tuple[str, ...]
    """The text columns."""
    label: str
    """The label column."""
    classes: tuple[str, ...]
    """Class names; their positions are the labels."""
    metric: str
    """A name in `dfolora.data.metric.METRICS`."""
    prompts: Mapping[str, Mapping[str, Prompt]] = field(hash=False)  # no mapping has a hash
    """Prompts by variant (``released``, ``published``, ...) and kind."""
    replace: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Literal replacements made in every field."""
    strip: bool = False
    """Whether white space around fields is removed."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(
                f"Task {self.name} has one class, {self.classes[0]!r}; give two or more."
            )
        if taken := sorted({MASK, FILLER, HOLE} & {*self.fields}):
            raise UserError(
                f"Task {self.name} has fields {taken}, which mean something else in a pattern; "
                f"rename the columns."
            )
        if self.metric not in METRICS:
            raise UserError(
                f"Task {self.name} has metric {self.metric!r}; choose from {', '.join(METRICS)}."
            )
        if self.metric == "f1" and len(self.classes) != 2:
            raise UserError(
                f"Task {self.name} has {len(self.classes)} classes, but f1 needs 2 "
                f"(the second is the positive one); use accuracy."
            )
        for variant, by_kind in self.prompts.items():
            for prompt in by_kind.values():
                where = f"{self.name}, prompt {variant}/{prompt.kind}"
                self._check_prompt(prompt, where)
                self._check_prompt(prompt.prefixed(), where)

    def prompt(self, variant: str, kind: Kind) -> Prompt:
        """The prompt of a variant for a kind of model.

        Args:
            variant: ``released`` or another variant of this task.
            kind: How the model answers.

        Raises:
            UserError: If the task has no such prompt.
        """
        try:
            return self.prompts[variant][kind]
        except KeyError:
            offered = "; ".join(f"{name}: {', '.join(by)}" for name, by in self.prompts.items())
            raise UserError(
                f"Task {self.name} has no {kind} prompt {variant!r}; it has {offered}. "
                f"data.prompt names one."
            ) from None

    def has_released_words(self, variant: str, kind: Kind) -> bool:
        """Whether a prompt's label words are those of the authors' code, whose first tokens count.

        They are if this package's own task of the same name has the same words there; those of the
        ``natural`` prompts are ours.
        """
        file = OWN / f"{self.name}.yaml"
        own = Task.from_file(file).prompts if file.is_file() else {}
        return (
            variant != "natural"
            and kind in own.get(variant, {})
            and own[variant][kind].label_words == self.prompts[variant][kind].label_words
        )

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> "Task":
        """A task from plain data, shaped as the files in ``conf/task``.

        Args:
            data: Plain mappings, lists, strings and booleans.

        Raises:
            UserError: If a key is unknown or missing, or a value is not of the needed type or
                does not fit the others.
        """
        check_keys(data, "task", required=REQUIRED, optional=("replace", "strip"))
        name = file_name(data["name"], "task.name")
        return cls(
            name=name,
            title=text(data["title"], f"{name}.title"),
            dataset=_dataset(data["dataset"], f"{name}.dataset"),
            fields=texts(data["fields"], f"{name}.fields"),
            label=text(data["label"], f"{name}.label"),
            classes=texts(data["classes"], f"{name}.classes"),
            metric=text(data["metric"], f"{name}.metric"),
            prompts={
                variant: _prompts(by_kind, f"{name}.prompts.{variant}")
                for variant, by_kind in mapping(data["prompts"], f"{name}.prompts").items()
            },
            replace={
                old: text(new, f"{name}.replace[{old!r}]", empty=True)
                for old, new in mapping(data.get("replace", {}), f"{name}.replace").items()
            },
            strip=flag(data.get("strip", False), f"{name}.strip"),
        )

    @classmethod
    def named(cls, name: str) -> "Task":
        """One of this package's own tasks.

        Args:
            name: One of ``tasks()``.

        Raises:
            UserError: There is none of that name.
        """
        choice(name, "task", tasks())
        return cls.from_file(name)

    @classmethod
    def from_file(cls, path: str | Path) -> "Task":
        """A task from a YAML file such as ``conf/task/sst2.yaml``.

        Args:
            path: The file, or the name of one of this package's own: ``sst2``, ``mini/sst2``, ...
                Of Hydra's ``defaults`` it may have ``/task/NAME@_here_``, a task file in its own
                or the enclosing folder that it changes, and ``_self_``.

        Raises:
            UserError: If the file is missing, is not YAML, or does not hold a task.
        """
        own = OWN / f"{path}.yaml"
        return cls.from_mapping(_read(own if own.is_file() else Path(path)))

    def _check_prompt(self, prompt: Prompt, where: str) -> None:
        """Raise UserError if the prompt does not fit the task's fields and classes."""
        names = set(prompt.placeholders)
        if unknown := sorted(names - {*self.fields, MASK, FILLER}):
            raise UserError(
                f"Task {where}: pattern {prompt.pattern!r} has placeholders {unknown} that are not "
                f"fields; the fields are {list(self.fields)}."
            )
        try:
            prompt.pattern.format_map(dict.fromkeys(names, ""))
        except (LookupError, ValueError, AttributeError) as error:  # of "{a.b}", "{a[0]}", "{0}"
            raise UserError(
                f"Task {where}: pattern {prompt.pattern!r} cannot be filled ({error}); rename the "
                f"columns to plain words."
            ) from error
        if names.isdisjoint(self.fields):
            raise UserError(
                f"Task {where}: pattern {prompt.pattern!r} shows nothing of the row; "
                f"add one of the fields {list(self.fields)} in braces."
            )
        if len(prompt.label_words) != len(self.classes):
            raise UserError(
                f"Task {where}: {len(prompt.label_words)} label words {list(prompt.label_words)} "
                f"for {len(self.classes)} classes {list(self.classes)}; give one word per class."
            )
        if prompt.more_words and len(prompt.more_words) != len(self.classes):
            raise UserError(
                f"Task {where}: more_words has {len(prompt.more_words)} lists for the "
                f"{len(self.classes)} classes {list(self.classes)}; give a list of words per class."
            )


def tasks() -> tuple[str, ...]:
    """The names of the tasks that come with this package: ``agnews``, ..., ``mini/sst2``, ..."""
    names = (file.relative_to(OWN).with_suffix("").as_posix() for file in OWN.rglob("*.yaml"))
    return tuple(sorted(names, key=lambda name: ("/" in name, name)))


def label_word_ids(
    prompt: Prompt,
    tokenizer: Tokenizer,
    style: LabelWordStyle = "released",
    *,
    cut: bool = False,
) -> tuple[int, ...]:
    """The vocabulary id that stands for each class: the one token of its label word.

    Args:
        prompt: Whose label words.
        tokenizer: The model's.
        style: ``released`` encodes the bare word, ``natural`` the word after a space.
        cut: Whether the first token of a word of several stands for it, as in the released code.

    Returns:
        One id per class, all different.

    Raises:
        UserError: If a word has no token or is unknown, has several and may not be cut, or two
            words share their first token.
    """
    if style not in get_args(LabelWordStyle):
        raise UserError(f"Label word style {style!r} is unknown; choose released or natural.")
    words = prompt.label_words
    encoded = [_pieces(tokenizer, word, style) for word in words]
    for word, ids in zip(words, encoded, strict=True):
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise UserError(
                f"Label word {word!r} is not in the vocabulary of {tokenizer.name_or_path} "
                f"(ids {ids}); choose another word."
            )
    if not cut and (long := [word for word, ids in zip(words, encoded, strict=True) if ids[1:]]):
        split = [ids for ids in encoded if ids[1:]]
        raise UserError(
            f"Label words {long} are several tokens for {tokenizer.name_or_path} (pieces "
            f"{[tokenizer.convert_ids_to_tokens(ids) for ids in split]}), and a model answers by "
            f"one; {_whole_words(long, words, tokenizer)}."
        )
    first = [ids[0] for ids in encoded]
    if clashing := [n for n, token in enumerate(first) if first.count(token) > 1]:
        pieces = [tokenizer.convert_ids_to_tokens(encoded[n]) for n in clashing]
        spaced = "" if style == "natural" else "set data.label_words=natural, or "
        raise UserError(
            f"Label words {[words[n] for n in clashing]} start with the same token for "
            f"{tokenizer.name_or_path} (pieces {pieces}), so their classes cannot be told apart; "
            f"{spaced}give the task other words in its prompts (conf/task/)."
        )
    return tuple(first)


def more_word_ids(
    prompt: Prompt,
    tokenizer: Tokenizer,
    given: Sequence[int],
    style: LabelWordStyle = "released",
) -> tuple[tuple[int, ...], ...]:
    """The vocabulary ids of the prompt's ``more_words``, a tuple per class; empty if it has none.

    Args:
        prompt: Whose words.
        tokenizer: The model's.
        given: The ids of its label words.
        style: As of `label_word_ids`.

    Raises:
        UserError: As of `label_word_ids`, or a word is a label word already.
    """
    if not prompt.more_words:
        return ()
    flat = [word for words in prompt.more_words for word in words]
    ids = iter(label_word_ids(replace(prompt, label_words=tuple(flat)), tokenizer, style))
    found = tuple(tuple(next(ids) for _ in words) for words in prompt.more_words)
    taken = [word for word, token in zip(flat, chain(*found), strict=True) if token in given]
    if taken:
        raise UserError(
            f"more_words {taken} are tokens of label words already for {tokenizer.name_or_path}; "
            f"give others."
        )
    return found


def label_word_tokens(
    prompt: Prompt, tokenizer: Tokenizer, style: LabelWordStyle
) -> tuple[tuple[str, ...], ...]:
    """All tokens of each label word; arguments as of `label_word_ids`."""
    ids = (_pieces(tokenizer, word, style) for word in prompt.label_words)
    return tuple(tuple(tokenizer.convert_ids_to_tokens(each)) for each in ids)


def _whole_words(long: Sequence[str], words: Sequence[str], tokenizer: Tokenizer) -> str:
    """What to do where some of the label words are several tokens."""
    if any(word.startswith(SPACES) for word in long):
        return "write them without the tokenizer's sign for a space, and data.label_words=natural"
    others = "give the task words of one token in its prompts (conf/task/)"
    if all(len(_pieces(tokenizer, word, "natural")) == 1 for word in words):
        return f"set data.label_words=natural (after a space each is one token), or {others}"
    return others


def _pieces(tokenizer: Tokenizer, word: str, style: LabelWordStyle) -> list[int]:
    """The word's tokens. Of SentencePiece's, a space alone would be the first of most words'."""
    if style == "released":
        return tokenizer.encode(word, add_special_tokens=False)
    before = tokenizer.encode(BEFORE, add_special_tokens=False)
    return tokenizer.encode(f"{BEFORE} {word}", add_special_tokens=False)[len(before) :]


def _read(path: Path) -> Mapping[str, Any]:
    """A task file, with those that it changes."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"Task file {path} cannot be read: {error.strerror}; give a file, or one of "
            f"{', '.join(tasks())}."
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Task file {path} is not UTF-8 YAML: {error}") from error
    data = dict(mapping(given, f"task file {path}"))
    base: Mapping[str, Any] = {}
    for default in data.pop("defaults", ()):
        if default != "_self_":
            base = _merged(base, _read(_default(default, path)))
    return _merged(base, data)


def _default(default: object, path: Path) -> Path:
    name = re.fullmatch(r"/task/([\w/]+)@_here_", str(default))
    files = [folder / f"{name[1]}.yaml" for folder in path.absolute().parents[:2]] if name else []
    for file in files:
        if file.is_file() and not file.samefile(path):
            return file
    raise UserError(
        f"Task file {path} has the default {default!r}; it may have /task/NAME@_here_, with "
        f"NAME.yaml in its own or the enclosing folder. Compose others with Hydra for from_mapping."
    )


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base with changes, where both have a mapping within it."""
    nested = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **changes, **nested}


def _dataset(value: object, where: str) -> Dataset:
    data = mapping(value, where)
    check_keys(data, where, required=("path", "train", "test"), optional=("name", "revision"))
    return Dataset(
        path=text(data["path"], f"{where}.path"),
        name=text_or_none(data.get("name"), f"{where}.name"),
        revision=text_or_none(data.get("revision"), f"{where}.revision"),
        train=text(data["train"], f"{where}.train"),
        test=text(data["test"], f"{where}.test"),
    )


def _prompts(value: object, where: str) -> dict[str, Prompt]:
    data = mapping(value, where)
    kinds: tuple[Kind, ...] = get_args(Kind)
    check_keys(data, where, optional=kinds)
    return {kind: _prompt(data[kind], kind, f"{where}.{kind}") for kind in kinds if kind in data}


def _prompt(value: object, kind: Kind, where: str) -> Prompt:
    data = mapping(value, where)
    optional = ("more_words", "prefix", "slots")
    check_keys(data, where, required=("pattern", "label_words"), optional=optional)
    more = data.get("more_words", ())
    if not isinstance(more, Sequence) or isinstance(more, str):
        raise UserError(f"{where}.more_words must be a list of words for each class, got {more!r}.")
    return Prompt(
        kind=kind,
        pattern=text(data["pattern"], f"{where}.pattern"),
        label_words=texts(data["label_words"], f"{where}.label_words"),
        more_words=tuple(texts(each, f"{where}.more_words[{n}]") for n, each in enumerate(more)),
        prefix=text(data.get("prefix", Prompt.prefix), f"{where}.prefix"),
        slots=texts(data["slots"], f"{where}.slots") if "slots" in data else None,
    )
