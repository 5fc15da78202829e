"""A fit's journal: one JSON line a step, on disk before the next one starts, and read back."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

import numpy as np

from dfolora.errors import UserError
from dfolora.methods import Past, Progress
from dfolora.search import Seen

Line = Mapping[str, Any]
"""A step: ``calls``, ``losses``, ``loss``, ``step_size``, what else it journals, ``looks`` (calls,
score and loss of each), ``seconds`` and ``memory_mb``."""

COMMON = ("calls", "losses", "loss", "step_size", "looks", "seconds", "memory_mb")
"""What every step's line has."""

AROUND = ("seconds", "memory_mb")
"""Of a line, what the same step need not have again."""


class Journal:
    """The steps of one fit in a file that outlives who writes it; a context, which closes it.

    Together with the configuration the lines of a search determine it: optimizers are functions of
    their seed and of the losses, which are kept exactly (a float's ``repr`` reads back the same;
    null stands for no finite number). Each line ends with a checksum of all lines so far. A last
    line that was not written to its end is dropped.

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
        self._told = 0
        self._file: TextIO | None = None
        if path.exists():
            self._read()

    def __enter__(self) -> "Journal":
        """The journal itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def past(self) -> Sequence[Past]:
        """The steps of ``lines``."""
        return [
            Past(
                losses=np.array([_loss(loss) for loss in line["losses"]]),
                looks=[Seen(score, _loss(loss)) for _calls, score, loss in line["looks"]],
                journaled={key: value for key, value in line.items() if key not in COMMON},
            )
            for line in self.lines
        ]

    @property
    def seconds(self) -> float:
        """When the last of them ended; 0 without any."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    @property
    def megabytes(self) -> Mapping[str, float]:
        """The peaks of memory up to then, by what measured them."""
        return self.lines[-1]["memory_mb"] if self.lines else {}

    def take(self, progress: Progress, seconds: float, megabytes: Mapping[str, float]) -> Line:
        """Write a step down, or find that it is there already.

        Args:
            progress: The next step.
            seconds: Since the fit began, without those in which nobody worked on it.
            megabytes: Peaks of memory so far.

        Returns:
            Its line, with the seconds and peaks from when it was first written.

        Raises:
            UserError: The journal has another step in its place.
        """
        line = _step(progress) | {"seconds": seconds, "memory_mb": dict(megabytes)}
        self._told += 1
        if self._told <= len(self.lines):
            kept = self.lines[self._told - 1]
            if any(kept.get(key) != line[key] for key in line if key not in AROUND):
                raise UserError(
                    f"Step {self._told} is not the one in {self._path}, so that other code, "
                    f"libraries or data wrote it. Go on with those, or delete "
                    f"{self._path.parent} to begin the run anew."
                )
            return kept
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


def _step(progress: Progress) -> dict[str, Any]:
    step = progress.step
    return {
        "calls": step.calls,
        "losses": [_plain(loss) for loss in step.losses.tolist()],
        "loss": _plain(step.loss),
        "step_size": _plain(step.step_size),
        **step.journaled(),
        "looks": [[look.calls, look.score, _plain(look.loss)] for look in progress.looks],
    }


def _plain(number: float) -> float | None:
    """As JSON has it, which knows finite numbers alone."""
    return number if math.isfinite(number) else None


def _loss(plain: float | None) -> float:
    return math.inf if plain is None else plain


def _checked(text: str, check: int) -> str:
    """A line of the file: the object with its checksum as a last entry."""
    return f'{text[:-1]}, "check": "{check:08x}"}}\n'
