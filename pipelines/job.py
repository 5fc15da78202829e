"""Jobs of a command, whatever becomes of them, in this process or in others."""

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice, takewhile
from math import ceil
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from threading import RLock, Thread

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.progress import Ending, RunBar

DEFECT, MISTAKE = 1, 2
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}
"""Exit statuses of what was told to stop."""
THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"
"""Names the GPUs that CUDA shows a process, separated by commas; unset, it shows all."""
TRACEBACK = "HYDRA_FULL_ERROR"
"""Set to 1, it is Hydra's word for: show me where an error came from."""
GRACE_SECONDS = 30.0
"""For a process to end what it does when it is told to stop."""


SWEPT = "swept"
"""Beside a job's choices: the overrides in which it differs from the others of its sweep."""
Job = tuple[DictConfig, Mapping[str, str], str]
"""Configuration, chosen options and the sweep's id."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The result of a job: how it ended, a line about it and an exit status."""

    ending: Ending
    line: str
    """For the user."""
    status: int = 0
    """The command's, as far as this job is concerned."""


_hidden = partial(RunBar, hidden=True)


def work(
    config: DictConfig,
    choices: Mapping[str, str],
    sweep_id: str,
    show: Callable[[str, int], RunBar] = _hidden,
) -> JobResult:
    """Execute a run; its failure is an outcome too, so that the rest of a sweep goes on."""
    # Imported late, so that --help and configuration errors come at once.
    from pipelines.execute import execute

    try:
        outcome = execute(config, choices, sweep_id=sweep_id, show=show)
    except Exception as error:  # Hydra would keep it, and the model with it, until all are over
        failed = failure(error, "What was done is kept; call again to go on.")
        return replace(failed, line=_of_job(failed.line, choices))
    ending: Ending = "done" if outcome.new else "in the store already"
    return JobResult(ending=ending, line=outcome.line)


def _of_job(line: str, choices: Mapping[str, str]) -> str:
    """A failed job's line, which in a sweep tells which one it is."""
    return f"{line} Its job: {choices[SWEPT]}." if choices.get(SWEPT) else line


def failure(error: Exception, consolation: str = "") -> JobResult:
    """The result of an error: one line, unless its traceback was asked for.

    Args:
        error: Being handled.
        consolation: What else to tell where nobody did anything wrong.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dfolora.errors import ResourceError, UserError, is_shortage

    mistaken = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    status = MISTAKE if mistaken else DEFECT
    if os.environ.get(TRACEBACK) == "1":
        line = traceback.format_exc()
    elif mistaken:
        line = f"error: {_one_line(error)}."
    elif isinstance(error, ResourceError | OSError) or is_shortage(error):
        line = f"error: {_one_line(error)}. {consolation}".strip()
    else:
        what = f"{type(error).__name__}: {_one_line(error)}"
        line = f"error: a defect of ours, {what}. {TRACEBACK}=1 shows where."
    return JobResult(ending="failed", line=line, status=status)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def exit_on_signals(again: signal.Handlers = signal.SIG_DFL) -> None:
    """From now on SIGTERM and Ctrl-C unwind this process, so that what it does is left in order.

    Args:
        again: What a second one does: mostly end it at once.
    """

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, again)
        sys.exit(128 + number)

    def unraisable(fault: "sys.UnraisableHookArgs") -> None:
        if not isinstance(fault.exc_value, SystemExit):
            return sys.__unraisablehook__(fault)
        # Python drops what is raised in a finalizer or a weak reference's callback: exit after it.
        status = fault.exc_value.code
        signal.signal(signal.SIGALRM, lambda *_given: sys.exit(status))
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = unraisable
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


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


def work_in_pool(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> JobResult:
    """``work`` in a process of a pool, which ends with the job on a signal."""
    try:
        result = work(config, choices, sweep_id)
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


def share_out(jobs: Sequence[Job], workers: int, report: Callable[[JobResult], None]) -> None:
    """Run jobs in several processes, and report each as it ends.

    A killed process breaks the pool; the jobs that it leaves undone then run one by one.
    """
    undone: list[Job] = []
    if jobs:
        workers = min(workers, len(jobs))
        gpus = _shared_out_gpus([config for config, _choices, _id in jobs], workers)
        with worker_pool(workers, gpus) as pool:
            futures = {}
            for job in jobs:
                try:
                    futures[pool.submit(work_in_pool, *job)] = job
                except BrokenProcessPool:
                    undone.append(job)
            for future in as_completed(futures):
                if (result := result_of(future)) is None:
                    undone.append(futures[future])
                else:
                    report(result)
    for job in undone:
        report(alone(*job))


def _shared_out_gpus(configs: Sequence[DictConfig], workers: int) -> list[str]:
    """The GPUs that workers take in turn; none if a job names its own, which it must see.

    Where several workers are on one, each job plans with its part of the free memory.
    """
    visible = visible_gpus()
    gpus = visible if all(config.device in ("auto", "cuda") for config in configs) else []
    on_one = ceil(workers / max(1, len(gpus)))
    for config in configs:
        share = OmegaConf.select(config, "engine.free_share")
        if visible and isinstance(share, int | float):
            config.engine.free_share = share / on_one
    return gpus


def result_of(job: Future[JobResult]) -> JobResult | None:
    """The result of a pool's job; None if one of the processes was killed."""
    try:
        return job.result()
    except BrokenProcessPool:
        return None


def alone(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> JobResult:
    """Run a job in a pool of its own, for it may be what killed another's process."""
    with worker_pool(1) as pool:
        line = "error: its process was killed, for want of memory perhaps; call again to go on."
        killed = JobResult(ending="failed", line=_of_job(line, choices), status=DEFECT)
        return result_of(pool.submit(work_in_pool, config, choices, sweep_id)) or killed
