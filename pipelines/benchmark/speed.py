"""Seconds per candidate, the authors' way and the engine's, alternating on the same sequences."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional

from dfolora.data import Batch, Rows
from dfolora.engine import Engine, Shape
from dfolora.methods import FewShotData
from dfolora.model import Backbone, Limits
from dfolora.record.memory import PeakMemory
from dfolora.search.subspace import LoraSubspace, LoraSubspaceSpec
from pipelines.benchmark.authors_way import label_logits
from pipelines.benchmark.flops import flops_authors, flops_engine

CLASSES = 2
ENOUGH_SECONDS = 0.5
"""For the repeats of a generation, whose median is told; a slow one is timed once."""
FIRST_TOKEN = 5
"""The ids below it are special in some vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One task's figures, of a candidate on its sequences, averaged over layers."""

    sequences: int
    tokens: int
    longest: int
    authors_s: float
    engine_s: float
    engine_flops: float
    less_work: float
    """The formulae's ratio of the two ways' operations."""
    gemm: float
    """FLOP/s of torch's own linear on the layer's shapes, measured in turn too."""
    authors_mb: float
    engine_mb: float
    """Peak memory, weights included: the driver's figure on a GPU, else the process's."""

    @property
    def ratio(self) -> float:
        """How many times faster the engine is."""
        return self.authors_s / self.engine_s

    @property
    def rate(self) -> float:
        """The engine's FLOP/s."""
        return self.engine_flops / self.engine_s


def load(model: DictConfig, precision: str, limits: Limits | None = None) -> Backbone:
    """The model of a configuration's ``model`` node, in another precision."""
    return instantiate(model, precision=precision, _convert_="all").load_backbone(limits)


def shape_of(backbone: Backbone, rank: int) -> Shape:
    """The sizes that the cost formulae need."""
    return Shape(
        architecture=backbone.architecture,
        rank=rank,
        classes=CLASSES,
    )


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds per repeat, until the device has finished."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - started) / repeats


def batch_of(lengths: Sequence[int], vocabulary: int, rng: np.random.Generator) -> Batch:
    """Random tokens of these lengths, answered before the last one."""
    longest, sizes = max(lengths), torch.tensor(lengths)
    ids = torch.from_numpy(rng.integers(FIRST_TOKEN, vocabulary, (len(lengths), longest)))
    mask = (torch.arange(longest) < sizes[:, None]).long()
    ids[mask == 0] = 1
    labels = torch.arange(len(lengths)) % CLASSES
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        answer=sizes - 2,
        labels=labels,
        rows=Rows(texts=({},) * len(lengths), labels=tuple(labels.tolist())),
        truncated=0,
    )


def random_subspace(
    backbone: Backbone, lengths: Sequence[int], rng: np.random.Generator, *, dim: int, rank: int
) -> LoraSubspace:
    """A LoRA subspace that is scaled by two sequences of random tokens."""
    batch = batch_of(lengths[:2], backbone.model.config.vocab_size, rng)
    spec = LoraSubspaceSpec(dim=dim, rank=rank)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed=0)


def few_shot(lengths: Sequence[int], vocabulary: int, rng: np.random.Generator) -> FewShotData:
    """Such a batch as train and dev set."""
    batch = batch_of(lengths, vocabulary, rng)
    label_ids = torch.arange(CLASSES) + FIRST_TOKEN
    return FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")


def evenly(lengths: Sequence[int], most: int | None) -> list[int]:
    """Some of the lengths, chosen evenly by rank, with the longest."""
    ordered = sorted(lengths)
    if most is None or len(ordered) <= most:
        return ordered
    return [ordered[round(index)] for index in np.linspace(0, len(ordered) - 1, most)]


def spread(layers: int, count: int) -> list[int]:
    """The first and the last layer, the last but one, and others evenly between."""
    inner = np.linspace(0, layers - 2, count - 1)
    return sorted({*(round(index) for index in inner), layers - 1})


def mean_over_layers(known: dict[int, float], layers: int) -> float:
    """Cost falls linearly from layer to layer up to the last but one; the last is known."""
    indices = sorted(known)[:-1]
    inner = np.interp(range(layers - 1), indices, [known[index] for index in indices])
    return float((inner.sum() + known[layers - 1]) / layers)


