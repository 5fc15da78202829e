"""The store: opening, finding, reading."""

import gc
import logging
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from dfolora.errors import UserError
from dfolora.record.direct import tagged_runs
from dfolora.record.failures import asking, failures, reason_of
from dfolora.record.runlog import RunLog
from dfolora.validation import file_name

if TYPE_CHECKING:
    import pandas as pd

SQLITE_SECONDS = 60.0
"""For which one process waits for another to have written."""
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

        if uri.startswith("file:") or not ("://" in uri or uri.startswith("databricks")):
            raise UserError(
                f"The tracking store {uri} is a folder, which keeps points twice that are told "
                f"again; give sqlite:///{Path(uri.removeprefix('file://'), 'mlflow.db')}, or a "
                f"server."
            )
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
        self.uri = uri
        self._file: Path | None = None
        self._artifacts = None
        try:
            if uri.startswith(SQLITE):
                path = Path(uri.removeprefix(SQLITE).partition("?")[0]).absolute()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file, self._artifacts = path, path.parent / "mlruns"
                # Two processes that both create a fresh file's tables kill each other.
                with FileLock(f"{path}.lock"):
                    _prepare_sqlite(path)
                    self._client = MlflowClient(uri)
                    self._client.search_experiments(max_results=1)
            else:
                self._client = MlflowClient(uri)
                self._client.search_experiments(max_results=1)
        except failures() as error:
            raise UserError(
                f"The tracking store {uri} cannot be used: {reason_of(error)}. Set "
                f"MLFLOW_TRACKING_URI to one that can."
            ) from error

    def check_experiment(self, name: str) -> None:
        """Raise UserError if it was deleted, or its runs would not lie beside the local file."""
        if self._artifacts is not None:
            file_name(name, "tracking.experiment")
        with asking():
            found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"The experiment {name} was deleted from the store; restore it there, or set "
                f"tracking.experiment to another name."
            )

    @contextmanager
    def alone(self, digest: str, folder: Path) -> Iterator[None]:
        """Within, no other process of this machine works on the run of that digest.

        Args:
            digest: The run's.
            folder: For the locks of a store that is not a local file, which has a place of its own;
                nobody is kept away from such a store in other folders.
        """
        path = (folder if self._artifacts is None else self._artifacts) / "locks" / digest
        with asking():
            path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            # Kept after any other end: who waits and who comes would both go on with what is there.
            try:
                yield
            except UserError:
                path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)

    def finished_run(self, digest: str) -> str | None:
        """The id of the finished run with that digest, if there is one."""
        with asking():
            runs = self._client.search_runs(
                self._experiment_ids(),
                f"tags.digest = '{digest}' AND attributes.status = 'FINISHED'",
                max_results=1,
            )
        return runs[0].info.run_id if runs else None

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        with asking():
            self._client.log_batch(run_id, tags=_entries(tags), synchronous=True)

    def start(
        self,
        experiment: str,
        name: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        began: float | None = None,
    ) -> RunLog:
        """Begin a run, or go on with the one that has the same ``digest`` and ``attempt`` tags.

        Other runs of that digest and ``place`` that never finished are taken away: nothing goes on
        with them.

        Args:
            experiment: MLflow's experiment.
            name: The run's.
            tags: Of the run; of one that goes on they replace what it had.
            params: Of the run; of one that goes on the same as before.
            began: Seconds since the epoch, of one that goes on the same as before; None for now.

        Returns:
            A context, which ends the run as FINISHED, FAILED or KILLED.
        """
        milliseconds = round(1000 * (time.time() if began is None else began))

        def open_run() -> str:
            run_id = self._broken_off(tags) if "attempt" in tags else None
            if run_id is None:
                run_id = self._client.create_run(
                    self._experiment_id(experiment), milliseconds, dict(tags), name
                ).info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING", name=name)
                self._client.log_batch(run_id, tags=_entries(tags), synchronous=True)
            self._log_params(run_id, params)
            return run_id

        return RunLog(self._client, open_run, milliseconds)

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_A_BATCH):
            part = entries[start : start + PARAMS_A_BATCH]
            self._client.log_batch(run_id, params=part, synchronous=True)

    def sweep(self, digest: str, place: str) -> None:
        """Take away what never finished of a run, once another of that digest did.

        Args:
            digest: The run's.
            place: Theirs: those of other places may be at work.
        """
        with asking():
            for run in self._unfinished(digest, place):
                self._client.delete_run(run.info.run_id)

    def _broken_off(self, tags: Mapping[str, str]) -> str | None:
        """The run that never finished of this attempt; those of other attempts go."""
        found = None
        for run in self._unfinished(tags["digest"], tags["place"]):
            if found is None and run.data.tags.get("attempt") == tags["attempt"]:
                found = run.info.run_id
            else:
                self._client.delete_run(run.info.run_id)
        return found

    def _unfinished(self, digest: str, place: str) -> list[Any]:
        found = self._client.search_runs(
            self._experiment_ids(),
            f"tags.digest = '{digest}' AND attributes.status != 'FINISHED'",
        )
        return [run for run in found if run.data.tags.get("place") == place]

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

        rows = None
        if self._file is not None:
            with asking():
                rows = tagged_runs(self._file, name, SQLITE_SECONDS)
        if rows is None:
            rows = [_row(run) for run in self._search(f"tags.`{name}` LIKE '%'")]
        return pd.DataFrame(rows)

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
            with asking(), _uncollected():
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


def _entries(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


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


def _prepare_sqlite(path: Path) -> None:
    """Let readers and a writer work at once; raise sqlite3.Error where the file is none.

    At once, that is: mlflow would retry for minutes.
    """
    with closing(sqlite3.connect(path, timeout=SQLITE_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
