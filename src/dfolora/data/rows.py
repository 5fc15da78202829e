"""The rows and labels of a task: from local files, the embedded mini world, or the hub."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Literal

from dfolora.data.files import Columns, find_files, no_files, read_files
from dfolora.data.labels import NO_LABEL, UNLABELLED, read_labels, spelled
from dfolora.data.task import Task
from dfolora.errors import UserError, explained, installed
from dfolora.mini import world
from dfolora.validation import shown

Part = Literal["train", "dev", "test"]
"""``train`` is what few-shot train and dev rows are drawn from, unless there are ``dev`` rows."""

VALIDATION = ("validation", "validation_matched")
"""Splits of the hub that files may call otherwise."""
DEV = ("dev", "valid", "dev_matched")
"""How they do."""
MOST_CHARACTERS = 1_000_000
"""The longest text; tokenizing takes about a hundred times its memory."""
HELD_OUT = 5
"""One of so many texts of a class is a test row where train and test are one split."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Labelled rows, cleaned as the task says."""

    texts: tuple[Mapping[str, str], ...]
    """Field name to text, ``(N,)``."""
    labels: tuple[int, ...]
    """Classes, ``(N,)``."""
    unlabelled: int = 0
    """Rows that were left out for they have no label."""
    source: str = field(default="", compare=False)
    """Where they are from, in words."""

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


def load_rows(
    task: Task,
    part: Part,
    *,
    root: str | Path | None = None,
    columns: Sequence[str] | None = None,
    labels: Sequence[object] | None = None,
    given: bool = False,
) -> Rows:
    """The labelled rows of one part of a task.

    Args:
        task: Whose rows.
        part: ``train``, ``test`` or, of files alone, ``dev``.
        root: A folder with one folder of files per task, ``<root>/<task.name>/train.jsonl`` and so
            on, read instead of the task's own source. A file may be named by ``part`` or by the
            hub's split (``validation.jsonl``), the latter preferred where both exist, as the hub's
            ``test`` files of GLUE have no labels; ``dev`` stands for ``validation`` where no other
            has labels. JSON Lines, JSON, CSV and TSV are known, also as ``.gz`` and ``.zst``, and
            Parquet; in shards too, and as folders that ``datasets`` saved.
        columns: Names of the columns of CSV and TSV files without a header; those of one name are
            joined by a space.
        labels: What stands for each class in the label column; None for names or positions.
        given: Whether the folder holds a split with dev rows; then ``test`` is preferred.

    Raises:
        UserError: If the rows could not be loaded or do not fit the task.
    """
    if root is not None:
        found, source = _from_files(task, part, Path(root), columns, given=given)
    elif task.dataset.path.partition(":")[0] == "mini":
        found, source = _from_mini_world(task, part), f"mini world, {task.name} {part}"
    elif task.dataset.is_folder:
        found, source = _from_folder(task, part, columns)
    else:
        found, source = _from_hub(task, part)
    rows = rows_of(task, found, source, labels)
    one_split = root is None and task.dataset.train == task.dataset.test
    return _divided(rows, part) if one_split else rows


def fingerprint(rows: Rows) -> str:
    """SHA-256 of all labels and texts, in hexadecimal.

    Args:
        rows: Whose fingerprint; one JSON line per row is hashed, so that no two differ alike.
    """
    digest = sha256()
    for label, text in zip(rows.labels, rows.texts, strict=True):
        digest.update(json.dumps([label, dict(text)]).encode() + b"\n")
    return digest.hexdigest()


