"""Errors of the store."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from dfolora.errors import ResourceError


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a store that does not work."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def reason_of(error: Exception) -> str:
    """The error's message in one line."""
    return str(error).strip().partition("\n")[0].removesuffix(".") or type(error).__name__


@contextmanager
def asking() -> Iterator[None]:
    """A context that turns failures of the store into a ResourceError."""
    try:
        yield
    except failures() as error:
        raise ResourceError(f"The tracking store failed: {reason_of(error)}.") from error
