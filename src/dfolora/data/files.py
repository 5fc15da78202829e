"""Local files of rows: found by name, told apart by content, read into columns or row by row."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from dfolora.errors import UserError, explained, installed
from dfolora.validation import shown

Columns = Mapping[str, Sequence[object]]

MOST_BYTES = 20_000_000
"""The longest line of a JSON Lines file, and the longest cell of a table, in bytes."""
MOST_MARKED = 100_000_000
"""The largest TSV file with quotation marks that is read row by row, in bytes: only all of it tells
whether they wrap cells."""
AT_ONCE = 1024
"""Rows of a Parquet file that are read at once."""
PACKED = (".gz", ".zst")
"""Endings of compressed files, after that of their format; Parquet is compressed within."""
SAVED = "state.json"
"""What a folder holds that ``datasets`` saved to disk."""
WRAPPED = re.compile(r'(?:\A|(?<=[\t\r\n]))"[^"]*+(?:""[^"]*+)*+"(?=[\t\r\n]|\Z)')
"""A cell of a TSV file in quotation marks, with those within doubled."""
WRAPPED_ALONE = re.compile(r'(?:\A|(?<=[\t\r\n]))"[^"\t\r\n]*+(?:""[^"\t\r\n]*+)*+"(?=[\t\r\n]|\Z)')
"""Such a cell without tabs and line ends."""


def find_files(folder: Path, stems: Sequence[str], what: str) -> tuple[Path, ...] | None:
    """One file, or all shards of one, or a folder that ``datasets`` saved; None without any.

    Args:
        folder: It and ``data`` in it are looked into.
        stems: Names before the ending; the first that is there counts.
        what: What the files hold, for messages.

    Raises:
        UserError: Several files have the name, or shards are missing.
    """
    for stem in stems:
        found = [files for place in (folder, folder / "data") for files in _candidates(place, stem)]
        if len(found) > 1:
            listed = [str(files[0]) for files in found]
            raise UserError(f"Several files for {what}: {listed}; keep one.")
        if found:
            return found[0]
    return None


def no_files(folder: Path, stems: Sequence[str], what: str) -> UserError:
    """The error of a part that has no files: what was looked for, and what is there."""
    there = (
        sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        if folder.is_dir()
        else "no such folder"
    )
    return UserError(
        f"No file for {what}: looked in {folder} for {' or '.join(stems)} with "
        f"{', '.join(ENDINGS)} (but for Parquet also {', '.join(PACKED)}; shards, and folders of "
        f"save_to_disk); "
        f"there: {there or 'nothing'}."
    )


def read_files(files: Sequence[Path], names: Sequence[str] | None = None) -> Columns:
    """The columns of a part.

    Args:
        files: What `find_files` found.
        names: Of the columns of CSV and TSV files without a header; those of one name are joined by
            a space. None: their first line names them.

    Raises:
        UserError: One cannot be read.
    """
    tables = [_read(path, names) for path in files]
    if any(table.keys() != tables[0].keys() for table in tables):
        raise UserError(f"The shards {[path.name for path in files]} have different columns.")
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


def stream_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, object]]:
    """Values of a file's columns, row by row, in bounded memory.

    Args:
        path: JSON Lines, CSV or TSV, also compressed, or Parquet.
        columns: Which ones.

    Raises:
        UserError: The file cannot be read, or a row lacks a column.
    """
    with explained(lambda error: _unreadable(path, error)):
        match _ending(path):
            case ".jsonl":
                with _opened(path) as file:
                    yield from stream_lines(file, str(path), columns)
            case ".parquet":
                yield from _stream_parquet(path, columns)
            case ending if ending in DELIMITERS:
                if ending == ".tsv" and path.stat().st_size > MOST_MARKED and _has_marks(path):
                    raise UserError(
                        f"{path} has quotation marks and more than {MOST_MARKED:,} bytes, all of "
                        f"which would be read to tell whether they wrap cells; save the rows as "
                        f".csv or .jsonl."
                    )
                rows = _table(path, DELIMITERS[ending], None)
                header = next(rows)
                _check_columns(header, columns, str(path))
                places = [header.index(name) for name in columns]
                for row in rows:
                    yield {name: row[at] for name, at in zip(columns, places, strict=True)}
            case _:
                raise UserError(
                    f"{path} has no known ending; write .jsonl, .csv, .tsv (also "
                    f"{', '.join(PACKED)}) or .parquet."
                )


def stream_lines(
    file: IO[bytes], source: str, columns: Sequence[str]
) -> Iterator[Mapping[str, object]]:
    """Values of columns of JSON Lines, row by row.

    Args:
        file: Where the lines come from.
        source: What it is called in messages.
        columns: Which ones.

    Raises:
        UserError: A line is not UTF-8, no JSON object, or lacks a column.
    """
    for number, row in _json_lines(file, source, "Write a row a line."):
        where = f"{source}, line {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where} must be a JSON object, got {shown(row)}; write a row a line.")
        _check_columns(row, columns, where)
        yield {name: row[name] for name in columns}


def _check_columns(given: Iterable[str], needed: Sequence[str], where: str) -> None:
    """Raise UserError if a column is missing."""
    if missing := [name for name in needed if name not in (has := list(given))]:
        raise UserError(f"{where} lacks the columns {missing}; it has {shown(has)}.")


def _candidates(folder: Path, stem: str) -> Iterator[tuple[Path, ...]]:
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    for suffix in (ending + packed for ending in ENDINGS for packed in ("", *PACKED)):
        if (path := folder / f"{stem}{suffix}").is_file():
            yield (path,)
        name = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+){re.escape(suffix)}")
        shards = sorted(
            (int(match[1]), int(match[2]), path)
            for path in there
            if (match := name.fullmatch(path.name))
        )
        if shards:
            count = len(shards)
            if [shard[:2] for shard in shards] != [(number, count) for number in range(count)]:
                raise UserError(
                    f"{folder} has {count} shards {stem}-*{suffix}, from {shards[0][2].name} to "
                    f"{shards[-1][2].name}, which are not all or more than that; put it right."
                )
            yield tuple(path for _, _, path in shards)
    if (folder / stem / SAVED).is_file():
        yield (folder / stem,)


def _read(path: Path, names: Sequence[str] | None) -> Columns:
    with explained(lambda error: _unreadable(path, error)):
        if path.is_dir():
            table, named = _read_saved(path), True
        else:
            ending = _ending(path)
            named = ending not in DELIMITERS
            table = READERS[ending](path) if named else _read_table(path, DELIMITERS[ending], names)
        if named and names is not None:
            raise UserError(
                f"{path} has names of its own for its columns, {shown(list(table))}; "
                f"data.columns is for CSV and TSV files without a header."
            )
        return table


def _ending(path: Path) -> str:
    """The format's ending, that of a compression left off."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def _opened(path: Path) -> IO[bytes]:
    if path.suffix not in PACKED:
        return path.open("rb")
    with installed("pipelines"):
        import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))  # reads lines


