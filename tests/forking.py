"""A child process that begins with the pipeline loaded."""

import os
from collections.abc import Callable
from contextlib import chdir
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

# A fork of the test's own process would copy locks that its other threads may hold, and hang.
# The server only imports: its one Python thread holds no lock. It loads once what takes seconds.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([
    "accelerate", "cma", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "peft",
    "pipelines.one_run.execute", "pipelines.jobs.job", "tests.commands", "tests.forking",
    "transformers.models.roberta.modeling_roberta",
])  # fmt: skip


def forked(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """A started child that does the work in this process's folder; exit code 1 if it raised.

    The work and its arguments must be picklable. What is patched in this process is not in it.
    """
    child = SERVER.Process(target=in_folder, args=(Path.cwd(), work, *arguments))
    with chdir(Path(__file__).parents[1]):  # where the server finds what it loads
        child.start()
    return child


def in_folder(folder: Path, work: Callable[..., None], *arguments: object) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)  # the tests beside need the other cores
    work(*arguments)
