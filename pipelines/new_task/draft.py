"""Drafts a task from its rows: what they show, and a question for what they leave open."""

import re
import string
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import yaml

from dfolora.data import FILLER, HOLE, MASK, Kind, Prompt, Task, label_word_tokens, tasks
from dfolora.data.files import Columns
from dfolora.data.labels import NO_LABEL, spelled
from dfolora.errors import UserError
from dfolora.validation import shown, texts

LABEL_NAMES = ("label", "labels", "class", "category", "target", "gold_label", "label_text")
"""What a column of labels is often called."""
MOST_CLASSES = 200
LONGEST_CLASS = 60
"""Characters of a class's name."""
TEXT_WORDS = 3
"""Words that a column of texts has on average, where one has so many."""
MOST_FIELDS = 2
HEADER_WORDS = 5
"""Words of a column's name, at the most; a row of a file without a header has more."""
FEWEST = 3
"""Texts of a class."""
SKEWED = 0.6
"""The share of the larger of two classes from which another metric may be meant."""
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
"""Label words of classes whose names give none."""
PLACEHOLDER = re.compile(r"[^\W\d][^{}\[\].!:]*")
"""A name that can stand in braces."""
READ_OTHERWISE = ("${", "???")
"""Signs that configurations do not read as text."""
WIDTH = 96


class Draft:
    """The values of a task file, each below the questions about it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._questions: list[tuple[str, str]] = []

    def ask(self, key: str, question: str) -> None:
        """Put a question above a key."""
        self._questions.append((key, question))

    @property
    def questions(self) -> int:
        """How many there are."""
        return len(self._questions)

    def text(self, title: str) -> str:
        """The file.

        Args:
            title: What it is, for its first lines.

        Raises:
            UserError: A configuration would not read a value as it is.
        """
        lines = _comment(title, "# ")
        for key, value in self.values.items():
            asked = [question for about, question in self._questions if about == key]
            lines += [line for question in asked for line in _comment(question, "# ? ")]
            dumped = yaml.safe_dump(
                {key: value}, sort_keys=False, allow_unicode=True, width=WIDTH,
                default_flow_style=False if isinstance(value, str) else None,
            )  # fmt: skip
            if sign := next((sign for sign in READ_OTHERWISE if sign in dumped), None):
                raise UserError(
                    f"The task's {key} would be {shown(value)}, of which configurations read "
                    f"{sign!r} otherwise; rename the file, column or class."
                )
            lines.append(dumped.rstrip("\n"))
        return "\n".join(lines) + "\n"


def check_header(columns: Iterable[str], where: str) -> None:
    """Raise UserError if a file's first line seems to be a row."""
    if rows := [name for name in columns if len(name.split()) > HEADER_WORDS]:
        raise UserError(
            f"{where} has a column called {shown(rows[0])}, so its first line seems to be a row; "
            f"write a line with the columns' names above it."
        )


def choose_label(draft: Draft, columns: Columns, given: str | None, where: str) -> str:
    """The column of labels: the one given, or called so, or the one with the fewest classes.

    Raises:
        UserError: It holds no classes, or none does.
    """
    if len(columns) < 2:
        raise UserError(
            f"{where} has one column, {shown(list(columns))}; a task needs one of texts and one of "
            f"labels, which commas separate in .csv and tabs in .tsv."
        )
    if given is not None:
        _check_column(given, columns, "label", where)
    faults = {name: _no_labels(values) for name, values in columns.items()}
    able = [name for name, fault in faults.items() if fault is None]
    able.sort(key=lambda name: len(_classes(columns[name])))
    called_so = (name for name in columns if name.lower() in LABEL_NAMES)
    label = given or next(called_so, None) or next(iter(able), None)
    if label is None:
        told = "; ".join(f"{shown(name)} has {fault}" for name, fault in faults.items())
        raise UserError(f"{where} has no column of labels: {told}. A task needs one.")
    if faults[label] is not None:
        raise UserError(
            f"{where}: column {label!r} has {faults[label]}, so it is not one of labels; name "
            f"another with label=COLUMN, or mend the file."
        )
    if given is None and (others := [name for name in able if name != label]):
        listed = ", ".join(f"{shown(name)} ({_examples(columns[name])})" for name in others)
        draft.ask("label", f"Is {label!r} the column of labels? Other columns could be: {listed}.")
    if count := _unlabelled(columns[label]):
        draft.ask("label", f"Rows without a label (-1 or -) are left out: {count}. Is that meant?")
    return label


