"""Local stores that were moved: MLflow notes artifacts' places whole, in every run."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

FOLDER = "mlruns"
"""Of a local store's artifacts; it lies beside the database."""
NOTED = (
    ("experiments", "experiment_id", "artifact_location"),
    ("runs", "run_uuid", "artifact_uri"),
    ("logged_models", "model_id", "artifact_location"),
)
"""Where places are noted: table, key, column (mlflow 3.17)."""
DEFAULT = "0"
"""The id of the experiment that every store has."""


@dataclass(frozen=True, kw_only=True)
class Misplaced:
    """A place that is noted otherwise than where it is now."""

    table: str
    key: str
    old: str
    new: str


def local_path(place: str) -> Path | None:
    """The path of an artifacts' place on this machine; None if it is elsewhere."""
    parts = urlsplit(place)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def here(place: str, artifacts: Path) -> Path | None:
    """Where a place below a store's artifacts is now; None if it never was below them.

    Args:
        place: As it is noted.
        artifacts: The folder of the store's artifacts.
    """
    path = local_path(place)
    if path is None or FOLDER not in path.parts:
        return None
    last = len(path.parts) - 1 - path.parts[::-1].index(FOLDER)
    return artifacts.joinpath(*path.parts[last + 1 :])


def misplaced(database: Path, artifacts: Path) -> list[Misplaced]:
    """What a store notes otherwise than it is; not what is still where it was.

    Args:
        database: Its SQLite file.
        artifacts: The folder of its artifacts, beside the file.
    """
    with closing(sqlite3.connect(database)) as connection:
        return [*_misplaced(connection, artifacts)]


def mend(database: Path, artifacts: Path) -> list[Misplaced]:
    """Note all places as they are now, at once or not at all; what was changed."""
    with closing(sqlite3.connect(database)) as connection, connection:
        found = [*_misplaced(connection, artifacts)]
        for table, key, column in NOTED:
            connection.executemany(
                f"UPDATE {table} SET {column} = ? WHERE {key} = ?",
                [(each.new, each.key) for each in found if each.table == table],
            )
    return found


def _exists(place: Path) -> bool:
    """Whether something is there, as far as one may look."""
    return os.path.exists(place)  # noqa: PTH110  Path's raises in a folder that may not be entered


def _misplaced(connection: sqlite3.Connection, artifacts: Path) -> Iterator[Misplaced]:
    noted, really = f"{artifacts.as_uri()}/", os.path.realpath(artifacts)
    for table, key, column in NOTED:
        for known, place in connection.execute(f"SELECT {key}, {column} FROM {table}"):
            if not place or place.startswith(noted):  # nearly all; the rest asks the file system
                continue
            now, then = here(place, artifacts), local_path(place)
            if now is None or then is None:
                continue
            if Path(os.path.realpath(then)).is_relative_to(really):  # spelled or linked otherwise
                continue
            # MLflow's own experiment is noted where the command ran that made the store.
            unused = table == "experiments" and str(known) == DEFAULT
            if _exists(now) or not (unused or _exists(then)):
                yield Misplaced(table=table, key=str(known), old=place, new=now.as_uri())
