"""The steps of the check: each takes the configuration and the models, and gives lines."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from dfolora.errors import UserError
from dfolora.model import Backbone, Limits, check_torchao
from pipelines.benchmark.overhead import share_outside
from pipelines.benchmark.speed import compare, few_shot, load, random_subspace
from pipelines.gpu_check.measures import (
    MEGABYTE,
    Attention,
    Comparison,
    Population,
    kernels,
    measured,
    search_seconds,
    searched,
    stated_peak,
)
from pipelines.jobs.processes import GPUS, visible_gpus
from pipelines.markdown import lines

TESTS = "tests/pipelines/test_gpu.py"
"""All tests that need a GPU; others import packages that a bare machine lacks."""


class Models:
    """The models of the check; the device holds the last one asked for, and whatever is in use.

    Args:
        config: Has ``model`` and ``large``.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._loaded = lru_cache(maxsize=1)(lambda name, precision: load(config[name], precision))

    def __call__(
        self, name: str, precision: str = "bf16", limits: Limits | None = None
    ) -> Backbone:
        """A model within limits; one that is streamed is loaded anew."""
        limits = limits or Limits()
        if limits.stream:
            return load(self._config[name], precision, limits)
        within = copy(self._loaded(name, precision))
        within.limits = limits
        return within


Step = Callable[[DictConfig, Models], Iterator[str]]


def _agreement(config: DictConfig, _models: Models) -> Iterator[str]:
    """The same losses as on a CPU, and the same bits twice."""
    search = partial(searched, config.agreement.task, config.agreement.budget)
    exact = Comparison.between(search("cpu", "fp32"), search(config.device, "fp32"))
    yield (
        f"C-LoRA, {config.agreement.budget} calls, mini-roberta. fp32 beside the CPU: the same "
        f"candidates in {exact.same} of {exact.of} populations, whose losses differ by at most "
        f"{exact.gap:.1e}."
    )
    for precision in ("fp32", "bf16", "fp16"):
        twice = Comparison.between(*(search(config.device, precision) for _ in range(2)))
        bits = (
            "the same bits" if twice.identical else f"other bits after {twice.same} of {twice.of}"
        )
        yield f"{precision} twice on the GPU: {bits}."


def _searches(config: DictConfig, models: Models) -> Iterator[str]:
    """Whole searches' seconds, by precision and d."""
    wanted = config.search
    yield (
        f"C-LoRA, {wanted.budget} calls, {config.model.path}, {len(config.lengths[wanted.task])} "
        f"sequences of {wanted.task}'s lengths; drawing of maps and looks at dev included. MB: the "
        f"allocator's peak, weights included. Outside of the engine: asking, projecting, telling, "
        f"journal and MLflow, of two rounds.\n"
    )

    def rows() -> Iterator[tuple[object, ...]]:
        for precision in wanted.precisions:
            if precision == "int8" and (lacking := _torchao()):
                yield precision, "", lacking, "", ""
                continue
            for dim in wanted.dims:
                seconds, megabytes, outside = _search(config, models("model", precision), dim)
                yield precision, dim, f"{seconds:.1f}", f"{megabytes:.0f}", f"{outside:.1%}"

    yield from lines(("precision", "d", "seconds", "MB", "outside of the engine"), rows())


def _torchao() -> str:
    """Why there is no int8; empty if there is."""
    try:
        check_torchao()
    except UserError:
        return "torchao is not installed"
    return ""


def _search(config: DictConfig, backbone: Backbone, dim: int) -> tuple[float, float, float]:
    """A search's seconds, its peak in megabytes, and the share outside of the engine."""
    lengths, words = config.lengths[config.search.task], backbone.model.config.vocab_size
    data = few_shot(lengths, words, np.random.default_rng(0))
    torch.cuda.reset_peak_memory_stats(backbone.device)
    others = torch.cuda.memory_allocated(backbone.device) - backbone.device_nbytes
    seconds = search_seconds(backbone, data, budget=config.search.budget, dim=dim, rank=config.rank)
    peak = (torch.cuda.max_memory_allocated(backbone.device) - others) / MEGABYTE
    outside = share_outside(backbone, data, dim=dim, generations=2 * backbone.architecture.layers)
    return seconds, peak, outside