def choose_fields(
    draft: Draft, columns: Columns, label: str, given: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """The columns of texts: those given, or at most two, whose texts have the most words.

    Raises:
        UserError: There is none.
    """
    if given is not None:
        for name in (names := texts(given, "fields")):
            _check_column(name, columns, "fields", where)
        _check_names(names, where)
        return names
    words = {name: _words(values) for name, values in columns.items() if name != label}
    words = {name: mean for name, mean in words.items() if mean}
    # Few values that come again are another label's rather than texts.
    words = {name: words[name] for name in words if _no_labels(columns[name])} or words
    if not words:
        raise UserError(
            f"{where} has no column of texts beside {label!r}, of {shown(list(columns))}; name it "
            f"with fields=[COLUMN]."
        )
    longest = sorted(words, key=lambda name: -words[name])
    chosen = [name for name in longest[:MOST_FIELDS] if words[name] >= TEXT_WORDS] or longest[:1]
    fields = tuple(name for name in columns if name in chosen)  # as the file has them
    _check_names(fields, where)
    if others := [name for name in words if name not in fields]:
        draft.ask("fields", f"Do the columns {shown(others)} belong to the text too?")
    if len(fields) > 1:
        draft.ask(
            "fields",
            f"Are {shown(list(fields))} two texts that are compared, or parts of one? The pattern "
            f"below has to say it. If one is enough, leave the other out, there too.",
        )
    return fields


def choose_classes(
    draft: Draft,
    columns: Columns,
    label: str,
    given: object,
    where: str,
    named: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], Task | None]:
    """The classes in their order, and a task of ours that has the same.

    Args:
        draft: Gets the questions.
        columns: The rows.
        label: The column of labels.
        given: The classes that the user names; None to find them.
        where: What the rows are called.
        named: Those that the rows' source names; None if it does not.

    Raises:
        UserError: Rows have no label, or other classes than those given.
    """
    column = columns[label]
    if empty := [row for row, value in enumerate(column, 1) if spelled(value) in (None, "")]:
        raise UserError(
            f"{where}, row {empty[0]} has nothing in {label!r} (of such rows there are "
            f"{len(empty)}); write -1 where there is no label, or leave these rows out."
        )
    found = sorted(
        _classes(column), key=lambda name: (_number(name) is None, _number(name) or 0, name)
    )
    known = _known(found)
    if named is not None:
        if given not in (None, [*named]):
            raise UserError(
                f"classes={shown(given)}: {where} names them {shown([*named])}, by whose order its "
                f"labels are read; leave classes out, and rename them in the file that is written."
            )
        if lacking := [name for name in named if name not in found]:
            raise UserError(f"{where} has no rows of {shown(lacking)}; take a split with some.")
        classes = texts(named, "the names of the classes")
    elif given is not None:
        listed = given if isinstance(given, list) else texts(given, "classes")
        classes = texts([str(spelled(name)) for name in listed], "classes")
        if {*classes} != {*found}:
            raise UserError(
                f"classes={list(classes)}: column {label!r} of {where} has {shown(found)}; give "
                f"these, in the order that is meant."
            )
    elif known is not None:
        ours = [name.lower() for name in known.classes]
        classes = tuple(sorted(found, key=lambda name: ours.index(name.lower())))
        draft.ask("classes", f"Their order is that of task {known.name}. Is it meant?")
    else:
        classes = tuple(found)
        second = " With metric: f1 the second is the positive one." if len(found) == 2 else ""
        draft.ask(
            "classes",
            f"They are sorted. Is another order meant? Label words follow it.{second}",
        )
    if None not in map(_number, classes):
        places = [str(place) for place in range(len(classes))]
        by_place = named is not None or list(classes) == places
        beside = f", and data.labels=[{','.join(classes)}] to every run" * (not by_place)
        draft.ask(
            "classes",
            f"The labels are numbers. What do they stand for? Give names in their place, in this "
            f"order{beside}; and label words that go with them.",
        )
    alike = Counter(" ".join(name.lower().split()) for name in classes)
    if twice := [name for name in classes if alike[" ".join(name.lower().split())] > 1]:
        draft.ask("classes", f"Are {shown(twice)} one class? Then write it in one way in the file.")
    return classes, known


def choose_metric(draft: Draft, columns: Columns, label: str, classes: Sequence[str]) -> str:
    """Accuracy, with a question where one class prevails."""
    counts = _classes(columns[label])
    if len(classes) == 2 and (share := max(counts.values()) / counts.total()) > SKEWED:
        draft.ask(
            "metric",
            f"{share:.0%} of the rows are of one class. Is f1 of {classes[1]!r} what matters?",
        )
    return "accuracy"


