"""Label-word logits of whole populations, exactly as one padded forward each would give them.

All candidates of a generation differ from the current solution in the layers of one block. So what
enters the first of these is the same for all, and is carried along as the blocks take turns; in it
only their low-rank terms differ; in the model's last layer only the position that answers is
needed, and of the vocabulary the label words. Sequences lie side by side without padding, and as
many candidates go through the model together as the limits allow.

They do so in pieces, each of some candidates on one pack. A piece goes through all layers before
the next one, which takes the least memory; but if the layers' weights are streamed, the pieces go
side by side, all through one layer before the next, so that its weights come to the device once.

Letters: P candidates, N examples, M tokens of a pack, H hidden size, C classes.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from types import MappingProxyType
from typing import Protocol, TypeVar

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
    Passes,
    Sequences,
    no_cudnn_attention,
    recorded,
)

COARSE = {"cpu": False, "cuda": True}
"""Whether lengths are grouped coarsely for attention."""
SHARE_OF_PASS = 0.2
"""Share of the memory allowed that one pass takes at most if layers are streamed; the hidden states
of all pieces side by side have the rest."""
MEGABYTE = 1e6
VOCABULARY_NUMBERS = 2**24
"""Logits of the whole vocabulary that are held at once, 67 MB of them."""

FLOPS = 200e12
"""Operations a second that a GPU does in large products in bf16, about: between a half and two
thirds of the 312e12 that NVIDIA states for an A100."""

Interventions = Mapping[int, Intervention]
"""Interventions of P candidates by layer; other layers are unchanged."""
NOTHING: Interventions = MappingProxyType({})


class _Sized(Protocol):
    @property
    def size(self) -> int:
        """Tokens, those of all candidates counted."""
        ...


Part = TypeVar("Part", bound=_Sized)
Found = TypeVar("Found")


class Engine:
    """Evaluates interventions on a batch: interventions to logits.

    Args:
        backbone: The frozen model.
        batch: The encoded examples.
        label_ids: ``(C,)``, the label words' token ids; or ``(C, W)``, of W words a class, the mean
            of whose logits is the class's.
        carry: Whether to keep what enters the first searched layer, ``carried_numbers`` a token,
            for the next call; else each call starts from the embeddings.
        normalised: Whether logits are log-probabilities among all tokens of the vocabulary. They
            differ from plain logits by one number an example.
        others: Whether one more column, after the classes', has the highest log-probability of all
            tokens that are no label words; all are then ``normalised``.

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
        normalised: bool = False,
        others: bool = False,
    ) -> None:
        self._backbone = backbone
        self._normalised = normalised or others
        self._others = others
        self._label_ids = label_ids.to(backbone.device)
        self._causal = backbone.architecture.family.kind == "causal"
        self._sequences = _needed(batch, causal=self._causal)
        self._carry = carry
        self._tokens, self._abreast = self._tokens_that_fit(backbone.limits)
        self._prefixes = self._cut()
        self._passes = self._passing()
        self._told = False

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example that go through the model: ``(N,)``."""
        return self._sequences.lengths.tolist()

    def of(self, batch: Batch) -> "Engine":
        """The engine of another batch, which is cut as this one's.

        Raises:
            ValueError: Its examples have other lengths, or other answers.
        """
        other = copy(self)
        other._sequences = _needed(batch, causal=self._causal)
        if not other._sequences.alike(self._sequences):
            raise ValueError("the examples' lengths or answers are not this engine's")
        tokens = batch.input_ids.to(self._backbone.device)
        packs = (prefix.pack.of_tokens(tokens) for prefix in self._prefixes)
        other._prefixes = [_Prefix(self._backbone, pack) for pack in packs]
        other._passes = other._passing()
        return other

    @torch.inference_mode()
    def __call__(self, incumbents: Interventions, searched: Interventions = NOTHING) -> Tensor:
        """Logits of the model with these interventions.

        Args:
            incumbents: The current solution's, one candidate's (P = 1); those of searched layers do
                not matter.
            searched: Of P candidates for the layers of one block. None of them: the incumbents are
                the one candidate.

        Returns:
            ``(P, N, C)``, or with ``others`` ``(P, N, C + 1)``, float32.

        Raises:
            UserError: Not even one candidate on one example finds enough memory.
        """
        population = _population(searched)
        if population > 1 and not self._told:
            self._told = True
            self._tell_of_streaming(population)
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

    @torch.inference_mode()
    def answers(self, incumbents: Interventions = NOTHING) -> "Answers":
        """What the head reads and says at the answers, by the model with these interventions.

        Raises:
            UserError: Not even one example finds enough memory.
        """
        return self._retried(lambda: self._answers(incumbents), 1)

    def _answers(self, incumbents: Interventions) -> "Answers":
        # On the CPU, for a test set's states are more than the memory that was planned for.
        examples = len(self._sequences.lengths)
        logits = torch.empty(examples, len(self._label_ids))
        states = torch.empty(examples, self._backbone.architecture.body_width)
        for piece in self._through(self._embedded(), 0, incumbents):
            rows = piece.packed.pack.rows.cpu()
            logits[rows] = self._read(piece.hidden)[0].cpu()
            states[rows] = self._backbone.final(piece.hidden)[0].float().cpu()
        return Answers(logits=logits, states=states)

    def _vocabulary(self, places: Tensor | None) -> Tensor:
        number = 1 if places is None else places.shape[1]
        shape = len(self._sequences.lengths), number, len(self._backbone.embedding)
        logits = torch.empty(shape, device=self._backbone.device)
        for piece in self._through(self._embedded(), 0, answers_only=places is None):
            pack = piece.packed.pack
            if places is None:
                read = piece.hidden[0, :, None]
            else:
                read = piece.hidden[0, pack.starts[:, None] + places[pack.rows]]
            logits[pack.rows] = self._backbone.vocabulary_logits(read)
        return logits

    @no_cudnn_attention()
    def _retried(self, work: Callable[[], Found], population: int) -> Found:
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Not in the handler, where the error still holds what the failed pass had allocated.
            self._halve(reason, population)

    def _logits(self, incumbents: Interventions, searched: Interventions) -> Tensor:
        columns = len(self._label_ids) + self._others
        shape = _population(searched), len(self._sequences.lengths), columns
        logits = torch.empty(shape, device=self._backbone.device)
        if searched:
            first = min(searched)
            pieces, start = self._first_searched(incumbents, searched[first]), first + 1
        else:
            pieces, start = self._embedded(), 0
        for piece in self._through(pieces, start, incumbents, searched):
            logits[piece.candidates, piece.packed.pack.rows] = self._read(piece.hidden)
        return logits

    def _read(self, hidden: Tensor) -> Tensor:
        """The columns at answers: ``(P, N, H) -> (P, N, C or C + 1)``."""
        if self._normalised:
            return self._normalised_logits(hidden)
        return self._of_classes(self._backbone.label_logits(hidden, self._label_ids.flatten()))

    def _of_classes(self, logits: Tensor) -> Tensor:
        """Means over the words of each class: ``(..., C W) -> (..., C)``."""
        shape = self._label_ids.shape
        return logits.unflatten(-1, shape).mean(-1) if len(shape) > 1 else logits

    def _normalised_logits(self, hidden: Tensor) -> Tensor:
        """Log-probabilities among all tokens: ``(P, N, H) -> (P, N, C or C + 1)``."""
        words = self._label_ids.flatten()
        at_once = max(1, VOCABULARY_NUMBERS // len(self._backbone.embedding))
        parts = []
        for answers in hidden.flatten(0, 1).split(at_once):
            every = self._backbone.vocabulary_logits(answers)
            total = every.logsumexp(-1, keepdim=True)
            columns = [self._of_classes(every[:, words] - total)]
            if self._others:
                every[:, words] = -torch.inf
                columns.append(every.amax(-1, keepdim=True) - total)
            parts.append(torch.cat(columns, dim=-1))
        return torch.cat(parts).view(*hidden.shape[:2], -1)

    def _embedded(self) -> Iterator["_Piece"]:
        """The input of layer 0, a pack a piece."""
        for prefix in self._prefixes:
            yield _Piece(*self._backbone.embed(prefix.pack), slice(None))

    def _first_searched(
        self, incumbents: Interventions, searched: Intervention
    ) -> Iterator["_Piece"]:
        """The first searched layer's output, some candidates a piece."""
        layer, last = self._backbone.layers[searched.layer], self._is_last(searched.layer)
        for prefixes in self._side_by_side(self._prefixes):
            _carry(prefixes, searched.layer, incumbents)
            for prefix in prefixes:
                shared = None
                for part in _slices(searched.population, self._tokens // prefix.size):
                    some = searched.part(part)
                    entered = some.enter(prefix.hidden, prefix.pack)
                    if shared is None or entered is not prefix.hidden:
                        shared = layer.project(entered, prefix.packed, answers_only=last)
                    yield _Piece(
                        layer.attend(shared, prefix.packed, some.factors), prefix.packed, part
                    )
                if not self._carry:
                    prefix.forget()

    def _through(
        self,
        pieces: Iterable["_Piece"],
        start: int,
        incumbents: Interventions = NOTHING,
        searched: Interventions = NOTHING,
        *,
        answers_only: bool = True,
    ) -> Iterator["_Piece"]:
        """The pieces, from the input of layer ``start`` to the last layer's output."""
        for together in self._side_by_side(pieces):
            for index in range(start, len(self._backbone.layers)):
                layer = self._passes[index]
                trimmed = answers_only and self._is_last(index)
                for piece in together:
                    own = incumbents.get(index)
                    if index in searched:
                        own = searched[index].part(piece.candidates)
                    piece.hidden = layer(piece.hidden, piece.packed, own, answers_only=trimmed)
            yield from together

    def _side_by_side(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """Those that go through the layers side by side: each alone, but for streamed layers."""
        together, size = list[Part](), 0
        for part in parts:
            together.append(part)
            size += part.size
            if size + self._tokens > self._abreast:
                yield together
                together, size = [], 0
        if together:
            yield together

    def _is_last(self, layer: int) -> bool:
        return layer == len(self._backbone.layers) - 1

    def _passing(self) -> Sequence[Passes]:
        """The layers as pieces pass them."""
        backbone = self._backbone
        if not backbone.limits.graphs:
            return backbone.layers
        largest = max(self._tokens, *(prefix.size for prefix in self._prefixes))
        return recorded(backbone.layers, backbone.device, largest * backbone.architecture.width)

    def _cut(self) -> list["_Prefix"]:
        device = self._backbone.device
        packs = self._sequences.packs(self._tokens, device, coarse=COARSE[device.type])
        return [_Prefix(self._backbone, pack) for pack in packs]

    def _tokens_that_fit(self, limits: Limits) -> tuple[int, int]:
        """The most tokens of a pass, and of all pieces that go through the layers side by side."""
        backbone, architecture = self._backbone, self._backbone.architecture
        streamed, device = backbone.streaming is not None, backbone.device
        if limits.memory is not None:
            allowed = int(limits.memory * MEGABYTE)
        elif device.type == "cuda":
            allowed = int(limits.free_share * backbone.free_bytes)
        else:
            return backbone.tokens, sys.maxsize if streamed else 0
        size = backbone.dtype.itemsize
        lengths = self._sequences.lengths
        kept = backbone.unpacked_nbytes
        if self._carry:
            kept += int(lengths.sum()) * architecture.carried_numbers * size
        # For the candidates, for what they share, and for passes that are recorded.
        shares = 3 if limits.graphs else 2
        a_token, longest = shares * architecture.live_numbers * size, int(lengths.max())
        # What waits for its turn, and if it is not carried what it came from.
        waiting = (1 if self._carry else 2) * architecture.carried_numbers * size * streamed
        left = allowed - kept
        if left < longest * (a_token + waiting):
            needed = ceil((kept + longest * (a_token + waiting)) / MEGABYTE)
            weights = ceil(backbone.device_nbytes / MEGABYTE)
            leaner = "" if streamed else "set engine.stream=true if the weights leave too little, "
            raise UserError(
                f"One candidate needs {needed} MB beside the weights' {weights} MB ({longest} "
                f"tokens in the longest example); {allowed / MEGABYTE:.1f} MB are allowed. Raise "
                f"engine.memory, {leaner}or lower data.max_length or k."
            )
        if not streamed:
            return min(backbone.tokens, left // a_token), 0
        tokens = min(backbone.tokens, max(int(SHARE_OF_PASS * left) // a_token, longest))
        return tokens, (left - max(tokens, longest) * a_token) // waiting

    def _halve(self, reason: str, population: int) -> None:
        """Halve the tokens per pass; the carried prefix is computed anew."""
        sizes = [prefix.size for prefix in self._prefixes]
        used = max(min(max(self._tokens // size, 1), population) * size for size in sizes)
        abreast = min(self._abreast, population * sum(sizes))
        if max(used, abreast) <= int(self._sequences.lengths.max()):
            raise UserError(
                f"Out of memory with one candidate on one example at once: {reason}. Use a smaller "
                f"model, precision=bf16 or int8, engine.stream=true, or shorter texts "
                f"(data.max_length)."
            )
        self._tokens, self._abreast = used // 2, abreast // 2
        self._prefixes, self._passes = [], []
        if self._backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        self._prefixes = self._cut()
        self._passes = self._passing()
        if abreast:
            told = (
                f"Out of memory with {used} tokens at once and {abreast} side by side; going on "
                f"with {self._tokens} and {self._abreast}. A lower engine.memory avoids it."
            )
        else:
            told = (
                f"Out of memory with {used} tokens at once; going on with {self._tokens}. "
                f"engine.tokens={self._tokens} avoids the attempt."
            )
        warnings.warn(told, stacklevel=5)

    def _tell_of_streaming(self, population: int) -> None:
        """Warn if a layer's weights take longer to come than the population to pass it."""
        if (streaming := self._backbone.streaming) is None:
            return
        tokens = min(self._abreast, population * int(self._sequences.lengths.sum()))
        work = 2 * tokens * self._backbone.architecture.layer_numbers
        coming, passing = streaming.seconds, work / FLOPS
        if coming > passing:
            megabytes = streaming.layer_nbytes / MEGABYTE
            warnings.warn(
                f"The device will wait for the layers' weights: {megabytes:.3g} MB a layer take "
                f"about {1e3 * coming:.2g} ms to come, {tokens} tokens ({population} candidates) "
                f"about {1e3 * passing:.2g} ms to pass it. If the weights fit on the device, set "
                f"engine.stream=false.",
                stacklevel=4,
            )


def classify(
    backbone: Backbone, label_ids: Tensor, batch: Batch, interventions: Interventions = NOTHING
) -> Tensor:
    """Label-word logits of one batch, by the model with these interventions.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)`` or ``(C, W)``, the label words' token ids.
        batch: N examples.
        interventions: One candidate's.

    Returns:
        ``(N, C)``, float32.

    Raises:
        UserError: As of ``Engine``.
    """
    return Engine(backbone, batch, label_ids, carry=False)(interventions)[0]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model's head reads and says of N examples, on the CPU."""

    logits: Tensor
    """``(N, C)``, float32."""
    states: Tensor
    """What leaves the body, past its final norm, ``(N, H)``, float32."""


def answers(
    backbone: Backbone, label_ids: Tensor, batch: Batch, interventions: Interventions = NOTHING
) -> Answers:
    """As ``classify``, in the same pass with what the head reads."""
    return Engine(backbone, batch, label_ids, carry=False).answers(interventions)


@dataclass
class _Piece:
    """Some candidates on one pack, on the way through the layers."""

    hidden: Tensor
    """The next layer's input, ``(P, M, H)``, or what left the last one, ``(P, M or N, H)``."""
    packed: Packed
    candidates: slice
    """Which they are of the population."""

    @property
    def size(self) -> int:
        """Tokens, those of all candidates counted."""
        return len(self.hidden) * self.hidden.shape[1]


class _Prefix:
    """A layer's input under the incumbents for one pack, carried from layer to layer."""

    def __init__(self, backbone: Backbone, pack: Pack) -> None:
        self.pack = pack
        self.size = pack.size
        self._backbone = backbone
        self._passed: list[Intervention | None] = []
        self._hidden: Tensor | None = None
        self._packed: Packed | None = None

    @property
    def hidden(self) -> Tensor:
        """The input of ``layer``, ``(1, M, H)``."""
        assert self._hidden is not None
        return self._hidden

    @property
    def packed(self) -> Packed:
        """The pack as layers take it."""
        assert self._packed is not None
        return self._packed

    @property
    def layer(self) -> int:
        """The layer it has come to."""
        return len(self._passed)

    def begin(self, layer: int, incumbents: Interventions) -> None:
        """Embed, unless what is carried is on the way to a layer under these incumbents."""
        passing = [incumbents.get(index) for index in range(layer)]
        unchanged = all(old is new for old, new in zip(self._passed, passing, strict=False))
        if self._hidden is None or self.layer > layer or not unchanged:
            self.forget()
            self._hidden, self._packed = self._backbone.embed(self.pack)

    def pass_through(self, layer: int, incumbent: Intervention | None) -> None:
        """Pass a layer, unless it is passed."""
        if self.layer == layer:
            hidden = self._backbone.layers[layer](self.hidden, self.packed, incumbent)
            # Noted layer by layer, so that whoever interrupts this may go on later.
            self._hidden, self._passed = hidden, [*self._passed, incumbent]

    def forget(self) -> None:
        """Drop what is carried."""
        self._hidden, self._packed, self._passed = None, None, []


def _carry(prefixes: Sequence[_Prefix], layer: int, incumbents: Interventions) -> None:
    """Bring prefixes to a layer, all through one before the next."""
    for prefix in prefixes:
        prefix.begin(layer, incumbents)
    for index in range(min(prefix.layer for prefix in prefixes), layer):
        for prefix in prefixes:
            prefix.pass_through(index, incumbents.get(index))


def _population(searched: Interventions) -> int:
    return next(iter(searched.values())).population if searched else 1


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
