"""MLflow, the one store of results; no other module imports it.

Runs are flat and share a ``sweep_id`` tag. Curves are buffered and written in batches, for a point
written alone costs as much as a batch.
"""

import gc
import logging
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from dfolora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

FLUSH_SECONDS = 30.0
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
RUNS_A_PAGE = 1000
SQLITE = "sqlite:///"


class Store:
    """A tracking store, made ready for several processes.

    Args:
        uri: Any MLflow tracking URI. A local SQLite file keeps its artifacts in ``mlruns`` beside.
    """

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
        self.uri = uri
        self._artifacts = None
        try:
            if uri.startswith(SQLITE):
                path = Path(uri.removeprefix(SQLITE).partition("?")[0]).absolute()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._artifacts = path.parent / "mlruns"
                # Two processes that both create a fresh file's tables kill each other.
                with FileLock(f"{path}.lock"):
                    _check_sqlite(path)
                    self._client = MlflowClient(uri)
                    self._client.search_experiments(max_results=1)
            else:
                self._client = MlflowClient(uri)
                self._client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"The tracking store {uri} cannot be used: {reason}. Set MLFLOW_TRACKING_URI to "
                f"one that can."
            ) from error

    @contextmanager
    def alone(self, digest: str) -> Iterator[None]:
        """Within, no other process of this machine works on the run of that digest.

        Of a local SQLite file's runs; other stores do not tell who uses them.
        """
        if self._artifacts is None:
            yield
            return
        path = self._artifacts / "locks" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield
            path.unlink()  # who waits for it looks into the store first, so nothing is run twice

    def finished_run(self, digest: str) -> str | None:
        """The id of the finished run with that digest, if there is one."""
        runs = self._client.search_runs(
            self._experiment_ids(),
            f"tags.digest = '{digest}' AND attributes.status = 'FINISHED'",
            max_results=1,
        )
        return runs[0].info.run_id if runs else None

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(run_id, tags=entries, synchronous=True)

    def start(
        self, experiment: str, name: str, *, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> "RunLog":
        """Begin a run; use it as a context, which ends it as FINISHED or FAILED."""
        from mlflow.entities import Param

        run = self._client.create_run(
            self._experiment_id(experiment), run_name=name, tags=dict(tags)
        )
        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_A_BATCH):
            self._client.log_batch(
                run.info.run_id, params=entries[start : start + PARAMS_A_BATCH], synchronous=True
            )
        return RunLog(self._client, run.info.run_id)

    def runs(self) -> "pd.DataFrame":
        """All finished runs of all experiments, oldest first, one a row.

        Columns are ``run_id``, ``name``, ``status``, ``experiment_id``, ``artifact_uri``, and
        ``tags.NAME``, ``params.NAME``, ``metrics.NAME`` of whatever any of the runs has.
        """
        import pandas as pd

        return pd.DataFrame([_row(run) for run in self._search("status = 'FINISHED'")])

    def tagged(self, name: str) -> "pd.DataFrame":
        """All runs that have the tag, whatever became of them; otherwise as ``runs``."""
        import pandas as pd

        return pd.DataFrame([_row(run) for run in self._search(f"tags.`{name}` LIKE '%'")])

    def history(self, run_ids: Sequence[str], metric: str) -> "pd.DataFrame":
        """A metric's points in order: ``run_id``, ``step``, ``seconds`` (of the run), ``value``."""
        import pandas as pd

        points = []
        for run_id in run_ids:
            began = self._client.get_run(run_id).info.start_time
            points += [
                (run_id, point.step, (point.timestamp - began) / 1000, point.value)
                for point in self._client.get_metric_history(run_id, metric)
            ]
        return pd.DataFrame(points, columns=["run_id", "step", "seconds", "value"])

    def artifact(self, folder: str, name: str) -> bytes | None:
        """The contents of a file that a run left; None where there is no such file.

        Args:
            folder: The run's ``artifact_uri``.
            name: The file's.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        place = urlsplit(folder)
        try:
            if place.scheme in ("", "file"):  # a hundred times faster
                return Path(url2pathname(place.path), name).read_bytes()
            with tempfile.TemporaryDirectory() as copy:
                found = download_artifacts(
                    artifact_uri=f"{folder}/{name}", dst_path=copy, tracking_uri=self.uri
                )
                return Path(found).read_bytes()
        except (MlflowException, OSError):
            return None

    def _search(self, wanted: str) -> Iterator[Any]:
        ids, token = self._experiment_ids(), None
        while ids:
            # Half of the time would go to collecting objects that are all still needed.
            with _uncollected():
                page = self._client.search_runs(
                    ids,
                    wanted,
                    max_results=RUNS_A_PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return

    def _experiment_ids(self) -> list[str]:
        return [experiment.experiment_id for experiment in self._client.search_experiments()]

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = None if self._artifacts is None else (self._artifacts / name).as_uri()
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException:  # another process may have been quicker
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id


def _row(run: Any) -> dict[str, Any]:
    parts = {"tags": run.data.tags, "params": run.data.params, "metrics": run.data.metrics}
    values = {
        f"{part}.{name}": value for part, data in parts.items() for name, value in data.items()
    }
    info = run.info
    return {
        "run_id": info.run_id,
        "name": info.run_name,
        "status": info.status,
        "experiment_id": info.experiment_id,
        "artifact_uri": info.artifact_uri,
        **values,
    }


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's cyclic garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_sqlite(path: Path) -> None:
    """Raise sqlite3.Error at once where the file is none; mlflow would retry for minutes."""
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


class RunLog:
    """One run being written."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> "RunLog":
        """The run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Write what is buffered and end the run."""
        status = "FAILED"
        try:
            self.flush()
            status = "FAILED" if kind else "FINISHED"
        finally:
            self._client.set_terminated(self.run_id, status=status)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Add one point to each named curve; what is no finite number is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer.extend(
            Metric(key, float(value), now, step)
            for key, value in values.items()
            if math.isfinite(value)
        )
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered points in one batch."""
        for start in range(0, len(self._buffer), METRICS_A_BATCH):
            part = self._buffer[start : start + METRICS_A_BATCH]
            self._client.log_batch(self.run_id, metrics=part, synchronous=True)
        self._buffer = []
        self._flushed = time.monotonic()

    def artifacts(self, folder: Path) -> None:
        """Store every file under a folder."""
        self._client.log_artifacts(self.run_id, str(folder))