def check_enough(columns: Columns, fields: Sequence[str], label: str, where: str) -> None:
    """Raise UserError if a class has too few texts for a row each of train, dev and test."""
    texts_of: dict[str, set[tuple[object, ...]]] = {}
    for value, *row in zip(columns[label], *(columns[name] for name in fields), strict=True):
        texts_of.setdefault(str(spelled(value)), set()).add(tuple(map(str, row)))
    few = {name: len(found) for name, found in texts_of.items() if name not in NO_LABEL}
    least = min(few, key=lambda name: few[name])
    if few[least] < FEWEST:
        raise UserError(
            f"{where} has {few[least]} texts of class {least!r}, and train, dev and test need one "
            f"each; give more, or mend or leave out these rows."
        )


def ask_about_repeats(draft: Draft, columns: Columns, fields: Sequence[str], label: str) -> None:
    """Ask about rows with the same texts."""
    rows = [*zip(*(map(str, columns[name]) for name in (*fields, label)), strict=True)]
    distinct, labelled = {row[:-1] for row in rows}, {*rows}
    if again := len(rows) - len(distinct):
        torn = len(labelled) - len(distinct)
        other = f", {torn} of them with another label" * bool(torn)
        draft.ask("dataset", f"Rows repeat the text of another: {again}{other}. Are they meant?")


def choose_prompt(
    draft: Draft,
    fields: Sequence[str],
    classes: Sequence[str],
    known: Task | None,
    given: Sequence[str] | None,
    kind: Kind,
    tokenizer: Any,
) -> Mapping[str, Any]:
    """A first prompt: the natural one of a task of ours with the same classes, or a plain one.

    Args:
        draft: Gets the questions.
        fields: The columns of texts.
        classes: In their order.
        known: A task of ours that has the classes.
        given: A label word for each class; None to choose some.
        kind: How the model answers.
        tokenizer: The model's.

    Raises:
        UserError: There are not enough words of one token.
    """
    pattern = (
        " ".join(f"{{{name}}}" for name in fields) + " It was" + " {mask}." * (kind == "masked")
    )
    origin, words = "a plain one", dict[str, str]()
    if known is not None and (theirs := known.prompts.get("natural", {}).get(kind)):
        words = dict(zip(map(str.lower, known.classes), theirs.label_words, strict=True))
        used = [name for name in theirs.placeholders if name in known.fields]
        if len(used) == len(fields):
            origin, ours = f"that of task {known.name}", dict(zip(used, fields, strict=True))
            pattern = re.sub(
                r"\{(\w+)\}", lambda name: f"{{{ours.get(name[1], name[1])}}}", theirs.pattern
            )
    draft.ask("prompts", f"What is asked of the text? The pattern is {origin}; write a better one.")
    plain = Prompt(kind=kind, pattern=pattern, label_words=("a",))
    if given is None:
        chosen = _choose_words(draft, classes, words, plain, tokenizer)
    elif len(chosen := [*texts(given, "words")]) != len(classes):
        raise UserError(
            f"words={chosen} are {len(chosen)} for the {len(classes)} classes {list(classes)}; "
            f"give one for each."
        )
    return {"natural": {kind: {"pattern": pattern, "label_words": chosen}}}


def _choose_words(
    draft: Draft, classes: Sequence[str], ours: Mapping[str, str], plain: Prompt, tokenizer: Any
) -> list[str]:
    """A word of one token for each class: ours, or its name, or a part of that, or a letter."""

    def single(words: Iterable[str]) -> dict[str, str]:
        """Those of one token each, by the token."""
        given = tuple(dict.fromkeys(words))
        tokens = label_word_tokens(replace(plain, label_words=given), tokenizer, "natural")
        found: dict[str, str] = {}
        for word, of_word in zip(given, tokens, strict=True):
            if len(of_word) == 1 and of_word[0] != tokenizer.unk_token:
                found.setdefault(of_word[0], word)
        return found

    options = {name: single([ours.get(name.lower(), name), *_forms(name)]) for name in classes}
    chosen: dict[str, str] = {}
    for name in classes:
        free = [token for token in options[name] if token not in chosen.values()]
        if free:
            chosen[name] = free[0]
    if lacking := [name for name in classes if name not in chosen]:
        letters = single(LETTERS)
        spare = [token for token in letters if token not in chosen.values()]
        if len(spare) < len(lacking):
            raise UserError(
                f"The names of the classes {shown(lacking)} have no word of one token for "
                f"{tokenizer.name_or_path}; give one for each class with words=[...]."
            )
        chosen |= dict(zip(lacking, spare, strict=False))
        options |= {name: letters for name in lacking}
        draft.ask(
            "prompts",
            f"No word in the names of {shown(lacking)} is one token of this model, so letters and "
            f"digits stand for them. Which words that are one can stand for them?",
        )
    words = {name: options[name][chosen[name]] for name in classes}
    known = [name for name in classes if words[name] == ours.get(name.lower())]
    other = [
        f"{words[name]!r} for {name!r}"
        for name in classes
        if name not in [*known, *lacking] and words[name].lower() != name.lower()
    ]
    if known:
        draft.ask("prompts", "The label words are those of a task of ours. Do they fit this one?")
    if other:
        draft.ask(
            "prompts", f"Names of several tokens: does a word of them do? {', '.join(other)}."
        )
    _ask_for_more(draft, {name: options[name] for name in classes if name not in lacking}, chosen)
    return [*words.values()]