def _text(path: Path) -> str:
    with _opened(path) as file:
        return file.read().decode("utf-8-sig")


@contextmanager
def _lines(path: Path) -> Iterator[IO[str]]:
    """A file's lines with their ends as they are."""
    with _opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as lines:
        yield lines


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(str(path), _first_undecodable(path), error)
    if isinstance(error, FileNotFoundError):
        return f"There is no file {path}; give one that exists."
    return f"{path} cannot be read as {_ending(path)[1:] or 'a saved dataset'}: {error}"


def _not_utf8(source: str, line: int, error: UnicodeDecodeError) -> str:
    return f"{source} is not UTF-8, first in line {line}: {error.reason}; save the file as UTF-8."


def _first_undecodable(path: Path) -> int:
    """The number of the first line that is not UTF-8."""
    with _opened(path) as file:
        lines = enumerate(file, 1)
        return next(n for n, line in lines if line.decode(errors="ignore").encode() != line)


def _read_json(path: Path) -> Columns:
    """A JSON list of rows or JSON Lines: the first character tells, for names are mixed up."""
    with _opened(path) as file:
        lines = iter(lambda: file.readline(MOST_BYTES + 1), b"")
        first = next((line for line in lines if line.strip()), b"")
    if first.decode("utf-8-sig", errors="ignore").lstrip().startswith("["):
        once = partial(_named_once, str(path))
        return _by_column(json.loads(_text(path), object_pairs_hook=once), path)
    with _opened(path) as file:
        advice = "Write a row a line, or one list of rows."
        records = [record for _, record in _json_lines(file, str(path), advice)]
    return _by_column(records, path)


