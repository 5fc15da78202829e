"""Tells how long a sweep would take on so many workers, from the times that are recorded.

All its jobs are counted, also those that are in the store already.

python -m pipelines.plan experiment=table1 profile=paper workers=512
python -m pipelines.plan experiment=table1 profile=paper workers=512 +seconds=900
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapreplace
from math import isnan, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from pipelines.built import built
from pipelines.command import reported, run
from pipelines.run import chosen

if TYPE_CHECKING:
    import pandas as pd

START_SECONDS = 10.0
"""For a worker to import what it needs."""
BESIDE_SECONDS = 1.0
"""Of a job that its recorded times do not count: loading the model, and recording."""
WRITES = 12
"""To the store by a run, its files counted; and one more each time it flushes its curves."""
NEAR = 1.05
"""So much longer than what nothing can undercut is as good as that."""
LEFT_OUT = (("seed",), ("seed", "task"))
"""Labels in which a recorded run may differ from the job whose time it tells, the closest first."""

Labels = Mapping[str, str]


class Plan:
    """The jobs of a command, which Hydra gives it one by one."""

    def __init__(self) -> None:
        self._jobs: list[Labels] = []
        self._config: DictConfig | None = None

    def run(self) -> None:
        """Print what they would take."""
        run(hydra.main(version_base="1.3", config_path="../conf", config_name="run")(self.take))
        if self._config is not None:  # not with --help
            with reported():
                print(self._told(self._config))

    def take(self, config: DictConfig) -> None:
        """Keep a job."""
        with reported():
            from dfolora.validation import not_negative, whole
            from pipelines.identity import check_parts, labels_of

            check_parts(config)
            whole(config.workers, "workers", least=1)
            if (seconds := config.get("seconds")) is not None:
                not_negative(seconds, "seconds")
            plain: Any = OmegaConf.to_container(config, resolve=True)
            checkpoint = built(config, "model", _convert_="all")
            self._jobs.append(labels_of(plain, chosen(), checkpoint, built(config, "method")))
            self._config = config

    def _told(self, config: DictConfig) -> str:
        import pandas as pd

        from dfolora.record import Store

        uri = config.tracking.uri
        there = (file := Store.file_of(uri)) is None or file.exists()
        runs = Store(uri).runs() if there else pd.DataFrame()
        return told(self._jobs, costs(self._jobs, runs, config.get("seconds")), config.workers)


def costs(jobs: Sequence[Labels], runs: "pd.DataFrame", seconds: float | None) -> list[float]:
    """The seconds of each job: those of runs that differ in the seed alone, or also in the task.

    Args:
        jobs: Their labels.
        runs: As of ``Store.runs``.
        seconds: For a job of which there are none.

    Raises:
        UserError: There are none, and ``seconds`` are not given.
    """
    from dfolora.errors import UserError

    names = sorted({name for labels in jobs for name in labels})
    recorded: dict[tuple[str | None, ...], list[float]] = defaultdict(list)
    for one in runs.to_dict("records"):
        took = one.get("metrics.time/fit_s", nan) + one.get("metrics.time/test_s", nan)
        if isnan(took):
            continue
        tags = {name: one.get(f"tags.{name}") for name in names}
        told_by = {name: value for name, value in tags.items() if isinstance(value, str)}
        for left_out in LEFT_OUT:
            recorded[_key(told_by, names, left_out)].append(took)
    found = []
    for labels in jobs:
        keys = [_key(labels, names, left_out) for left_out in LEFT_OUT]
        times = next((recorded[key] for key in keys if key in recorded), None)
        if times is None and seconds is None:
            raise UserError(
                f"No finished run tells how long {labels['method']} of {labels['model']} takes "
                f"with profile={labels['profile']}. Run one job of each row, or give +seconds=N "
                f"for those of which there is none."
            )
        found.append(BESIDE_SECONDS + ((seconds or 0) if times is None else fmean(times)))
    return found


def _key(labels: Labels, names: Sequence[str], left_out: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(None if name in left_out else labels.get(name) for name in names)


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all jobs are done, each begun in order by the worker that is free first."""
    free = [START_SECONDS] * workers
    for cost in seconds:
        heapreplace(free, free[0] + cost)
    return max(free)


def enough(seconds: Sequence[float]) -> int:
    """The fewest workers with which the jobs end about when the longest alone would."""
    least = NEAR * (START_SECONDS + max(seconds))
    few, many = 1, len(seconds)
    while few < many:
        half = (few + many) // 2
        few, many = (few, half) if makespan(seconds, half) <= least else (half + 1, many)
    return many


def told(jobs: Sequence[Labels], seconds: Sequence[float], workers: int) -> str:
    """What the jobs would take: the text to print."""
    from dfolora.record.runlog import FLUSH_SECONDS

    took, busy, longest = makespan(seconds, workers), sum(seconds), max(seconds)
    which = jobs[seconds.index(longest)]
    writes = sum(WRITES + cost / FLUSH_SECONDS for cost in seconds) / took
    most = enough(seconds)
    limit = (
        f"the workers; {most} would end with the longest job"
        if workers < most
        else f"the longest job; more than {most} workers make it no faster"
    )
    return "\n".join(
        (
            f"{len(jobs)} jobs on {workers} workers: {_time(took)}",
            f"at work: {busy / 3600:.2f} hours, {busy / (workers * took):.0%} of the workers' time",
            f"longest job: {_time(longest)}, {which['method']} on {which['task']}",
            f"writes to the store: {writes:.2f} a second",
            f"what limits: {limit}",
        )
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def main() -> None:
    """Print it."""
    Plan().run()


if __name__ == "__main__":
    main()
