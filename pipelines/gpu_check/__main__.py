"""Checks dfolora on a GPU without network, and writes a report.

python -m pipelines.gpu_check
python -m pipelines.gpu_check device=cuda:1 minutes=10
"""

import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hydra
from omegaconf import DictConfig

from pipelines.command import reported, run
from pipelines.markdown import table

TESTS = "tests/pipelines/test_gpu.py"
"""All tests that need a GPU; others import packages that a bare machine lacks."""


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
    """Take all steps, in the order of what matters most; those that failed."""
    from pipelines.benchmark.speed import load

    _check_device(config.device)
    path = Path(config.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * config.minutes  # no step begins later
    models = cache(lambda name, precision: load(config[name], precision))
    parts, failed = [_head(config)], list[str]()
    path.write_text(parts[0] + "\n", encoding="utf-8")
    for name, step in STEPS.items():
        if time.monotonic() > until:
            text = f"Left out: the {config.minutes} minutes were over."
        else:
            try:
                text = step(config, models)
            except Exception:  # a step's failure is a finding
                failed.append(name)
                text = f"Failed:\n\n```\n{traceback.format_exc()}```"
        parts.append(f"## {name}\n\n{text}")
        print(parts[-1], flush=True)
        # What was found stays, whatever becomes of the rest.
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return failed


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
        f"{transformers.__version__}. Random weights of real shape, d = {config.dim}, rank "
        f"{config.rank}, {config.population} candidates a generation."
    )


def _tests(config: DictConfig, _models: Callable[..., Any]) -> str:
    """The tests that need a GPU, in a third of the time."""
    import torch

    from pipelines.jobs.processes import GPUS, visible_gpus

    if config.tests is None:
        return "Not asked for."
    gpus = visible_gpus()
    asked = {GPUS: gpus[torch.device(config.device).index or 0]} if gpus else {}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", config.tests, "-q", "-rfEs", TESTS],
        cwd=Path(__file__).parents[2], env=os.environ | asked,
        capture_output=True, text=True, check=False, timeout=60 * config.minutes / 3,
    )  # fmt: skip
    last = "\n".join(done.stdout.splitlines()[-30:])
    if done.returncode:
        raise RuntimeError(f"pytest -m {config.tests} ended with {done.returncode}:\n{last}")
    return f"`pytest -m {config.tests}`: {last.splitlines()[-1]}."


def _agreement(config: DictConfig, _models: Callable[..., Any]) -> str:
    """The same losses as on a CPU, and the same bits twice."""
    from pipelines.gpu_check.measures import Comparison, searched

    search = partial(searched, config.agreement.task, config.agreement.budget)
    exact = Comparison.between(search("cpu", "fp32"), search(config.device, "fp32"))
    lines = [
        f"C-LoRA, {config.agreement.budget} calls, mini-roberta. fp32 beside the CPU: the same "
        f"candidates in {exact.same} of {exact.of} populations, whose losses differ by at most "
        f"{exact.gap:.1e}."
    ]
    for precision in ("fp32", "bf16"):
        twice = Comparison.between(*(search(config.device, precision) for _ in range(2)))
        bits = (
            "the same bits" if twice.identical else f"other bits after {twice.same} of {twice.of}"
        )
        lines.append(f"{precision} twice on the GPU: {bits}.")
    return " ".join(lines)


def _graphs(config: DictConfig, models: Callable[..., Any]) -> str:
    """Recorded passes beside those that are launched kernel by kernel."""
    from dfolora.model import Limits
    from pipelines.gpu_check.measures import Comparison, searched

    lines = []
    for precision in ("fp32", "bf16"):
        single, graphs = (
            searched(
                config.agreement.task, config.agreement.budget, config.device, precision,
                graphs=recorded,
            )
            for recorded in (False, True)
        )  # fmt: skip
        both = Comparison.between(single, graphs)
        bits = (
            "the same bits" if both.identical else f"other bits (losses differ by {both.gap:.1e})"
        )
        lines.append(f"engine.graphs=true in {precision}: {bits}.")
    backbone = copy(models("model", config.search.precision))
    backbone.limits = Limits(graphs=True)
    return " ".join([*lines, _seconds_of_a_search(config, backbone)])


