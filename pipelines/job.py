"""One job of a command, whatever becomes of it, in this process or in another."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from threading import RLock, Thread

from omegaconf import DictConfig
from tqdm import tqdm

from pipelines.progress import Ending, RunBar

DEFECT, MISTAKE = 1, 2
THREADS = "OMP_NUM_THREADS"
TRACEBACK = "HYDRA_FULL_ERROR"
"""Set to 1, it is Hydra's word for: show me where an error came from."""
GRACE_SECONDS = 30.0
"""For a process to end what it does when it is told to stop."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a job."""

    ending: Ending
    line: str
    """What to tell."""
    status: int = 0
    """The command's, as far as this job is concerned."""


_hidden = partial(RunBar, hidden=True)


def work(
    config: DictConfig,
    choices: Mapping[str, str],
    sweep_id: str,
    show: Callable[[str, int], RunBar] = _hidden,
) -> Ended:
    """Execute a run; its failure is an outcome too, so that the rest of a sweep goes on."""
    # Imported late, so that --help and configuration errors come at once.
    from pipelines.execute import execute

    try:
        outcome = execute(config, choices, sweep_id=sweep_id, show=show)
    except Exception as error:  # Hydra would keep it, and the model with it, until all are over
        return failed(error, "What was done is kept; call again to go on.")
    ending: Ending = "done" if outcome.new else "in the store already"
    return Ended(ending=ending, line=outcome.line)


def failed(error: Exception, consolation: str = "") -> Ended:
    """What an error comes to: one line, unless its traceback was asked for.

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
    return Ended(ending="failed", line=line, status=status)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def stop_when_told(again: signal.Handlers = signal.SIG_DFL) -> None:
    """From now on SIGTERM and Ctrl-C unwind this process, so that what it does is left in order.

    Args:
        again: What a second one does: mostly end it at once.
    """

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, again)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def team(count: int) -> ProcessPoolExecutor:
    """Processes that take jobs as they are free; the cores' threads are shared out among them.

    Args:
        count: How many.
    """
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // count)))
    context = get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)


def team_work(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> Ended:
    """``work`` in a process of the team, which ends with the job when it is told to stop."""
    try:
        return work(config, choices, sweep_id)
    except SystemExit:
        os._exit(DEFECT)  # the executor would give it the next job


def dismiss(jobs: Iterable[Future[Ended]]) -> None:
    """Begin no more of a team's jobs, and let its processes stop what they do."""
    for job in jobs:
        job.cancel()
    for process in active_children():
        process.terminate()


def _end_with_parent() -> None:
    """No process of the team outlives the command, however that was killed."""
    stop_when_told(again=signal.SIG_IGN)  # who tells all processes tells this one twice
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


def result(job: Future[Ended]) -> Ended | None:
    """What became of a job of the team's; None if one of its processes was killed."""
    try:
        return job.result()
    except BrokenProcessPool:
        return None


def alone(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> Ended:
    """A job in a process of its own, after one of the team's was killed: by this job perhaps."""
    with team(1) as own:
        line = "error: its process was killed, for want of memory perhaps; call again to go on"
        killed = Ended(ending="failed", line=line, status=DEFECT)
        return result(own.submit(team_work, config, choices, sweep_id)) or killed
