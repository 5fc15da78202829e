"""Plays SLURM on one machine: ``python slurm.py COMMAND ARGUMENTS``; its state: $SLURM_PLAYED.

A task is known as JOB_INDEX; beside that name are ``.step`` (its process), ``.starts`` (a line each
time it begins), ``.requeue``, ``.cancelled`` and ``.ended``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Semaphore, Thread

KILL_SECONDS = 60.0
"""Between being told to end and being killed."""


def install(folder: Path) -> dict[str, str]:
    """Put SLURM's commands into a folder; the variables with which they are found."""
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct", "squeue"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__)} {name} "$@"\n')
        path.chmod(0o755)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_PLAYED": str(folder),
    }


def beside(task: str, kind: str) -> Path:
    return Path(os.environ["SLURM_PLAYED"]) / f"{task}.{kind}"


def sbatch(file: str) -> None:
    job = str(time.time_ns() // 1000)
    tasks, at_once = 1, 1
    if array := re.search(r"--array=0-(\d+)%(\d+)", Path(file).read_text()):
        tasks, at_once = int(array[1]) + 1, int(array[2])
    for index in range(tasks):
        beside(f"{job}_{index}", "starts").touch()
    subprocess.Popen(
        [sys.executable, "-S", __file__, "control", job, file, str(tasks), str(at_once)],
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"Submitted batch job {job}")


def control(job: str, file: str, tasks: str, at_once: str) -> None:
    """Run a job's tasks, each again as long as it is to be requeued or its node failed."""
    free = Semaphore(int(at_once))

    def run(index: int) -> None:
        task = f"{job}_{index}"
        array = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(index)}
        one = ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES")
        first = ("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID")
        given = {"SLURM_JOB_ID": job} | (array if int(tasks) > 1 else {})
        given |= dict.fromkeys(one, "1") | dict.fromkeys(first, "0") | {"PLAYED_TASK": task}
        again = True
        while again:
            with free, beside(task, "log").open("a") as log:
                if beside(task, "cancelled").exists():
                    break
                ended = subprocess.run(
                    ["bash", file], env=os.environ | given, stdout=log, stderr=log, check=False
                )
            killed = ended.returncode == 128 + signal.SIGKILL
            again = killed or beside(task, "requeue").exists()
            beside(task, "requeue").unlink(missing_ok=True)
        beside(task, "ended").touch()

    threads = [Thread(target=run, args=(index,)) for index in range(int(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def srun(*arguments: str) -> None:
    task = os.environ["PLAYED_TASK"]
    beside(task, "step").write_text(str(os.getpid()))
    with beside(task, "starts").open("a") as starts:
        starts.write("begun\n")
    command = arguments[arguments.index("-u") - 1 :]
    os.execv(command[0], command)


def scontrol(_requeue: str, task: str) -> None:
    """The task is told to end as well."""
    beside(task, "requeue").touch()
    os.kill(int(beside(task, "step").read_text()), signal.SIGTERM)


def scancel(task: str) -> None:
    """Comes back when the task has ended."""
    beside(task, "cancelled").touch()
    try:
        step = int(beside(task, "step").read_text())
        os.kill(step, signal.SIGTERM)
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline:
            os.kill(step, 0)
            time.sleep(0.1)
        os.kill(step, signal.SIGKILL)
        beside(task, "killed").touch()
    except (OSError, ValueError):
        return  # it has ended, or never begun


def squeue(*arguments: str) -> None:
    print("COMPLETING" if beside(arguments[-1], "cancelled").exists() else "RUNNING")


def sacct(*_arguments: str) -> None:
    print("JobID|State|NodeList")
    for starts in Path(os.environ["SLURM_PLAYED"]).glob("*.starts"):
        state = "PENDING" if not starts.read_text() else "RUNNING"
        if beside(starts.stem, "ended").exists():
            state = "CANCELLED" if beside(starts.stem, "cancelled").exists() else "COMPLETED"
        print(f"{starts.stem}|{state}|here")


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    globals()[name](*given)
