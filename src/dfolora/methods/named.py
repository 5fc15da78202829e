"""Methods by name for users of the library, with the defaults of ``conf/``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from typing import Any

from dfolora.errors import UserError
from dfolora.methods.calibrated_prompt import CalibratedPrompt
from dfolora.methods.gap3 import Gap3
from dfolora.methods.gradient import (
    Adapter,
    BitFit,
    FeatureHead,
    GradientTuning,
    Lora,
    ModelTuning,
    PrefixTuning,
    PromptTuning,
    Trainable,
    TrainingSpec,
)
from dfolora.methods.in_context import InContext
from dfolora.methods.layerwise import LayerwiseSearch
from dfolora.methods.manual_prompt import ManualPrompt
from dfolora.methods.method import Method
from dfolora.methods.random_lora import RandomLora
from dfolora.search.optim import Cma, Lotfwa, OptimizerFactory, RandomSearch
from dfolora.search.subspace import LoraSubspaceSpec, PromptSubspaceSpec
from dfolora.validation import choice


def CLora(  # noqa: N802
    *,
    budget: int = 6000,
    dim: int = 500,
    rank: int = 2,
    targets: Sequence[str] = ("q", "k"),
    alpha: float = 1.0,
    optimizer: OptimizerFactory = Cma,
    **search: Any,
) -> LayerwiseSearch:
    """C-LoRA (Jin, Liu, Tan 2024): LoRA factors of every layer, searched by CMA-ES.

    Args:
        budget: Passes of one candidate over the few-shot train set.
        dim: Numbers searched in each layer.
        rank: Of the factors.
        targets: The adapted maps, a subset of q, k, v, o.
        alpha: Stretch of the random projections.
        optimizer: Another derivative-free optimizer; bind its options with ``functools.partial``.
        search: Other arguments of ``LayerwiseSearch``: ``objective``, ``patience``, ...
    """
    subspace = LoraSubspaceSpec(dim=dim, rank=rank, targets=targets, alpha=alpha)
    return LayerwiseSearch(subspace=subspace, optimizer=optimizer, budget=budget, **search)


def FLora(**options: Any) -> LayerwiseSearch:  # noqa: N802
    """F-LoRA (Jin, Liu, Tan 2024): as ``CLora``, searched by the fireworks algorithm LoTFWA."""
    return CLora(**{"optimizer": Lotfwa} | options)


def Bbtv2(  # noqa: N802
    *,
    budget: int = 6000,
    dim: int = 500,
    positions: int = 50,
    every_layer: bool = True,
    alpha: float = 1.0,
    optimizer: OptimizerFactory = Cma,
    **search: Any,
) -> LayerwiseSearch:
    """BBTv2 (Sun et al. 2022): soft prompts at the input of every layer, searched by CMA-ES.

    Args:
        budget: Passes of one candidate over the few-shot train set.
        dim: Numbers searched in each block.
        positions: Soft prompt vectors.
        every_layer: A block a layer; False for one block, at the input (``Bbt``).
        alpha: Stretch of the random projections.
        optimizer: Another derivative-free optimizer; bind its options with ``functools.partial``.
        search: Other arguments of ``LayerwiseSearch``: ``objective``, ``patience``, ...
    """
    subspace = PromptSubspaceSpec(
        dim=dim, positions=positions, every_layer=every_layer, alpha=alpha
    )
    return LayerwiseSearch(subspace=subspace, optimizer=optimizer, budget=budget, **search)


def Bbt(**options: Any) -> LayerwiseSearch:  # noqa: N802
    """BBT (Sun et al. 2022): as ``Bbtv2``, with soft prompts at the input alone."""
    return Bbtv2(**{"every_layer": False} | options)


def _trained(
    trained: Trainable,
    *rates: float,
    epochs: int = 100,
    batch_size: int = 16,
    dev_every: int = 5,
) -> Callable[[], Method]:
    training = TrainingSpec(
        learning_rates=rates, epochs=epochs, batch_size=batch_size, dev_every=dev_every
    )
    return lambda: GradientTuning(trained=trained, training=training)


METHODS: Mapping[str, Callable[[], Method]] = {
    "c_lora": CLora,
    "f_lora": FLora,
    "bbt": Bbt,
    "bbtv2": Bbtv2,
    "random_search": partial(CLora, optimizer=RandomSearch),
    "random_lora": RandomLora,
    "gap3": Gap3,
    "manual_prompt": ManualPrompt,
    "calibrated_prompt": CalibratedPrompt,
    "in_context": InContext,
    "model_tuning": _trained(ModelTuning(), 1e-5, 2e-5, 5e-5, epochs=200),
    "adapter": _trained(Adapter(), 1e-4, 5e-4, 1e-3, 3e-3),
    "bitfit": _trained(BitFit(), 1e-4, 5e-4, 1e-3, 1e-2),
    "lora": _trained(Lora(), 1e-4, 5e-4, 1e-3),
    "prompt_tuning": _trained(PromptTuning(), 5e-4, 1e-3, 5e-3, epochs=1000, dev_every=10),
    "p_tuning_v2": _trained(
        PrefixTuning(), 5e-4, 1e-3, 5e-3, epochs=2000, batch_size=32, dev_every=20
    ),
    "feature_mlp": _trained(FeatureHead(), 3e-4, epochs=1000, dev_every=10),
    "feature_bilstm": _trained(FeatureHead(head="bilstm"), 3e-4, epochs=1000, dev_every=10),
}
"""The methods of the paper's tables, by their names there."""


def written(part: object) -> str:
    """A method or a part of one as a call, without what is as by default."""
    if isinstance(part, partial):
        name, options = part.func.__name__, part.keywords
    elif is_dataclass(part) and not isinstance(part, type):
        name = type(part).__name__
        given = ((each, getattr(part, each.name)) for each in fields(part))
        options = {each.name: value for each, value in given if value != _default(each)}
    else:
        return part.__name__ if isinstance(part, type) else repr(part)
    return f"{name}({', '.join(f'{key}={written(value)}' for key, value in options.items())})"


def _default(each: Field[Any]) -> object:
    factory = each.default_factory
    return each.default if factory is MISSING else factory()


def method_of(method: str | Method) -> Method:
    """The method, or the one with that name in ``METHODS``.

    Raises:
        UserError: The name is unknown, or is what is written of an object.
    """
    if not isinstance(method, str):
        if not hasattr(method, "begin") or isinstance(method, type):
            raise UserError(
                f"method={method!r} is no method; give one of {', '.join(METHODS)}, or an object "
                f"such as CLora(budget=1000)."
            )
        return method
    if "(" in method:
        raise UserError(
            f"method={method} is an object's text, as a classifier that was loaded has it; "
            f"set_params(method=...) with the object itself, and fit."
        )
    choice(method, "method", METHODS)
    return METHODS[method]()
