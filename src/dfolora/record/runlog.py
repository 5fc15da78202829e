"""The log of one run in the store."""

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dfolora.errors import ResourceError
from dfolora.record.failures import asking, failures, reason_of

FAILED = re.compile(r"\b500\b|Connection aborted")
"""What an upload to a server with a full disk ends in; an id may hold these figures too."""
FLUSH_SECONDS = 30.0
RETRY_SECONDS = 300.0
"""Between two attempts to reach a store that failed."""
METRICS_A_BATCH = 1000


class RunLog:
    """Writes one run; a context that ends it.

    Args:
        client: MLflow's.
        open_run: Creates or finds the run and returns its id; called at the first write.
        began: The run's start, in milliseconds since the epoch.
    """

    def __init__(self, client: Any, open_run: Callable[[], str], began: int) -> None:
        self._client = client
        self._open_run = open_run
        self._began = began
        self._started = time.monotonic()
        self._run_id: str | None = None
        self._buffer: list[Any] = []
        self._last = began
        self._due = self._started

    @property
    def run_id(self) -> str:
        """The run's id; creates the run if it does not exist yet."""
        if self._run_id is None:
            self._run_id = self._open_run()
        return self._run_id

    def __enter__(self) -> "RunLog":
        """Return the log."""
        self._try_to_flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Write the buffer and end the run.

        Raises:
            ResourceError: The store failed, and no other exception is on its way.
        """
        if kind is None:
            with asking():
                self._end("FINISHED")
            return
        try:
            self._end("FAILED" if issubclass(kind, Exception) else "KILLED")
        except failures():
            pass  # the exception on its way says more

    def metrics(
        self, values: Mapping[str, float], *, step: int = 0, seconds: float | None = None
    ) -> None:
        """Add one point to each curve; values that are NaN or infinite are left out.

        Args:
            values: Values by curve name.
            step: The points' step.
            seconds: Seconds since the run began; None for now. The store keeps points of equal
                step, seconds and value once.
        """
        from mlflow.entities import Metric

        if seconds is None:
            seconds = time.monotonic() - self._started
        at = self._began + round(1000 * seconds)
        self._last = max(self._last, at)
        self._buffer.extend(
            Metric(key, float(value), at, step)
            for key, value in values.items()
            if math.isfinite(value)
        )
        if time.monotonic() >= self._due:
            self._try_to_flush()

    def artifacts(self, folder: Path) -> None:
        """Store all files under a folder.

        Raises:
            ResourceError: The store failed.
        """
        try:
            with asking():
                self._client.log_artifacts(self.run_id, str(folder))
        except ResourceError as error:
            if not FAILED.search(str(error)):
                raise
            raise ResourceError(
                f"{str(error).removesuffix('.')}; look whether the disk of the run's files is full."
            ) from error

    def flush(self) -> None:
        """Write the buffer in batches."""
        while self._buffer:
            part = self._buffer[:METRICS_A_BATCH]
            self._client.log_batch(self.run_id, metrics=part, synchronous=True)
            self._buffer = self._buffer[len(part) :]

    def _try_to_flush(self) -> None:
        self._due = time.monotonic() + FLUSH_SECONDS
        try:
            _ = self.run_id  # shows the run from its start
            self.flush()
        except failures() as error:
            self._due = time.monotonic() + RETRY_SECONDS
            warnings.warn(
                f"The tracking store failed: {reason_of(error)}. The run continues and is "
                f"recorded later.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _end(self, status: str) -> None:
        self.flush()
        # The clock may have been set back.
        ended = max(round(1000 * time.time()), self._last)
        self._client.set_terminated(self.run_id, status=status, end_time=ended)
