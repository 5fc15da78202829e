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
FLASH_CAPABILITY, FLASH_WIDTHS = (8, 0), range(8, 257, 8)
"""Compute capability of GPUs, and widths of heads, for torch's flash attention (2.13)."""


@dataclass(frozen=True, kw_only=True)
class Attending:
    """Who attends to whom; given to a model's layer as its attention mask."""

    pack: Pack
    answers_only: bool
    """Whether only the N answers' positions attend; the others' results are left undefined."""


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
    rule = _Rule(
        causal=bool(getattr(module, "is_causal", True)),
        scaling=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    pack, answers_only = attention_mask.pack, attention_mask.answers_only
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if answers_only:
        q = q[:, pack.answers]
    together = _has_kernel(q, attention_mask, rule)
    context = (_at_once if together else _by_group)(q, k, v, attention_mask, rule)
    if answers_only:
        spread = context.new_empty(len(context), pack.size, *context.shape[2:])
        context = spread.index_copy_(1, pack.answers, context)
    return context, None


AttentionInterface.register(NAME, attend)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a model's scores come about; the arguments of ``attend`` of these names."""

    causal: bool
    scaling: float | None
    window: int | None
    softcap: float | None


def _has_kernel(q: Tensor, attending: Attending, rule: _Rule) -> bool:
    """Whether one kernel can do what ``_by_group`` does.

    It needs half precision and a GPU of Ampere or later, and knows neither masks nor caps. It takes
    a lone query for the last token of its sequence, from which a window is counted.
    """
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(q.device) >= FLASH_CAPABILITY
        and q.shape[-1] in FLASH_WIDTHS
        and rule.softcap is None
        and not attending.pack.masked
        and (rule.causal or rule.window is None or not attending.answers_only)
    )


def _at_once(q: Tensor, k: Tensor, v: Tensor, attending: Attending, rule: _Rule) -> Tensor:
    """All sequences in one kernel: q ``(P, M or N, h, D)``, k and v ``(P, M, h, D)`` -> as q.

    By torch's operator, for its function changes from version to version.
    """
    pack, population = attending.pack, len(q)
    far = None if rule.window is None else rule.window - 1
    context, *_ = torch.ops.aten._flash_attention_forward(
        *(x.flatten(0, 1) for x in (q, k, v)),
        pack.boundaries(population, answers_only=attending.answers_only),
        pack.boundaries(population),
        1 if attending.answers_only else pack.longest,
        pack.longest,
        0.0,
        rule.causal,
        False,
        scale=rule.scaling,
        window_size_left=far,
        window_size_right=far,
    )
    return context.view(q.shape)


def _by_group(q: Tensor, k: Tensor, v: Tensor, attending: Attending, rule: _Rule) -> Tensor:
    """A group of sequences after another: shapes as of ``_at_once``."""
    pack, answers_only = attending.pack, attending.answers_only
    population, _, heads, width = q.shape
    contexts = []
    for group in pack.groups:
        asking = group.sequences if answers_only else group.tokens
        queries = q[:, asking] if answers_only else group.padded(q[:, asking])
        mask = _mask(group, attending, rule)
        context = _attention(
            _by_sequence(queries, group),
            _by_sequence(group.padded(k[:, group.tokens]), group),
            _by_sequence(group.padded(v[:, group.tokens]), group),
            mask=None if mask is None else mask.repeat(population, 1, 1, 1),
            causal=rule.causal and mask is None and not answers_only,
            rule=rule,
        )
        context = context.transpose(1, 2).reshape(population, -1, heads, width)
        contexts.append(context if answers_only else group.packed(context))
    return torch.cat(contexts, dim=1)


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


def _mask(group: Group, attending: Attending, rule: _Rule) -> Tensor | None:
    """Which keys each query sees, ``(n, 1, T or 1, T)``, bool; None for all, or all up to it.

    A causal model's answers are the last tokens, so that they see all; no token of it sees padding
    that follows.
    """
    pack, answers_only, window = attending.pack, attending.answers_only, rule.window
    follows = rule.causal and not answers_only and not pack.masked
    keys = None if follows else group.keys
    if keys is None and (window is None or group.length <= window):
        return None
    positions = torch.arange(group.length, device=pack.starts.device)
    asking = positions[None]
    if answers_only:
        asking = (pack.answers - pack.starts)[group.sequences, None]
    distance = (asking[:, :, None] - positions)[:, None]
    mask = torch.ones_like(distance, dtype=torch.bool)
    if rule.causal:
        mask = mask & (distance >= 0)
    if window is not None:
        mask = mask & (distance.abs() < window)
    if keys is not None:
        mask = mask & keys[:, None, None, :]
    return mask.expand(group.count, -1, -1, -1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, rule: _Rule
) -> Tensor:
    """``(B, h, T, D)`` each -> the queries' shape; keys and values may have fewer heads."""
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    if rule.softcap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=rule.scaling
        )
    scale = q.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / rule.softcap) * rule.softcap
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