def _json_lines(file: IO[bytes], source: str, advice: str) -> Iterator[tuple[int, Any]]:
    """The values of lines that are not empty, each with its line.

    Args:
        file: Where the lines come from.
        source: What it is called in messages.
        advice: What to write in place of what is not JSON.
    """
    lines = iter(lambda: file.readline(MOST_BYTES + 1), b"")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _record(line, source, number, advice)


def _record(line: bytes, source: str, number: int, advice: str) -> Any:
    where = f"{source}, line {number}"
    if len(line) > MOST_BYTES:
        raise UserError(
            f"{where} is longer than {MOST_BYTES:,} bytes; shorten the row or leave it out."
        )
    once = partial(_named_once, where)
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=once)
    except UserError:  # a ValueError, as the next two
        raise
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(source, number, error)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}. {advice}") from error


def _named_once(where: str, pairs: Sequence[tuple[str, object]]) -> Mapping[str, object]:
    """A JSON object; JSON would keep the last of equal names."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{where} has a row that names {shown(twice)} twice; keep one of each.")
    return found


def _by_column(records: Sequence[Any], path: Path) -> Columns:
    """Columns of JSON rows; a value that a row lacks is None, which no check lets pass."""
    for n, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, row {n} must be a JSON object, got {shown(record)}.")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _read_table(path: Path, delimiter: str, names: Sequence[str] | None) -> Columns:
    """Columns of a table; those of one name are joined by a space."""
    header, *rows = _table(path, delimiter, names)
    places = {name: [n for n, each in enumerate(header) if each == name] for name in header}
    return {
        name: [" ".join(row[place] for place in where) for row in rows]
        for name, where in places.items()
    }


def _table(path: Path, delimiter: str, names: Sequence[str] | None) -> Iterator[Sequence[str]]:
    """The names of the columns, then each row.

    Every cell is text: "NA", "null" and "" are what the row says.
    """
    as_text = False
    if delimiter == ",":
        _check_wrapped(path)
    elif _has_marks(path):
        as_text = not _is_quoted(_text(path), names, path)
    with _lines(path) as lines:
        rows = _rows(lines, delimiter, csv.QUOTE_NONE if as_text else csv.QUOTE_MINIMAL)
        if names is None:
            _, header = next(rows, (0, None))
            if header is None:
                raise UserError(f"{path} is empty; its first line must name the columns.")
            if twice := {name for name in header if name and header.count(name) > 1}:
                raise UserError(
                    f"{path} names the columns {sorted(twice)} twice; rename one of each."
                )
            said = f"the header names {len(header)}"
        else:
            header = [*names]
            said = f"data.columns names {len(header)}"
        yield header
        for line, row in rows:
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {line} has {len(row)} cells, {said}: {shown(header)}. Mend the "
                    f"line or leave it out; a row has a cell for each name, an empty one where it "
                    f"has no value."
                )
            yield row


def _check_wrapped(path: Path) -> None:
    """Raise UserError if a CSV file's marks would make one cell of lines that are all rows."""
    with _lines(path) as lines:
        rows = _rows(lines, ",", csv.QUOTE_MINIMAL)
        over = next((line for line, row in rows if any("\n" in cell for cell in row)), None)
    if over is None:
        return
    with _lines(path) as lines:
        widths = {len(row) for _, row in _rows(lines, ",", csv.QUOTE_NONE)}
    if len(widths) == 1:
        raise UserError(
            f"{path} has a cell in quotation marks that ends in line {over}, over several lines "
            f"that would each be a row. Double marks that are text, and wrap their cells."
        )


