"""Parts of a batch: minibatches, and pieces of similar length."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dfolora.data.encode import Batch


def part(batch: Batch, rows: Tensor) -> Batch:
    """A batch of some of the rows, padded to the longest of them.

    Args:
        batch: N rows.
        rows: Row numbers, ``(n,)``.
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
    """Row numbers of successive pieces of the batch, shortest rows first.

    Args:
        batch: N rows.
        tokens: The most tokens of a piece, including padding; a longer row is alone.
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
    """Positions that each row needs: its tokens, and its answer, which may lie in the padding."""
    return torch.maximum(batch.attention_mask.sum(-1), batch.answer + 1)
