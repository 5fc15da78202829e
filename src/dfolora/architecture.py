"""What is known of a model before its weights are loaded: family, layers, maps, sizes.

A new family is one entry in ``FAMILIES``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from dfolora.errors import UserError
from dfolora.task import Kind


@dataclass(frozen=True, kw_only=True)
class MapPlace:
    """Where a layer keeps one of its attention maps."""

    module: str
    """Dotted name inside the layer."""
    block: int = 0
    """Which of the ``blocks`` equal parts of the module's output columns is this map's."""
    blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """The names by which one ``model_type`` of transformers calls its parts."""

    kind: Kind
    """``masked``: the answer is read at the mask; ``causal``: at the last token."""
    body: str
    """The model without its vocabulary head; its output is ``last_hidden_state``."""
    layers: str
    embedding: str
    decoder: str
    """The vocabulary head's last module, one row of weights a token."""
    maps: Mapping[str, MapPlace]
    transform: Callable[[Any, Tensor], Tensor]
    """``(model, hidden (B, H)) -> (B, H)``: what the head does before ``decoder``."""
    forward_options: Mapping[str, Any]


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    return head.layer_norm(functional.gelu(head.dense(hidden)))


def _bert_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _no_transform(_model: Any, hidden: Tensor) -> Tensor:
    return hidden


_ENCODER_MAPS = {
    "q": MapPlace(module="attention.self.query"),
    "k": MapPlace(module="attention.self.key"),
    "v": MapPlace(module="attention.self.value"),
    "o": MapPlace(module="attention.output.dense"),
}
FAMILIES: Mapping[str, Family] = {
    "roberta": Family(
        kind="masked",
        body="roberta",
        layers="roberta.encoder.layer",
        embedding="roberta.embeddings.word_embeddings",
        decoder="lm_head.decoder",
        maps=_ENCODER_MAPS,
        transform=_roberta_transform,
        forward_options={},
    ),
    "bert": Family(
        kind="masked",
        body="bert",
        layers="bert.encoder.layer",
        embedding="bert.embeddings.word_embeddings",
        decoder="cls.predictions.decoder",
        maps=_ENCODER_MAPS,
        transform=_bert_transform,
        forward_options={},
    ),
    "gpt2": Family(
        kind="causal",
        body="transformer",
        layers="transformer.h",
        embedding="transformer.wte",
        decoder="lm_head",
        maps={
            "q": MapPlace(module="attn.c_attn", block=0, blocks=3),
            "k": MapPlace(module="attn.c_attn", block=1, blocks=3),
            "v": MapPlace(module="attn.c_attn", block=2, blocks=3),
            "o": MapPlace(module="attn.c_proj"),
        },
        transform=_no_transform,
        forward_options={"use_cache": False},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's family and sizes, read from its configuration alone."""

    family: Family
    layers: int
    width: int
    """H, the hidden size; every attention map is H x H."""
    max_length: int
    """Longest input in tokens, special tokens included."""

    @classmethod
    def of(cls, config: Any) -> "Architecture":
        """Read a ``transformers`` configuration.

        Raises:
            UserError: The model type is none that we know.
        """
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise UserError(
                f"The model is of type {config.model_type!r}; supported are {', '.join(FAMILIES)}. "
                f"Another one needs an entry in FAMILIES (src/dfolora/architecture.py)."
            )
        # RoBERTa numbers its positions from the padding id + 1 on.
        offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        return cls(
            family=family,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            max_length=config.max_position_embeddings - offset,
        )

    def check_targets(self, targets: Sequence[str]) -> None:
        """Raise UserError unless every target names an attention map, each once."""
        unknown = [name for name in targets if name not in self.family.maps]
        if unknown or not targets or len(set(targets)) != len(targets):
            raise UserError(
                f"Got targets={list(targets)}; choose a non-empty subset of "
                f"{', '.join(self.family.maps)}, each at most once."
            )