def _rows(
    lines: Iterable[str], delimiter: str, quoting: Literal[0, 3]
) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line it ends in."""
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        before = csv.field_size_limit(MOST_BYTES)  # from 128 KiB: what is too long is told as texts
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise csv.Error(f"{error}, in line {reader.line_num}") from error
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield reader.line_num, row


def _has_marks(path: Path) -> bool:
    with _lines(path) as lines:
        return any('"' in line for line in lines)


def _is_quoted(text: str, names: Sequence[str] | None, path: Path) -> bool:
    """Whether quotation marks of a TSV file wrap its cells, or are text, as in GLUE's files.

    Raises:
        UserError: It has both, or it could be either.
    """
    lines = io.StringIO(text, newline="")
    rows = [row for _, row in _rows(lines, "\t", csv.QUOTE_NONE)]
    width = len(rows[0]) if names is None else len(names)
    if any(len(row) != width for row in rows):
        # Tabs or line ends within marks, or a line that is told as it is read.
        return '"' not in WRAPPED.sub("", text)
    # All lines are whole rows, so what begins in one cell and ends in another is no cell.
    wrapped = [*WRAPPED_ALONE.finditer(text)]
    doubled = next((match for match in wrapped if '""' in match[0][1:-1]), None)
    stray = WRAPPED_ALONE.sub(lambda match: " " * len(match[0]), text).find('"')
    if doubled and stray >= 0:
        raise UserError(
            f"{path} mixes two kinds of TSV: line {_line(text, doubled.start())} wraps a cell in "
            f"quotation marks and doubles those within, line {_line(text, stray)} has a mark that "
            f"is text. Write all cells in one way, or save the rows as .jsonl."
        )
    if stray >= 0:
        return False
    cells = rows[1:] if names is None else rows
    if doubled or any(all(map(WRAPPED.fullmatch, column)) for column in zip(*cells, strict=True)):
        return True
    marked, bare = (
        [cell for row in rows for cell in row if ('"' in cell) is there] for there in (True, False)
    )
    commas = all("," in cell for cell in marked) and not any("," in cell for cell in bare)
    if commas or '""' in marked:
        raise UserError(
            f"{path}, line {_line(text, wrapped[0].start())} has a cell in quotation marks that "
            f"can be read in two ways: as spreadsheets wrap cells with a comma and others empty "
            f"ones, or as a quotation. Save the rows as .csv or .jsonl."
        )
    return False


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _read_parquet(path: Path) -> Columns:
    _check_unpacked(path)
    with installed("pipelines"):
        import pandas as pd

    frame = pd.read_parquet(path)
    return {name: frame[name].tolist() for name in frame.columns}


def _check_unpacked(path: Path) -> None:
    if path.suffix in PACKED:
        raise UserError(f"{path} is compressed, which Parquet is within already; unpack the file.")


def _stream_parquet(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, object]]:
    _check_unpacked(path)
    with installed("pipelines"):
        import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, columns, str(path))
        for batch in file.iter_batches(batch_size=AT_ONCE, columns=[*columns]):
            yield from batch.to_pylist()


def _read_saved(path: Path) -> Columns:
    with installed("pipelines"):
        import datasets

    data = datasets.load_from_disk(str(path))
    return {name: list(data[name]) for name in data.column_names}


ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Endings of tables, whose cells have no types."""
READERS: Mapping[str, Callable[[Path], Columns]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""Endings of files that name their columns."""
