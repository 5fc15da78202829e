"""The sign-flip test against counting all flips by hand, and Holm's correction."""

import itertools
import math

import numpy as np
import pytest

from dfolora.report.significance import judge, sign_flip_p


def counted_p(differences):
    """Two-sided: twice the share of flips whose mean is at least as extreme on that side."""
    values = np.array(differences)
    flips = np.array(list(itertools.product([1, -1], repeat=len(values))))
    means, mean = (flips * values).mean(axis=1), values.mean()
    share = min((means >= mean - 1e-12).mean(), (means <= mean + 1e-12).mean())
    return min(1.0, 2 * share)


@pytest.mark.parametrize("seed", range(5))
def test_p_is_that_of_all_flips(seed):
    differences = np.random.default_rng(seed).normal(0.5, 1.0, size=7)
    assert sign_flip_p(differences) == pytest.approx(counted_p(differences))


def test_p_of_known_cases():
    assert sign_flip_p([1.0] * 7) == 2 / 2**7  # the smallest that seven tasks can have
    assert sign_flip_p([1.0] * 5) == 2 / 2**5 > 0.05
    assert sign_flip_p([0.0] * 7) == 1
    assert sign_flip_p([3.0, -1.0]) == sign_flip_p([-3.0, 1.0]) == 1
    assert sign_flip_p([2.0]) == 1


def test_equal_means_are_ties_however_they_are_rounded():
    assert sign_flip_p([0.1, 0.2, 0.3]) == sign_flip_p([1.0, 2.0, 3.0]) == 0.25


def test_several_rows_are_corrected_by_holm():
    base = [50.0] * 7
    clear = [50 + step for step in (1, 2, 3, 4, 5, 6, 7)]  # p = 2 / 128
    weaker = [50 + step for step in (-1, 2, 3, 4, 5, 6, 7)]  # 4 / 128: one flip is as extreme
    found = {v.label: v for v in judge({"weaker": weaker, "clear": clear}, base)}
    assert found["clear"].p == 2 * 2 / 128
    assert found["weaker"].p == 4 / 128
    assert found["clear"].difference == 4
    assert found["clear"].mark == "↑"
    assert str(found["clear"]) == "clear: +4.00, p = 0.031"


def test_corrected_p_never_falls_with_the_raw_one():
    base = [0.0] * 6
    rows = {name: [1.0] * 6 for name in "abc"}  # each 2 / 64
    assert [v.p for v in judge(rows, base)] == [3 * 2 / 64] * 3
    assert not any(v.mark for v in judge(rows, base))


def test_row_with_a_hole_is_not_tested_and_does_not_count():
    base = [50.0] * 7
    rows = {"whole": [51.0] * 7, "holed": [math.nan, *[60.0] * 6]}
    whole, holed = judge(rows, base, group="gpt2")
    assert whole.p == 2 / 128
    assert not holed.mark
    assert str(holed) == "gpt2, holed: not tested, for cells are missing"