def rows_of(
    task: Task,
    columns: Columns,
    source: str,
    labels: Sequence[object] | None = None,
    *,
    before: int = 0,
) -> Rows:
    """Rows from raw columns, checked and cleaned as the task says.

    Args:
        task: Whose rows.
        columns: Values by column name, each ``(N,)``: the task's fields and its label.
        source: Where they are from, for messages.
        labels: What stands for each class in the label column; None for names or positions.
        before: The number of rows before these, for messages.

    Raises:
        UserError: They do not fit the task.
    """
    needed = [*task.fields, task.label]
    if not columns:
        raise UserError(f"{source} holds no rows; it needs some, with the columns {needed}.")
    if missing := [name for name in needed if name not in columns]:
        raise UserError(
            f"{source} lacks the columns {missing}; it has {shown(list(columns))}, "
            f"task {task.name} needs {needed}. Where a table's first line is a row, name all "
            f"its columns, in their order: data.columns=[{task.label},{','.join(task.fields)}]."
        )
    classes = read_labels(columns[task.label], task.classes, source, labels)
    kept = [row for row, label in enumerate(classes) if label != UNLABELLED]
    if not kept:
        raise UserError(f"{source} has no labelled rows ({len(classes)} rows in all).")
    return Rows(
        texts=tuple(
            {
                name: _clean(
                    columns[name][row], task, f"{source}, row {before + row + 1}, {name!r}"
                )
                for name in task.fields
            }
            for row in kept
        ),
        labels=tuple(classes[row] for row in kept),
        unlabelled=len(classes) - len(kept),
        source=source,
    )


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


def _divided(rows: Rows, part: Part) -> Rows:
    """The train or the test rows of a split that is both.

    A digest of the text decides, so that neither order nor seed matters and equal texts stay
    together; what class a text is of, its first row says.
    """
    keys = [json.dumps(dict(text)) for text in rows.texts]
    of_class: dict[int, list[str]] = {}
    for key, label in dict(zip(reversed(keys), reversed(rows.labels), strict=True)).items():
        of_class.setdefault(label, []).append(key)
    held_out = {
        key
        for members in of_class.values()
        for key in sorted(members, key=lambda key: sha256(key.encode()).digest())[
            : ceil(len(members) / HELD_OUT)
        ]
    }
    chosen = (row for row, key in enumerate(keys) if (key in held_out) == (part == "test"))
    return replace(rows.select(chosen), unlabelled=rows.unlabelled, source=rows.source)


def _from_folder(task: Task, part: Part, names: Sequence[str] | None) -> tuple[Columns, str]:
    """Of a split's files in the folder that the task itself names."""
    folder, what = Path(task.dataset.path), f"the {part} rows of {task.name}"
    stems = (task.dataset.train if part == "train" else task.dataset.test,)
    files = find_files(folder, stems, what)
    if files is None:
        raise no_files(folder, stems, what)
    return read_files(files, names), str(files[0])


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


def _from_files(
    task: Task, part: Part, root: Path, names: Sequence[str] | None, *, given: bool
) -> tuple[Columns, str]:
    """Of a part's files; where the test's have no labels, of those that stand in for its split."""
    folder, what = root / task.name, f"the {part} rows of {task.name}"
    split = task.dataset.train if part == "train" else task.dataset.test
    if part == "dev":
        stems: tuple[str, ...] = (*DEV, "validation")
    else:
        stems = tuple(dict.fromkeys((part, split) if given else (split, part)))
    files = find_files(folder, stems, what)
    columns = None if files is None else read_files(files, names)
    if part == "test" and not given and not (columns and labelled(columns, task.label)):
        others = find_files(folder, DEV, what)
        if others and split in VALIDATION:
            files, columns = others, read_files(others, names)
        elif others:
            raise UserError(
                f"The {part} rows of {task.name} have no labels, in {files[0] if files else folder}"
                f". {others[0]} lies there: task.dataset.test=validation tests on it."
            )
        stems = (*stems, *DEV) if split in VALIDATION else stems
    if files is None or columns is None:
        raise no_files(folder, stems, what)
    if part == "dev" and files == find_files(folder, ("test", split), what):
        raise UserError(
            f"{files[0]} would be the dev and the test rows of {task.name}; data.split=given needs "
            f"files of its own for each of train, dev and test."
        )
    return columns, str(files[0])


def labelled(columns: Columns, label: str) -> bool:
    """Whether any row has a label."""
    return any(spelled(value) not in (*NO_LABEL, "", None) for value in columns.get(label, ()))
