"""The commands as users call them, and their configurations."""

import os
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository

import pipelines.resolvers  # noqa: F401  those of conf/

PROJECT = Path(__file__).parents[1]


def command(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a pipeline as a user does, with a store and a working folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{module}", *arguments], cwd=folder,
        env=environment(folder), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Where a process finds this code from any folder, and its store in this one."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (PROJECT / "src", PROJECT))),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }


_load = ConfigRepository.load_config
_loaded = dict[str, Any]()


def _load_once(repository: ConfigRepository, config_path: str) -> Any:
    """What a file of ``conf/`` or of Hydra's says, in a copy, for Hydra writes to it."""
    if config_path not in _loaded:
        _loaded[config_path] = _load(repository, config_path)
    return deepcopy(_loaded[config_path])


@cache
def _composed(config: str, overrides: tuple[str, ...]) -> Any:
    with (
        initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"),
        patch.object(ConfigRepository, "load_config", _load_once),
    ):
        return compose(config, list(overrides), return_hydra_config=True)


def whole_config(*overrides: str, config: str = "run") -> Any:
    """What an entry point's file composes, Hydra's own part included.

    A copy, for each is composed but once: that takes longer than most of what is done with it.
    """
    return deepcopy(_composed(config, overrides))


def composed(*overrides: str, config: str = "run") -> tuple[Any, dict[str, str]]:
    """The configuration and choices of one job, as Hydra would hand them over."""
    made = whole_config(*overrides, config=config)
    choices = {k: v for k, v in made.hydra.runtime.choices.items() if v is not None}
    del made.hydra
    return made, choices
