"""The journal of a fit: one JSON line per question and answer, written before the next."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

from dfolora.errors import UserError

Line = Mapping[str, Any]
"""A question, its answer and ``seconds`` of work on the fit up to then, as one JSON object."""


class Journal:
    """The memo of one fit, in a file that outlives the process; a context, which closes it.

    A fit that goes on asks again what it asked before, and gets the answers at once: its questions
    depend on its seed and the answers alone, and these are kept exactly (a float's ``repr`` reads
    back the same). Each line ends with a checksum of all lines so far. A last line that was not
    written to its end is dropped.

    Args:
        path: Continued if there is one.
        key: Of the fit; checksums begin with it, so no other fit's lines are taken for its own.

    Raises:
        UserError: A line before the last is damaged, or of another fit.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._check = crc32(key.encode())
        self.lines: list[Line] = []
        """Those that were there at first."""
        self._asked = 0
        self._file: TextIO | None = None
        if path.exists():
            self._read()
        self._zero = time.perf_counter() - (self.lines[-1]["seconds"] if self.lines else 0.0)

    def __enter__(self) -> "Journal":
        """Return the journal."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def seconds(self) -> float:
        """Seconds of work on the fit so far, by this and earlier processes."""
        return time.perf_counter() - self._zero

    def __call__(self, question: Line, compute: Callable[[], Line]) -> Line:
        """The line of a question: read from the journal, or computed and written.

        Args:
            question: Of JSON's types and finite numbers, as is the answer; tuples become lists.
            compute: Gives the answer.

        Raises:
            UserError: The journal has another question in its place.
        """
        question = _plain(question)
        if self._asked < len(self.lines):
            kept = self.lines[self._asked]
            self._asked += 1
            if any(kept.get(key) != value for key, value in question.items()):
                raise UserError(
                    f"Line {self._asked} of {self._path} answers another question than this fit "
                    f"asks, so that other code, libraries or data wrote it. Go on with those, or "
                    f"delete {self._path.parent} to begin the run anew."
                )
            return kept
        line = _plain({**question, **compute(), "seconds": self.seconds})
        text = json.dumps(line)
        self._check = crc32(text.encode(), self._check)
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(_checked(text, self._check))
        self._file.flush()
        return line

    def _read(self) -> None:
        *lines, _torn = self._path.read_bytes().split(b"\n")
        for number, raw in enumerate(lines, 1):
            try:
                line = json.loads(raw)
                del line["check"]
                text = json.dumps(line)
                check = crc32(text.encode(), self._check)
                sound = _checked(text, check).encode() == raw + b"\n"
            except (ValueError, TypeError, KeyError):
                sound = False
            if not sound:
                raise UserError(
                    f"Line {number} of {self._path} is damaged, or of another run. Delete "
                    f"{self._path.parent} to begin the run anew."
                )
            self.lines.append(line)
            self._check = check
        with self._path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))


def _plain(line: Line) -> Line:
    """A value as JSON reads it back."""
    return dict(json.loads(json.dumps(line, allow_nan=False)))


def _checked(text: str, check: int) -> str:
    """A line of the file: the object with its checksum as a last entry."""
    return f'{text[:-1]}, "check": "{check:08x}"}}\n'