def _attention(config: DictConfig, _models: Models) -> Iterator[str]:
    """Which kernel torch's attention takes, and what a new shape costs with cuDNN's and without."""
    yield (
        "torch's `scaled_dot_product_attention`. The engine rules cuDNN's out, and in half "
        "precision takes one kernel for all lengths in place of this where no mask is needed.\n"
    )
    shapes = config.attention.shapes
    sizes = {name: config.attention[name] for name in ("sequences", "heads", "width")}

    def cells(precision: str, *, masked: bool) -> Iterator[object]:
        for cudnn in (True, False):
            attention = Attention(
                device=config.device, precision=precision, masked=masked, cudnn=cudnn, **sizes
            )
            new, again = attention.seconds(shapes)
            yield from (attention.kernel, f"{1e3 * new:.2f}", f"{1e3 * again:.2f}")

    head = (
        "", "mask", "with cuDNN's", "new shape, ms", "known, ms",
        "without", "new shape, ms", "known, ms",
    )  # fmt: skip
    yield from lines(
        head,
        (
            (precision, "mask" if masked else "none", *cells(precision, masked=masked))
            for precision in ("bf16", "fp16", "fp32")
            for masked in (False, True)
        ),
    )


def _long_texts(config: DictConfig, models: Models) -> Iterator[str]:
    """Candidates' seconds on long texts, as a share of what torch's linear and the card reach."""
    backbone, rng = models("model"), np.random.default_rng(0)
    peak = stated_peak(torch.cuda.get_device_name(config.device), config.peaks)
    stated = "is not known here" if peak is None else f"is {peak:.0f} TFLOP/s"
    yield f"In bf16, of which the card's stated peak {stated}.\n"

    def rows() -> Iterator[tuple[object, ...]]:
        for task in config.tasks:
            lengths = config.lengths[task]
            subspace = random_subspace(backbone, lengths, rng, dim=config.dim, rank=config.rank)
            speed = compare(
                None, backbone, subspace, lengths,
                population=config.population, sampled=config.layers, repeats=1, rng=rng,
            )  # fmt: skip
            rate = speed.rate / 1e12
            yield (
                task, speed.sequences, speed.tokens, f"{1e3 * speed.engine_s:.1f}", f"{rate:.0f}",
                f"{speed.gemm / 1e12:.0f}", f"{speed.rate / speed.gemm:.0%}",
                "" if peak is None else f"{rate / peak:.0%}",
            )  # fmt: skip

    head = (
        "task", "N", "tokens", "a candidate, ms", "TFLOP/s", "GEMM's TFLOP/s", "share of it",
        "share of the card's",
    )  # fmt: skip
    yield from lines(head, rows())


