"""A frozen layer of the model on packed sequences, for one candidate or many at once.

The layer is transformers' own: its modules run as they are, but for those of the attention maps,
which give what has been computed for all candidates at once, with each one's low-rank terms added.
The leading axis of all tensors is that of candidates. It has length 1 as long as all candidates
agree, so that shared work is done once; it grows to P where their factors first differ.
Letters: P candidates, M tokens and N sequences of a pack, H hidden size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfolora.model.attention import Attending, attending_in_packs
from dfolora.model.factors import LinearMap, LoraFactors, beside
from dfolora.model.families import Family
from dfolora.model.intervention import Intervention
from dfolora.model.joint import product, side_by_side
from dfolora.model.packing import Pack
from dfolora.model.swapping import forwards

IN_PLACE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "GELUActivation": torch.ops.aten.gelu_,
    "NewGELUActivation": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "GELUTanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "ReLU": torch.relu_,
    "SiLUActivation": partial(functional.silu, inplace=True),
}
"""Activations of transformers that torch has as one operation, which writes over the FFN's widest
tensor instead of making others beside it."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A pack, and what the model's body tells its layers of it."""

    pack: Pack
    arguments: Sequence[Mapping[str, Any]]
    """A layer's arguments beside the hidden states and the mask, such as rotary positions, by
    layer; tensors are ``(1, M, ...)``."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """A layer's frozen projections of its input, before any factors are added."""

    hidden: Tensor
    """The layer's input where its output is wanted, ``(P, M or N, H)``."""
    normed: Tensor
    """What its attention reads, ``(P, M, H)``."""
    inputs: Mapping[nn.Module, Tensor]
    """Of the modules that hold q, k and v: ``(P, M, H)``; of q's own only what asks."""
    outputs: Mapping[nn.Module, Tensor]
    """Their outputs, ``(P, M, d_module)``."""
    joint: Tensor | None
    """The tensor that the outputs of q, k and v are parts of, if they are joined and all whole."""
    answers_only: bool
    """Whether the output is wanted at the N answers alone."""


