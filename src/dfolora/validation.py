"""Checks plain values, as read from YAML; each error names the key."""

import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dfolora.errors import UserError

MOST_WHOLE = 2**63 - 1
"""The largest integer that libraries and stores can hold."""
LEAST_POSITIVE, MOST_POSITIVE = 2.0**-126, 3.4028234e38
"""The range of positive float32 numbers."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = 20


def shown(value: object) -> str:
    """A short form of a value for messages: its beginning and its end."""
    return _SHORT.repr(value)


def check_keys(
    data: Mapping[str, Any],
    where: str,
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Raise UserError if a required key is missing or a key is unknown."""
    required, optional = tuple(required), tuple(optional)
    if missing := [key for key in required if key not in data]:
        raise UserError(f"{where} lacks {missing}; it needs {list(required)}.")
    if unknown := [key for key in data if key not in (*required, *optional)]:
        raise UserError(f"{where} has unknown keys {unknown}; known: {[*required, *optional]}.")


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return the value if it is a mapping with text keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} must be a mapping with text keys, got {value!r}.")
    return value


def text(value: object, where: str, *, empty: bool = False) -> str:
    """Return the value if it is text; ``empty`` allows the empty string."""
    if isinstance(value, str) and (value or empty):
        return value
    advice = " (YAML reads a bare Yes or No as a truth value: quote it)" * isinstance(value, bool)
    if value is None and where.isidentifier():
        advice = f"; set {where}=VALUE"
    raise UserError(f"{where} must be {'' if empty else 'non-empty '}text, got {value!r}{advice}.")


def text_or_none(value: object, where: str) -> str | None:
    """Return the value if it is text or None."""
    return None if value is None else text(value, where)


def texts(value: object, where: str, *, distinct: bool = True) -> tuple[str, ...]:
    """Return the values if they are a list of texts, distinct unless said otherwise."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{where} must be a list of texts, got {value!r}.")
    texts = tuple(text(item, f"{where}[{i}]") for i, item in enumerate(value))
    if distinct and len(set(texts)) < len(texts):
        raise UserError(f"{where} repeats an entry: {list(texts)}.")
    return texts


def file_name(value: object, where: str) -> str:
    """Return the value if it is a safe file name: it cannot lead out of a folder."""
    name = text(value, where)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{where}={name!r} becomes the name of a file; write letters, digits, '.', '_' and '-' "
            f"alone, and no '.' or '-' first."
        )
    return name


def flag(value: object, where: str) -> bool:
    """Return the value if it is a boolean."""
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, got {value!r}.")
    return value


def positive(value: object, where: str) -> float:
    """Return the value if it is a positive number within float32's range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{where}={value} must be a positive number.")
    if not LEAST_POSITIVE <= value <= MOST_POSITIVE:
        raise UserError(
            f"{where}={value} must be a positive number between {LEAST_POSITIVE:.1e} and "
            f"{MOST_POSITIVE:.1e}, which models can compute with."
        )
    return value


def not_negative(value: object, where: str) -> float:
    """Return the value if it is 0 or a positive number within float32's range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UserError(f"{where}={value} must be 0 or a positive number.")
    return value if value == 0 else positive(value, where)


def whole(value: object, where: str, *, least: int) -> int:
    """Return the value if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{where}={value} must be a whole number, {least} or more.")
    if value > MOST_WHOLE:
        raise UserError(f"{where}={value} must be a whole number below 2^63.")
    return value


def choice(value: object, where: str, choices: Collection[str]) -> None:
    """Raise UserError if the value is not one of the choices."""
    if value not in tuple(choices):  # as a tuple, for some values have no hash
        raise UserError(f"Unknown {where}={value}; choose one of {', '.join(choices)}.")


def share(value: object, where: str) -> float:
    """Return the value if it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{where}={value} must be a probability, from 0 to 1.")
    return value


def subset(
    value: object, where: str, choices: Collection[object], *, shown: str | None = None
) -> None:
    """Raise UserError if the value is not a non-empty list of distinct choices.

    Args:
        value: The given value.
        where: Its key.
        choices: What the list may hold.
        shown: How the message lists the choices; None lists each of them.
    """
    given = list(value) if isinstance(value, list | tuple) else []
    # By type too, for True is 1 and 1.0 is no layer; and as lists, for some values have no hash.
    known = [(type(choice), choice) for choice in choices]
    typed = [(type(item), item) for item in given]
    once = all(item not in typed[:place] for place, item in enumerate(typed))
    if not given or not once or not all(item in known for item in typed):
        raise UserError(
            f"Got {where}={value}; choose a non-empty subset of "
            f"{shown or ', '.join(map(str, choices))}, each at most once."
        )
