"""MLflow, the one store of results; no other package imports it.

Runs are flat and share a ``sweep_id`` tag. Curves are buffered and written in batches, for a point
written alone costs as much as a batch. A store that fails while a run goes on only makes the buffer
longer; it is asked again later, and at the end for good.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A search waits for as long: seconds, where MLflow's own values make it minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from dfolora.record.runlog import RunLog
from dfolora.record.store import Store

__all__ = ["RunLog", "Store"]
