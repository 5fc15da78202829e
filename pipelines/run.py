"""Runs one configured method on one few-shot problem, or with ``-m`` a sweep of them.

python -m pipelines.run task=sst2 model.path=DIR data.root=DIR
python -m pipelines.run -m optimizer=cma,fwa rank=2,4
"""

import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.in_turn import InTurnConf, check_launcher
from pipelines.built import built
from pipelines.command import CommandError, reported, run
from pipelines.jobs.crew import Crew, share_out
from pipelines.jobs.job import STOPPED, SWEPT, Job, JobResult, dev_score, exit_on_signals
from pipelines.progress import Jobs


def chosen() -> dict[str, str]:
    """The option that Hydra chose for each group, and in what this job differs from others."""
    hydra_config = HydraConfig.get()
    options = hydra_config.runtime.choices
    choices = {group: option for group, option in options.items() if option is not None}
    swept = getattr(hydra_config.job, "swept", None)
    if swept is None:  # of a sweeper that is not ours; it does not tell which ones it varies
        swept = hydra_config.overrides.task if hydra_config.mode == RunMode.MULTIRUN else ()
    return choices | {SWEPT: " ".join(swept)}


class Sweep:
    """The jobs of one command, which run when Hydra has given all.

    But those of other sweepers than ours, which wait for each one's dev score to choose the next.
    """

    def __init__(self) -> None:
        self._id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._progress = Jobs()
        self._jobs: list[Job] = []
        self._statuses: list[int] = []

    def run(self) -> int:
        """Run all; the exit status."""
        take = hydra.main(version_base="1.3", config_path="../conf", config_name="run")(self.take)
        with self._progress:
            run(take)
            if self._jobs:  # not with --help
                with reported():
                    self._work(self._jobs, self._end)
        return min(self._statuses, default=0)

    def take(self, config: DictConfig) -> float | None:
        """Keep a job; or run it, and return its dev score or end the command."""
        with reported():
            job = config, chosen(), self._id
            if not _waits():
                self._jobs.append(job)
                return None
            ended = list[JobResult]()
            self._work([job], ended.append)
            (result,) = ended
            self._end(result)
            if result.run_id is None:
                raise CommandError(result.status)
            return dev_score(config, result.run_id)

    def _work(self, jobs: list[Job], report: Callable[[JobResult], None]) -> None:
        crew = _crew([config for config, _choices, _id in jobs])
        self._progress.begin(len(jobs))
        share_out(jobs, crew, report, self._progress.run)

    def _end(self, result: JobResult) -> None:
        file = sys.stderr if result.ending == "failed" else None
        self._progress.end(result.ending, result.line, file)
        if result.status:
            self._statuses.append(result.status)


def _waits() -> bool:
    """Whether Hydra's sweeper waits for what a job returns; raises as ``check_launcher``."""
    node = HydraConfig.get()
    if node.mode != RunMode.MULTIRUN or node.sweeper._target_ == InTurnConf._target_:
        return False
    check_launcher(node)
    return True


def _crew(configs: list[DictConfig]) -> Crew:
    """Who does the jobs, which all of them must agree on."""
    from dfolora.errors import UserError  # late, for its package takes seconds
    from pipelines.one_run.identity import check_built

    nodes = [config.get("cluster") for config in configs]
    asked: list[Any] = [
        OmegaConf.to_object(node) if OmegaConf.is_config(node) else node for node in nodes
    ]
    if any(one != asked[0] for one in asked):
        raise UserError("cluster and workers differ between the jobs; give each one value.")
    if len({config.tracking.uri for config in configs}) > 1:
        raise UserError("tracking.uri differs between the jobs; call once for each store.")
    check_built(asked[0], "cluster")
    if configs[0].workers != 1 and "workers" not in asked[0]:
        raise UserError(
            f"workers={configs[0].workers} are processes of this machine, and go with cluster=none "
            f"alone; leave one of the two out."
        )
    return built(configs[0], "cluster")


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