class Layer:
    """A layer of the model.

    Args:
        module: The layer of transformers.
        index: Its number.
        maps: Its attention maps q, k, v and o.
        family: The model's.
        joined: Whether the modules of q, k and v are joined, so that one product does for them.
    """

    def __init__(
        self,
        module: nn.Module,
        index: int,
        maps: Mapping[str, LinearMap],
        family: Family,
        *,
        joined: bool = False,
    ) -> None:
        self.maps = maps
        self._module = module
        self._index = index
        self._attention = module.get_submodule(family.attention)
        self._norm = module.get_submodule(family.attention_norm) if family.norm_first else None
        self._outward = maps["o"].module
        self._inward = list(dict.fromkeys(maps[name].module for name in "qkv"))
        self._asking = maps["q"].module if len(self._inward) == 3 else None
        self._held = {
            module: _Held({name: own for name, own in maps.items() if own.module is module})
            for module in (*self._inward, self._outward)
        }
        self._joint = _Held(side_by_side({name: maps[name] for name in "qkv"})) if joined else None
        self._interface = family.interface
        self._activations = {
            part: IN_PLACE[name]
            for part in module.modules()
            if (name := type(part).__name__) in IN_PLACE
        }

    def __call__(
        self,
        hidden: Tensor,
        packed: Packed,
        intervention: Intervention | None = None,
        *,
        answers_only: bool = False,
    ) -> Tensor:
        """``(P, M, H) -> (P, M, H)``, or ``(P, N, H)`` at the answers alone.

        In a causal model, sequences must then end at their answers.
        """
        if intervention is None:
            return self.attend(self.project(hidden, packed, answers_only=answers_only), packed, {})
        entered = intervention.enter(hidden, packed.pack)
        projected = self.project(entered, packed, answers_only=answers_only)
        return self.attend(projected, packed, intervention.factors)

    def project(self, hidden: Tensor, packed: Packed, *, answers_only: bool = False) -> Projected:
        """Apply the frozen maps q, k and v; candidates with the same input share the result."""
        normed = hidden if self._norm is None else self._norm(hidden)
        inputs = dict.fromkeys(self._inward, normed)
        if answers_only and self._asking is not None:
            inputs[self._asking] = normed[:, packed.pack.answers]
        whole = [module for module, x in inputs.items() if x is normed]
        joint, outputs = None, dict[nn.Module, Tensor]()
        if self._joint is not None:
            joint, outputs = product(whole, normed)
        outputs |= {module: module(x) for module, x in inputs.items() if module not in outputs}
        return Projected(
            hidden=hidden[:, packed.pack.answers] if answers_only else hidden,
            normed=normed,
            inputs=inputs,
            outputs=outputs,
            joint=None if answers_only else joint,
            answers_only=answers_only,
        )

    def attend(
        self, projected: Projected, packed: Packed, factors: Mapping[str, LoraFactors]
    ) -> Tensor:
        """Add the factors and run the rest of the layer."""
        normed, pack = projected.normed, packed.pack
        population = max([len(normed), *(len(own.down) for own in factors.values())])
        whole = normed.expand(population, -1, -1)
        at_answers = (lambda x: x[:, pack.answers]) if projected.answers_only else _unchanged
        attend, outward = self._attention.forward, self._outward.forward
        inward = factors
        if projected.joint is not None and len(normed) > 1 and _of_one(factors.values()):
            assert self._joint is not None
            self._joint.added(projected.joint, normed, factors)  # in place
            inward = {}

        def adapted(module: nn.Module) -> Tensor:
            output = self._held[module].added(
                projected.outputs[module], projected.inputs[module], inward
            )
            if projected.answers_only and module is self._asking:
                spread = output.new_empty(len(output), pack.size, output.shape[-1])
                output = spread.index_copy_(1, pack.answers, output)
            return output.expand(population, -1, -1)

        def attended(*given: Any, **named: Any) -> Any:
            named.pop("hidden_states", None)
            return attend(whole, *given[1:], **named)

        def out(context: Tensor) -> Tensor:
            context = at_answers(context)
            return self._held[self._outward].added(outward(context), context, factors)

        functions: dict[nn.Module, Callable[..., Any]] = {
            module: _giving(adapted(module)) for module in self._inward
        }
        functions |= self._activations
        functions |= {self._attention: attended, self._outward: out}
        if self._norm is not None:
            functions[self._norm] = _giving(at_answers(normed))
        with attending_in_packs(self._attention, interface=self._interface), forwards(functions):
            output = self._module(
                projected.hidden,
                attention_mask=Attending(pack=pack, answers_only=projected.answers_only),
                **packed.arguments[self._index],
            )
        return output if isinstance(output, Tensor) else output[0]


class _Held:
    """Maps side by side in one output, and the last single candidate's factors of them.

    Args:
        maps: By name.
    """

    def __init__(self, maps: Mapping[str, LinearMap]) -> None:
        self._maps = maps
        self._of = list[tuple[LinearMap, ref[LoraFactors]]]()
        self._made: LoraFactors | None = None

    def added(self, output: Tensor, x: Tensor, factors: Mapping[str, LoraFactors]) -> Tensor:
        """The maps' output at ``x`` with their factors."""
        held = [(linear, factors[name]) for name, linear in self._maps.items() if name in factors]
        if not held:
            return output
        return self._beside(held).added(output, x)

    def _beside(self, held: Sequence[tuple[LinearMap, LoraFactors]]) -> LoraFactors:
        """The factors side by side: a solution's once, for as long as it has them."""
        trivial = len(held) == 1 and held[0][0].alone
        if trivial or not _of_one(own for _linear, own in held):
            return beside(held)
        same = len(held) == len(self._of) and all(
            linear is known and own is its()
            for (linear, own), (known, its) in zip(held, self._of, strict=True)
        )
        if self._made is None or not same:
            self._of = [(linear, ref(own, self._forget)) for linear, own in held]
            self._made = beside(held)
        return self._made

    def _forget(self, _dead: object) -> None:
        self._made = None


def _of_one(factors: Iterable[LoraFactors]) -> bool:
    """Whether they are one candidate's."""
    return all(len(own.down) == 1 for own in factors)


def _giving(result: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _x: result


def _unchanged(x: Tensor) -> Tensor:
    return x
