"""Prepares a task for one model and seed: split, batches, label words; needs no weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

import torch

from dfolora.data import (
    Batch,
    Encoder,
    FewShotSplit,
    Kind,
    LabelWordStyle,
    Part,
    Prompt,
    Readout,
    Rows,
    Task,
    check_labels,
    eligible_rows,
    fingerprint,
    fits,
    label_word_ids,
    label_word_tokens,
    load_rows,
    more_word_ids,
    sample_few_shot,
)
from dfolora.errors import UserError
from dfolora.methods import FewShotData, Gap3, InContext, Method, PromptBoosting
from dfolora.validation import choice, file_name, text, text_or_none, texts, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 3
"""Train rows of which the tokens are kept, to be shown."""
BESIDE = 10
"""Tokens that are shown at either end of a row, and to either side of the answer."""
RELEASED_TEST_BATCH = 16
"""The released code pads test examples in batches of this size."""
BOUND_TO_A_PROMPT = (Gap3, InContext, PromptBoosting)
"""Methods that search a prompt's words, or write demonstrations in it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's rows are read from, and how they are to be understood; see `ProblemSpec`."""

    root: str | None = None
    columns: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    split: str = "drawn"
    missing_classes: str = "refuse"

    def rows(self, task: Task, part: Part) -> Rows:
        """The rows of one part.

        Raises:
            UserError: They could not be loaded, do not fit the task, or lack one of its classes.
        """
        if self.root is not None and not Path(self.root).is_dir():
            raise UserError(
                f"data.root={self.root} is not a folder; it needs one folder a task, such as "
                f"sst2/train.jsonl and sst2/test.jsonl."
            )
        rows = load_rows(
            task, part, root=self.root, columns=self.columns, labels=self.labels,
            given=self.split == "given",
        )  # fmt: skip
        absent = {*range(len(task.classes))} - {*rows.labels}
        if absent and self.missing_classes == "refuse":
            raise UserError(
                f"The {part} rows of {task.name} lack the classes "
                f"{[task.classes[label] for label in sorted(absent)]}: they are "
                f"{by_class(rows.labels, task.classes)}, and {rows.unlabelled} without a label "
                f"(-1) are left out. Where labels are spelled otherwise, say how, in the order of "
                f"the classes {list(task.classes)}: data.labels=[...], such as [-1,1]. Where such "
                f"rows are meant: data.missing_classes=allow."
            )
        return rows

    def dev(self, task: Task) -> Rows | None:
        """The dev rows of a split that is given; errors as of ``rows``."""
        return self.rows(task, "dev") if self.split == "given" else None


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """A task with all its rows."""

    task: Task
    train: Rows
    """The rows that few-shot train and dev rows are drawn from."""
    test: Rows
    dev: Rows | None = None
    """The dev rows of a split that is given; then all of ``train`` is train."""

    @classmethod
    def load(cls, task: Task, source: Source = Source()) -> "TaskRows":
        """Read and clean a task's rows; errors as of ``Source.rows``."""
        train, test = source.rows(task, "train"), source.rows(task, "test")
        return cls(task=task, train=train, dev=source.dev(task), test=test)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every text and label."""
        return ":".join(map(fingerprint, self.parts().values()))

    def parts(self) -> Mapping[str, Rows]:
        """What was read, by part."""
        dev = {} if self.dev is None else {"dev": self.dev}
        return {"train": self.train, **dev, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class ProblemSpec:
    """How few-shot problems are drawn from tasks and encoded for models."""

    k: int = 16
    """Rows per class in train, and as many in dev."""
    root: str | None = None
    """A folder of local files; None for the task's own source."""
    split: str = "drawn"
    """``drawn``: train and dev rows are drawn by the seed; ``given``: they are all those of the
    folder's files train and dev."""
    columns: Sequence[str] | None = None
    """Names of the columns of CSV and TSV files without a header, in order; columns of one name are
    joined by a space."""
    labels: Sequence[object] | None = None
    """What stands for each class in the label column, in the order of the classes; None for their
    names, or their positions from 0."""
    missing_classes: str = "refuse"
    """``refuse`` or ``allow`` parts without a row of some class."""
    prompt: str = "released"
    """The prompt's variant: ``released``, ``published``, ``natural`` (ours, in plain English), or,
    where a task has them, ``bbt`` (BBT's, causal) and ``gap3`` (GAP3's fields and label words)."""
    label_words: LabelWordStyle = "released"
    """``released`` (the bare word) or ``natural`` (with a space before it), which those of the
    natural prompts always are. A word is one token; of several, as some of the paper's own words
    are, the first stands for it, which other words may not have."""
    readout: Readout = "last_token"
    """Where a causal model answers: ``last_token`` or ``released`` (the last padded column)."""
    overlong: str = "truncate"
    """``truncate``: a word limit for train and dev, tests cut inside their text; ``released``:
    what exceeds ``max_length`` tokens is dropped everywhere, so splits differ between models. Of a
    split that is given, train and dev rows are cut."""
    max_words: int = 340
    """Word limit of train and dev rows."""
    max_length: int = 512
    """Token limit of every input; a model's own limit may be lower."""

    def check(self, task: Task, kind: Kind) -> None:
        """Raise UserError if a value makes no sense, or the task has no such prompt."""
        for name, value, choices in (
            ("readout", self.readout, ("last_token", "released")),
            ("overlong", self.overlong, ("truncate", "released")),
            ("label_words", self.label_words, ("released", "natural")),
            ("split", self.split, ("drawn", "given")),
            ("missing_classes", self.missing_classes, ("refuse", "allow")),
        ):
            choice(value, f"data.{name}", choices)
        if text_or_none(self.root, "data.root") is None and self.split == "given":
            raise UserError("data.split=given takes files of train, dev and test: set data.root.")
        if self.columns is not None:
            texts(self.columns, "data.columns", distinct=False)
        if self.labels is not None:
            check_labels(self.labels, task.classes)
        whole(self.k, "data.k", least=1)
        whole(self.max_words, "data.max_words", least=1)
        whole(self.max_length, "data.max_length", least=1)
        task.prompt(text(self.prompt, "data.prompt"), kind)

    @property
    def source(self) -> Source:
        """Where rows are read from."""
        return Source(
            root=self.root,
            columns=None if self.columns is None else tuple(self.columns),
            labels=None if self.labels is None else tuple(map(str, self.labels)),  # True is not 1
            split=self.split,
            missing_classes=self.missing_classes,
        )

    def check_paraphrases(
        self, given: object, task: Task, kind: Kind, method: Method
    ) -> tuple[str, ...]:
        """The names of other prompts that a fit is to be tested under too.

        Raises:
            UserError: The task has no such prompts, or the method's fit is of its own prompt alone.
        """
        if given == []:
            return ()
        names = texts(given, "paraphrases")
        for name in names:
            task.prompt(file_name(name, "paraphrases"), kind)  # it is part of a metric's name
        if self.prompt in names:
            raise UserError(
                f"paraphrases={list(names)} has data.prompt={self.prompt}, under which every fit "
                f"is tested; leave it out."
            )
        if isinstance(method, BOUND_TO_A_PROMPT):
            raise UserError(
                f"paraphrases={list(names)}: {type(method).__name__} fits the prompt itself, so "
                f"there is nothing to test under another one; set paraphrases=[]."
            )
        return names

    def _plain(
        self, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Encoder:
        """The encoder of a prompt, for a model with this limit."""
        limit = min(self.max_length, max_length)
        return Encoder(prompt=prompt, tokenizer=tokenizer, max_length=limit, readout=self.readout)

    def _style(self) -> LabelWordStyle:
        return "natural" if self.prompt == "natural" else self.label_words

    def draw(
        self,
        task: Task,
        train: Rows,
        tokenizer: "PreTrainedTokenizerBase",
        method: Method,
        *,
        kind: Kind,
        max_length: int,
        seed: int,
        dev: Rows | None = None,
    ) -> tuple[FewShotSplit, FewShotData]:
        """Draw the split and encode its rows: all that a fit needs.

        Args:
            task: The task.
            train: The rows that train and dev are drawn from.
            tokenizer: The model's tokenizer.
            method: Its encoder puts the rows to the model.
            dev: Dev rows that are given; then all of ``train`` is train.
            kind: How the model answers.
            max_length: The model's own limit in tokens.
            seed: The split's seed.

        Raises:
            UserError: Something about the data, the prompt or the label words is wrong.
        """
        self.check(task, kind)
        prompt = task.prompt(self.prompt, kind)
        cut = task.has_released_words(self.prompt, kind)
        label_ids = label_word_ids(prompt, tokenizer, self._style(), cut=cut)
        plain = self._plain(prompt, tokenizer, max_length)
        if dev is not None:
            split = FewShotSplit(
                k=None, seed=seed, train=tuple(range(len(train))), dev=tuple(range(len(dev)))
            )
        else:
            if self.overlong == "released":
                eligible = fits(train, prompt, tokenizer, max_length=plain.max_length)
            else:
                eligible = eligible_rows(train, self.max_words)
            split = sample_few_shot(train.labels, eligible, k=self.k, seed=seed, names=task.classes)
        shots = train.select(split.train)
        encode = method.encoder(plain, shots, seed)
        return split, FewShotData(
            train=encode(shots),
            dev=encode((train if dev is None else dev).select(split.dev)),
            label_ids=torch.tensor(label_ids),
            more_ids=more_word_ids(prompt, tokenizer, label_ids, self._style()),
            metric=task.metric,
            encode=encode,
        )

    def pose(
        self,
        rows: TaskRows,
        tokenizer: "PreTrainedTokenizerBase",
        method: Method,
        *,
        kind: Kind,
        max_length: int,
        seed: int,
        paraphrases: Sequence[str] = (),
    ) -> "Problem":
        """Draw the split, and encode the test set as well; arguments and errors as of `draw`.

        The test set is also encoded in ``paraphrases``: the patterns of other prompts of the task,
        with this one's label words.
        """
        split, data = self.draw(
            rows.task, rows.train, tokenizer, method,
            kind=kind, max_length=max_length, seed=seed, dev=rows.dev,
        )  # fmt: skip
        prompt, tests = rows.task.prompt(self.prompt, kind), rows.test
        if self.overlong == "released":
            limit = min(self.max_length, max_length)
            short = fits(tests, prompt, tokenizer, max_length=limit)
            tests = tests.select(row for row, fit in enumerate(short) if fit)
        chosen = {
            "train": rows.train.select(split.train),
            "dev": (rows.dev or rows.train).select(split.dev),
            "test": tests,
        }
        drawn = Counter(_key(text) for part in ("train", "dev") for text in chosen[part].texts)
        assert data.encode is not None
        test = data.encode(tests, RELEASED_TEST_BATCH)
        paraphrased = {}
        for name in paraphrases:
            other = rows.task.prompt(name, kind)
            reworded = replace(prompt, pattern=other.pattern, prefix=other.prefix, slots=None)
            plain = self._plain(reworded, tokenizer, max_length)
            encode = method.encoder(plain, chosen["train"], seed)
            paraphrased[name] = encode(tests, RELEASED_TEST_BATCH)
        return Problem(
            task=rows.task,
            rows=rows,
            split=split,
            data=data,
            plain=self._plain(prompt, tokenizer, max_length),
            test=test,
            paraphrases=paraphrased,
            label_words=prompt.label_words,
            dropped_tests=len(rows.test) - len(tests),
            repeated=sum(count for count in drawn.values() if count > 1),
            seen_tests=sum(_key(text) in drawn for text in tests.texts),
            empty={part: sum(map(_lacks_text, each.texts)) for part, each in chosen.items()},
            tokens=tuple(
                tuple(tokenizer.convert_ids_to_tokens(ids)) for ids in _first_ids(data.train)
            ),
            label_tokens=label_word_tokens(prompt, tokenizer, self._style()),
        )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One few-shot problem, encoded."""

    task: Task
    rows: TaskRows
    """All that the task has."""
    split: FewShotSplit
    data: FewShotData
    """Train and dev."""
    plain: Encoder
    """The prompt, from which the method made its own encoder."""
    test: Batch
    paraphrases: Mapping[str, Batch]
    """The test set in other prompts, by their names."""
    label_words: tuple[str, ...]
    dropped_tests: int
    """Test rows left out for their length; 0 unless ``overlong`` is ``released``."""
    repeated: int
    """Train and dev rows whose text occurs more than once; the real datasets have some."""
    seen_tests: int
    """Test rows whose text is also a train or dev row's."""
    empty: Mapping[str, int]
    """Rows with an empty text, by part."""
    tokens: tuple[tuple[str, ...], ...]
    """Those of the first train rows, as the model reads them; of ``EXAMPLES`` at most."""
    label_tokens: tuple[tuple[str, ...], ...]
    """Those of each class's label word, ``(C,)``; the first stands for it."""

    @property
    def unlabelled(self) -> Mapping[str, int]:
        """Rows left out for they have no label, by the part that was read."""
        return {part: rows.unlabelled for part, rows in self.rows.parts().items()}

    def summary(self) -> str:
        """What the model is asked, in four lines."""
        tokens, place = self.tokens[0], int(self.data.train.answer[0])
        return "\n".join(
            (
                f"first train row: {_abridged(tokens, place)}",
                f"answered at token {place + 1} of {len(tokens)} by {self._words()}",
                *self._counts(),
            )
        )

    def details(self) -> str:
        """The same in full: some train rows, label words, how long rows are, and counts."""
        train, names = self.data.train, self.task.classes
        rows = (
            f"train row {number} ({names[label]}), answered at token {place + 1} of {len(tokens)}: "
            + " ".join(_marked(tokens, place))
            for number, (tokens, place, label) in enumerate(
                zip(self.tokens, train.answer.tolist(), train.labels.tolist(), strict=False), 1
            )
        )
        several = (
            f"warning: the label word of {name} is {len(tokens)} tokens, {' '.join(tokens)}; the "
            f"first alone stands for it"
            for tokens, name in zip(self.label_tokens, names, strict=True)
            if len(tokens) > 1
        )
        lengths = "; ".join(f"{part} {_lengths(batch)}" for part, batch in self._batches().items())
        words = f"label words: {self._words()}"
        return "\n".join((*rows, words, *several, f"tokens: {lengths}", *self._counts()))

    def _batches(self) -> Mapping[str, Batch]:
        return {"train": self.data.train, "dev": self.data.dev, "test": self.test}

    def _words(self) -> str:
        """The label words with their ids and classes, and other words of these."""
        others = self.plain.prompt.more_words or [()] * len(self.label_tokens)
        beside = (f" (also {', '.join(words)})" if words else "" for words in others)
        return ", ".join(
            f"{tokens[0]} ({number}{_rest(tokens)}) {name}{next(beside)}"
            for tokens, number, name in zip(
                self.label_tokens, self.data.label_ids.tolist(), self.task.classes, strict=True
            )
        )

    def _counts(self) -> tuple[str, str]:
        """Rows by part and class, and those that are left out or cut."""
        batches, sources = self._batches(), self.rows.parts()
        rows = (
            f"{part} {by_class(batch.labels.tolist(), self.task.classes)}"
            + (f" ({sources[part].source.rpartition('/')[2]})" if part in sources else "")
            for part, batch in batches.items()
        )
        cut = {part: batch.truncated for part, batch in batches.items()}
        return (
            f"rows: {'; '.join(rows)}",
            f"without a label: {_listed(self.unlabelled)}; too long for the test: "
            f"{self.dropped_tests}; cut: {_listed(cut)}; with an empty text: "
            f"{_listed(self.empty)}",
        )


def by_class(labels: Sequence[int], classes: Sequence[str]) -> str:
    """How many rows each class has, in words."""
    counts = Counter(labels)
    numbers = {counts[label] for label in range(len(classes))}
    if len(numbers) == 1:
        return f"{numbers.pop()} of each class"
    return ", ".join(f"{counts[label]} {name}" for label, name in enumerate(classes))


def _rest(tokens: Sequence[str]) -> str:
    """What is told of a label word whose first token stands for all of them."""
    return f", of {' '.join(tokens)}" if len(tokens) > 1 else ""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def _lengths(batch: Batch) -> str:
    """How many tokens its rows have, in words."""
    tokens = batch.attention_mask.sum(-1).tolist()
    cut = batch.truncated / len(tokens)
    return f"{min(tokens)} to {max(tokens)} (median {median_low(tokens)}, {cut:.1%} cut)"


def _first_ids(batch: Batch) -> list[list[int]]:
    """The first rows' token ids, without the padding after the answer."""
    lengths = torch.maximum(batch.attention_mask.sum(-1), batch.answer + 1)
    rows = zip(batch.input_ids[:EXAMPLES], lengths.tolist(), strict=False)
    return [ids[:length].tolist() for ids, length in rows]


def _marked(tokens: Sequence[str], place: int) -> list[str]:
    """The tokens, that of the answer in brackets."""
    return [f"[{token}]" if number == place else token for number, token in enumerate(tokens)]


def _abridged(tokens: Sequence[str], place: int) -> str:
    """Marked tokens in a line; of many the first, the last, and those about the answer."""
    near = range(place - BESIDE, place + BESIDE + 1)
    ends = (*range(BESIDE), *range(len(tokens) - BESIDE, len(tokens)))
    words, before = [], -1
    for number, token in enumerate(_marked(tokens, place)):
        if number in near or number in ends:
            words += ["..."] * (number > before + 1) + [token]
            before = number
    return " ".join(words)


def _lacks_text(text: Mapping[str, str]) -> bool:
    return not all(value.strip() for value in text.values())


def _key(text: Mapping[str, str]) -> tuple[str, ...]:
    """Equal for rows with equal texts."""
    return tuple(text.values())
