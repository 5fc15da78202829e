"""A fit's journal: one JSON line a step, on disk before the next one starts."""

import json
import math
from pathlib import Path
from typing import TextIO

from dfolora.methods import Step


class Journal:
    """Appends steps to a file; a context, which closes it.

    Together with the configuration the lines of a search determine it: optimizers are functions of
    their seed and of the losses, which are kept exactly (a float's ``repr`` reads back the same;
    null stands for no finite number).

    Args:
        path: A new file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "Journal":
        """The journal itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def append(self, step: Step) -> None:
        """Write one line and flush it."""
        line = {
            "calls": step.calls,
            "losses": [x if math.isfinite(x) else None for x in step.losses.tolist()],
            **step.journaled(),
        }
        if self._file is None:  # a method that searches nothing leaves no file
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
