"""Reads runs from the tables of a local store, five times faster than MLflow's client.

The client creates an object for every tag, parameter and metric, about 150 per run, and offers no
lighter call. Its tables are not a public interface, so they are read only if their layout is the
one known here; otherwise the client is used.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

Value = str | int | float | None

LAYOUT = "dc11669786a5"
"""The id of the last MLflow migration of the known layout."""
RUNS = """
    SELECT run_uuid, name, status, experiment_id, artifact_uri FROM runs
    WHERE run_uuid IN (SELECT run_uuid FROM tags WHERE key = ?) AND lifecycle_stage = 'active'
    ORDER BY start_time, run_uuid
"""
VALUES = """
    SELECT run_uuid, key, value FROM {table}
    WHERE run_uuid IN (SELECT run_uuid FROM tags WHERE key = ?)
"""
TABLES = {
    "tags": "tags",
    "params": "params",
    "metrics": "(SELECT * FROM latest_metrics WHERE NOT is_nan)",
}


def tagged_runs(path: Path, tag: str, seconds: float) -> list[Mapping[str, Value]] | None:
    """The runs with a tag, as ``Store.tagged`` describes them; None if the layout is unknown.

    Args:
        path: The SQLite file.
        tag: The tag's name.
        seconds: How long to wait for a writer.
    """
    with closing(sqlite3.connect(path, timeout=seconds)) as connection:
        if connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(LAYOUT,)]:
            return None
        connection.execute("BEGIN")  # all reads see the store at one moment
        runs: dict[str, dict[str, Value]] = {
            run_id: {
                "run_id": run_id,
                "name": name,
                "status": status,
                "experiment_id": str(experiment),
                "artifact_uri": folder,
            }
            for run_id, name, status, experiment, folder in connection.execute(RUNS, [tag])
        }
        for part, table in TABLES.items():
            for run_id, key, value in connection.execute(VALUES.format(table=table), [tag]):
                if run_id in runs:
                    runs[run_id][f"{part}.{key}"] = value
    return list(runs.values())
