"""Logs what a run fitted as a model of MLflow's, to be served and registered.

python -m pipelines.log_model run=RUN_ID
mlflow models serve -m runs:/RUN_ID/model --env-manager local
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from pipelines.command import reported, run

CODE = Path(__file__).parent / "served.py"


@hydra.main(version_base="1.3", config_path="../conf", config_name="log_model")
def main(config: DictConfig) -> None:
    """Log the model, and tell how to serve it."""
    with reported():
        print(log(config))


def log(config: DictConfig) -> str:
    """Log the model, and return the text to print.

    Args:
        config: What ``conf/log_model.yaml`` composes.

    Raises:
        UserError: Something given is wrong, or the run left nothing that was fitted.
    """
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.fewshot import Saved
    from dfolora.record import Store
    from dfolora.record.serving import NAME, log_model
    from dfolora.validation import mapping, text, text_or_none
    from pipelines.predict.answers import columns_of

    plain = mapping(OmegaConf.to_container(config, resolve=True), "the configuration")
    run_id = text(plain.get("run"), "run")
    registered = text_or_none(plain.get("name"), "name")
    uri = text(mapping(plain.get("tracking"), "tracking").get("uri"), "tracking.uri")
    store = Store.existing(uri)
    folder = store.fitted(run_id)
    saved = Saved.read(folder)
    versions = saved.record["versions"]
    columns = columns_of(saved.task.classes)
    place = log_model(
        store.uri,
        run_id,
        folder,
        CODE,
        inputs=saved.task.fields,
        outputs={name: "double" if place else "string" for place, name in enumerate(columns)},
        requirements=[f"{name}=={known}" for name, known in versions.items() if known],
        registered=registered,
    )
    named = f", a version of {registered} in the registry" if registered else ""
    return (
        f"logged as {place}{named}; serve it:\n"
        f"  mlflow models serve -m runs:/{run_id}/{NAME} --env-manager local"
    )


if __name__ == "__main__":
    run(main)
