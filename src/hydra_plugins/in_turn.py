"""The sweeper ``in_turn``: as Hydra's basic one, but jobs are composed once.

Hydra looks for plugins in the package of this folder's name, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class InTurnConf:
    """The sweeper's configuration node."""

    _target_: str = "hydra_plugins.in_turn.InTurn"
    params: dict[str, Any] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="in_turn", node=InTurnConf, provider="dfolora"
)


def check_launcher(hydra: Any) -> None:
    """Raise HydraException if a launcher was chosen, which would start jobs that end unheard.

    Args:
        hydra: Hydra's own part of a configuration.
    """
    launcher = str(hydra.launcher.get("_target_"))
    if launcher.rpartition(".")[2] != "BasicLauncher":
        raise HydraException(
            f"hydra/launcher={hydra.runtime.choices['hydra/launcher']} starts no jobs here. Leave "
            f"it out and set workers=N for processes of this machine, or cluster=ray or "
            f"cluster=slurm for several machines"
        )


class InTurn(Sweeper):
    """Hands over all combinations of the swept values in this process, one after another.

    Args:
        params: What to sweep over besides what the command line says.
    """

    def __init__(self, params: Mapping[str, Any] | None) -> None:
        self._params = [f"{key}={values}" for key, values in (params or {}).items()]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before the sweep; raises as ``check_launcher``."""
        check_launcher(config.hydra)
        self._context = hydra_context
        self._config = config
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Hand over the jobs.

        Each has what is not the same in all of them in ``hydra.job.swept``.

        Args:
            arguments: The command line's overrides.
        """
        overrides = self.overrides(arguments)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        # All before the first one runs, so that a mistake in the last is told at once.
        configs = [self.composed(job) for job in jobs]
        shared = set.intersection(*map(set, jobs))
        for number, (job, config) in enumerate(zip(jobs, configs, strict=True)):
            self.run(config, [override for override in job if override not in shared], number)

    def overrides(self, arguments: list[str]) -> list[Override]:
        """What the configuration and the command line say."""
        parser = OverridesParser.create(self._context.config_loader)
        return parser.parse_overrides([*self._params, *arguments])

    def composed(self, job: Sequence[str]) -> DictConfig:
        """The configuration of a job, given by its overrides."""
        return self._context.config_loader.load_sweep_config(self._config, list(job))

    def run(self, config: DictConfig, swept: Sequence[str], number: int) -> Any:
        """Run a job, and return what it returns; raises what it raises.

        Args:
            config: Its configuration.
            swept: The overrides that other jobs do not have.
            number: Its place among the jobs.
        """
        with open_dict(config.hydra.job):
            config.hydra.job.update(id=str(number), num=number, swept=swept)
        done = run_job(
            task_function=self._task_function,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=self._context,
        )
        return done.return_value
