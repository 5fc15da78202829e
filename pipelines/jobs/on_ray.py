"""Jobs on Ray: on a cluster that is there, or on one of this machine that ends with the command."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.jobs.crew import Show, Submit, check_shared
from pipelines.jobs.job import (
    DEFECT,
    Job,
    JobResult,
    end_runs,
    exit_on_signals,
    failure,
    of_job,
    work,
)
from pipelines.jobs.processes import GRACE_SECONDS, THREADS, plan_with

CONNECT_SECONDS = 20.0
"""For a cluster to answer; Ray itself tries for minutes."""
PASSED = ("HF_", "HYDRA_FULL_ERROR", "MLFLOW_", "PYTHONPATH")
"""Beginnings of the environment variables that jobs have from the command."""


class OnRay:
    """One task of Ray's a job.

    A job whose node or process is lost is begun again elsewhere; in a shared folder it goes on.

    Args:
        address: The cluster's, ``HOST:PORT`` or ``auto``; None for one of this machine.
        num_cpus: Cores that a job takes, and threads that it has.
        num_gpus: GPUs that a job takes; None for one, where the cluster has any.
        retries: How often a job may be lost and begun again.

    Raises:
        UserError: A number is none that Ray takes.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int = 1,
        num_gpus: float | None = None,
        retries: int = 3,
    ) -> None:
        from dfolora.validation import not_negative, whole  # late, for its package takes seconds

        whole(num_cpus, "cluster.num_cpus", least=1)
        if num_gpus is not None and not_negative(num_gpus, "cluster.num_gpus") > 1:
            whole(num_gpus, "cluster.num_gpus", least=0)  # Ray divides no more than one
        whole(retries, "cluster.retries", least=0)
        self._address = address
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._retries = retries

    @contextmanager
    def hired(self, jobs: Sequence[Job], show: Show) -> Iterator[Submit]:
        """Connects to the cluster.

        Raises:
            UserError: Ray is not installed, no cluster answers, or it cannot do such jobs.
        """
        from dfolora.errors import installed

        with installed("ray"):
            import ray

        self._connect()
        exit_on_signals()  # Ray took SIGTERM for itself
        if self._num_gpus is not None and 0 < self._num_gpus < 1:
            plan_with(self._num_gpus, [config for config, _choices, _id in jobs])
        begun: list[Any] = []
        task = ray.remote(max_retries=self._retries)(_in_folder)

        def submit(job: Job, patience: float) -> Future[JobResult]:
            options = task.options(num_cpus=self._num_cpus, num_gpus=self._gpus_of(job))
            begun.append(options.remote(Path.cwd(), job, patience))
            return begun[-1].future()

        try:
            self._check(jobs)
            try:
                yield submit
            except BaseException:
                for each in begun:
                    ray.cancel(each)
                if begun:
                    ray.wait(begun, num_returns=len(begun), timeout=GRACE_SECONDS)
                raise
            finally:
                config, _choices, sweep_id = jobs[0]
                end_runs(config, sweep_id)
        finally:
            ray.shutdown()

    def lost(self, job: Job, error: BaseException) -> JobResult:
        """Fails: Ray has begun it again as often as it may."""
        from ray.exceptions import RayTaskError

        _config, choices, _id = job
        if isinstance(error, RayTaskError):
            failed = failure(error.cause)
            return JobResult(
                ending="failed", line=of_job(failed.line, choices), status=failed.status
            )
        line = (
            f"error: its process or node was lost {self._retries + 1} times "
            f"({type(error).__name__}); call again to go on."
        )
        return JobResult(ending="failed", line=of_job(line, choices), status=DEFECT)

    def _connect(self) -> None:
        import ray

        from dfolora.errors import UserError, first_line

        passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED)}
        passed |= {THREADS: os.environ.get(THREADS, str(self._num_cpus))}
        options: dict[str, Any] = {"address": "local", "include_dashboard": False}
        if self._address is not None:
            self._ask()
            options = {"address": self._address}
        try:
            ray.init(**options, logging_level=logging.ERROR, runtime_env={"env_vars": passed})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cluster.address={self._address} gives no Ray cluster: {first_line(error)}"
            ) from error

    def _ask(self) -> None:
        """Raise UserError if no cluster answers: to connect to none would take minutes."""
        from dfolora.errors import UserError

        command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address"]
        try:
            subprocess.run(
                [*command, str(self._address)], capture_output=True, check=True,
                timeout=CONNECT_SECONDS,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            raise UserError(
                f"cluster.address={self._address} is no Ray cluster that answers. Give the "
                f"HOST:PORT that ray start --head says, auto for a cluster of this machine, or "
                f"null for one that this command starts."
            ) from error

    def _check(self, jobs: Sequence[Job]) -> None:
        """Raise UserError if no node has what a job takes, or their nodes share no store."""
        import ray

        from dfolora.errors import UserError

        nodes = [node for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            wanted = {"CPU": self._num_cpus, "GPU": self._gpus_of(job)}
            if not any(_has(node["Resources"], wanted) for node in nodes):
                raise UserError(
                    f"No node of the Ray cluster has what a job takes, {wanted}. Set "
                    f"cluster.num_cpus and cluster.num_gpus to less."
                )
        machines = {node["NodeManagerHostname"] for node in nodes}
        if len(machines) > 1:
            check_shared(jobs[0][0], f"The {len(machines)} machines of the Ray cluster")

    def _gpus_of(self, job: Job) -> float:
        import ray

        if self._num_gpus is not None:
            return self._num_gpus
        return int(job[0].device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)


def _has(resources: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in wanted.items())


def _in_folder(folder: Path, job: Job, patience: float) -> JobResult:
    """``work`` in the command's folder, on whatever node."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    return work(*job, patience=patience)
