"""Who does the jobs of a command, and how they are shared out."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from typing import Protocol

from omegaconf import DictConfig

from pipelines.jobs.job import Job, JobResult
from pipelines.progress import RunBar

PATIENCE = 10.0
"""Seconds for which a job that others are at work on waits, before the next one has its turn."""

Submit = Callable[[Job, float], Future[JobResult]]
"""Begins a job as soon as somebody is free, with the patience that ``execute`` takes."""
Show = Callable[[str, int], RunBar]
"""Makes a progress bar, from a run's name and budget."""


class Crew(Protocol):
    """Who does jobs."""

    def hired(self, jobs: Sequence[Job], show: Show) -> AbstractContextManager[Submit]:
        """A context in which jobs are done, and that none of them outlives.

        An error within, or a signal, makes the jobs at work leave theirs in order.

        Args:
            jobs: All that there are.
            show: For who works in this process.
        """
        ...

    def lost(self, job: Job, error: BaseException) -> JobResult:
        """What becomes of a job that ended with no result.

        Args:
            job: Which.
            error: What its future raised.
        """
        ...


def check_shared(config: DictConfig, machines: str) -> None:
    """Raise UserError if the jobs' store is a file: several machines would damage it.

    Args:
        config: A job's.
        machines: Which ones would write to it.
    """
    from dfolora.errors import UserError  # late, for its package takes seconds
    from dfolora.record import Store

    if Store.file_of(uri := config.tracking.uri):
        raise UserError(
            f"{machines} would write to the tracking store {uri}, a file, which one machine alone "
            f"can use. Set MLFLOW_TRACKING_URI to the address of a tracking server."
        )


def share_out(
    jobs: Sequence[Job], crew: Crew, report: Callable[[JobResult], None], show: Show
) -> None:
    """Let a crew do the jobs, and report each as it ends.

    One that another command is at work on goes to the end of the queue: so commands that are the
    same, in one folder or on one tracking server, share the jobs.
    """
    queue = deque((job, 0.0) for job in jobs)
    begun: dict[Future[JobResult], Job] = {}
    with crew.hired(jobs, show) as submit:
        while queue or begun:
            while queue:
                job, patience = queue.popleft()
                begun[future := submit(job, patience)] = job
                if future.done():
                    break
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                job = begun.pop(future)
                error = future.exception()
                result = future.result() if error is None else crew.lost(job, error)
                if result.ending == "busy":
                    queue.append((job, PATIENCE))
                else:
                    report(result)
