"""Runs one configured method on one few-shot problem, or with ``-m`` a sweep of them.

python -m pipelines.run task=sst2 model.path=DIR data.root=DIR
python -m pipelines.run -m optimizer=cma,fwa rank=2,4
"""

import os
import signal
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from functools import cache

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from pipelines.command import run, told
from pipelines.job import Ended, alone, dismiss, result, stop_when_told, team, team_work, work
from pipelines.progress import Jobs

SWEEP_ID = "DFOLORA_SWEEP_ID"
Given = tuple[DictConfig, Mapping[str, str], str]
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}
_statuses: list[int] = []
_jobs = Jobs()
_team = cache(team)
_underway: dict[Future[Ended], Given] = {}
"""What the team was given."""
_left: list[Given] = []
"""What it was not, or could not end: one of its processes was killed."""


def _as_choices(values: ListConfig) -> str:
    """A list as Hydra's sweeper wants it: ``[8, 13] -> "8,13"``."""
    return ",".join(map(str, values))


def _divisible(dim: int, targets: ListConfig) -> int:
    """The largest d up to ``dim`` that divides into an A and a B for each target."""
    return dim - dim % (2 * len(targets))


OmegaConf.register_new_resolver("choices", _as_choices)
OmegaConf.register_new_resolver("divisible", _divisible)


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def job(config: DictConfig) -> None:
    """Hydra's entry: one run, here and now, or one of a sweep's that goes to the team."""
    with told():
        _take(config)


def _take(config: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    chosen = hydra_config.runtime.choices
    choices = {group: option for group, option in chosen.items() if option is not None}
    sweep_id, total = os.environ[SWEEP_ID], getattr(hydra_config.job, "total", 1)
    if type(config.workers) is not int or config.workers < 1:  # True is an int
        from dfolora.errors import UserError  # late, for its package takes seconds

        raise UserError(f"workers={config.workers} must be a whole number, 1 or more.")
    _jobs.begin(total)
    if total == 1 or config.workers == 1:
        _tell(work(config, choices, sweep_id, _jobs.run))
    else:
        given = config, choices, sweep_id
        try:
            _underway[_team(config.workers).submit(team_work, *given)] = given
        except BrokenProcessPool:
            _left.append(given)


def _tell(ended: Ended) -> None:
    _jobs.end(ended.ending, ended.line, sys.stderr if ended.ending == "failed" else None)
    if ended.status:
        _statuses.append(ended.status)


def _await_team() -> None:
    for done in as_completed(_underway):
        if (ended := result(done)) is None:
            _left.append(_underway[done])
        else:
            _tell(ended)
    for given in _left:
        _tell(alone(*given))


def main() -> None:
    """Run.

    Exit status 0 if all is well, 2 if something given was wrong, 1 for all else, 130 and 143 when
    it was told to stop.
    """
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    os.environ.setdefault(SWEEP_ID, f"{now}-{uuid.uuid4().hex[:6]}")
    stop_when_told()
    try:
        with _jobs:
            run(job)
            with told():
                _await_team()
    except SystemExit as stop:
        if stop.code not in STOPPED:
            raise
        print("stopped: what was done is kept; call again to go on", file=sys.stderr)
        dismiss(_underway)
        raise
    sys.exit(min(_statuses, default=0))


if __name__ == "__main__":
    main()
