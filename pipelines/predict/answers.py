"""What a fit answers to rows: kept while it comes, and written out when it is whole."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dfolora.errors import UserError
from pipelines.outputs import replacing

MARK = b'{"answers of": "pipelines.predict", '
"""What a file of answers so far begins with; any other file is somebody's own."""

Values = Sequence[Any]
"""A row of the output: its id, if asked for, its label and the probability of each class; these are
None if there are none."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Those to the rows of one chunk."""

    probabilities: Sequence[Sequence[float] | None]
    """Of the classes, ``(N, C)``; None where the model gave NaN or infinity."""
    cut: int
    """Rows that lost text to the length limit."""
    ids: Sequence[Sequence[str | int]]
    """Each row's id alone, ``(N, 1)``; ``(N, 0)`` where none is asked for."""


@dataclass
class Tally:
    """Rows by what became of them."""

    classes: Sequence[Any]
    id: str | None = None
    """The column of the ids."""
    labels: Counter[Any] = field(default_factory=Counter)
    cut: int = 0

    @property
    def columns(self) -> list[str]:
        """The output's."""
        return [*([] if self.id is None else [self.id]), *columns_of(self.classes)]

    def rows(self, answers: Answers) -> Iterator[Values]:
        """The output's rows, which are counted."""
        self.cut += answers.cut
        for ids, row in zip(answers.ids, answers.probabilities, strict=True):
            label = None if row is None else self.classes[row.index(max(row))]
            self.labels[label] += 1
            yield *ids, label, *(row or (None,) * len(self.classes))

    def __str__(self) -> str:
        """In words."""
        known = ", ".join(f"{self.labels[name]:,} {name}" for name in self.classes)
        unknown = (
            f"; without a label, for the model gave NaN or infinity: {self.labels[None]:,}"
            if self.labels[None]
            else ""
        )
        return f"{self.labels.total():,} rows: {known}; cut: {self.cut:,}{unknown}"


class Partial:
    """The answers so far, in a file: a line for each chunk. A context, which closes it.

    Until then no other command is at the file, nor at the output, if this is written within.

    Args:
        path: The file. One of the same identity is gone on with, any other is begun anew.
        identity: What the answers depend on.

    Raises:
        UserError: Another command is at it, or no command wrote it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.chunks = 0
        self.rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path)
        head = MARK + json.dumps(identity).encode()[1:] + b"\n"
        self._file.seek(0)
        whole = len(head) if self._file.readline() == head else 0
        for line in self._file if whole else ():
            if not line.endswith(b"\n"):  # as it was broken off
                break
            whole += len(line)
            self.chunks += 1
            self.rows += len(json.loads(line)["probabilities"])
        self._file.truncate(whole)
        if not whole:
            self._file.write(head)

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._file.close()

    def add(self, answers: Answers) -> None:
        """Write the next chunk's."""
        self._file.write(json.dumps(asdict(answers)).encode() + b"\n")
        self._file.flush()
        self.chunks += 1

    def __iter__(self) -> Iterator[Answers]:
        """All of them, from the file."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield Answers(**json.loads(line))


def check_ours(path: Path) -> None:
    """Raise UserError if there is a file that no command wrote its answers so far to."""
    if path.is_dir() or (path.exists() and not _is_ours(path)):
        raise UserError(
            f"{path} is where this command keeps its answers so far, and it is a file or folder of "
            f"another kind; move it, or give another output."
        )


def _is_ours(path: Path) -> bool:
    """Whether a file begins as ours do, or is the beginning of such a one."""
    with path.open("rb") as file:
        return MARK.startswith(file.read(len(MARK)))


def _locked(path: Path) -> IO[bytes]:
    """A file of ours, made where there is none, that no other command has until it is closed."""
    while True:
        file = path.open("a+b")
        try:
            flock(file, LOCK_EX | LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                check_ours(path)
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            file.close()
            raise UserError(f"{path} is being written by another command; let it end.") from error
        except UserError:
            file.close()
            raise
        file.close()  # who had it removed it in between


def columns_of(classes: Sequence[Any]) -> list[str]:
    """The columns of what is said of a row."""
    return ["label", *(f"probability_{name}" for name in classes)]


def json_line(columns: Sequence[str], row: Values) -> str:
    """A row of JSON Lines."""
    return json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n"


def write(path: Path, tally: Tally, chunks: Iterable[Answers]) -> None:
    """Write an output, at once or not at all.

    Args:
        path: The output; its ending is one of ``WRITERS``.
        tally: Counts the rows.
        chunks: Read one by one.
    """
    with replacing(path) as part:
        WRITERS[path.suffix](part, tally, (list(tally.rows(each)) for each in chunks))


def _write_csv(path: Path, tally: Tally, chunks: Iterable[list[Values]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(tally.columns)
        for rows in chunks:
            writer.writerows(rows)


def _write_jsonl(path: Path, tally: Tally, chunks: Iterable[list[Values]]) -> None:
    columns = tally.columns
    with path.open("w", encoding="utf-8") as file:
        for rows in chunks:
            file.writelines(json_line(columns, row) for row in rows)


def _write_parquet(path: Path, tally: Tally, chunks: Iterable[list[Values]]) -> None:
    import pyarrow as pa  # late, for few outputs need it
    import pyarrow.parquet as pq

    first = next(chunks := iter(chunks))
    ids = [] if tally.id is None else [pa.array([first[0][0]]).type]  # all are of one kind
    types = [*ids, pa.array([*tally.classes]).type, *[pa.float64()] * len(tally.classes)]
    schema = pa.schema(list(zip(tally.columns, types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for rows in chain([first], chunks):
            columns = zip(zip(*rows, strict=True), types, strict=True)
            arrays = [pa.array(values, kind) for values, kind in columns]
            writer.write_table(pa.table(arrays, schema=schema))


WRITERS: Mapping[str, Callable[[Path, Tally, Iterable[list[Values]]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
"""By ending."""
