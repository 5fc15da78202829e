"""The sweeper ``nevergrad``: chooses each job's values by what those before it returned.

In place of hydra-nevergrad-sweeper, which wants numpy below 1.20 and does not load in Python 3.11.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.in_turn import InTurn


@dataclass
class ByNevergradConf:
    """The sweeper's configuration node."""

    _target_: str = "hydra_plugins.by_nevergrad.ByNevergrad"
    optimizer: str = "OnePlusOne"  # NGOpt takes COBYLA for few trials, whose thread outlives errors
    n_trials: int = 20
    seed: int = 1
    params: dict[str, Any] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="nevergrad", node=ByNevergradConf, provider="dfolora"
)


class ByNevergrad(Sweeper):
    """Looks for the values whose job returns most, one job after another.

    Args:
        optimizer: A name in nevergrad's registry.
        n_trials: How many jobs.
        seed: Of the optimizer.
        params: What to tune besides what the command line says.
    """

    def __init__(
        self, optimizer: str, n_trials: int, seed: int, params: Mapping[str, Any] | None
    ) -> None:
        self._optimizer, self._trials, self._seed = optimizer, n_trials, seed
        self._jobs = InTurn(params)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before the sweep; raises as ``check_launcher``."""
        self._jobs.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._results = Path(config.hydra.sweep.dir) / "optimization_results.yaml"

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs, and write the best values.

        Args:
            arguments: The command line's overrides; a sweep of one is what to choose from.
        """
        import nevergrad as ng  # late, for Hydra imports all plugins in every command

        from pipelines.outputs import replacing

        overrides = self._jobs.overrides(arguments)
        tuned = {
            each.get_key_element(): _parameter(each)
            for each in overrides
            if each.is_sweep_override()
        }
        if not tuned or self._trials < 1 or self._optimizer not in ng.optimizers.registry:
            raise HydraException(
                f"hydra/sweeper=nevergrad has {len(tuned)} values to tune, "
                f"n_trials={self._trials} and optimizer={self._optimizer}; give some values as "
                f"KEY=interval(0.3,3) or KEY=a,b, a trial or more, and a name in nevergrad's "
                f"registry"
            )
        space = ng.p.Dict(**tuned)
        space.random_state.seed(self._seed)
        optimizer = ng.optimizers.registry[self._optimizer](space, budget=self._trials)
        fixed = [each.input_line or "" for each in overrides if not each.is_sweep_override()]
        self._results.parent.mkdir(parents=True, exist_ok=True)  # before jobs are spent
        tried = list[tuple[float, Mapping[str, Any]]]()
        for number in range(self._trials):
            candidate = optimizer.ask()
            swept = [f"{key}={value}" for key, value in candidate.value.items()]
            score = self._jobs.run(self._jobs.composed([*fixed, *swept]), swept, number)
            optimizer.tell(candidate, -score)
            tried.append((score, candidate.value))
        score, values = max(tried, key=lambda each: each[0])
        with replacing(self._results) as part:
            found = {"name": "nevergrad", "best_params": {**values}, "best_value": score}
            OmegaConf.save(OmegaConf.create(found), part)


def _parameter(override: Override) -> Any:
    """What nevergrad draws a value from."""
    import nevergrad as ng

    interval = override.value()
    if not isinstance(interval, IntervalSweep):  # in their order, by which few trials suffice
        return ng.p.TransitionChoice([*override.sweep_string_iterator()])
    kind = ng.p.Log if "log" in interval.tags else ng.p.Scalar
    scalar = kind(lower=interval.start, upper=interval.end)
    return scalar.set_integer_casting() if isinstance(interval.start, int) else scalar
