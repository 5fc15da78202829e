"""What goes wrong with a store."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from dfolora.errors import ResourceError


def failures() -> tuple[type[Exception], ...]:
    """What a store raises that cannot be used."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def reason_of(error: Exception) -> str:
    """The error in one line."""
    return str(error).strip().partition("\n")[0].removesuffix(".") or type(error).__name__


@contextmanager
def asking() -> Iterator[None]:
    """Within, a failure of the store is a ResourceError."""
    try:
        yield
    except failures() as error:
        raise ResourceError(f"The tracking store fails: {reason_of(error)}.") from error
