"""Whether a lower precision ranks a generation's candidates as float32 does."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hydra import compose
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.stats import kendalltau

from dfolora.data import Task, load_rows
from dfolora.engine import Engine
from dfolora.methods import FewShotData, Method
from dfolora.model import Architecture, Backbone
from dfolora.search import Evaluation, Evaluator, PopulationEvaluator, tune
from dfolora.validation import mapping
from pipelines.benchmark.speed import load

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of a precision with float32 over the generations of a search."""

    precision: str
    taus: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Kendall's tau of each generation's losses, by layer."""
    gaps: list[float] = field(default_factory=list)
    """The largest difference between two losses of one candidate, by generation."""


def agreements(task: str, precisions: Sequence[str], budget: int, device: str) -> list[Agreement]:
    """Search one embedded task in float32 and let each precision judge the same candidates.

    Args:
        task: Its name in ``conf/task/mini``.
        precisions: To compare.
        budget: Calls of the search.
        device: Of all models.
    """
    config = compose("run", [f"task=mini/{task}", f"budget={budget}", f"device={device}"])
    method = instantiate(config.method)
    backbone = load(config.model, "fp32")
    data = few_shot_of(config, method, backbone.architecture)
    train = data.train
    subspace = method.build(backbone, data, config.seed)

    def judge(by: Backbone) -> PopulationEvaluator:
        engine = Engine(by, train, data.label_ids)
        return PopulationEvaluator(
            engine, subspace, train.labels, objective="ce", metric=data.metric
        )

    others = {name: judge(load(config.model, name)) for name in precisions}
    compared = _Compared(judge(backbone), others)
    optimizers = method.optimizers(backbone.architecture, config.seed)
    dim = method.size(backbone.architecture)
    for _generation in tune(compared, optimizers, dim=dim, budget=budget):
        pass
    return list(compared.agreements.values())


class _Compared:
    """An evaluator that also asks others and records how they differ."""

    def __init__(self, exact: Evaluator, others: dict[str, PopulationEvaluator]) -> None:
        self._exact = exact
        self._others = others
        self.agreements = {name: Agreement(precision=name) for name in others}

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        evaluation = self._exact(solution, block, candidates)
        for name, other in self._others.items():
            losses = other(solution, block, candidates).losses
            self.agreements[name].gaps.append(float(abs(losses - evaluation.losses).max()))
            if len(candidates) > 1:
                tau = kendalltau(losses, evaluation.losses).statistic
                self.agreements[name].taus[block].append(float(tau))
        return evaluation


def few_shot_of(config: Any, method: Method, architecture: Architecture) -> FewShotData:
    """The few-shot data of a run's configuration."""
    task = Task.from_mapping(mapping(OmegaConf.to_container(config.task, resolve=True), "task"))
    _split, data = instantiate(config.data).draw(
        task,
        load_rows(task, "train"),
        instantiate(config.model, _convert_="all").load_tokenizer(),
        method,
        kind=architecture.family.kind,
        max_length=architecture.max_length,
        seed=config.seed,
    )
    return data
