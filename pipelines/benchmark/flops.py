"""Arithmetic cost of an evaluation, the authors' way and the engine's.

In floating-point operations of the matrix products, a multiply-add being two of them; norms,
activations and softmax are left out, as torch's ``FlopCounterMode`` leaves them out, and causal
attention counts in full. LoRA adapts the maps q and k of every layer. Letters: P candidates, N
examples, T tokens of the longest, M tokens of all, H hidden size, V words, C classes, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, a LoRA and a task."""

    width: int
    """H; the FFN is 4 H wide."""
    layers: int
    vocabulary: int
    """V."""
    rank: int
    """r."""
    classes: int
    """C."""
    causal: bool
    """Whether the vocabulary head has no dense layer of its own, as GPT-2's."""

    @property
    def dense(self) -> int:
        """FLOPs of the head's dense layer at one position."""
        return 0 if self.causal else 2 * self.width**2


def flops_authors(shape: Shape, lengths: Sequence[int]) -> int:
    """FLOPs of a candidate in the code of Jin, Liu, Tan 2024.

    One padded forward through all layers; the vocabulary head is applied at every position.

    Args:
        shape: Of the model.
        lengths: Tokens of each example.
    """
    padded, longest = len(lengths) * max(lengths), max(lengths)
    layer = padded * (_maps(shape) + 4 * shape.width * longest)
    head = padded * (shape.dense + 2 * shape.width * shape.vocabulary)
    return shape.layers * layer + head


def flops_engine(
    shape: Shape, layer: int, lengths: Sequence[int], population: int, *, advanced: int = 1
) -> float:
    """FLOPs of a candidate for one layer when ``Engine`` evaluates P of them together.

    Args:
        shape: Of the model.
        layer: The searched one.
        lengths: Tokens of each example that go through the model.
        population: P, who share what is done once.
        advanced: Layers below that have to be passed first: 1 as layers take turns, 0 if the
            engine has been at this layer before.
    """
    width, rank, examples, tokens = shape.width, shape.rank, len(lengths), sum(lengths)
    attention = 4 * width * sum(length**2 for length in lengths)
    whole = tokens * _maps(shape) + attention
    shared = min(layer, advanced) * whole
    # In the last layer, one query an example, over all of its keys: the answer's.
    factors = 4 * width * rank * (tokens + examples)
    answers = 18 * width**2 * examples + 4 * width * tokens + factors
    head = examples * (shape.dense + 2 * width * shape.classes)
    if layer == shape.layers - 1:
        shared += 4 * width**2 * tokens + 2 * width**2 * examples
        return answers + head + shared / population
    shared += 6 * width**2 * tokens
    searched = tokens * (18 * width**2 + 8 * width * rank) + attention
    last = answers + 4 * width**2 * tokens + 2 * width**2 * examples
    return searched + (shape.layers - 2 - layer) * whole + last + head + shared / population


def _maps(shape: Shape) -> int:
    """FLOPs of a layer at one token: attention maps, FFN, and the factors of q and k."""
    return 24 * shape.width**2 + 8 * shape.width * shape.rank
