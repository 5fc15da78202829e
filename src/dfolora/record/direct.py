"""Reads many runs faster than MLflow's client, from a local store's tables or a server's answers.

The client creates an object for every tag, parameter and metric, about 200 per run, and offers no
lighter call. Its tables are not a public interface, so they are read only if their layout is the
one known here; otherwise the client is used.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

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
SEARCH = "/api/2.0/mlflow/runs/search"
RUNS_A_PAGE = 250
"""So few that a server's processes share them out, and that none holds many at once."""
AT_ONCE = 8
"""Requests to a server, which has four processes unless told otherwise."""


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


def served_runs(client: Any, experiments: Sequence[str], wanted: str) -> Iterator[dict[str, Value]]:
    """The runs that a tracking server finds, oldest first, as ``Store.tagged`` describes them.

    Most of the time is the server's, and one of its processes has one page at a time.

    Args:
        client: MLflow's, of the server.
        experiments: Ids of those to search; at least one.
        wanted: MLflow's filter.
    """
    from mlflow.utils.rest_utils import http_request, verify_rest_response
    from mlflow.utils.search_utils import SearchUtils

    credentials = client._tracking_client.store.get_host_creds()

    def page(number: int) -> Mapping[str, Any]:
        token = SearchUtils.create_page_token(number * RUNS_A_PAGE).decode() if number else None
        request = {
            "experiment_ids": [*experiments],
            "filter": wanted,
            "max_results": RUNS_A_PAGE,
            "order_by": ["attributes.start_time ASC"],
            "page_token": token,
        }
        answer = http_request(credentials, SEARCH, "POST", json=request)
        return dict(verify_rest_response(answer, SEARCH).json())

    with ThreadPoolExecutor(AT_ONCE) as several:
        numbers = range(1)
        while numbers:
            pages = [*several.map(page, numbers)]
            for each in pages:
                yield from map(_row, each.get("runs", ()))
            more = AT_ONCE if "next_page_token" in pages[-1] else 0
            numbers = range(numbers.stop, numbers.stop + more)


def _row(run: Mapping[str, Any]) -> dict[str, Value]:
    info, data = run["info"], run["data"]
    texts = {
        f"{part}.{each['key']}": each["value"]
        for part in ("tags", "params")
        for each in data.get(part, ())
    }
    # JSON has no NaN but as a text.
    numbers = {f"metrics.{each['key']}": float(each["value"]) for each in data.get("metrics", ())}
    return {
        "run_id": info["run_id"],
        "name": info["run_name"],
        "status": info["status"],
        "experiment_id": info["experiment_id"],
        "artifact_uri": info["artifact_uri"],
        **texts,
        **numbers,
    }
