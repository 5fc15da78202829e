"""Label-word logits of whole populations, exactly as one padded forward each would give them.

All candidates of a generation differ from the current solution in one layer. So what enters that
layer is the same for all, and is carried along as the layers take turns; in that layer only their
low-rank terms differ; in the last one only the position that answers is needed, and of the
vocabulary the label words. Sequences lie side by side without padding, and as many candidates go
through the model together as the limits allow.

Letters: P candidates, N examples, M tokens of a pack, H hidden size, C classes.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor

from dfolora.data import Batch
from dfolora.errors import UserError, is_shortage
from dfolora.model import (
    Backbone,
    Intervention,
    Limits,
    Pack,
    Packed,
    Sequences,
    no_cudnn_attention,
)

COARSE = {"cpu": False, "cuda": True}
"""Whether lengths are grouped coarsely for attention."""
MEGABYTE = 1e6

Interventions = Mapping[int, Intervention]
"""One candidate's interventions (P = 1) by layer; other layers are unchanged."""
NOTHING: Interventions = MappingProxyType({})


class Engine:
    """Evaluates interventions on a batch: interventions to logits.

    Args:
        backbone: The frozen model.
        batch: The encoded examples.
        label_ids: ``(C,)``, the label words' token ids.
        carry: Whether to keep what enters the searched layer, ``carried_numbers`` a token, for the
            next call; else each call starts from the embeddings.

    Raises:
        UserError: The memory allowed does not hold one candidate on the longest example.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: Batch,
        label_ids: Tensor,
        *,
        carry: bool = True,
    ) -> None:
        self._backbone = backbone
        self._label_ids = label_ids.to(backbone.device)
        self._sequences = _needed(batch, causal=backbone.architecture.family.kind == "causal")
        self._carry = carry
        self._tokens = min(backbone.tokens, self._tokens_that_fit(backbone.limits))
        self._prefixes = self._cut()

    @torch.inference_mode()
    def __call__(self, incumbents: Interventions, searched: Intervention | None = None) -> Tensor:
        """Logits of the model with these interventions.

        Args:
            incumbents: Of all layers; that of the searched one does not matter.
            searched: Of P candidates for one layer. None: the incumbents are the one candidate.

        Returns:
            ``(P, N, C)``, float32.

        Raises:
            UserError: Not even one candidate on one example finds enough memory.
        """
        population = 1 if searched is None else searched.population
        return self._retried(lambda: self._logits(incumbents, searched), population)

    @torch.inference_mode()
    def vocabulary(self, places: Tensor | None = None) -> Tensor:
        """Logits of all tokens by the unadapted model.

        Args:
            places: Where to read them, ``(N, K)`` positions; of a causal model's rows none is past
                the answer. None: at the answers alone (K = 1), which costs a part of the last layer
                less.

        Returns:
            ``(N, K, V)``, float32.

        Raises:
            UserError: Not even one example finds enough memory.
        """
        places = None if places is None else places.to(self._backbone.device)
        return self._retried(lambda: self._vocabulary(places), 1)

    def _vocabulary(self, places: Tensor | None) -> Tensor:
        number = 1 if places is None else places.shape[1]
        shape = len(self._sequences.lengths), number, len(self._backbone.embedding)
        logits = torch.empty(shape, device=self._backbone.device)
        for prefix in self._prefixes:
            pack = prefix.pack
            hidden = self._through(*self._backbone.embed(pack), answers_only=places is None)
            if places is None:
                read = hidden[0, :, None]
            else:
                read = hidden[0, pack.starts[:, None] + places[pack.rows]]
            logits[pack.rows] = self._backbone.vocabulary_logits(read)
        return logits

    @no_cudnn_attention()
    def _retried(self, work: Callable[[], Tensor], population: int) -> Tensor:
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Not in the handler, where the error still holds what the failed pass had allocated.
            self._halve(reason, population)

    def _logits(self, incumbents: Interventions, searched: Intervention | None) -> Tensor:
        population = 1 if searched is None else searched.population
        shape = population, len(self._sequences.lengths), len(self._label_ids)
        logits = torch.empty(shape, device=self._backbone.device)
        for prefix in self._prefixes:
            pack = prefix.pack
            if searched is None:
                hidden, packed = self._backbone.embed(pack)
                logits[:, pack.rows] = self._finish(hidden, packed, 0, incumbents)
                continue
            for part, hidden in self._searched_layer(prefix, incumbents, searched):
                above = searched.layer + 1
                logits[part, pack.rows] = self._finish(hidden, prefix.packed, above, incumbents)
            if not self._carry:
                prefix.forget()
        return logits

    def _searched_layer(
        self, prefix: "_Prefix", incumbents: Interventions, searched: Intervention
    ) -> Iterator[tuple[slice, Tensor]]:
        """The searched layer's output, some candidates at a time: ``(P or fewer, M or N, H)``."""
        hidden, packed = prefix.at(searched.layer, incumbents), prefix.packed
        layer, last = self._backbone.layers[searched.layer], self._is_last(searched.layer)
        shared = None
        for part in _slices(searched.population, self._tokens // prefix.pack.size):
            some = searched.part(part)
            entered = some.enter(hidden, prefix.pack)
            if shared is None or entered is not hidden:
                shared = layer.project(entered, packed, answers_only=last)
            yield part, layer.attend(shared, packed, some.factors)

    def _finish(
        self, hidden: Tensor, packed: Packed, start: int, incumbents: Interventions
    ) -> Tensor:
        """Logits from the input of layer ``start``: ``(P, N, C)``."""
        hidden = self._through(hidden, packed, start, incumbents)
        return self._backbone.label_logits(hidden, self._label_ids)

    def _through(
        self,
        hidden: Tensor,
        packed: Packed,
        start: int = 0,
        incumbents: Interventions = NOTHING,
        *,
        answers_only: bool = True,
    ) -> Tensor:
        """The last layer's output from the input of layer ``start``: ``(P, N or M, H)``."""
        for index in range(start, len(self._backbone.layers)):
            trimmed = answers_only and self._is_last(index)
            hidden = self._backbone.layers[index](
                hidden, packed, incumbents.get(index), answers_only=trimmed
            )
        return hidden

    def _is_last(self, layer: int) -> bool:
        return layer == len(self._backbone.layers) - 1

    def _cut(self) -> list["_Prefix"]:
        device = self._backbone.device
        packs = self._sequences.packs(self._tokens, device, coarse=COARSE[device.type])
        return [_Prefix(self._backbone, pack) for pack in packs]

    def _tokens_that_fit(self, limits: Limits) -> int:
        device, architecture = self._backbone.device, self._backbone.architecture
        if limits.memory is not None:
            allowed = int(limits.memory * MEGABYTE)
        elif device.type == "cuda":
            allowed = int(limits.free_share * _free_bytes(device))
        else:
            return sys.maxsize
        size = self._backbone.dtype.itemsize
        lengths = self._sequences.lengths
        carried = int(lengths.sum()) * architecture.carried_numbers * size if self._carry else 0
        a_token = architecture.live_numbers * size
        # Half for the candidates, half for what they share.
        fitting, longest = (allowed - carried) // (2 * a_token), int(lengths.max())
        if fitting < longest:
            needed = ceil((carried + 2 * longest * a_token) / MEGABYTE)
            raise UserError(
                f"One candidate needs {needed} MB beside the weights ({longest} tokens in the "
                f"longest example); {allowed / MEGABYTE:.1f} MB are allowed. Raise engine.memory, "
                f"or lower data.max_length or k."
            )
        return fitting

    def _halve(self, reason: str, population: int) -> None:
        """Halve the tokens per pass; the carried prefix is computed anew."""
        sizes = [prefix.pack.size for prefix in self._prefixes]
        used = max(min(max(self._tokens // size, 1), population) * size for size in sizes)
        if used <= int(self._sequences.lengths.max()):
            raise UserError(
                f"Out of memory with one candidate on one example at once: {reason}. Use a smaller "
                f"model, precision=bf16 or int8, or shorter texts (data.max_length)."
            )
        self._tokens = used // 2
        self._prefixes = []
        if self._backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        self._prefixes = self._cut()
        warnings.warn(
            f"Out of memory with {used} tokens at once; going on with {self._tokens}. "
            f"engine.tokens={self._tokens} avoids the attempt.",
            stacklevel=5,
        )


def classify(
    backbone: Backbone, label_ids: Tensor, batch: Batch, interventions: Interventions = NOTHING
) -> Tensor:
    """Label-word logits of one batch, by the model with these interventions.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)``, the label words' token ids.
        batch: N examples.
        interventions: One candidate's.

    Returns:
        ``(N, C)``, float32.

    Raises:
        UserError: As of ``Engine``.
    """
    return Engine(backbone, batch, label_ids, carry=False)(interventions)[0]


class _Prefix:
    """A layer's input under the incumbents for one pack, carried from layer to layer."""

    def __init__(self, backbone: Backbone, pack: Pack) -> None:
        self.pack = pack
        self._backbone = backbone
        self._passed: list[Intervention | None] = []
        self._hidden: Tensor | None = None
        self._packed: Packed | None = None

    def at(self, layer: int, incumbents: Interventions) -> Tensor:
        """The input of a layer, ``(1, M, H)``; computes only what is new since the last call."""
        passing = [incumbents.get(index) for index in range(layer)]
        unchanged = all(old is new for old, new in zip(self._passed, passing, strict=False))
        if self._hidden is None or len(self._passed) > layer or not unchanged:
            self._hidden, self._packed = self._backbone.embed(self.pack)
            self._passed = []
        # Noted layer by layer, so that whoever interrupts this may go on later.
        for index in range(len(self._passed), layer):
            hidden = self._backbone.layers[index](self._hidden, self.packed, passing[index])
            self._hidden, self._passed = hidden, passing[: index + 1]
        return self._hidden

    @property
    def packed(self) -> Packed:
        """The pack as layers take it, once ``at`` was called."""
        assert self._packed is not None
        return self._packed

    def forget(self) -> None:
        """Drop what is carried."""
        self._hidden, self._packed, self._passed = None, None, []


def _needed(batch: Batch, *, causal: bool) -> Sequences:
    """The tokens that must go through the model: of a causal one, none past the answer."""
    real = batch.attention_mask.sum(-1)
    # The released readout answers in the padding, which must then stay.
    lengths = batch.answer + 1 if causal else torch.maximum(real, batch.answer + 1)
    return Sequences(
        input_ids=batch.input_ids,
        lengths=lengths,
        real=torch.minimum(real, lengths),
        answer=batch.answer,
    )


def _slices(size: int, most: int) -> Iterator[slice]:
    """``range(size)`` in pieces of about the same length, none above ``most`` or below 1."""
    pieces = -(-size // max(1, most))
    edges = [size * piece // pieces for piece in range(pieces + 1)]
    return (slice(*edge) for edge in pairwise(edges))


def _free_bytes(device: torch.device) -> int:
    """Free bytes of a GPU, including those that torch keeps for reuse."""
    free, _total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept
