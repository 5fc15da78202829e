"""The commands within the test's own process."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import pipelines.log_model
import pipelines.new_task.__main__
import pipelines.plan
import pipelines.predict.__main__
import pipelines.pretrain.__main__
import pipelines.report
import pipelines.run
import pipelines.show
from pipelines.command import run
from tests.commands import PROJECT

COMMANDS: dict[str, Callable[[], None]] = {
    "run": pipelines.run.main,
    "plan": pipelines.plan.main,
    "show": partial(run, pipelines.show.main),
    "report": partial(run, pipelines.report.main),
    "log_model": partial(run, pipelines.log_model.main),
    "new_task": partial(run, pipelines.new_task.__main__.main),
    "predict": partial(run, pipelines.predict.__main__.main),
    "pretrain": partial(run, pipelines.pretrain.__main__.main),
}


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sweep as the command line would, with a task of one's own."""
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        yield lambda task, *overrides: hydra.multirun("run", task, list(overrides))


@pytest.fixture
def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Runs a command here, where nothing is to be imported: its exit status, output and errors.

    That it is the same in a process of its own is shown once a status, by ``tests.commands``.
    """

    def ended(module: str, *arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [f"pipelines.{module}", *arguments])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("HYDRA_MAIN_MODULE", "__main__")  # as with -m: conf/ is found by files
        monkeypatch.setattr(pipelines.run, "exit_on_signals", lambda: None)  # the tests' signals
        GlobalHydra.instance().clear()
        capsys.readouterr()
        status: object = 0
        try:
            COMMANDS[module]()
        except SystemExit as end:
            status = end.code
        HydraConfig.instance().cfg = None
        return status, *capsys.readouterr()

    return ended
