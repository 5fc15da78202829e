"""Jobs on SLURM: an array in which each takes a task, through submitit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipelines.jobs.crew import Show, Submit, check_shared
from pipelines.jobs.job import (
    DEFECT,
    Job,
    JobResult,
    end_runs,
    exit_on_signals,
    of_job,
    signals_held,
    work,
)
from pipelines.jobs.processes import GRACE_SECONDS, THREADS

POLL_SECONDS = 2.0
"""Between two looks at what has ended."""
ASK_SECONDS = 10.0
"""For SLURM to answer."""


class OnSlurm:
    """One task of an array a job; what SLURM breaks off is queued again and goes on.

    Args:
        executor: submitit's: ``slurm``, or ``local`` to try it without.
        folder: For submitit's files; the machines share it, as they do the working folder.
        timeout_min: Minutes that a task has, before it is queued again.
        timeouts: How often it may be.
        cpus: Cores that a job takes, and threads that it has.
        gpus: GPUs that a job takes.
        at_once: Tasks that may run at once.
        options: Other options of sbatch, such as ``partition`` or ``account``.

    Raises:
        UserError: A number is none that SLURM takes.
    """

    def __init__(
        self,
        executor: str = "slurm",
        folder: str = "slurm",
        timeout_min: int = 240,
        timeouts: int = 20,
        cpus: int = 1,
        gpus: int = 0,
        at_once: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        from dfolora.validation import whole  # late, for its package takes seconds

        whole(timeout_min, "cluster.timeout_min", least=1)
        whole(timeouts, "cluster.timeouts", least=0)
        whole(cpus, "cluster.cpus", least=1)
        whole(gpus, "cluster.gpus", least=0)
        whole(at_once, "cluster.at_once", least=1)
        self._executor = executor
        self._folder = folder
        self._timeouts = timeouts
        self._parameters = {
            "name": "dfolora",
            "timeout_min": timeout_min,
            "cpus_per_task": cpus,
            "gpus_per_node": gpus,
            "slurm_array_parallelism": at_once,
            # A node that fails is no reason to end.
            "slurm_additional_parameters": {"requeue": True, **(options or {})},
        }

    @contextmanager
    def hired(self, jobs: Sequence[Job], show: Show) -> Iterator[Submit]:
        """Submits all jobs as one array.

        Raises:
            UserError: submitit is not installed, the machines share no store, or SLURM does not
                take the jobs.
        """
        from dfolora.errors import installed

        with installed("slurm"):
            import submitit
        if self._executor != "local":
            check_shared(jobs[0][0], "SLURM's machines")
        # What SLURM starts has the command's environment.
        os.environ.setdefault(THREADS, str(self._parameters["cpus_per_task"]))
        with _told():
            executor = submitit.AutoExecutor(
                self._folder, cluster=self._executor, slurm_max_num_timeout=self._timeouts
            )
            executor.update_parameters(**self._parameters)
        array: list[Any] = []
        left = iter(array)
        begun: dict[Future[JobResult], Any] = {}

        def submit(job: Job, patience: float) -> Future[JobResult]:
            future: Future[JobResult] = Future()
            try:
                with signals_held():
                    # It waits in its task: to be queued over and over would be a burden to SLURM.
                    again = patience > 0
                    begun[future] = (
                        executor.submit(Task(Path.cwd(), job, None)) if again else next(left)
                    )
            except Exception as error:  # submitit's own, of several kinds
                future.set_exception(error)
            return future

        over = Event()
        watch = Thread(target=_watch, args=(begun, over), daemon=True)
        try:
            watch.start()
            with _told(), signals_held():
                with executor.batch():
                    tasks = [executor.submit(Task(Path.cwd(), job, 0.0)) for job in jobs]
                array += tasks
            yield submit
        except BaseException:
            tasks = [*begun.values(), *left]
            for task in reversed(tasks):  # so that none begins as another ends
                task.cancel(check=False)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and not all(task.done(True) for task in tasks):
                time.sleep(POLL_SECONDS)
            raise
        finally:
            over.set()
            if watch.is_alive():
                watch.join()
            if array:
                config, _choices, sweep_id = jobs[0]
                end_runs(config, sweep_id)

    def lost(self, job: Job, error: BaseException) -> JobResult:
        """Fails: what SLURM may begin again, it has."""
        from dfolora.errors import first_line

        _config, choices, _id = job
        line = (
            f"error: its SLURM task gave no result, see {self._folder}; call again to go "
            f"on. submitit says: {first_line(Exception(error))}"
        )
        return JobResult(ending="failed", line=of_job(line, choices), status=DEFECT)


@dataclass(frozen=True)
class Task:
    """A job in the command's folder, on whatever machine."""

    folder: Path
    job: Job
    patience: float | None

    def __call__(self) -> JobResult:
        """Do it; told to end, it leaves its run in order, and if preempted queues itself again."""
        os.chdir(self.folder)
        queue_again = _bind_signals()
        try:
            return work(*self.job, patience=self.patience)
        except SystemExit as end:
            if end.code == 128 + signal.SIGTERM and _runs():
                queue_again()  # a task that ends by itself before its grace is over is not
            raise

    def checkpoint(self) -> Any:
        """What submitit queues again when time is up: the same, which goes on from its journal."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _bind_signals() -> Callable[[], None]:
    """Unwind on SIGTERM and Ctrl-C; on submitit's signal, queue again and say why not if it cannot.

    What is returned does the same as that signal.
    """
    from submitit import JobEnvironment
    from submitit.core.utils import UncompletedJobError

    from dfolora.errors import ResourceError

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    theirs: Any = signal.getsignal(number)

    def queue_again(*_given: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a task that is queued again is told to end
        try:
            theirs(number, None)
        except UncompletedJobError as error:
            raise ResourceError(
                "Its time limits are used up; raise cluster.timeout_min or cluster.timeouts."
            ) from error

    exit_on_signals()
    signal.signal(number, queue_again)
    return queue_again


def _runs() -> bool:
    """Whether SLURM still counts this task as running: it preempts it then, and cancels it not."""
    from submitit import JobEnvironment

    command = ["squeue", "--noheader", "--format=%T", "--jobs", JobEnvironment().job_id]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ASK_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.stdout.strip() == "RUNNING"


@contextmanager
def _told() -> Iterator[None]:
    """Raises UserError within if SLURM takes no jobs."""
    from dfolora.errors import UserError, first_line

    try:
        yield
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        raise UserError(f"cluster=slurm takes no jobs here: {first_line(error)}") from error


def _watch(begun: dict[Future[JobResult], Any], over: Event) -> None:
    """Hand on what the tasks' results are, until it is over."""
    while not over.wait(POLL_SECONDS):
        for future, task in [*begun.items()]:
            if task.done():
                del begun[future]
                try:
                    future.set_result(task.result())
                except Exception as error:  # submitit's own, of several kinds
                    future.set_exception(error)
