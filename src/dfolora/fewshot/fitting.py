"""The library in one call, for those who have a model and tokenizer at hand."""

from typing import Any

from dfolora.data import Task
from dfolora.fewshot.problem import ProblemSpec
from dfolora.methods import LayerwiseSearch, Method, Predictor
from dfolora.model import Backbone, Limits
from dfolora.validation import whole


def fit(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    method: Method | None = None,
    problem: ProblemSpec | None = None,
    seed: int = 42,
    limits: Limits | None = None,
) -> Predictor:
    """Draw a few-shot split of a task and fit a method to it.

    Args:
        model: A ``transformers`` model with a vocabulary head. It is left frozen, in evaluation
            mode; its weights are never written.
        tokenizer: Its tokenizer.
        task: The task, for example ``Task.from_file("conf/task/sst2.yaml")``.
        method: What to fit; None is C-LoRA with its defaults.
        problem: How the split is drawn and put to the model; None for the defaults.
        seed: Of split, projections and search.
        limits: How much goes through the model at once; None for the defaults of its device.

    Returns:
        The dev-selected predictor; ``save`` writes a PEFT adapter folder.

    Raises:
        UserError: Model, task, data and method do not fit together.
    """
    whole(seed, "seed", least=0)
    method = method or LayerwiseSearch()
    backbone = Backbone(model, limits)
    architecture = backbone.architecture
    method.check(architecture)
    spec = problem or ProblemSpec()
    spec.check(task, architecture.family.kind)
    _split, data = spec.draw(
        task,
        spec.source.rows(task, "train"),
        tokenizer,
        method,
        kind=architecture.family.kind,
        max_length=architecture.max_length,
        seed=seed,
        dev=spec.source.dev(task),
    )
    search = method.begin(backbone, data, seed)
    for _generation in search:
        pass
    return search.predictor()
