"""What the values of a label column stand for: one rule for every format."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress

from dfolora.errors import UserError
from dfolora.validation import shown

UNLABELLED = -1
"""The hub's label of rows without a gold label."""
NO_LABEL = ("-1", "-")
"""How files spell that, unless a class is called so."""

Reading = Mapping[str | None, int | None]
"""From a value's spelling to its class; None where it has none."""


def read_labels(
    column: Sequence[object],
    classes: Sequence[str],
    source: str,
    labels: Sequence[object] | None = None,
) -> list[int]:
    """Classes of a part's rows, ``UNLABELLED`` where there is none.

    A label is the name of its class or its position, all of a part the same, whatever the format:
    1, 1.0 and "1" are one label, and so are true and "True". What both could be is refused.

    Args:
        column: Values, ``(N,)``.
        classes: Names, ``(C,)``.
        source: Where the values are from, for messages.
        labels: What stands for each class in the column, ``(C,)``; None for names or positions.

    Raises:
        UserError: A value stands for no class, or it is unclear for which.
    """
    spellings = [spelled(value) for value in column]
    seen = dict.fromkeys(spellings)
    if labels is not None:
        known = _numbered(labels, "data.labels")
        reading = _reading(seen, known)
    else:
        known = {str(place): place for place in range(len(classes))}
        named, placed = _reading(seen, _numbered(classes, "classes")), _reading(seen, known)
        if None not in named.values():
            if None not in placed.values() and named != placed:
                raise UserError(_two_readings(named, placed, classes, source))
            reading = named
        else:
            reading = placed
            if None in placed.values() and all(
                named[text] is not None or placed[text] is not None for text in seen
            ):
                raise UserError(_mixture(named, placed, source))
            if list(named.values()).count(None) < list(placed.values()).count(None):
                reading = named
    found = [reading[text] for text in spellings]
    if None in found:
        raise UserError(_outside(column, found, known, classes, source))
    return [label for label in found if label is not None]


def check_labels(labels: object, classes: Sequence[str]) -> None:
    """Raise UserError if the labels are not one value for each class."""
    if (
        not isinstance(labels, Sequence)
        or isinstance(labels, str)
        or len(labels) != len(classes)
        or any(spelled(label) is None for label in labels)
    ):
        raise UserError(
            f"data.labels={shown(labels)} must be a list of what stands for each of the classes "
            f"{list(classes)}, in this order."
        )
    _numbered(labels, "data.labels")


def spelled(value: object) -> str | None:
    """One spelling for what is the same label in CSV, JSON and Parquet; None for no label."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value.lower() if value.lower() in ("true", "false") else value
        return str(int(number)) if number.is_integer() else value
    if str(value) in ("True", "False"):  # numpy's too
        return str(value).lower()
    try:
        number = float(value)  # type: ignore[arg-type]  # all else raises
    except (TypeError, ValueError, OverflowError):
        return None
    if number.is_integer():
        return str(int(number))
    return str(number) if abs(number) < float("inf") else None


def _numbered(values: Sequence[object], where: str) -> Mapping[str, int]:
    """Positions by spelling."""
    numbered = {str(spelled(value)): place for place, value in enumerate(values)}
    if len(numbered) < len(values):
        raise UserError(f"{where}={list(values)} has two of the same spelling; tell them apart.")
    return numbered


def _reading(seen: Mapping[str | None, object], known: Mapping[str, int]) -> Reading:
    none = {text: UNLABELLED for text in NO_LABEL} | dict(known)
    return {text: None if text is None else none.get(text) for text in seen}


def _two_readings(named: Reading, placed: Reading, classes: Sequence[str], source: str) -> str:
    text = next(text for text in named if named[text] != placed[text])
    first, second = (
        "no label" if label == UNLABELLED else f"class {classes[label or 0]!r}"
        for label in (named[text], placed[text])
    )
    places = ",".join(map(str, range(len(classes))))
    return (
        f"{source} has labels that can be read in two ways: {text} is {first} by name and {second} "
        f"by position. Say which: data.labels=[{','.join(classes)}] for names, "
        f"data.labels=[{places}] for positions."
    )


def _mixture(named: Reading, placed: Reading, source: str) -> str:
    name = next(text for text in placed if placed[text] is None)
    place = next(text for text in named if named[text] is None)
    return (
        f"{source} has labels of two kinds: {name!r} is the name of a class, {place!r} the "
        f"position of one; write all in one way."
    )


def _outside(
    column: Sequence[object],
    found: Sequence[int | None],
    known: Mapping[str, int],
    classes: Sequence[str],
    source: str,
) -> str:
    wrong = [label is None for label in found]
    values = Counter(map(shown, compress(column, wrong))).most_common(5)
    listed = ", ".join(f"{value} ({count} rows)" for value, count in values)
    names = ", ".join(f"{text} {classes[label]}" for text, label in known.items())
    return (
        f"{source} has {sum(wrong)} labels outside the task's classes, first in row "
        f"{wrong.index(True) + 1}: {listed}. Known: {names}; {UNLABELLED} for rows to leave out. "
        f"Where classes are spelled otherwise, say how, in this order, as for labels from 1: "
        f"data.labels=[{','.join(str(place + 1) for place in range(len(classes)))}]."
    )
