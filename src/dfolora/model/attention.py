"""Attention within each sequence of a pack, in place of the attention of transformers' models.

Letters: P candidates, M tokens and N sequences of a pack, n sequences of a group, T their length,
h heads (of queries, or of keys and values), D their width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from dfolora.errors import UserError
from dfolora.model.packing import Group, Pack

NAME = "dfolora_packed"
UNREAD = ("position_bias", "s_aux")
"""What transformers' attention functions may be given that changes scores, and none here has."""


@dataclass(frozen=True, kw_only=True)
class Attending:
    """Who attends to whom; given to a model's layer as its attention mask."""

    pack: Pack
    answers_only: bool
    """Whether only the N answers' positions attend; the others' results are zero."""


@contextmanager
def attending_in_packs(attention: nn.Module, *, interface: bool) -> Iterator[None]:
    """A context in which a model's attention module takes an ``Attending`` as its mask.

    Args:
        attention: The module.
        interface: Whether it attends by transformers' interface, or by a method as GPT-Neo does.
    """
    if not interface:
        vars(attention)["_attn"] = partial(_as_gpt_neo, attention)
        try:
            yield
        finally:
            del vars(attention)["_attn"]
        return
    config: Any = attention.config
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Attending,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention by ``transformers``' interface for it: ``(P, h, M, D)`` each -> ``(P, M, h, D)``.

    Args:
        module: Whose attention it is.
        query: With the heads of queries.
        key: With the heads of keys and values.
        value: As ``key``.
        attention_mask: Who attends to whom.
        scaling: Factor on the scores; None for ``D ** -0.5``.
        sliding_window: A position attends to those that are nearer than this; None for all.
        softcap: Bound on the scores, which a tanh keeps; None for none.
        others: What only kernels of other kinds read.

    Raises:
        UserError: The model has something else that changes the scores.
    """
    if unread := [name for name in UNREAD if others.get(name) is not None]:
        raise UserError(
            f"The attention of this model has {', '.join(unread)}, which packed attention lacks; "
            f"take another model."
        )
    pack, answers_only = attention_mask.pack, attention_mask.answers_only
    causal = bool(getattr(module, "is_causal", True))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    population, _, heads, width = q.shape
    if answers_only:
        q = q[:, pack.answers]
    answers = pack.answers - pack.starts if answers_only else None
    contexts = []
    for group in pack.groups:
        asking = group.sequences if answers_only else group.tokens
        queries = q[:, asking] if answers_only else group.padded(q[:, asking])
        mask = _mask(group, causal, sliding_window, answers, q.device)
        context = _attention(
            _by_sequence(queries, group),
            _by_sequence(group.padded(k[:, group.tokens]), group),
            _by_sequence(group.padded(v[:, group.tokens]), group),
            mask=None if mask is None else mask.repeat(population, 1, 1, 1),
            causal=causal and mask is None and not answers_only,
            scaling=scaling,
            softcap=softcap,
        )
        context = context.transpose(1, 2).reshape(population, -1, heads, width)
        contexts.append(context if answers_only else group.packed(context))
    context = torch.cat(contexts, dim=1)
    if answers_only:
        spread = context.new_zeros(population, pack.size, heads, width)
        context = spread.index_copy_(1, pack.answers, context)
    return context, None


AttentionInterface.register(NAME, attend)


def _as_gpt_neo(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Attending
) -> tuple[Tensor, None]:
    """What GPT-Neo's ``_attn`` gives, ``(P, h, M, D)``; it does not scale its scores."""
    window = attention.config.window_size if attention.attention_type == "local" else None
    context, _ = attend(
        attention, query, key, value, attention_mask, scaling=1.0, sliding_window=window
    )
    return context.transpose(1, 2), None


def _by_sequence(x: Tensor, group: Group) -> Tensor:
    """``(P, n T, h, D) -> (P n, h, T, D)``."""
    return x.unflatten(1, (group.count, -1)).flatten(0, 1).transpose(1, 2)


def _mask(
    group: Group,
    causal: bool,
    window: int | None,
    answers: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys each query sees, ``(n, 1, T or 1, T)``, bool; None for all, or all up to it.

    A causal model's answers are the last tokens, so that they see all.
    """
    if group.keys is None and (window is None or group.length <= window):
        return None
    positions = torch.arange(group.length, device=device)
    asking = positions[None] if answers is None else answers[group.sequences, None]
    distance = (asking[:, :, None] - positions)[:, None]
    mask = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        mask = mask & (distance >= 0)
    if window is not None:
        mask = mask & (distance.abs() < window)
    if group.keys is not None:
        mask = mask & group.keys[:, None, None, :]
    return mask.expand(group.count, -1, -1, -1)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """``(B, h, T, D)`` each -> the queries' shape; keys and values may have fewer heads."""
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    if softcap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scaling
        )
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
