"""Errors, by who can fix them; any other exception is an internal error."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A configuration, file or model given by the user is wrong.

    The message says what was given, what is needed and what to do. Entry points print it without a
    traceback.
    """


class ResourceError(Exception):
    """The machine or the store lacks a resource: disk space, memory, a connection.

    The message says what is missing and what is kept. Entry points print it without a traceback.
    """


SHORTAGES = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}
SAID = re.compile(
    "out of memory|can't allocate memory|not enough memory|no space left on device|disk is full"
    r"|STATUS_\w*ALLOC\w*_FAILED",  # of cuBLAS and cuDNN
    re.IGNORECASE,
)
"""What libraries say of a shortage in errors that have no type or number of their own."""


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory, disk space or files ran out."""
    return error is not None and (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) in SHORTAGES
        or bool(SAID.search(str(error)))
        or is_shortage(error.__cause__ or error.__context__)
    )


@contextmanager
def explained(say: Callable[[Exception], str]) -> Iterator[None]:
    """Turn a library's errors into one that says what the user can do.

    Args:
        say: From the error to the message.

    Raises:
        UserError: The library refuses what the user gave.
        ResourceError: Memory, disk space or files ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise ResourceError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        raise UserError(say(error)) from error


@contextmanager
def installed(extra: str) -> Iterator[None]:
    """Around imports of packages that come with one of this package's extras.

    Raises:
        UserError: One is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed, which this needs: pip install 'dfolora[{extra}]'."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what a library says; some say nothing."""
    return str(error).strip().partition("\n")[0] or repr(error)