def _ask_for_more(
    draft: Draft, options: Mapping[str, Mapping[str, str]], chosen: Mapping[str, str]
) -> None:
    """Ask whether a class has more label words than one."""
    times = Counter(token for each in options.values() for token in each)
    more = {
        name: [
            word
            for token, word in each.items()
            if times[token] == 1 and token not in chosen.values()
        ]
        for name, each in options.items()
    }
    known = "; ".join(f"{shown(name)}: {', '.join(words)}" for name, words in more.items() if words)
    draft.ask(
        "prompts",
        "More words a class? more_words lists them below label_words, and runs with words=5 find "
        f"some.{' One token too are, of ' + known + '.' if known else ''}",
    )


def _forms(name: str) -> list[str]:
    """Words that may stand for a class: its name as spelled in some ways, then parts of it."""
    parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    words = [name.strip(), *sorted(parts, key=len, reverse=True)]
    return [form for word in words if word for form in (word, word.lower(), word.capitalize())]


def _check_column(name: str, columns: Columns, key: str, where: str) -> None:
    """Raise UserError if there is no such column."""
    if name not in columns:
        raise UserError(
            f"{key} names {name!r}, and {where} has the columns {shown(list(columns))}; choose "
            f"from these."
        )


def _check_names(fields: Sequence[str], where: str) -> None:
    """Raise UserError if a pattern could not have a column's name in braces."""
    taken = (MASK, FILLER, HOLE)
    if wrong := [name for name in fields if name in taken or not PLACEHOLDER.fullmatch(name)]:
        raise UserError(
            f"{where} has a column of texts called {wrong[0]!r}, which cannot stand in braces in a "
            f"pattern; rename it."
        )


def _classes(column: Sequence[object]) -> Counter[str]:
    """How many rows have each label; rows without one are left out."""
    found = map(spelled, column)
    return Counter(text for text in found if text is not None and text not in ("", *NO_LABEL))


def _unlabelled(column: Sequence[object]) -> int:
    return sum(spelled(value) in NO_LABEL for value in column)


def _no_labels(column: Sequence[object]) -> str | None:
    """Why a column is not one of labels; None if it can be."""
    classes = _classes(column)
    if not classes:
        return "no value that can be a label"
    if len(classes) == 1:
        beside = " beside -1 or -, which mean no label" * bool(_unlabelled(column))
        return f"one class, {shown(next(iter(classes)))}{beside}"
    if len(classes) > classes.total() / 2:
        return f"{len(classes)} values in {classes.total()} rows, as texts have"
    if len(classes) > MOST_CLASSES:
        return f"{len(classes)} values, of which classes may have {MOST_CLASSES}"
    if len(longest := max(classes, key=len)) > LONGEST_CLASS:
        return f"values of {len(longest)} characters, {shown(longest)}"
    return None


def _examples(column: Sequence[object]) -> str:
    names = [*_classes(column)]
    return ", ".join(map(shown, names[:3])) + ", ..." * (len(names) > 3)


def _words(column: Sequence[object]) -> float:
    """Words of a column's texts, on average; 0 if it has others than texts, or one alone."""
    values = [value for value in column if isinstance(value, str)]
    if len(values) < len(column) or len({*values}) < 2:
        return 0.0
    if all(re.fullmatch(r"[-+]?[\d.,:e/-]*", value.strip()) for value in values):
        return 0.0
    return fmean(len(value.split()) for value in values)


def _number(name: str) -> int | None:
    return int(name) if re.fullmatch(r"[0-9]+", name) else None


def _known(classes: Sequence[str]) -> Task | None:
    """A task of ours with these classes, however their letters are written."""
    names = sorted(map(str.lower, classes))
    ours = (Task.named(name) for name in tasks() if "/" not in name)
    return next((task for task in ours if sorted(map(str.lower, task.classes)) == names), None)


def _comment(text: str, mark: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=mark, subsequent_indent="#".ljust(len(mark)),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
