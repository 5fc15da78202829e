"""Output files: they appear whole or not at all, and none is replaced unasked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfolora.errors import UserError


def check_new(output: Path, *, overwrite: bool) -> None:
    """Raise UserError if an output is there that is to be kept."""
    if output.exists() and not overwrite:
        raise UserError(
            f"output={output} exists; give another, or set overwrite=true to replace it."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context that gives a place to write to, which takes the output's when all is written."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
