"""Tells how long a sweep would take on so many workers, from the times that are recorded.

All its jobs are counted, also those that are in the store already. A job of which no run tells the
time takes its arithmetic at the speed of runs like it.

python -m pipelines.plan experiment=table1 profile=paper workers=512
python -m pipelines.plan experiment=table1 profile=paper workers=512 +seconds=900
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from math import fsum, isnan, nan
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
ALIKE: Sequence[Collection[str]] = (("model", "method"), ("model",))
"""Labels by which runs are like a job, once there are none that differ in seed and task alone."""
TEST_ROWS = 500
"""Of a test set, that are encoded to tell how long its rows are."""

Labels = Mapping[str, str]
Key = frozenset[tuple[str, str]]


class Plan:
    """The jobs of a command, which Hydra gives it one by one."""

    def __init__(self) -> None:
        self._jobs: list[Labels] = []
        self._given: list[tuple[DictConfig, Mapping[str, str]]] = []

    def run(self) -> None:
        """Print what they would take."""
        run(hydra.main(version_base="1.3", config_path="../conf", config_name="run")(self.take))
        if self._jobs:  # not with --help
            with reported():
                print(self._told(self._given[-1][0]))

    def take(self, config: DictConfig) -> None:
        """Keep a job."""
        with reported():
            from dfolora.validation import not_negative, whole
            from pipelines.one_run.identity import check_parts, labels_of

            check_parts(config)
            whole(config.workers, "workers", least=1)
            if (seconds := config.get("seconds")) is not None:
                not_negative(seconds, "seconds")
            plain: Any = OmegaConf.to_container(config, resolve=True)
            checkpoint, choices = built(config, "model", _convert_="all"), chosen()
            self._jobs.append(labels_of(plain, choices, checkpoint, built(config, "method")))
            self._given.append((config, choices))

    def _told(self, config: DictConfig) -> str:
        import pandas as pd

        from dfolora.record import Store

        uri = config.tracking.uri
        there = (file := Store.file_of(uri)) is None or file.exists()
        runs = Store(uri).runs() if there else pd.DataFrame()
        seconds = costs(self._jobs, runs, config.get("seconds"), self._teraflops)
        return told(self._jobs, seconds, config.workers)

    def _teraflops(self, number: int) -> float:
        """What a job computes; its rows and its tokenizer are loaded for it."""
        from dfolora.fewshot import foreseen
        from pipelines.one_run.execute import Run

        run = Run.checked(*self._given[number], sweep_id="")
        test = run.rows.test
        some = test.select(range(0, len(test), max(1, len(test) // TEST_ROWS)))
        problem = replace(run, rows=replace(run.rows, test=some)).problem()
        work = foreseen(run.method, run.architecture, problem)
        return (work.fit + work.test * len(test) / len(some)) / 1e12


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run that tells how long it took."""

    labels: Labels
    seconds: float
    teraflops: float
    """What it computed; NaN if it does not tell."""


def costs(
    jobs: Sequence[Labels],
    runs: "pd.DataFrame",
    seconds: float | None,
    teraflops: Callable[[int], float],
) -> list[float]:
    """The seconds of each job: those of runs of other seeds, or what its arithmetic would take.

    The speed of that is the one of the runs that are most like it.

    Args:
        jobs: Their labels.
        runs: As of ``Store.runs``.
        seconds: For a job of which no run tells.
        teraflops: What the job of this number computes; asked where no run tells its time.

    Raises:
        UserError: No run tells of a job, and ``seconds`` are not given.
    """
    from dfolora.errors import UserError

    names = {name for labels in jobs for name in labels}
    same = names - {"seed"}
    recorded = _recorded(runs, names)
    timed = _grouped(recorded, same)
    counted = [run for run in recorded if not isnan(run.teraflops)]
    alike = [same - {"task"}, *ALIKE]
    speeds = [(shared, _grouped(counted, shared)) for shared in alike]
    work: dict[Key, float] = {}
    found = []
    for number, labels in enumerate(jobs):
        which = _key(labels, same)
        groups = ((by, _key(labels, shared)) for shared, by in speeds)
        if which in timed:
            took = fmean(run.seconds for run in timed[which])
        elif like := next((by[key] for by, key in groups if key in by), None):
            if which not in work:
                work[which] = teraflops(number)
            speed = fsum(run.teraflops for run in like) / fsum(run.seconds for run in like)
            took = work[which] / speed
        elif seconds is not None:
            took = seconds
        else:
            raise UserError(
                f"No finished run tells how fast {labels['model']} is with "
                f"profile={labels['profile']}. Run a job of it on the machine that the plan is "
                f"for, better one of each row; or give +seconds=N for jobs of which nothing tells."
            )
        found.append(BESIDE_SECONDS + took)
    return found


def _recorded(runs: "pd.DataFrame", names: Collection[str]) -> list[Recorded]:
    found = []
    for one in runs.to_dict("records"):
        tags = {name: one.get(f"tags.{name}") for name in names}
        took, computed = (
            one.get(f"metrics.{fit}", nan) + one.get(f"metrics.{test}", nan)
            for fit, test in (("time/fit_s", "time/test_s"), ("work/fit_tflop", "work/test_tflop"))
        )
        if not isnan(took):
            labels = {name: value for name, value in tags.items() if isinstance(value, str)}
            found.append(Recorded(labels=labels, seconds=took, teraflops=computed))
    return found


def _grouped(recorded: Iterable[Recorded], names: Collection[str]) -> Mapping[Key, list[Recorded]]:
    """Runs by their labels of these names."""
    groups: dict[Key, list[Recorded]] = defaultdict(list)
    for one in recorded:
        groups[_key(one.labels, names)].append(one)
    return groups


def _key(labels: Labels, names: Collection[str]) -> Key:
    return frozenset((name, labels[name]) for name in names if name in labels)


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
