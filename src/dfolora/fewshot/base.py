"""The base model of a fit: to be loaded by name, or as the user has loaded it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

from dfolora.errors import UserError
from dfolora.model import Architecture, Backbone, Checkpoint, Limits


@dataclass(frozen=True, kw_only=True)
class Base:
    """The architecture and tokenizer of a model, and a function that loads its weights."""

    architecture: Architecture
    tokenizer: Any
    load: Callable[[], Backbone]
    origin: Mapping[str, Any]
    """See ``Checkpoint.origin``; of a loaded model its own name, or none."""

    @classmethod
    def named(
        cls, checkpoint: Checkpoint, tokenizer: Any = None, limits: Limits | None = None
    ) -> Self:
        """Of a model given by its name or folder.

        Args:
            checkpoint: The model, with the name of its tokenizer.
            tokenizer: A loaded one in its place.
            limits: How much goes through it at once; None for the defaults of its device.
        """
        return cls(
            architecture=Architecture.of(checkpoint.config(), quantized=checkpoint.quantized),
            tokenizer=checkpoint.load_tokenizer() if tokenizer is None else tokenizer,
            load=partial(checkpoint.load_backbone, limits),
            origin=checkpoint.origin(),
        )

    @classmethod
    def loaded(
        cls,
        model: Any,
        tokenizer: Any,
        device: str,
        precision: str,
        limits: Limits | None = None,
    ) -> Self:
        """Of a model that the user has loaded."""
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise UserError(
                f"model={brief(model)} is no model; give a hub name, a folder, or a transformers "
                f"model with a vocabulary head."
            )
        if tokenizer is None or isinstance(tokenizer, str | Path):
            raise UserError("A loaded model needs tokenizer=, its loaded tokenizer.")
        if (device, precision) != ("auto", "auto"):
            raise UserError(
                f"device={device} and precision={precision} are for models given by name; load the "
                f"model as you want it and leave both at auto."
            )
        named = Checkpoint(
            path=str(getattr(model, "name_or_path", "")),
            revision="main",
            tokenizer=None,
            weights="pretrained",
            architecture=None,
            device="auto",
            precision="auto",
        )
        return cls(
            architecture=Architecture.of(model.config),
            tokenizer=tokenizer,
            load=lambda: Backbone(model, limits),
            origin=named.origin(),
        )


def brief(value: object) -> str:
    """A parameter's value; a model's or a tokenizer's is pages long."""
    short = isinstance(value, str | int | float | Mapping | Sequence) or hasattr(value, "budget")
    return repr(value) if short else f"<{type(value).__name__}>"
