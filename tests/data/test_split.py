import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfolora.data import FewShotSplit, Rows, eligible_rows, sample_few_shot
from dfolora.errors import UserError
from dfolora.seeding import stream

NAMES = ("no", "maybe", "yes")


@st.composite
def draws(draw):
    """Labels, eligibility, k and seed for which a split exists."""
    k = draw(st.integers(1, 4))
    sure = [(label, True) for label in range(3) for _ in range(2 * k)]
    more = draw(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
    labels, eligible = zip(*draw(st.permutations(sure + more)), strict=True)
    return labels, eligible, k, draw(st.integers(0, 2**32))


@given(draws())
def test_balanced_disjoint_and_eligible(drawn):
    labels, eligible, k, seed = drawn
    split = sample_few_shot(labels, eligible, k=k, seed=seed, names=NAMES)
    for part in (split.train, split.dev):
        assert Counter(labels[row] for row in part) == {0: k, 1: k, 2: k}
    rows = split.train + split.dev
    assert len(set(rows)) == len(rows)
    assert all(eligible[row] for row in rows)


@given(draws(), st.randoms(use_true_random=False))
def test_labels_of_ineligible_rows_change_nothing(drawn, random):
    labels, eligible, k, seed = drawn
    other = [
        label if kept else random.randrange(3) for label, kept in zip(labels, eligible, strict=True)
    ]
    split = sample_few_shot(labels, eligible, k=k, seed=seed, names=NAMES)
    assert split == sample_few_shot(other, eligible, k=k, seed=seed, names=("x", "y", "z"))


@given(draws())
def test_each_class_gives_its_first_k_rows_to_train_and_the_next_k_to_dev(drawn):
    """In the order of one permutation of all rows, which each part keeps."""
    labels, eligible, k, seed = drawn
    order = [row for row in stream(seed, "split").permutation(len(labels)) if eligible[row]]
    ranks = {row: [r for r in order if labels[r] == labels[row]].index(row) for row in order}
    split = sample_few_shot(labels, eligible, k=k, seed=seed, names=NAMES)
    assert split.train == tuple(row for row in order if ranks[row] < k)
    assert split.dev == tuple(row for row in order if k <= ranks[row] < 2 * k)


@given(draws())
def test_stored_split_is_read_back(drawn):
    labels, eligible, k, seed = drawn
    split = sample_few_shot(labels, eligible, k=k, seed=seed, names=NAMES)
    stored = json.loads(split.to_json())
    assert FewShotSplit(**stored | {p: tuple(stored[p]) for p in ("train", "dev")}) == split


def test_split_of_a_seed_never_changes():
    """Stored values: another numpy or another walk would break every published split."""
    labels = [0, 1] * 20
    split = sample_few_shot(labels, [True] * 40, k=2, seed=8, names=("no", "yes"))
    assert (split.train, split.dev) == ((37, 12, 27, 36), (5, 13, 24, 34))


def test_seeds_give_different_splits():
    splits = {
        sample_few_shot([0, 1] * 50, [True] * 100, k=4, seed=seed, names=("no", "yes")).train
        for seed in (8, 13, 42, 50, 60)
    }
    assert len(splits) == 5


def test_too_few_rows_are_counted_per_class():
    with pytest.raises(
        UserError, match=r"2-shot split needs 4 rows .* got no: 4, yes: 3, maybe: 0;"
    ):
        sample_few_shot(
            [0, 0, 0, 0, 1, 1, 1, 1],
            [True] * 7 + [False],
            k=2,
            seed=0,
            names=("no", "yes", "maybe"),
        )


@pytest.mark.parametrize(("k", "seed"), [(0, 1), (1, -1)])
def test_out_of_range(k, seed):
    with pytest.raises(UserError, match="k must be at least 1 and the seed at least 0"):
        sample_few_shot([0, 0], [True] * 2, k=k, seed=seed, names=("no",))


def test_length_rule_counts_the_words_of_all_fields():
    texts = ({"a": "one two", "b": "three"}, {"a": "one  two\n", "b": "three four"})
    rows = Rows(texts=texts, labels=(0, 0))
    assert eligible_rows(rows, max_words=3) == (True, False)
    assert eligible_rows(Rows(texts=({"a": "w " * 340}, {"a": "w " * 341}), labels=(0, 0))) == (
        True,
        False,
    )
