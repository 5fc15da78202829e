"""Logs what a run fitted as a model that MLflow serves and registers."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from dfolora.record.failures import asking

NAME = "model"
"""``runs:/RUN_ID/model`` is its place."""
FITTED = "fitted"
"""Of the model's artifacts, the folder of what was fitted."""


def log_model(
    uri: str,
    run_id: str,
    fitted: Path,
    code: Path,
    *,
    inputs: Sequence[str],
    outputs: Mapping[str, str],
    requirements: Sequence[str],
    registered: str | None = None,
) -> str:
    """Log a model on a run; what was fitted is copied into it, and no object is pickled.

    Args:
        uri: Of the tracking store.
        run_id: The run's.
        fitted: The folder of what it fitted.
        code: A file that MLflow runs to make the model, which it copies too.
        inputs: Columns of texts.
        outputs: MLflow's type of each column that the model answers with.
        requirements: Packages that it needs, as pip takes them.
        registered: A name in the registry, of which this becomes a new version.

    Returns:
        The model's URI.

    Raises:
        UserError: The store does not take it.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", name) for name in inputs]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )
    with asking(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, of what it changes next
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri)
        # By itself it would be of the experiment that is active, where the run's URI finds none.
        begun = client.create_logged_model(
            client.get_run(run_id).info.experiment_id, name=NAME, source_run_id=run_id
        )
        logged = Model.log(
            artifact_path=None,
            name=NAME,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=begun.model_id,
            registered_model_name=registered,
            python_model=str(code),
            artifacts={FITTED: str(fitted)},
            signature=signature,
            input_example=pd.DataFrame([{name: f"some {name}" for name in inputs}]),
            pip_requirements=list(requirements),
        )
    return logged.model_uri
