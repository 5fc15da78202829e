"""Packs hold every token once, in order, and know where everything is."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.model.packing import STEP, Sequences

CPU = torch.device("cpu")
LONGEST = 24


def sequences_of(lengths, real=None, answer=None):
    """Rows of tokens that are all different."""
    lengths = torch.tensor(lengths)
    return Sequences(
        input_ids=torch.arange(LONGEST * len(lengths)).view(-1, LONGEST),
        lengths=lengths,
        real=lengths if real is None else torch.tensor(real),
        answer=torch.zeros_like(lengths) if answer is None else torch.tensor(answer),
    )


@st.composite
def packed(draw):
    """Some sequences, with kept padding and an answer anywhere; a limit; and their packs."""
    lengths = draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=9))
    real = [draw(st.integers(max(1, length - 3), length)) for length in lengths]
    answer = [draw(st.integers(0, length - 1)) for length in lengths]
    sequences, tokens = sequences_of(lengths, real, answer), draw(st.integers(1, 120))
    return sequences, tokens, list(sequences.packs(tokens, CPU, coarse=draw(st.booleans())))


def tokens_of(group):
    """The ids in the order in which they lie side by side."""
    return group.packed(group.input_ids.reshape(1, -1, 1)).flatten().tolist()


def own(sequences, row):
    return sequences.input_ids[row, : sequences.lengths[row]].tolist()


@settings(deadline=None)
@given(given_packs=packed())
def test_every_token_is_in_one_pack_shortest_sequences_first(given_packs):
    sequences, _, packs = given_packs
    lengths = sequences.lengths.tolist()
    rows = [row for pack in packs for row in pack.rows.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for pack in packs:
        side_by_side = [token for group in pack.groups for token in tokens_of(group)]
        assert side_by_side == [token for row in pack.rows for token in own(sequences, row)]
        assert pack.size == len(side_by_side)


@settings(deadline=None)
@given(given_packs=packed())
def test_packs_are_full_but_not_above_the_limit(given_packs):
    sequences, tokens, packs = given_packs
    for pack in packs:
        assert pack.size <= tokens or len(pack.rows) == 1
    for pack, following in pairwise(packs):
        assert pack.size + sequences.lengths[following.rows[0]] > tokens


@settings(deadline=None)
@given(given_packs=packed())
def test_groups_are_neighbours_and_know_where_they_lie(given_packs):
    sequences, _, packs = given_packs
    for pack in packs:
        token = sequence = 0
        for group in pack.groups:
            rows = pack.rows[group.sequences]
            assert group.count == len(rows) > 0
            assert group.input_ids.shape[1] == sequences.lengths[rows].max()
            size = int(sequences.lengths[rows].sum())
            assert group.tokens == slice(token, token + size)
            assert group.sequences == slice(sequence, sequence + group.count)
            token, sequence = token + size, sequence + group.count
        assert (token, sequence) == (pack.size, len(pack.rows))


@settings(deadline=None)
@given(given_packs=packed())
def test_starts_and_answers_point_at_the_right_tokens(given_packs):
    sequences, _, packs = given_packs
    for pack in packs:
        side_by_side = [token for group in pack.groups for token in tokens_of(group)]
        for row, start, answer in zip(pack.rows, pack.starts, pack.answers, strict=True):
            assert side_by_side[start] == own(sequences, row)[0]
            assert side_by_side[answer] == own(sequences, row)[sequences.answer[row]]


@settings(deadline=None)
@given(given_packs=packed())
def test_keys_leave_out_all_padding(given_packs):
    """That which was kept and that which makes a group's sequences equally long."""
    sequences, _, packs = given_packs
    for pack in packs:
        for group in pack.groups:
            positions = range(group.input_ids.shape[1])
            real = sequences.real[pack.rows[group.sequences]].tolist()
            expected = [[position < most for position in positions] for most in real]
            keys = torch.ones_like(group.input_ids).bool() if group.keys is None else group.keys
            assert keys.dtype == torch.bool
            assert keys.tolist() == expected
            assert group.keys is None or not keys.all()


@settings(deadline=None)
@given(given_packs=packed())
def test_padded_puts_zeros_where_no_token_is(given_packs):
    sequences, _, packs = given_packs
    for pack in packs:
        for group in pack.groups:
            lengths = sequences.lengths[pack.rows[group.sequences]].tolist()
            x = torch.arange(1.0, 1 + 4 * sum(lengths)).view(2, -1, 2)  # P = 2, H = 2
            positions = group.padded(x).unflatten(1, (group.count, -1))
            for candidate in range(2):
                rows = zip(positions[candidate], x[candidate].split(lengths), lengths, strict=True)
                for row, values, length in rows:
                    assert torch.equal(row[:length], values)
                    assert not row[length:].any()
            assert torch.equal(group.packed(positions.flatten(1, 2)), x)


@pytest.mark.parametrize("coarse", [True, False])
def test_groups_hold_one_length_or_lengths_within_a_step(coarse):
    lengths = [row for row in range(1, LONGEST + 1) for _ in range(2)]
    (pack,) = sequences_of(lengths).packs(10_000, CPU, coarse=coarse)
    found = [sorted(lengths[row] for row in pack.rows[group.sequences]) for group in pack.groups]
    assert all(inside[-1] <= STEP * inside[0] for inside in found)
    if coarse:
        assert len(found) < LONGEST - 5
    else:
        assert found == [[length, length] for length in range(1, LONGEST + 1)]
        assert all(group.places is group.keys is None for group in pack.groups)


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(1, [2, 3, 3, 5]), (5, [5, 3, 5]), (8, [8, 5]), (13, [13])]
)
def test_packs_by_hand(tokens, sizes):
    packs = sequences_of([5, 3, 2, 3]).packs(tokens, CPU)
    assert [pack.size for pack in packs] == sizes