def engine_seconds(
    backbone: Backbone,
    subspace: LoraSubspace,
    batch: Batch,
    label_ids: Tensor,
    *,
    population: int,
    layers: Sequence[int],
    rng: np.random.Generator,
) -> Iterator[tuple[int, float]]:
    """Seconds of a candidate in a generation at each layer in turn, all others being adapted."""
    engine = Engine(backbone, batch, label_ids)
    dim = subspace.spec.dim
    incumbents = subspace.incumbents(rng.normal(size=(subspace.blocks, dim)))
    for layer in layers:
        candidates = rng.normal(size=(population, dim))

        def generation(layer: int = layer, candidates: np.ndarray = candidates) -> float:
            # As in a round: what enters the layer before is there already.
            engine(incumbents, subspace.interventions(max(layer - 1, 0), candidates[:1]))
            return seconds(
                lambda: engine(incumbents, subspace.interventions(layer, candidates)).cpu(),
                backbone.device,
            )

        generation()  # the first of its shape is no measurement
        taken = [generation()]
        while sum(taken) < ENOUGH_SECONDS:
            taken.append(generation())
        yield layer, median(taken) / population


def gemm_rate(backbone: Backbone) -> float:
    """FLOP/s of plain ``torch.nn.functional.linear`` on a layer's shapes."""
    architecture, device = backbone.architecture, backbone.device
    wide, narrow, maps = architecture.ffn_width, architecture.width, architecture.family.ffn_maps
    shapes = [(place.d_in, place.d_out, 1) for place in architecture.maps.values()]
    shapes += [(narrow, wide, maps - 1), (wide, narrow, 1)]
    rows = backbone.tokens
    total = flops = 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for d_in, d_out, count in shapes:
            x, weight = (
                torch.randn(size, d_in, generator=generator).to(device, backbone.dtype)
                for size in (rows, d_out)
            )
            functional.linear(x, weight)
            total += count * seconds(partial(functional.linear, x, weight), device, 5)
            flops += count * 2.0 * rows * d_in * d_out
    return flops / total


def compare(
    authors: Backbone | None,
    ours: Backbone,
    subspace: LoraSubspace,
    lengths: Sequence[int],
    *,
    population: int,
    sampled: int,
    repeats: int,
    rng: np.random.Generator,
) -> Speed:
    """Both ways on one task's lengths, in turn, layer by layer.

    Args:
        authors: The model that runs their way; None to leave it out.
        ours: The one that runs the engine's, perhaps in another precision.
        subspace: Of the latter.
        lengths: Tokens of each sequence.
        population: Candidates a generation.
        sampled: How many layers are timed.
        repeats: Of the authors' forward after each layer's generation.
        rng: Of tokens and candidates.
    """
    shape = shape_of(ours, subspace.spec.rank)
    vocabulary = ours.model.config.vocab_size
    batch = batch_of(lengths, vocabulary, rng)
    label_ids = torch.arange(CLASSES) + FIRST_TOKEN
    layers = spread(shape.architecture.layers, sampled)
    factors = subspace.incumbents(rng.normal(size=(shape.architecture.layers, subspace.spec.dim)))

    def their_way(times: int = 1) -> float:
        if authors is None:
            return np.nan
        return seconds(
            lambda: label_logits(authors, batch, label_ids, factors).cpu(), authors.device, times
        )

    authors_memory = PeakMemory(ours.device, weights=0 if authors is None else authors.nbytes)
    their_way()  # the first time is no measurement
    authors_memory.sample()
    engine_memory = PeakMemory(ours.device, weights=ours.nbytes)
    taken: dict[int, float] = {}
    theirs, gemm = list[float](), list[float]()
    for layer, time_taken in engine_seconds(
        ours, subspace, batch, label_ids,
        population=population, layers=layers, rng=rng,
    ):  # fmt: skip
        taken[layer] = time_taken
        if not theirs:  # later peaks would be those of both ways
            engine_memory.sample()
        theirs.append(their_way(repeats))
        gemm.append(gemm_rate(ours))
    work = flops_engine(shape, lengths, population)
    return Speed(
        sequences=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
        authors_s=float(np.mean(theirs)),
        engine_s=mean_over_layers(taken, shape.architecture.layers),
        engine_flops=work,
        less_work=flops_authors(shape, lengths, vocabulary) / work,
        gemm=float(np.mean(gemm)),
        authors_mb=_told(authors_memory),
        engine_mb=_told(engine_memory),
    )


def _told(memory: PeakMemory) -> float:
    peaks = memory.megabytes()
    return next(peaks[name] for name in ("nvml", "torch", "process") if name in peaks)


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
