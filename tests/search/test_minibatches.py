"""Minibatches: whole epochs, each row once, in orders of their own."""

from itertools import islice

import numpy as np
import pytest

from dfolora.search.minibatches import minibatches


def drawn(rows, size, number, seed=3):
    return [*islice(minibatches(rows, size, np.random.default_rng(seed)), number)]


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (12, 5), (7, 7), (9, 1)])
def test_no_row_comes_twice_in_an_epoch(rows, size):
    steps = rows // size
    batches = drawn(rows, size, 3 * steps)
    assert {len(batch) for batch in batches} == {size}
    for epoch in range(3):
        seen = np.concatenate(batches[epoch * steps : (epoch + 1) * steps])
        assert len(np.unique(seen)) == steps * size
        assert {*seen} <= {*range(rows)}


def test_what_is_left_over_differs_from_epoch_to_epoch():
    left = {frozenset(range(7)) - {*np.concatenate(drawn(7, 3, 2, seed))} for seed in range(20)}
    assert len(left) > 3


def test_orders_are_the_streams():
    np.testing.assert_array_equal(drawn(12, 4, 6), drawn(12, 4, 6))
    assert not np.array_equal(drawn(12, 4, 6), drawn(12, 4, 6, seed=4))
