"""One job of a command, whatever becomes of it."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import isnan

from omegaconf import DictConfig

import pipelines.resolvers  # noqa: F401  a job's configuration needs them, in whatever process
from pipelines.progress import Ending, RunBar

DEFECT, MISTAKE = 1, 2
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}
"""Exit statuses of what was told to stop."""
TRACEBACK = "HYDRA_FULL_ERROR"
"""Set to 1, it is Hydra's word for: show me where an error came from."""


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
    run_id: str | None = None
    """Of the run in the store, if there is one."""


_hidden = partial(RunBar, hidden=True)


def work(
    config: DictConfig,
    choices: Mapping[str, str],
    sweep_id: str,
    show: Callable[[str, int], RunBar] = _hidden,
    patience: float | None = None,
) -> JobResult:
    """Execute a run; its failure is an outcome too, so that the rest of a sweep goes on.

    Arguments are those of ``execute``. A run that others work on ends as busy.
    """
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.record import BusyError
    from pipelines.one_run.execute import execute

    try:
        outcome = execute(config, choices, sweep_id=sweep_id, show=show, patience=patience)
    except BusyError:
        return JobResult(ending="busy", line="")
    except Exception as error:  # Hydra would keep it, and the model with it, until all are over
        failed = failure(error, "What was done is kept; call again to go on.")
        return replace(failed, line=of_job(failed.line, choices))
    ending: Ending = "done" if outcome.new else "in the store already"
    return JobResult(ending=ending, line=outcome.line, run_id=outcome.run_id)


def dev_score(config: DictConfig, run_id: str) -> float:
    """That of the solution that a run has kept.

    Raises:
        UserError: There is none.
    """
    from dfolora.errors import UserError
    from pipelines.one_run.execute import store_of

    score = store_of(config.tracking.uri).metric(run_id, "dev/selected_score")
    if isnan(score):
        raise UserError(
            "The sweeper chooses by dev scores, and this method looks at no dev rows; sweep over "
            "another method."
        )
    return score


def end_runs(config: DictConfig, sweep_id: str) -> None:
    """End what lost processes left running in the store, once all of a command's jobs are over."""
    from pipelines.one_run.execute import store_of

    store_of(config.tracking.uri).end_sweep(sweep_id)


def of_job(line: str, choices: Mapping[str, str]) -> str:
    """A failed job's line, which in a sweep tells which one it is."""
    return f"{line} Its job: {choices[SWEPT]}." if choices.get(SWEPT) else line


def failure(error: Exception, consolation: str = "") -> JobResult:
    """The result of an error: one line, unless its traceback was asked for.

    Args:
        error: What ended it.
        consolation: What else to tell where nobody did anything wrong.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dfolora.errors import ResourceError, UserError, is_shortage

    mistaken = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    status = MISTAKE if mistaken else DEFECT
    if os.environ.get(TRACEBACK) == "1":
        line = "".join(traceback.format_exception(error))
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


@contextmanager
def signals_held() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for its end: what is begun there is also noted."""
    came: list[int] = []
    theirs = {
        each: signal.signal(each, lambda number, _frame: came.append(number))
        for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for each, handler in theirs.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)
