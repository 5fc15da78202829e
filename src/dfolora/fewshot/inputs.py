"""Checks and normalises X, y and label words as scikit-learn's users pass them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfolora.data import FILLER, MASK, Dataset, LabelWordStyle, Prompt, Rows, Task, rows_of
from dfolora.errors import UserError
from dfolora.validation import shown

LABEL = "label of the row"
"""The label's column; no placeholder is called so."""

GIVEN = "given"
"""The variant that a prompt without a task of its own is."""

KINDS = {"truth values": (bool, np.bool_), "whole numbers": (int, np.integer), "texts": (str,)}
"""What labels can be, by type; a bool is an int too, so it comes first."""


def task_of(
    prompt: Prompt,
    classes: Iterable[Any],
    *,
    fields: Sequence[str] | None = None,
    replace: Mapping[str, str] | None = None,
    strip: bool = False,
) -> Task:
    """A prompt with its classes, as a task without rows of its own.

    Args:
        prompt: With a label word for each class.
        classes: In the order of their words.
        fields: Those of a row; None for those that the pattern shows.
        replace: As of a task.
        strip: As of a task.

    Raises:
        UserError: The pattern shows nothing of a row.
    """
    named = (name for name in prompt.placeholders if name not in (MASK, FILLER))
    return Task(
        name="few-shot",
        title="few-shot",
        dataset=Dataset(path=GIVEN),
        fields=tuple(dict.fromkeys(named) if fields is None else fields),
        label=LABEL,
        classes=tuple(map(str, classes)),
        metric="accuracy",
        prompts={GIVEN: {prompt.kind: prompt}},
        replace=replace or {},
        strip=strip,
    )


def word_style(prompt: Prompt) -> LabelWordStyle:
    """Whether a word that answers stands after a space: a tokenizer may have two of it."""
    after_space = prompt.kind == "causal" or re.search(r"\s\{mask\}", prompt.pattern)
    return "natural" if after_space else "released"


def read_rows(
    X: Any,  # noqa: N803
    task: Task,
    where: str,
    labels: Sequence[int] | None = None,
    *,
    before: int = 0,
) -> Rows:
    """Rows of texts, or of mappings with the prompt's fields.

    Args:
        X: N texts, N mappings from field to text, or a pandas DataFrame.
        task: Whose fields.
        where: What ``X`` is called.
        labels: ``(N,)``; None where they do not matter.
        before: The number of rows before these, for messages.

    Raises:
        UserError: ``X`` is something else, or lacks text somewhere.
    """
    if hasattr(X, "to_dict") and hasattr(X, "columns"):  # pandas: iterating gives column names
        X = X.to_dict("records")  # noqa: N806
    rows = _listed(X, where, "a list of texts, or of mappings with a text for each field")
    if labels is not None and len(rows) != len(labels):
        raise UserError(f"{where} has {len(rows)} rows, y {len(labels)}; give one label a row.")
    are_texts = {isinstance(row, str) for row in rows if isinstance(row, str | Mapping)}
    if len(are_texts) > 1:
        raise UserError(f"{where} mixes texts and mappings; give rows of one kind.")
    if are_texts == {False}:
        for number, row in enumerate(rows, before + 1):
            if isinstance(row, Mapping) and (missing := sorted({*task.fields} - {*row})):
                raise UserError(
                    f"{where}, row {number} lacks the fields {missing} of the prompt; it has "
                    f"{shown(list(row))}."
                )
    elif len(task.fields) > 1:
        raise UserError(
            f"{where} holds texts, but the prompt has the fields {list(task.fields)}; give a "
            f"mapping with these for each row."
        )
    columns = {
        field: [row[field] if isinstance(row, Mapping) else row for row in rows]
        for field in task.fields
    }
    numbered = columns | {LABEL: labels or [0] * len(rows)}
    given = rows_of(task, numbered, where, range(len(task.classes)), before=before)
    for number, texts in enumerate(given.texts, before + 1):
        if not any(text.strip() for text in texts.values()):
            raise UserError(f"{where}, row {number} has no text; leave it out.")
    return given


def read_labels(y: Any, where: str) -> NDArray[Any]:
    """Labels, all of one kind: ``(N,)``.

    Raises:
        UserError: One is neither a whole number, a text nor a truth value, or they are mixed.
    """
    labels = _listed(y, where, "a list of labels")
    kinds = [_kind(label) for label in labels]
    if None in kinds:
        wrong = kinds.index(None)
        raise UserError(
            f"{where}, row {wrong + 1} is {shown(labels[wrong])}; a label is a whole number, a "
            f"text or a truth value: convert them, or leave such rows out."
        )
    if len(mixed := sorted({str(kind) for kind in kinds})) > 1:
        raise UserError(f"{where} mixes {' and '.join(mixed)}; give labels of one kind.")
    return np.array(labels)


def check_kind(labels: NDArray[Any], classes: NDArray[Any], where: str) -> None:
    """Raise UserError if labels are not of the classes' kind: "1" is not 1."""
    given, known = _kind(labels[0]), _kind(classes[0])
    if given != known:
        raise UserError(
            f"{where} holds {given}, but the classes are {known}, {shown(classes.tolist())}; "
            f"convert them."
        )


def words_of(words: Any, classes: NDArray[Any]) -> tuple[str, ...]:
    """A word for each class, in the order of the classes ``(C,)``.

    Args:
        words: A mapping from class to word, or words in the order of ``classes``.
        classes: Sorted.

    Raises:
        UserError: The number or the order is wrong.
    """
    names = classes.tolist()
    if isinstance(words, Mapping):
        if {*words} != {*names}:
            raise UserError(
                f"words are for {shown(list(words))}, the classes of y are {shown(names)}; give "
                f"one word for each of these."
            )
        words = [words[name] for name in names]
    elif isinstance(words, str) or not isinstance(words, Sequence | np.ndarray):
        raise UserError(
            f"words={shown(words)} must be a mapping from class to word, or a list of words in "
            f"the order of the sorted classes {shown(names)}."
        )
    listed = list(words)
    if wrong := [word for word in listed if not isinstance(word, str) or not word.strip()]:
        raise UserError(f"words hold {shown(wrong[0])}, which is no word; give a text a class.")
    if len(listed) != len(names):
        raise UserError(
            f"Got {len(listed)} words {shown(listed)} for {len(names)} classes {shown(names)}; "
            f"give one word per class."
        )
    if listed != names and {*listed} == {*names}:
        raise UserError(
            f"words={shown(listed)} are the classes in another order than {shown(names)}, in which "
            f"they would be taken; give a mapping from class to word."
        )
    return tuple(str(word) for word in listed)


def _listed(values: Any, where: str, needed: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UserError(f"{where} is {shown(values)}; give {needed}.")
    if not (listed := list(values)):
        raise UserError(f"{where} is empty; give {needed}.")
    return listed


def _kind(label: object) -> str | None:
    return next((name for name, types in KINDS.items() if isinstance(label, types)), None)