def _search(config: DictConfig, models: Callable[..., Any]) -> str:
    """A whole search's seconds."""
    return _seconds_of_a_search(config, models("model", config.search.precision))


def _seconds_of_a_search(config: DictConfig, backbone: Any) -> str:
    import numpy as np

    from pipelines.benchmark.overhead import share_outside
    from pipelines.benchmark.speed import few_shot
    from pipelines.gpu_check.measures import search_seconds

    wanted = config.search
    lengths, words = config.lengths[wanted.task], backbone.model.config.vocab_size
    data = few_shot(lengths, words, np.random.default_rng(0))
    sizes = {"dim": config.dim, "rank": config.rank}
    seconds = search_seconds(backbone, data, budget=wanted.budget, **sizes)
    layers = backbone.architecture.layers
    outside = share_outside(backbone, data, dim=config.dim, generations=2 * layers)
    return (
        f"C-LoRA, {wanted.budget} calls, {config.model.path}, {wanted.precision}, "
        f"{len(lengths)} sequences of {wanted.task}'s lengths: {seconds:.1f} s, drawing of maps "
        f"and looks at dev included. Outside of the engine (asking, projecting, telling, journal, "
        f"MLflow) two rounds spend {outside:.1%} of their time."
    )


def _tasks(config: DictConfig, models: Callable[..., Any]) -> str:
    """Candidates' seconds on long texts, as a share of what torch's linear reaches."""
    import numpy as np

    from pipelines.benchmark.speed import compare, random_subspace

    backbone, rng = models("model", config.search.precision), np.random.default_rng(0)
    rows = []
    for task in config.tasks:
        lengths = config.lengths[task]
        subspace = random_subspace(backbone, lengths, rng, dim=config.dim, rank=config.rank)
        speed = compare(
            None, backbone, subspace, lengths,
            population=config.population, sampled=config.layers, repeats=1, rng=rng,
        )  # fmt: skip
        rows.append(
            (
                task, speed.sequences, speed.tokens, f"{1e3 * speed.engine_s:.1f}",
                f"{speed.rate / 1e12:.0f}", f"{speed.gemm / 1e12:.0f}",
                f"{speed.rate / speed.gemm:.0%}",
            )
        )  # fmt: skip
    head = "task", "N", "tokens", "a candidate, ms", "TFLOP/s", "GEMM's TFLOP/s", "share of it"
    return table(head, rows)


def _kernels(config: DictConfig, models: Callable[..., Any]) -> str:
    """Kernels of a generation."""
    from pipelines.gpu_check.measures import Population, kernels

    backbone = models("model", config.search.precision)
    layers = backbone.architecture.layers
    asked = (0, layers // 2, layers - 2, layers - 1)
    population = Population(
        backbone=backbone, lengths=config.lengths[config.search.task],
        size=config.population, dim=config.dim, rank=config.rank,
    )  # fmt: skip
    counts = kernels(population, asked)
    return f"Kernels and copies of a generation on {config.search.task}, by layer: " + ", ".join(
        f"{layer}: {count}" for layer, count in counts.items()
    )


def _memory(config: DictConfig, models: Callable[..., Any]) -> str:
    """The allocator's peak beside what was allowed."""
    from pipelines.gpu_check.measures import Population, peak_megabytes

    allowed, backbone = config.allowed, models("large", "bf16")
    population = Population(
        backbone=backbone, lengths=[allowed.length] * allowed.sequences,
        size=config.population, dim=config.dim, rank=config.rank,
    )  # fmt: skip
    rows = [
        (limit, f"{peak_megabytes(population, limit):.0f}", f"{backbone.nbytes / 1e6:.0f}")
        for limit in allowed.megabytes
    ]
    head = "engine.memory, MB", "taken beside the weights, MB", "weights, MB"
    return (
        f"{config.large.path}, {allowed.sequences} sequences of {allowed.length} tokens, bf16.\n\n"
        + table(head, rows)
    )


STEPS: Mapping[str, Callable[[DictConfig, Callable[..., Any]], str]] = {
    "Tests": _tests,
    "Agreement": _agreement,
    "A search": _search,
    "Long texts": _tasks,
    "Kernels": _kernels,
    "Graphs": _graphs,
    "Memory": _memory,
}


if __name__ == "__main__":
    run(main)
