"""Parts of a batch: minibatches, and pieces of like lengths."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dfolora.data.encode import Batch


def part(batch: Batch, rows: Tensor) -> Batch:
    """Some of the rows, without the padding that none of them needs.

    Args:
        batch: N rows.
        rows: Their numbers, ``(n,)``.
    """
    length = int(_lengths(batch)[rows].max())
    return Batch(
        input_ids=batch.input_ids[rows, :length],
        attention_mask=batch.attention_mask[rows, :length],
        answer=batch.answer[rows],
        labels=batch.labels[rows],
        rows=batch.rows.select(rows.tolist()),
        truncated=batch.truncated,
    )


def pieces(batch: Batch, tokens: int) -> Iterator[Tensor]:
    """The numbers of all rows, a piece at a time, shortest rows first.

    Args:
        batch: N rows.
        tokens: At most so many in a piece, padding included, or one longer row.
    """
    lengths = _lengths(batch)
    order = lengths.argsort(stable=True)
    first = 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > first and (place + 1 - first) * length > tokens:
            yield order[first:place]
            first = place
    yield order[first:]


def _lengths(batch: Batch) -> Tensor:
    """Positions that are needed: the tokens, and the answer, which may be read at padding."""
    return torch.maximum(batch.attention_mask.sum(-1), batch.answer + 1)
