"""Parts of a batch: the same rows, without padding that nobody needs."""

from itertools import pairwise

import pytest
import torch

from dfolora.data import part, pieces
from tests.conftest import random_batch


def test_part_holds_the_rows_asked_for_and_no_other_padding(batch):
    rows = torch.tensor([3, 1, 7])  # of 7, 4 and 4 tokens
    some = part(batch, rows)
    assert some.input_ids.tolist() == batch.input_ids[rows, :7].tolist()
    assert some.attention_mask.sum(-1).tolist() == [7, 4, 4]
    assert some.answer.tolist() == batch.answer[rows].tolist()
    assert some.labels.tolist() == list(some.rows.labels) == batch.labels[rows].tolist()


def test_part_keeps_the_padding_at_which_an_answer_is_read():
    batch = random_batch([9, 4, 3], [8, 6, 2])
    assert part(batch, torch.tensor([1, 2])).input_ids.shape == (2, 7)


@pytest.mark.parametrize("tokens", [1, 8, 20, 10_000])
def test_pieces_are_all_rows_by_length_within_the_limit(batch, tokens):
    lengths = batch.attention_mask.sum(-1)
    cut = list(pieces(batch, tokens))
    order = torch.cat(cut)
    assert sorted(order.tolist()) == list(range(8))
    assert lengths[order].tolist() == sorted(lengths.tolist())
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= tokens for rows in cut)
    for rows, after in pairwise(cut):  # one row more would have been too many
        assert (len(rows) + 1) * lengths[after[0]] > tokens


def test_batch_goes_to_a_device_with_all_its_tensors(batch):
    moved = batch.to(torch.device("meta"))
    for name in ("input_ids", "attention_mask", "answer", "labels"):
        assert getattr(moved, name).device.type == "meta"
    assert moved.rows is batch.rows
