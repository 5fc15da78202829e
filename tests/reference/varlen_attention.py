"""What flash attention for sequences of various lengths gives, a sequence after another."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch.nn import functional


def forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
    return_debug_mask, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    """``aten::_flash_attention_forward``: q, k, v ``(tokens, h, D)``, the boundaries int32.

    A window ``(left, right)`` is counted from the diagonal that ends at the last query and key.
    """
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert not dropout_p
    assert not return_debug_mask
    assert int(cum_seq_q[-1]) == len(query)
    assert int(cum_seq_k[-1]) == len(key) == len(value)
    assert max_q == int(cum_seq_q.diff().max())
    assert max_k == int(cum_seq_k.diff().max())
    shared = query.shape[1] // key.shape[1]
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for asking, asked in zip(pairwise(cum_seq_q), pairwise(cum_seq_k), strict=True):
        q = query[slice(*asking)].transpose(0, 1)
        k, v = (
            x[slice(*asked)].transpose(0, 1).repeat_interleave(shared, dim=0) for x in (key, value)
        )
        diagonal = torch.arange(q.shape[1])[:, None] + (k.shape[1] - q.shape[1])
        ahead = torch.arange(k.shape[1]) - diagonal
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if is_causal:
            seen &= ahead <= 0
        if window_size_left is not None:
            seen &= ahead >= -window_size_left
        if window_size_right is not None:
            seen &= ahead <= window_size_right
        output[slice(*asking)] = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale
        ).transpose(0, 1)
    return output, *(query.new_empty(0) for _ in range(4))


@contextmanager
def implemented() -> Iterator[None]:
    """A context in which the CPU, too, has that operator."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    try:
        yield
    finally:
        library._destroy()
