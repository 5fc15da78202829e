"""Runs one configured method on one few-shot problem, or with ``-m`` a sweep of them.

python -m pipelines.run task=sst2 model.path=DIR data.root=DIR
python -m pipelines.run -m optimizer=cma,fwa rank=2,4
"""

import sys
import uuid
from datetime import UTC, datetime

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from pipelines.command import reported, run
from pipelines.job import STOPPED, SWEPT, Job, JobResult, exit_on_signals, share_out, work
from pipelines.progress import Jobs


def _as_choices(values: ListConfig) -> str:
    """A list as Hydra's sweeper wants it: ``[8, 13] -> "8,13"``."""
    return ",".join(map(str, values))


def _divisible(dim: int, targets: ListConfig) -> int:
    """The largest d up to ``dim`` that divides into an A and a B for each target."""
    return dim - dim % (2 * len(targets))


def _patterns(prompts: DictConfig, variants: ListConfig) -> list[str]:
    """The patterns of some of a task's prompts, for either kind of model, where it has them."""
    by_kind = [prompts[variant] for variant in variants if variant in prompts]
    return [*dict.fromkeys(prompt.pattern for each in by_kind for prompt in each.values())]


OmegaConf.register_new_resolver("choices", _as_choices)
OmegaConf.register_new_resolver("divisible", _divisible)
OmegaConf.register_new_resolver("patterns", _patterns)


def chosen() -> dict[str, str]:
    """The option that Hydra chose for each group, and in what this job differs from others."""
    hydra_config = HydraConfig.get()
    options = hydra_config.runtime.choices
    choices = {group: option for group, option in options.items() if option is not None}
    return choices | {SWEPT: " ".join(getattr(hydra_config.job, "swept", ()))}


class Sweep:
    """The jobs of one command, which Hydra gives it one by one.

    A job runs at once, or, with workers, when all jobs are known.
    """

    def __init__(self) -> None:
        self._id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._progress = Jobs()
        self._shared: list[Job] = []
        self._workers = 1
        self._statuses: list[int] = []

    def run(self) -> int:
        """Run all; the exit status."""
        take = hydra.main(version_base="1.3", config_path="../conf", config_name="run")(self.take)
        with self._progress:
            run(take)
            with reported():
                share_out(self._shared, self._workers, self._end)
        return min(self._statuses, default=0)

    def take(self, config: DictConfig) -> None:
        """Run a job, or keep it for the workers."""
        with reported():
            if type(config.workers) is not int or config.workers < 1:  # True is an int
                from dfolora.errors import UserError  # late, for its package takes seconds

                raise UserError(f"workers={config.workers} must be a whole number, 1 or more.")
            choices = chosen()
            total = getattr(HydraConfig.get().job, "total", 1)
            self._progress.begin(total)
            if total == 1 or config.workers == 1:
                self._end(work(config, choices, self._id, self._progress.run))
            else:
                self._workers = config.workers
                self._shared.append((config, choices, self._id))

    def _end(self, result: JobResult) -> None:
        file = sys.stderr if result.ending == "failed" else None
        self._progress.end(result.ending, result.line, file)
        if result.status:
            self._statuses.append(result.status)


def main() -> None:
    """Run.

    Exit status 0 if all is well, 2 if something given was wrong, 1 for all else, 130 and 143 when
    it was told to stop.
    """
    exit_on_signals()
    try:
        sys.exit(Sweep().run())
    except SystemExit as stop:
        if stop.code in STOPPED:
            print("stopped: what was done is kept; call again to go on", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
