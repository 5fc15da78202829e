"""The tracking store: opens it, finds runs, reads them."""

import gc
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dfolora.errors import ResourceError, UserError, is_shortage
from dfolora.record.direct import AT_ONCE, served_runs, tagged_runs
from dfolora.record.failures import asking, failures, reason_of
from dfolora.record.moved import FOLDER, Misplaced, here, local_path, mend, misplaced
from dfolora.record.runlog import RunLog
from dfolora.resources import check_folder
from dfolora.validation import file_name

if TYPE_CHECKING:
    import pandas as pd

SQLITE_SECONDS = 60.0
"""How long a process waits for another one to finish writing."""
PARAMS_A_BATCH = 100
RUNS_A_PAGE = 1000
SQLITE = "sqlite:///"
FILE = re.compile("^file:(//(localhost)?)?")
"""What stands before the path in the address of a file of this machine."""
ADAPTER = "adapter"
"""The folder of a run's artifacts that holds what was fitted."""
NO_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says of an id without a run, and of one that no run could have."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What pip calls the packages of some databases."""


class BusyError(Exception):
    """Another process is at work on the run."""


class Store:
    """A tracking store that several processes can use.

    Args:
        uri: Any MLflow tracking URI. Artifacts of a local SQLite file lie beside it in ``mlruns``.
    """

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        _check_uri(uri)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table it creates
        self.uri = uri
        self._file: Path | None = None
        self._artifacts = None
        try:
            if path := self.file_of(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file, self._artifacts = path, path.parent / FOLDER
                # Two processes cannot create the tables of a new file at once.
                with FileLock(f"{path}.lock"):
                    _prepare_sqlite(path)
                    self._client = MlflowClient(uri)
                    self._client.search_experiments(max_results=1)
            else:
                self._client = MlflowClient(uri)
                self._client.search_experiments(max_results=1)
        except ModuleNotFoundError as error:
            package = DRIVERS.get(error.name or "", error.name)
            raise UserError(
                f"A tracking store on {uri.partition(':')[0]} needs the package {error.name}, "
                f"which is not installed: pip install '{package}'."
            ) from error
        except failures() as error:
            if is_shortage(error):
                raise ResourceError(
                    f"The tracking store {uri} fails: {reason_of(error)}."
                ) from error
            raise UserError(
                f"The tracking store {uri} cannot be used: {reason_of(error)}. Set "
                f"MLFLOW_TRACKING_URI to another one."
            ) from error

    @staticmethod
    def file_of(uri: str) -> Path | None:
        """The file of a local SQLite store; None of another."""
        if not uri.startswith(SQLITE):
            return None
        return Path(uri.removeprefix(SQLITE).partition("?")[0]).absolute()

    @classmethod
    def existing(cls, uri: str | None = None) -> "Store":
        """A store that is there already.

        Args:
            uri: As for the constructor; None for ``MLFLOW_TRACKING_URI``, else
                ``sqlite:///mlflow.db``.

        Raises:
            UserError: It is a local file that does not exist.
        """
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
        if (file := cls.file_of(uri)) and not file.exists():
            raise UserError(
                f"There is no tracking store {uri}; work where it lies, set MLFLOW_TRACKING_URI "
                f"to it, or give a folder in place of the run."
            )
        return cls(uri)

    def check_experiment(self, name: str) -> None:
        """Raise UserError if artifacts of an experiment's runs have no place.

        It was deleted, its name leads out of the local folder, or that cannot be written or was
        moved.
        """
        if self._file is not None and self._artifacts is not None:
            file_name(name, "tracking.experiment")
            check_folder(self._artifacts, "the folder of artifacts")
            with asking():
                moved = misplaced(self._file, self._artifacts)
            if moved:
                raise UserError(
                    f"The tracking store {self.uri} was moved: it notes {len(moved)} places of "
                    f"artifacts as they were, such as {moved[0].old}. Now they would be in "
                    f"{self._artifacts}. python -m pipelines.mend_store notes that and says what "
                    f"it changed."
                )
        with asking():
            found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"The experiment {name} was deleted from the store; restore it there, or set "
                f"tracking.experiment to another name."
            )

    def mend(self) -> list[Misplaced]:
        """Note a moved store's artifacts where they are now; what was changed.

        Raises:
            UserError: The store is no local file.
        """
        if self._file is None or self._artifacts is None:
            raise UserError(
                f"The tracking store {self.uri} is no local SQLite file; only those know their "
                f"artifacts by their place beside them. Set tracking.uri to one."
            )
        with asking():
            return mend(self._file, self._artifacts)

    @contextmanager
    def alone(self, digest: str, folder: Path, patience: float | None = None) -> Iterator[None]:
        """A context in which no other process that uses the folder works on the run.

        Args:
            digest: The run's digest.
            folder: For the lock files, unless the store is a local file with a folder of its own.
                Processes in other folders are not kept away.
            patience: Seconds to wait for another process; None to wait for its end.

        Raises:
            BusyError: Another process is still at work on it.
        """
        path = (folder if self._artifacts is None else self._artifacts) / "locks" / digest
        with asking():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(path).acquire(timeout=-1 if patience is None else patience)
        except Timeout:
            raise BusyError from None
        with held:
            # Kept after other exceptions, else a waiting and a new process would both continue.
            try:
                yield
            except UserError:
                path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)

    def finished_run(self, digest: str) -> str | None:
        """The id of the finished run with this digest, or None."""
        with asking():
            runs = self._finished(digest)
        return runs[0].info.run_id if runs else None

    def runs_elsewhere(self, tags: Mapping[str, str]) -> bool:
        """Whether a run of the same ``digest`` is RUNNING that ``start`` would leave alone."""
        with asking():
            running = self._of(tags["digest"], "= 'RUNNING'")
        return any(not _is_left(run, tags) for run in running)

    def metric(self, run_id: str, name: str) -> float:
        """A metric of a run, NaN if it has none."""
        with asking():
            return float(self._client.get_run(run_id).data.metrics.get(name, nan))

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
        """Begin a run, or continue the one with the same ``digest`` and ``attempt`` tags.

        Other unfinished runs of this digest and ``place``, the machine and folder of the work, are
        deleted: nothing continues them.

        Args:
            experiment: MLflow's experiment.
            name: The run's name.
            tags: Its tags; they replace those of a continued run.
            params: Its parameters; those of a continued run must be the same.
            began: Its start in seconds since the epoch; None for now.

        Returns:
            A context that ends the run as FINISHED, FAILED or KILLED.
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

    def forget(self, tags: Mapping[str, str]) -> None:
        """Delete the unfinished runs of a ``digest`` that are of this ``attempt`` or ``place``.

        Runs of other places may still be at work.
        """
        with asking():
            for run in self._left(tags):
                self._client.delete_run(run.info.run_id)

    def settle(self, tags: Mapping[str, str]) -> str:
        """Leave one run of a ``digest`` of which a run has finished; its id.

        Several places may have worked on it at once. Each asks after its own run has finished, so
        the last sees all. The first to end stays, with the tags that it lacks of the others, which
        are deleted. When each ended is told by its own machine's clock: where clocks differ, a run
        whose id was returned, for it was alone, may be replaced by one that finishes later.
        """
        self.forget(tags)
        with asking():
            first, *others = self._finished(tags["digest"])
            kept = dict(first.data.tags)
            for run in others:
                lacking = {key: value for key, value in run.data.tags.items() if key not in kept}
                self._client.log_batch(first.info.run_id, tags=_entries(lacking), synchronous=True)
                self._client.delete_run(run.info.run_id)
                kept |= lacking
        return str(first.info.run_id)

    def end_sweep(self, sweep_id: str) -> None:
        """End the runs that a command left RUNNING, for their processes are gone.

        Those of which another run has finished are deleted, and the others are KILLED.
        """
        with asking():
            running = f"tags.sweep_id = '{sweep_id}' AND attributes.status = 'RUNNING'"
            for run in self._client.search_runs(self._experiment_ids(), running):
                if self._finished(run.data.tags["digest"]):
                    self._client.delete_run(run.info.run_id)
                else:
                    self._client.set_terminated(run.info.run_id, status="KILLED")

    def _broken_off(self, tags: Mapping[str, str]) -> str | None:
        """This attempt's unfinished run, if any; the others of its place are deleted."""
        found = None
        for run in self._left(tags):
            if found is None and run.data.tags.get("attempt") == tags["attempt"]:
                found = run.info.run_id
            else:
                self._client.delete_run(run.info.run_id)
        return found

    def _left(self, tags: Mapping[str, str]) -> list[Any]:
        """The unfinished runs of a digest that no other process works on."""
        unfinished = self._of(tags["digest"], "!= 'FINISHED'")
        return [run for run in unfinished if _is_left(run, tags)]

    def _finished(self, digest: str) -> list[Any]:
        """The finished runs of a digest, the first to end first."""
        found = self._of(digest, "= 'FINISHED'")
        return sorted(found, key=lambda run: (run.info.end_time, run.info.run_id))

    def _of(self, digest: str, status: str) -> list[Any]:
        return list(
            self._client.search_runs(
                self._experiment_ids(), f"tags.digest = '{digest}' AND attributes.status {status}"
            )
        )

    def runs(self) -> "pd.DataFrame":
        """All finished runs, oldest first, one per row.

        Columns are ``run_id``, ``name``, ``status``, ``experiment_id``, ``artifact_uri``, and
        ``tags.NAME``, ``params.NAME`` and ``metrics.NAME`` for every name that a run has.
        """
        import pandas as pd

        return pd.DataFrame(self._rows("status = 'FINISHED'"))

    def tagged(self, name: str) -> "pd.DataFrame":
        """All runs with the tag, of any status; columns as in ``runs``."""
        import pandas as pd

        rows = None
        if self._file is not None:
            with asking():
                rows = tagged_runs(self._file, name, SQLITE_SECONDS)
        if rows is None:
            rows = self._rows(f"tags.`{name}` LIKE '%'")
        return pd.DataFrame(rows)

    def history(self, run_ids: Sequence[str], metric: str) -> "pd.DataFrame":
        """A metric's points: ``run_id``, ``step``, ``seconds`` since the run began, ``value``."""
        import pandas as pd

        def points(run_id: str) -> list[tuple[Any, ...]]:
            began = self._client.get_run(run_id).info.start_time
            return [
                (run_id, point.step, (point.timestamp - began) / 1000, point.value)
                for point in self._client.get_metric_history(run_id, metric)
            ]

        with ThreadPoolExecutor(AT_ONCE) as several:
            found = [point for each in several.map(points, run_ids) for point in each]
        return pd.DataFrame(found, columns=["run_id", "step", "seconds", "value"])

    def artifact(self, folder: str, name: str) -> bytes | None:
        """The contents of a run's file; None if there is no such file.

        Args:
            folder: The run's ``artifact_uri``.
            name: The file's name.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        path = self._local(folder)
        try:
            if path is not None:  # a hundred times faster
                return (path / name).read_bytes()
            with tempfile.TemporaryDirectory() as copy:
                repository = get_artifact_repository(folder, tracking_uri=self.uri)
                found = Path(copy, "file")
                # What is public lists the folder first, which takes a request more.
                repository._download_file(name, str(found))
                return found.read_bytes()
        except (MlflowException, OSError):
            return None

    def fitted(self, run_id: str, *, before: str = "") -> Path:
        """The folder of what a run fitted.

        Args:
            run_id: The run's id.
            before: What is said first if there is no such run.

        Raises:
            UserError: There is no such run, or none of its artifacts on this machine.
        """
        from mlflow.exceptions import MlflowException

        with asking():
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in NO_RUN:
                    raise
                raise UserError(
                    f"{before}The tracking store {self.uri} has no run {run_id}; a run prints its "
                    f"id when it ends."
                ) from error
        place = self._local(run.info.artifact_uri)
        if place is None:
            raise UserError(
                f"The artifacts of run {run_id} are at {run.info.artifact_uri}; copy them: mlflow "
                f"artifacts download --run-id {run_id} --artifact-path {ADAPTER}, and give that "
                f"folder."
            )
        if not (place / ADAPTER).is_dir():
            raise UserError(
                f"Run {run_id} ({run.info.status.lower()}) left nothing that was fitted in {place}:"
                f" it has not ended well, its files were deleted, or the weights that it trained "
                f"were too many to be kept."
            )
        return place / ADAPTER

    def _local(self, place: str) -> Path | None:
        """Where artifacts are on this machine; None if they are elsewhere."""
        path = local_path(place)
        if self._artifacts is not None:  # they may have been moved with the store
            now = here(place, self._artifacts)
            path = now if now is not None and now.exists() else path
        return path

    def _rows(self, wanted: str) -> list[Any]:
        """The runs of a search, oldest first, as ``runs`` describes them."""
        if not self.uri.startswith("http"):
            return [_row(run) for run in self._search(wanted)]
        with asking():
            ids = self._experiment_ids()
            return [*served_runs(self._client, ids, wanted)] if ids else []

    def _search(self, wanted: str) -> Iterator[Any]:
        ids, token = self._experiment_ids(), None
        while ids:
            # Garbage collection would take half of the time, and all objects are still needed.
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
            except MlflowException:  # another process may have created it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id


def _check_uri(uri: str) -> None:
    """Raise UserError if runs that are put there are not kept, or are kept wrongly."""
    if uri.startswith("file:") or not ("://" in uri or uri.startswith("databricks")):
        folder = FILE.sub("", uri)
        raise UserError(
            f"The tracking store {uri} is a folder, which keeps repeated points twice; use "
            f"{SQLITE}{Path(folder, 'mlflow.db')}, or a server."
        )
    if uri.startswith("sqlite:"):
        path = uri.removeprefix(SQLITE)
        if path in (uri, "") or path.startswith(("?", ":memory:")) or "mode=memory" in path:
            raise UserError(
                f"The tracking store {uri} is in memory and would end with this command; use "
                f"{SQLITE}mlflow.db."
            )
        if path.startswith("file:"):
            named = FILE.sub("", path).partition("?")[0]
            raise UserError(
                f"The tracking store {uri} names its file by an address of its own; use "
                f"{SQLITE}{named}."
            )


def _is_left(run: Any, tags: Mapping[str, str]) -> bool:
    """Whether an unfinished run is of this attempt, wherever, or else of this place."""
    return any(key in tags and run.data.tags.get(key) == tags[key] for key in ("attempt", "place"))


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
    """A context without cyclic garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prepare_sqlite(path: Path) -> None:
    """Let readers and a writer work at the same time.

    Raises sqlite3.Error at once if the file is not a database; MLflow would retry for minutes.
    """
    with closing(sqlite3.connect(path, timeout=SQLITE_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
