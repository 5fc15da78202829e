"""What a run leaves: journal, curve, memory, provenance, and its record in MLflow, the only store.

Runs are flat and share a ``sweep_id`` tag. Curves are buffered and written in batches, because one
point costs as much as a batch. If the store fails during a run, the buffer grows and is written
later, at the latest when the run ends.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A search waits for these: seconds, where MLflow's defaults mean minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from dfolora.record.runlog import RunLog
from dfolora.record.store import ADAPTER, BusyError, Store

__all__ = ["ADAPTER", "BusyError", "RunLog", "Store"]