def _kernels(config: DictConfig, models: Models) -> Iterator[str]:
    """Kernels of a generation."""
    backbone = models("model")
    layers = backbone.architecture.layers
    asked = (0, layers // 2, layers - 2, layers - 1)
    lengths = config.lengths[config.search.task]
    counts = kernels(_population(config, backbone, lengths), asked)
    yield f"Kernels and copies of a generation on {config.search.task}, by layer: " + ", ".join(
        f"{layer}: {count}" for layer, count in counts.items()
    )


def _graphs(config: DictConfig, models: Models) -> Iterator[str]:
    """Recorded passes beside those that are launched kernel by kernel."""
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
        yield f"engine.graphs=true in {precision}: {bits}."

    def rows() -> Iterator[tuple[object, ...]]:
        for recorded in (False, True):
            backbone = models("model", limits=Limits(graphs=recorded))
            seconds, megabytes, _ = _search(config, backbone, config.dim)
            yield recorded, f"{seconds:.1f}", f"{megabytes:.0f}"

    yield ""
    yield from lines(("engine.graphs", "a search, s", "MB"), rows())


def _memory(config: DictConfig, models: Models) -> Iterator[str]:
    """The allocator's peak beside what was allowed."""
    yield _of_the_large(config)

    def rows() -> Iterator[tuple[object, ...]]:
        for allowed in config.allowed.megabytes:
            backbone = models("large", limits=Limits(memory=allowed))
            got = measured(_population(config, backbone, _longest(config)), (0, 1))
            yield allowed, f"{got.megabytes:.0f}", f"{backbone.nbytes / MEGABYTE:.0f}"

    head = "engine.memory, MB", "taken beside the weights, MB", "weights, MB"
    yield from lines(head, rows())


def _streaming(config: DictConfig, models: Models) -> Iterator[str]:
    """Layers that are lent to the device beside those that stay there."""
    yield _of_the_large(config)
    found = []

    def rows() -> Iterator[tuple[object, ...]]:
        for stream in (False, True):
            limits = Limits(stream=stream, tokens=config.allowed.tokens)
            backbone = models("large", limits=limits)
            got = measured(_population(config, backbone, _longest(config)), (0, 1))
            found.append(got.logits)
            on_device = backbone.device_nbytes / MEGABYTE
            yield stream, f"{got.seconds:.2f}", f"{on_device:.0f}", f"{got.megabytes:.0f}"

    head = "engine.stream", "a generation, s", "weights there, MB", "taken beside them, MB"
    yield from lines(head, rows())
    same = all(map(torch.equal, *found))
    yield f"\nBoth have {'the same' if same else 'other'} bits."


def _authors(config: DictConfig, models: Models) -> Iterator[str]:
    """The engine beside one padded forward a candidate, as the authors' code does it."""
    backbone, rng = models("model"), np.random.default_rng(0)
    lengths = config.lengths[config.search.task]
    speed = compare(
        models("model", "fp32"), backbone,
        random_subspace(backbone, lengths, rng, dim=config.dim, rank=config.rank), lengths,
        population=config.population, sampled=config.layers, repeats=1, rng=rng,
    )  # fmt: skip
    yield (
        f"A candidate on {config.search.task}: {1e3 * speed.authors_s:.1f} ms in fp32 their way, "
        f"{1e3 * speed.engine_s:.2f} ms by the engine in bf16, {speed.ratio:.1f} times faster; by "
        f"the formulae {speed.less_work:.1f} times less work. `make benchmark` has all tasks."
    )


def _tests(config: DictConfig, _models: Models) -> Iterator[str]:
    """The tests that need a GPU."""
    if config.tests is None:
        yield "Not asked for."
        return
    gpus = visible_gpus()
    asked = {GPUS: gpus[torch.device(config.device).index or 0]} if gpus else {}
    command = [sys.executable, "-m", "pytest", "-m", config.tests, "-q", "-rfEs", TESTS]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=os.environ | asked,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as tests:  # fmt: skip
        try:
            for line in tests.stdout or ():
                yield f"    {line}".rstrip()
            tests.wait()
        finally:
            tests.kill()  # where this is broken off
    if tests.returncode:
        raise RuntimeError(f"pytest -m {config.tests} ended with {tests.returncode}")


def _population(config: DictConfig, backbone: Backbone, lengths: Sequence[int]) -> Population:
    return Population(
        backbone=backbone, lengths=lengths,
        size=config.population, dim=config.dim, rank=config.rank,
    )  # fmt: skip


def _longest(config: DictConfig) -> list[int]:
    return [config.allowed.length] * config.allowed.sequences


def _of_the_large(config: DictConfig) -> str:
    allowed = config.allowed
    return f"{config.large.path}, {allowed.sequences} sequences of {allowed.length} tokens, bf16.\n"


STEPS: Mapping[str, Step] = {
    "Agreement": _agreement,
    "Searches": _searches,
    "Attention": _attention,
    "Long texts": _long_texts,
    "Kernels": _kernels,
    "Graphs": _graphs,
    "Memory": _memory,
    "Streaming": _streaming,
    "Beside the authors' way": _authors,
    "Tests": _tests,
}
"""In the order of what matters most; the tests come last and have all the time that is left."""
