"""Overhead of a generation outside the forward: asking, projecting, telling, recording."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dfolora.engine import Engine, Interventions
from dfolora.methods import FewShotData, LayerwiseSearch, Progress
from dfolora.model import Backbone
from dfolora.record import Store
from dfolora.record.journal import Journal
from dfolora.record.memory import PeakMemory
from dfolora.search import PopulationEvaluator, tune
from dfolora.search.subspace import LoraSubspaceSpec
from pipelines.benchmark.speed import wait
from pipelines.one_run.fit import follow
from pipelines.progress import RunBar


class _Timed:
    """An engine that counts its seconds."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine = engine
        self._device = device
        self.seconds = 0.0

    def __call__(self, incumbents: Interventions, searched: Interventions) -> Tensor:
        wait(self._device)  # for the projection, which is not the engine's
        started = time.perf_counter()
        logits = self._engine(incumbents, searched)
        wait(self._device)
        self.seconds += time.perf_counter() - started
        return logits


def share_outside(backbone: Backbone, data: FewShotData, *, dim: int, generations: int) -> float:
    """The share of a search's time that is not the engine's, journal and MLflow included."""
    method = LayerwiseSearch(subspace=LoraSubspaceSpec(dim=dim))
    optimizers = method.optimizers(backbone.architecture, seed=0)
    budget = 1 + generations * optimizers[0].population
    train = data.train
    subspace = method.build(backbone, data, seed=0)
    engine = _Timed(Engine(backbone, train, data.label_ids), backbone.device)
    evaluate = PopulationEvaluator(
        engine, subspace, train.labels, objective="ce", metric=data.metric
    )

    def search() -> Iterator[Progress]:
        for generation in tune(evaluate, optimizers, dim=dim, budget=budget):
            yield Progress(step=generation, looks=(), selected=None)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(f"sqlite:///{folder / 'overhead.db'}")
        with store.start("overhead", "overhead", tags={}, params={}) as log:
            memory = PeakMemory(backbone.device)
            with RunBar("overhead", budget) as bar:
                started = time.perf_counter()
                with Journal(folder / "journal.jsonl", key="overhead") as journal:
                    follow(search(), journal, memory, log, bar)
                log.flush()
                total = time.perf_counter() - started
    return 1 - engine.seconds / total
