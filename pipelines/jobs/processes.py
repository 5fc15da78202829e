"""Jobs in processes of this machine: the command's own, or several."""

import gc
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from itertools import cycle, islice, takewhile
from math import ceil
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from threading import RLock, Thread

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.jobs.crew import Show, Submit
from pipelines.jobs.job import DEFECT, Job, JobResult, end_runs, exit_on_signals, of_job, work

THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"
"""Names the GPUs that CUDA shows a process, separated by commas; unset, it shows all."""
GRACE_SECONDS = 30.0
"""For a process to end what it does when it is told to stop."""


class Processes:
    """Processes of this machine; the command's own where one is enough.

    Args:
        workers: How many.

    Raises:
        UserError: That is no number of processes.
    """

    def __init__(self, workers: int = 1) -> None:
        from dfolora.validation import whole  # late, for its package takes seconds

        self._workers = whole(workers, "workers", least=1)
        self._killed = False

    @contextmanager
    def hired(self, jobs: Sequence[Job], show: Show) -> Iterator[Submit]:
        """Each worker takes a GPU where there are some, unless a job names its own."""
        if (count := min(self._workers, len(jobs))) == 1:
            yield partial(_at_once, show)
        else:
            gpus = _shared_out_gpus([config for config, _choices, _id in jobs], count)
            with worker_pool(count, gpus) as pool:
                yield partial(_submitted, pool)
        if self._killed:
            config, _choices, sweep_id = jobs[0]
            end_runs(config, sweep_id)

    def lost(self, job: Job, error: BaseException) -> JobResult:
        """Runs the jobs that a killed process leaves undone, for it breaks the pool, one by one."""
        if not isinstance(error, BrokenProcessPool):
            raise error
        self._killed = True
        return alone(*job)


def _at_once(show: Show, job: Job, patience: float) -> Future[JobResult]:
    done: Future[JobResult] = Future()
    done.set_result(work(*job, show=show, patience=patience))
    return done


def _submitted(pool: ProcessPoolExecutor, job: Job, patience: float) -> Future[JobResult]:
    try:
        return pool.submit(work_in_pool, *job, patience)
    except BrokenProcessPool as error:
        lost: Future[JobResult] = Future()
        lost.set_exception(error)
        return lost


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (given := os.environ.get(GPUS)) is not None:
        names = [name.strip() for name in given.split(",")]
        return [*takewhile(lambda name: name not in ("", "-1"), names)]  # CUDA reads no further
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [*map(pynvml.nvmlDeviceGetUUID, handles)]
    except pynvml.NVMLError:
        return []


@contextmanager
def worker_pool(count: int, gpus: Sequence[str] = ()) -> Iterator[ProcessPoolExecutor]:
    """Processes that take jobs as they are free; the cores' threads are shared out among them.

    An error within, or a signal, makes them begin no more jobs and leave theirs in order.

    Args:
        count: How many.
        gpus: Each sees one of these, the first process the first one; without any, each sees all.
    """
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // count)))
    context = get_context("spawn")
    mine = context.SimpleQueue()
    for gpu in islice(cycle(gpus), count):
        mine.put(gpu)
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin_worker, initargs=(mine if gpus else None,)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        raise
    pool.shutdown()


def work_in_pool(
    config: DictConfig, choices: Mapping[str, str], sweep_id: str, patience: float | None
) -> JobResult:
    """``work`` in a process of a pool, which ends with the job on a signal."""
    try:
        result = work(config, choices, sweep_id, patience=patience)
    except SystemExit:
        os._exit(DEFECT)  # the executor would give it the next job
    _settle()
    return result


@cache
def _settle() -> None:
    """Leave what a process's first job has loaded out of later searches for garbage.

    There are two a job, and among a million objects of libraries each takes a third of a second.
    """
    gc.collect()
    gc.freeze()


def _begin_worker(gpus: "SimpleQueue[str] | None") -> None:
    """Take a GPU, before CUDA is loaded; and outlive the command in no case.

    Args:
        gpus: One for each worker; None if each is to see all.
    """
    if gpus is not None:
        os.environ[GPUS] = gpus.get()
    exit_on_signals(again=signal.SIG_IGN)  # who tells all processes tells this one twice
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command tells, being interrupted itself
    tqdm.set_lock(RLock())  # its own is the system's, and is left behind when the process stops
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(DEFECT)

    Thread(target=watch, daemon=True).start()


def _shared_out_gpus(configs: Sequence[DictConfig], workers: int) -> list[str]:
    """The GPUs that workers take in turn; none if a job names its own, which it must see.

    Where several workers are on one, each job plans with its part of the free memory.
    """
    visible = visible_gpus()
    gpus = visible if all(config.device in ("auto", "cuda") for config in configs) else []
    if visible:
        plan_with(1 / ceil(workers / max(1, len(gpus))), configs)
    return gpus


def plan_with(part: float, configs: Iterable[DictConfig]) -> None:
    """Let jobs that share a GPU each plan with this part of its free memory."""
    for config in configs:
        share = OmegaConf.select(config, "engine.free_share")
        if isinstance(share, int | float):
            config.engine.free_share = share * part


def alone(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> JobResult:
    """Run a job in a pool of its own, for it may be what killed another's process."""
    with worker_pool(1) as pool:
        try:
            return pool.submit(work_in_pool, config, choices, sweep_id, None).result()
        except BrokenProcessPool:
            line = "error: its process was killed, for want of memory perhaps; call again to go on."
            return JobResult(ending="failed", line=of_job(line, choices), status=DEFECT)
