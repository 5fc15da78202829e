"""Shows what a run would ask its model; takes what ``pipelines.run`` takes, and runs nothing.

python -m pipelines.show task=sst2 model.path=DIR data.root=DIR
python -m pipelines.show -m task=mini/sst2,mini/rte data.prompt=released,natural
"""

from collections.abc import Mapping

import hydra
from omegaconf import DictConfig

from pipelines.command import reported, run
from pipelines.run import chosen


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def main(config: DictConfig) -> None:
    """Print it."""
    with reported():
        print(shown(config, chosen()))


def shown(config: DictConfig, choices: Mapping[str, str]) -> str:
    """What the model would be asked: the text to print. No weight is loaded.

    Args:
        config: What ``conf/run.yaml`` composes.
        choices: The option chosen for each config group.

    Raises:
        UserError: Something given is wrong.
    """
    from pipelines.one_run.execute import (
        Run,  # late, so that --help and mistakes of Hydra's come at once
    )

    checked = Run.checked(config, choices, sweep_id="")
    model = checked.architecture
    family = f"{checked.checkpoint.config().model_type}, {model.family.kind}"
    sizes = f"{model.layers} layers of width {model.width}, at most {model.max_length} tokens"
    told = f"model: {checked.labels['model']} ({family}), {sizes}"
    return "\n".join((checked.name, told, checked.problem().details()))


if __name__ == "__main__":
    run(main)
