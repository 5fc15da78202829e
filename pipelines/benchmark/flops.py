"""Arithmetic cost of a candidate, the authors' way and the engine's, as ``dfolora.engine`` counts.

Letters: T tokens of the longest example, V words.
"""

from collections.abc import Sequence

from dfolora.engine import TARGETS, Shape, work_of


def flops_authors(shape: Shape, lengths: Sequence[int], vocabulary: int) -> int:
    """FLOPs of a candidate in the code of Jin, Liu, Tan 2024.

    One padded forward through all layers; the vocabulary head is applied at every position.

    Args:
        shape: Of the model.
        lengths: Tokens of each example.
        vocabulary: V.
    """
    padded, longest = len(lengths) * max(lengths), max(lengths)
    token = shape.maps("qkvo") + shape.feed_forward + sum(map(shape.factors, TARGETS))
    layer = padded * (token + shape.attention * longest)
    ends = padded * (shape.widened + shape.dense + shape.word * vocabulary)
    return shape.architecture.layers * layer + ends


def flops_engine(shape: Shape, lengths: Sequence[int], population: int) -> float:
    """FLOPs of one of P candidates in the engine as layers take turns, mean over the layers."""
    layers = shape.architecture.layers
    works = [work_of(shape, layer, lengths, advanced=1) for layer in range(layers)]
    return sum(work.of(population) for work in works) / population / layers
