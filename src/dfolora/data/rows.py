"""The rows and labels of a task: from local files, the embedded mini world, or the hub."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from dfolora.data.task import Task
from dfolora.errors import UserError, explained, installed
from dfolora.mini import world
from dfolora.validation import shown

Part = Literal["train", "test"]
"""``train`` is what few-shot train and dev rows are drawn from."""

Columns = Mapping[str, Sequence[object]]

UNLABELLED = -1
"""The hub's label of rows without a gold label."""

MOST_BYTES = 20_000_000
"""The longest line of a JSON Lines file, in bytes."""
MOST_CHARACTERS = 1_000_000
"""The longest text; tokenizing takes about a hundred times its memory."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Labelled rows, cleaned as the task says."""

    texts: tuple[Mapping[str, str], ...]
    """Field name to text, ``(N,)``."""
    labels: tuple[int, ...]
    """Classes, ``(N,)``."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, numbers: Iterable[int]) -> "Rows":
        """The rows with the given numbers, in that order.

        Args:
            numbers: Row numbers, such as `FewShotSplit.train`.
        """
        numbers = tuple(numbers)
        return Rows(
            texts=tuple(self.texts[i] for i in numbers),
            labels=tuple(self.labels[i] for i in numbers),
        )


def load_rows(task: Task, part: Part, *, root: str | Path | None = None) -> Rows:
    """The labelled rows of one part of a task.

    Args:
        task: Whose rows.
        part: ``train`` or ``test``.
        root: A folder with one folder of files per task, ``<root>/<task.name>/train.jsonl`` and so
            on, read instead of the task's own source. A file may be named by ``part`` or by the
            hub's split (``validation.jsonl``), the latter preferred where both exist, as the hub's
            ``test`` files of GLUE have no labels. JSON Lines, JSON, CSV, TSV (unquoted, as GLUE's)
            and Parquet are known.

    Raises:
        UserError: If the rows could not be loaded or do not fit the task.
    """
    if root is not None:
        columns, source = _from_files(task, part, Path(root))
    elif task.dataset.path.partition(":")[0] == "mini":
        columns, source = _from_mini_world(task, part), f"mini world, {task.name} {part}"
    else:
        columns, source = _from_hub(task, part)
    return rows_of(task, columns, source)


def fingerprint(rows: Rows) -> str:
    """SHA-256 of all labels and texts, in hexadecimal.

    Args:
        rows: Whose fingerprint; one JSON line per row is hashed, so that no two differ alike.
    """
    digest = sha256()
    for label, text in zip(rows.labels, rows.texts, strict=True):
        digest.update(json.dumps([label, dict(text)]).encode() + b"\n")
    return digest.hexdigest()


def rows_of(task: Task, columns: Columns, source: str) -> Rows:
    """Rows from raw columns, checked and cleaned as the task says.

    Args:
        task: Whose rows.
        columns: Values by column name, each ``(N,)``: the task's fields and its label.
        source: Where they are from, for messages.

    Raises:
        UserError: They do not fit the task.
    """
    needed = [*task.fields, task.label]
    if not columns:
        raise UserError(f"{source} holds no rows; it needs some, with the columns {needed}.")
    if missing := [name for name in needed if name not in columns]:
        raise UserError(
            f"{source} lacks the columns {missing}; it has {shown(list(columns))}, "
            f"task {task.name} needs {needed}."
        )
    labels = _labels(columns[task.label], task.classes, source)
    kept = [row for row, label in enumerate(labels) if label != UNLABELLED]
    if not kept:
        raise UserError(f"{source} has no labelled rows ({len(labels)} rows in all).")
    cleaned = {field: _texts(columns[field], field, task, source) for field in task.fields}
    return Rows(
        texts=tuple({field: cleaned[field][row] for field in task.fields} for row in kept),
        labels=tuple(labels[row] for row in kept),
    )


def _texts(column: Sequence[object], field: str, task: Task, source: str) -> list[str]:
    return [_clean(text, task, f"{source}, row {n}, {field!r}") for n, text in enumerate(column, 1)]


def _clean(text: object, task: Task, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where} is not text: {shown(text)}; mend the row or leave it out.")
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{where} has {len(text):,} characters, a text may have {MOST_CHARACTERS:,}; shorten "
            f"it or leave the row out."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" alone, which JSON can spell
        raise UserError(f"{where} is no valid Unicode: {error}; mend the row.") from error
    for old, new in task.replace.items():
        text = text.replace(old, new)
    return text.strip() if task.strip else text


def _labels(column: Sequence[object], classes: Sequence[str], source: str) -> list[int]:
    labels = [_label(value, classes) for value in column]
    wrong = [n for n, label in enumerate(labels) if label is None]
    if wrong:
        values = Counter(shown(column[n]) for n in wrong).most_common(5)
        listed = ", ".join(f"{value} ({count} rows)" for value, count in values)
        known = ", ".join(f"{label} {name}" for label, name in enumerate(classes))
        raise UserError(
            f"{source} has {len(wrong)} labels outside the task's classes, first in row "
            f"{wrong[0] + 1}: {listed}. Known: {known}; {UNLABELLED} for rows to leave out."
        )
    return [label for label in labels if label is not None]


def _label(value: object, classes: Sequence[str]) -> int | None:
    """A class number from a number, its digits (CSV) or a class name; None if it is none."""
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy scalars, digits; all else raises
    except (TypeError, ValueError, OverflowError):
        return None
    label = int(number) if number.is_integer() else None
    return label if label in (UNLABELLED, *range(len(classes))) else None


def _from_mini_world(task: Task, part: Part) -> Columns:
    number = task.dataset.path.partition(":")[2] or "0"
    if not (number.isascii() and number.isdigit()):
        raise UserError(
            f"{task.name}.dataset.path={task.dataset.path} must name a mini world by its number: "
            f"mini:1 for world 1, mini alone for world 0."
        )
    mini = world.rows(task.name, part, int(number))
    fields = {field: [text[field] for text in mini.texts] for field in mini.texts[0]}
    return {**fields, task.label: mini.labels}


def _from_hub(task: Task, part: Part) -> tuple[Columns, str]:
    with installed("pipelines"):
        import datasets  # a second of import time and an optional part of the installation

    wanted = task.dataset
    split = getattr(wanted, part)
    source = f"dataset {wanted.path} ({wanted.name or 'default'}, {split})"
    with explained(
        lambda error: (
            f"The hub's {source} could not be loaded: {error}.\n"
            f"To use local files, give data.root=DIR with DIR/{task.name}/train.jsonl and "
            f"DIR/{task.name}/test.jsonl (or .json, .csv, .tsv, .parquet), columns "
            f"{[*task.fields, task.label]}."
        )
    ):
        data = datasets.load_dataset(
            wanted.path, wanted.name, revision=wanted.revision, split=split
        )
    return {name: list(data[name]) for name in data.column_names}, source


def _from_files(task: Task, part: Part, root: Path) -> tuple[Columns, str]:
    path = _find_file(task, part, root / task.name)
    with explained(lambda error: _unreadable(path, error)):
        return READERS[path.suffix](path), str(path)


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"{path} is not UTF-8, first in line {_first_undecodable(path)}: {error.reason}; save "
            f"the file as UTF-8."
        )
    return f"{path} cannot be read as {path.suffix[1:]}: {error}"


def _first_undecodable(path: Path) -> int:
    """The number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        lines = enumerate(file, 1)
        return next(n for n, line in lines if line.decode(errors="ignore").encode() != line)


def _find_file(task: Task, part: Part, folder: Path) -> Path:
    stems = tuple(dict.fromkeys((getattr(task.dataset, part), part)))
    for stem in stems:
        found = [path for suffix in READERS if (path := folder / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise UserError(f"Several files for the {part} rows of {task.name}: {found}; keep one.")
        if found:
            return found[0]
    there = (
        sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        if folder.is_dir()
        else "no such folder"
    )
    raise UserError(
        f"No file for the {part} rows of {task.name}: looked in {folder} for {' or '.join(stems)} "
        f"with {', '.join(READERS)}; there: {there or 'nothing'}."
    )


def _read_json_lines(path: Path) -> Columns:
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MOST_BYTES + 1), b"")
        records = [
            _record(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()
        ]
    return _by_column(records, path)


def _record(line: bytes, where: str) -> Any:
    if len(line) > MOST_BYTES:
        raise UserError(
            f"{where} is longer than {MOST_BYTES:,} bytes; shorten the row or leave it out."
        )
    text = line.decode("utf-8-sig")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from error


def _read_json(path: Path) -> Columns:
    records = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a JSON list of rows, got a {type(records).__name__}.")
    return _by_column(records, path)


def _by_column(records: Sequence[Any], path: Path) -> Columns:
    """Columns of JSON rows; a value that a row lacks is None, which no check lets pass."""
    for n, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, row {n} must be a JSON object, got {shown(record)}.")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _read_csv(path: Path) -> Columns:
    return _read_table(path, sep=",")


def _read_tsv(path: Path) -> Columns:
    return _read_table(path, sep="\t", quoting=3)  # csv.QUOTE_NONE


def _read_table(path: Path, **layout: Any) -> Columns:
    with installed("pipelines"):
        import pandas as pd

    with warnings.catch_warnings():
        # Of rows that are longer than the header, which would lose what is beyond it.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # Every cell as text: "NA", "null" and "" are what the row says.
        frame = pd.read_csv(
            path, dtype=str, na_filter=False, index_col=False, encoding="utf-8-sig", **layout
        )
    return {name: frame[name].tolist() for name in frame.columns}


def _read_parquet(path: Path) -> Columns:
    with installed("pipelines"):
        import pandas as pd

    frame = pd.read_parquet(path)
    return {name: frame[name].tolist() for name in frame.columns}


READERS: Mapping[str, Callable[[Path], Columns]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
