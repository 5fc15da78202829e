"""What is measured of a device: whether losses agree, seconds, kernels and bytes."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from hydra import compose
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from dfolora.engine import Engine
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.model import Backbone, Limits, no_cudnn_attention
from dfolora.model.checkpoint import PRECISIONS
from dfolora.search import Answer
from dfolora.search.subspace import LoraSubspaceSpec
from pipelines.benchmark.agreement import few_shot_of
from pipelines.benchmark.speed import batch_of, load, random_subspace, seconds

MEGABYTE = 1e6
SHORTEST = 65
"""The first of the lengths at which attention is timed, and asked for its kernel."""


class Recorder:
    """A memo that computes every answer and keeps it with its question."""

    def __init__(self) -> None:
        self.lines: list[tuple[Answer, Answer]] = []

    def __call__(self, question: Answer, compute: Callable[[], Answer]) -> Answer:
        answer = compute()
        self.lines.append((question, answer))
        return answer


def searched(
    task: str, budget: int, device: str, precision: str, *, graphs: bool = False
) -> Recorder:
    """All that C-LoRA asks and is answered on an embedded task, by the bundled model."""
    config = compose("run", [f"task=mini/{task}", f"budget={budget}", f"device={device}"])
    method = instantiate(config.method)
    backbone = load(config.model, precision)
    backbone.limits = Limits(graphs=graphs)
    recorder = Recorder()
    data = few_shot_of(config, method, backbone.architecture)
    for _progress in method.begin(backbone, data, config.seed, recorder):
        pass
    return recorder


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far two searches went the same way."""

    same: int
    """Populations up to the first that differ."""
    of: int
    gap: float
    """The largest difference between losses of the same candidate."""

    @property
    def identical(self) -> bool:
        """Whether all is the same to the bit."""
        return self.same == self.of and self.gap == 0

    @classmethod
    def between(cls, one: Recorder, other: Recorder) -> "Comparison":
        """Compare answers as long as the questions are the same."""
        same, gap = 0, 0.0
        for (asked, answer), (too, another) in zip(one.lines, other.lines, strict=False):
            if asked != too:
                break
            same += 1
            gap = max(gap, float(np.abs(_losses(answer) - _losses(another)).max()))
        return cls(same=same, of=len(one.lines), gap=gap)


def _losses(answer: Answer) -> np.ndarray:
    return np.array(answer["losses"], dtype=np.float64)


def search_seconds(
    backbone: Backbone, data: FewShotData, *, dim: int, rank: int, budget: int
) -> float:
    """Seconds of a whole search by C-LoRA: drawing its maps, all calls, the looks at dev.

    The first generation is searched twice, for the first of its shapes is no measurement.
    """
    method = LayerwiseSearch(subspace=LoraSubspaceSpec(dim=dim, rank=rank), budget=budget)
    next(iter(method.begin(backbone, data, 0)))
    started = time.perf_counter()
    for _progress in method.begin(backbone, data, 0):
        pass
    return time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Population:
    """A population of candidates on random tokens, for any layer in turn."""

    backbone: Backbone
    lengths: Sequence[int]
    size: int
    dim: int
    rank: int

    def generations(self, layers: Sequence[int]) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """Each layer, and what evaluates the population there."""
        rng = np.random.default_rng(0)
        batch = batch_of(self.lengths, self.backbone.model.config.vocab_size, rng)
        subspace = random_subspace(self.backbone, self.lengths, rng, dim=self.dim, rank=self.rank)
        incumbents = subspace.incumbents(rng.normal(size=(subspace.blocks, self.dim)))
        candidates = rng.normal(size=(self.size, self.dim))
        engine = Engine(self.backbone, batch, torch.tensor([5, 6]))

        def generation(layer: int) -> Tensor:
            return engine(incumbents, subspace.interventions(layer, candidates)).cpu()

        return ((layer, partial(generation, layer)) for layer in layers)


def kernels(population: Population, layers: Sequence[int]) -> dict[int, int]:
    """CUDA kernels and copies of a generation at each of some layers."""
    counts = {}
    for layer, generation in population.generations(layers):
        generation()  # carries what enters the layer, and warms up
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            generation()
            torch.cuda.synchronize(population.backbone.device)
        counts[layer] = sum(1 for event in trace.events() if event.device_type.name == "CUDA")
    return counts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What some generations gave and took."""

    logits: Sequence[Tensor]
    """Of each generation, on the CPU."""
    seconds: float
    """The mean of a generation."""
    megabytes: float
    """The most that they took beside the weights and the random maps."""


def measured(population: Population, layers: Sequence[int]) -> Measured:
    """A generation at each of some layers, timed when it comes a second time."""
    device, logits, taken = population.backbone.device, list[Tensor](), list[float]()
    generations = population.generations(layers)
    most, before = 0, torch.cuda.memory_allocated(device)
    for _layer, generation in generations:
        torch.cuda.reset_peak_memory_stats(device)
        logits.append(generation())
        most = max(most, torch.cuda.max_memory_allocated(device) - before)
        taken.append(seconds(generation, device))
    return Measured(logits=logits, seconds=sum(taken) / len(taken), megabytes=most / MEGABYTE)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """torch's own attention, with a mask or none, with cuDNN's kernels among its own or without."""

    device: str
    precision: str
    sequences: int
    heads: int
    width: int
    """Of a head."""
    masked: bool
    cudnn: bool

    @property
    def kernel(self) -> str:
        """The name of the one that torch chooses."""
        q, mask = self._given(SHORTEST)
        with self._kernels():
            chosen = torch.ops.aten._fused_sdp_choice(q, q, q, mask, 0.0, False)
        return str(SDPBackend(chosen).name).lower()

    def seconds(self, shapes: int) -> tuple[float, float]:
        """Of a shape that is new, and of one that has been there: medians over lengths."""
        new, again, device = list[float](), list[float](), torch.device(self.device)
        with self._kernels():
            for length in range(SHORTEST, SHORTEST + shapes):
                q, mask = self._given(length)
                attend = partial(functional.scaled_dot_product_attention, q, q, q, attn_mask=mask)
                new.append(seconds(attend, device))
                again.append(seconds(attend, device, 5))
        return median(new), median(again)

    def _kernels(self) -> AbstractContextManager[None]:
        return nullcontext() if self.cudnn else no_cudnn_attention()

    def _given(self, length: int) -> tuple[Tensor, Tensor | None]:
        make = partial(torch.ones, device=self.device)
        dtype = PRECISIONS[self.precision]
        q = make(self.sequences, self.heads, length, self.width, dtype=dtype)
        mask = make(self.sequences, 1, length, length, dtype=torch.bool) if self.masked else None
        return q, mask


def stated_peak(name: str, peaks: Mapping[str, float]) -> float | None:
    """A card's peak: of the entry with the most words, all of which are in the card's name."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    fitting = [(len(entry.split()), entry) for entry in peaks if words.issuperset(entry.split())]
    return float(peaks[max(fitting)[1]]) if fitting else None
