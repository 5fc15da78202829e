"""One job of a command, whatever becomes of it, in this process or in another."""

import os
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread

from omegaconf import DictConfig

from pipelines.progress import Ending, RunBar

DEFECT, MISTAKE = 1, 2
THREADS = "OMP_NUM_THREADS"


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
    from dfolora.errors import UserError
    from pipelines.execute import execute

    try:
        outcome = execute(config, choices, sweep_id=sweep_id, show=show)
    except UserError as error:
        return Ended(ending="failed", line=f"error: {error}", status=MISTAKE)
    except Exception:  # Hydra would keep it, and with it the model, until the sweep is over
        return Ended(ending="failed", line=traceback.format_exc(), status=DEFECT)
    ending: Ending = "done" if outcome.new else "in the store already"
    return Ended(ending=ending, line=outcome.line)


def team(count: int) -> ProcessPoolExecutor:
    """Processes that take jobs as they are free; the cores' threads are shared out among them.

    Args:
        count: How many.
    """
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // count)))
    context = get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """No process of the team outlives the command, however that was killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(DEFECT)

    Thread(target=watch, daemon=True).start()


def result(job: Future[Ended]) -> Ended:
    """What became of a job of the team's."""
    try:
        return job.result()
    except BrokenProcessPool:
        line = "error: a worker process was killed, for want of memory perhaps; call again to go on"
        return Ended(ending="failed", line=line, status=DEFECT)
