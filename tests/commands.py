"""The commands as users call them, and their configurations."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from pipelines import run as _run  # registers the resolvers of conf/

PROJECT = Path(__file__).parents[1]
assert _run


def command(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a pipeline as a user does, with a store of its own."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{module}", *arguments],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def composed(*overrides: str) -> tuple[Any, dict[str, str]]:
    """The configuration and choices of one job, as Hydra would hand them over."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        config = compose("run", list(overrides), return_hydra_config=True)
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if v is not None}
    del config.hydra
    return config, choices
