"""Checks dfolora on a GPU without network, and writes a report.

python -m pipelines.gpu_check
python -m pipelines.gpu_check device=cuda:1 minutes=10
"""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hydra
from omegaconf import DictConfig

from pipelines.command import reported, run

SHARE = 1 / 3
"""Of the time that is left, for a step that others follow."""


@hydra.main(version_base="1.3", config_path="../../conf", config_name="gpu_check")
def main(config: DictConfig) -> None:
    """Write ``config.report``; the exit status is 1 if a step failed."""
    with reported():
        failed = check(config)
    if failed:
        print(f"\nFailed: {', '.join(failed)}. Written to {config.report}", file=sys.stderr)
        sys.exit(1)
    print(f"\nWritten to {config.report}")


def check(config: DictConfig) -> list[str]:
    """Take all steps, in the order of what matters most; those that failed.

    A step that does not end in its time is broken off, and fails; what it found stays.
    """
    from pipelines.gpu_check.steps import STEPS, Models

    _check_device(config.device)
    path = Path(config.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    until, models = time.monotonic() + 60 * config.minutes, Models(config)
    failed = list[str]()
    with path.open("w", encoding="utf-8") as report:

        def tell(line: str) -> None:
            print(line, flush=True)
            print(line, file=report, flush=True)

        tell(_head(config))
        for name, step in STEPS.items():
            began = time.monotonic()
            left = until - began
            tell(f"\n## {name}\n")
            if left <= 0:
                tell(f"Left out: the {config.minutes} minutes were over.")
                continue
            try:
                with _within(left if name == [*STEPS][-1] else SHARE * left):
                    for line in step(config, models):
                        tell(line)
            except (Exception, Overdue):  # a step's failure is a finding
                failed.append(name)
                tell(f"\nFailed:\n\n```\n{traceback.format_exc()}```")
            tell(f"\n({time.monotonic() - began:.0f} s)")
    return failed


class Overdue(BaseException):
    """A step's time is over; no error of what it does, and none that this explains."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """A context that raises Overdue in the main thread when so much time has passed."""

    def over(*_given: object) -> None:
        raise Overdue(f"broken off after {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, over)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _check_device(device: str) -> None:
    """Raise UserError unless it is a GPU that is there."""
    import torch

    from dfolora.errors import UserError

    number = re.fullmatch(r"cuda(?::(\d{1,2}))?", str(device))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number is None or int(number[1] or 0) >= count:
        raise UserError(
            f"device={device}, but torch {torch.__version__} sees {count} CUDA devices; give cuda "
            f"or cuda:N. Without any there is nothing to check; make test emulates one"
        )


def _head(config: DictConfig) -> str:
    import torch
    import transformers

    from dfolora.record.provenance import commit

    device = torch.device(config.device)
    card = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"# GPU check\n\n`python -m pipelines.gpu_check`, commit {commit()}, on {card.name} "
        f"(compute capability {card.major}.{card.minor}, {free / 1e9:.1f} of {total / 1e9:.1f} GB "
        f"free), Python {sys.version.split()[0]}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, transformers "
        f"{transformers.__version__}. Random weights of real shape, rank {config.rank}, "
        f"{config.population} candidates a generation; d = {config.dim} where no other is told."
    )


if __name__ == "__main__":
    run(main)
