"""Arithmetic cost of what ``Engine`` does for a population.

In floating-point operations of the matrix products, a multiply-add being two of them; norms,
activations and softmax are left out, as torch's ``FlopCounterMode`` leaves them out, and causal
attention counts in full. LoRA adapts the maps q and k. Letters: P candidates, N examples, M tokens
of all, H hidden size, C classes, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dfolora.model import Architecture

TARGETS = ("q", "k")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, a LoRA and a task."""

    architecture: Architecture
    rank: int
    """r; 0 leaves out what LoRA adds."""
    classes: int
    """Of the task, C."""

    @property
    def word(self) -> int:
        """FLOPs of one word's logit at one position."""
        return 2 * self.architecture.word_width

    @property
    def dense(self) -> int:
        """FLOPs of the map from the hidden to the words' width at one position.

        Masked models have one where the widths are equal too.
        """
        masked = self.architecture.family.kind == "masked"
        return self._between if masked else self.widened

    @property
    def widened(self) -> int:
        """FLOPs of the map from the words' to the hidden width at one token, if they differ."""
        return self._between if self.architecture.word_width != self.architecture.width else 0

    @property
    def _between(self) -> int:
        return 2 * self.architecture.word_width * self.architecture.width

    def maps(self, names: Sequence[str]) -> int:
        """FLOPs of these attention maps at one token."""
        places = self.architecture.maps
        return sum(2 * places[name].d_in * places[name].d_out for name in names)

    @property
    def feed_forward(self) -> int:
        """FLOPs of a layer's FFN at one token."""
        return 2 * self.architecture.ffn_numbers

    @property
    def attention(self) -> int:
        """FLOPs of a query with one key: its score, and its part of the result."""
        return 4 * self.architecture.heads * self.architecture.head_width

    def factors(self, name: str) -> int:
        """FLOPs of one map's low-rank term at one token, added to its columns alone."""
        place = self.architecture.maps[name]
        return 2 * self.rank * (place.d_in + place.d_out)

    @property
    def apart(self) -> bool:
        """Whether q, k and v have a module each."""
        return self.architecture.family.fused == "apart"


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of a population for one block: P candidates take ``once + P * each``."""

    once: int
    """Of what the candidates share."""
    each: int
    """Of one candidate."""

    def of(self, population: int) -> int:
        """FLOPs of P candidates together."""
        return self.once + population * self.each


def work_of(
    shape: Shape, layer: int, lengths: Sequence[int], *, advanced: int, entering: bool = False
) -> Work:
    """FLOPs of candidates that change this layer, and maybe later ones.

    Args:
        shape: Of the model.
        layer: The first that they change.
        lengths: Tokens of each example that go through the model.
        advanced: Layers below that have to be passed first: 1 as layers take turns, 0 if the
            engine has been at this layer before.
        entering: Whether candidates change what enters the layer, as soft prompts do, so that they
            share none of its products.
    """
    examples, tokens = len(lengths), sum(lengths)
    attention = shape.attention * sum(length**2 for length in lengths)
    if shape.apart:
        added = {name: shape.factors(name) for name in TARGETS}
    else:  # one product for the module, as wide as it is
        place = shape.architecture.maps["q"]
        added = {"qk": 2 * len(TARGETS) * shape.rank * (place.d_in + place.d_module)}
    inward = shape.maps("qkv")
    rest = shape.maps("o") + shape.feed_forward
    whole = tokens * (inward + sum(added.values()) + rest) + attention
    once = min(layer, advanced) * whole
    if layer == 0:  # a round begins with the embeddings
        once += tokens * shape.widened
    # In the last layer, one query an example, over all of its keys: the answer's.
    asking = {"q": examples} if shape.apart else {}
    answers = rest * examples + shape.attention * tokens
    answers += sum(flops * asking.get(name, tokens) for name, flops in added.items())
    last_inward = tokens * inward - (tokens - examples) * shape.maps("q" if shape.apart else "")
    head = examples * (shape.dense + shape.word * shape.classes)
    # A parallel FFN of the searched layer reads what is the same for all.
    common = shape.feed_forward if shape.architecture.parallel else 0
    if layer == shape.architecture.layers - 1:
        shared, own = last_inward + examples * common, answers - examples * common + head
    else:
        shared = tokens * (inward + common)
        own = tokens * (sum(added.values()) + rest - common) + attention
        own += (shape.architecture.layers - 2 - layer) * whole + answers + last_inward + head
    if entering:
        return Work(once=once, each=own + shared)
    return Work(once=once + shared, each=own)
