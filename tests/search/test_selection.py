"""Which solution is kept: what is looked at, when, and which look wins."""

import numpy as np
import pytest

from dfolora.search.evaluator import Evaluation
from dfolora.search.loop import Generation
from dfolora.search.selection import DevSelection

BLOCKS, DIM = 2, 3


class Dev:
    """A dev set that knows each solution by its first number; every look is noted."""

    def __init__(self, scores, losses=()):
        self.scores, self.losses = dict(scores), dict(losses)
        self.seen = []

    def __call__(self, solution, block, candidates):
        assert candidates.shape == (1, DIM)
        whole = solution.copy()
        whole[block] = candidates[0]
        self.seen.append(whole)
        key = float(whole[0, 0])
        return Evaluation(
            scores=np.array([self.scores.get(key, 0.0)]),
            losses=np.array([self.losses.get(key, 1.0)]),
        )

    @property
    def keys(self):
        return [float(whole[0, 0]) for whole in self.seen]


def solution(key):
    whole = np.zeros((BLOCKS, DIM))
    whole[0, 0] = key
    return whole


def generation(calls, key, *, population=20, block=0, candidates=None, last=False):
    if candidates is None:
        candidates = np.zeros((population, DIM))
    return Generation(
        block=block,
        calls=calls,
        candidates=candidates,
        losses=np.ones(len(candidates)),
        solution=solution(key),
        loss=1.0,
        step_size=1.0,
        last=last,
    )


def selection(dev, *, rule="incumbent", interval=100, patience=None, back=None):
    return DevSelection(dev, rule=rule, interval=interval, patience=patience, back=back)


def search(selecting, keys_by_calls):
    """Show these generations; the calls at which there was a look."""
    return [calls for calls, key in keys_by_calls.items() if selecting.see(generation(calls, key))]


def test_looks_at_the_base_and_then_wherever_an_interval_has_passed():
    dev = Dev({})
    calls = [1, *range(21, 302, 20)]
    looks = search(selection(dev), {n: float(n) for n in calls})
    assert looks == [1, 101, 201, 301]
    assert dev.keys == [1.0, 101.0, 201.0, 301.0]


def test_one_large_generation_over_several_intervals_is_one_look():
    dev = Dev({})
    assert search(selection(dev), {1: 0.0, 306: 1.0, 399: 2.0, 611: 3.0}) == [1, 306, 611]


def test_generation_that_ends_on_the_interval_is_looked_at_once():
    assert search(selection(Dev({})), {20: 1.0, 100: 2.0, 120: 3.0, 200: 4.0}) == [20, 100, 200]


def test_look_is_at_all_blocks_of_the_incumbent():
    dev = Dev({})
    shown = generation(1, 5.0)
    shown.solution[1] = 7.0
    (point,) = selection(dev).see(shown)
    np.testing.assert_array_equal(dev.seen[0], shown.solution)
    np.testing.assert_array_equal(point.solution, shown.solution)


def test_unchanged_solution_is_not_evaluated_again():
    dev = Dev({0.0: 0.5}, {0.0: 0.25})
    selecting = selection(dev)
    assert search(selecting, {1: 0.0, 101: 0.0, 201: 0.0}) == [1, 101, 201]  # points for the curve
    assert dev.keys == [0.0]
    assert selecting.best.calls == 1
    (point,) = selecting.see(generation(301, 0.0))
    assert (point.calls, point.score, point.loss) == (301, 0.5, 0.25)
    search(selecting, {401: 1.0, 501: 0.0})
    assert dev.keys == [0.0, 1.0, 0.0]


def test_higher_dev_score_wins_whatever_its_loss():
    selecting = selection(Dev({1: 0.5, 2: 0.75, 3: 0.6}, {1: 0.1, 2: 9.0, 3: 0.01}))
    search(selecting, {1: 1.0, 101: 2.0, 201: 3.0})
    assert (selecting.best.calls, selecting.best.score, selecting.best.loss) == (101, 0.75, 9.0)
    np.testing.assert_array_equal(selecting.best.solution, solution(2.0))


def test_rule_of_the_loss_takes_the_lowest_and_waits_for_a_lower_one():
    dev = Dev({1: 0.9, 2: 0.5, 3: 0.6, 4: 0.95}, {1: 0.4, 2: 0.2, 3: 0.3, 4: 0.25})
    selecting = selection(dev, rule="loss", patience=200)
    search(selecting, {1: 1.0, 100: 2.0, 200: 3.0, 299: 3.0})
    assert not selecting.stalled
    assert (selecting.best.score, selecting.best.loss) == (0.5, 0.2)
    search(selecting, {300: 4.0})
    assert selecting.stalled  # a higher score is no progress here


def test_ties_go_to_the_lower_loss_and_then_to_the_earlier():
    selecting = selection(Dev(dict.fromkeys([1, 2, 3, 4], 0.5), {1: 0.9, 2: 0.3, 3: 0.4, 4: 0.3}))
    search(selecting, {1: 1.0, 101: 2.0, 201: 3.0, 301: 4.0})
    assert selecting.best.calls == 101


def test_crossed_rule_adds_what_both_sets_say():
    dev = Dev({1: 0.9, 2: 0.5, 3: 0.7}, {1: 0.2, 2: 0.5, 3: 0.4})
    back = Dev({}, {1: 0.9, 2: 0.1, 3: 0.3})
    selecting = selection(dev, rule="crossed", back=back)
    search(selecting, {1: 1.0, 100: 2.0, 200: 3.0, 300: 3.0})
    assert (selecting.best.calls, selecting.best.loss, selecting.best.back) == (100, 0.5, 0.1)
    assert back.keys == dev.keys == [1.0, 2.0, 3.0]


def averages(rule, scores, keys):
    """Show solutions with these first numbers; what dev was asked, and the best's solution."""
    dev = Dev(scores)
    selecting = selection(dev, rule=rule)
    search(selecting, {100 * (place + 1): key for place, key in enumerate(keys)})
    return dev.keys, selecting.best.solution[0, 0]


def test_mean_of_the_last_four_different_solutions_is_looked_at_in_place_of_each():
    asked, best = averages("mean_last", {13.5: 0.9, 30.0: 0.8}, [2.0, 4.0, 4.0, 16.0, 32.0, 64.0])
    means = [2.0, 3.0, 22 / 3, 13.5, 29.0]
    assert [key for key in asked if key in means] == means
    assert best == 13.5  # chosen by dev, and 32, 64 and all others as they are never are


def test_mean_of_the_best_four_leaves_the_worst_out():
    scores = {1.0: 0.9, 2.0: 0.1, 4.0: 0.8, 8.0: 0.7, 16.0: 0.6, 29 / 4: 0.95}
    asked, best = averages("mean_best", scores, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert asked[-1] == best == (1 + 4 + 8 + 16) / 4


def test_means_are_of_all_blocks():
    dev = Dev({})
    selecting = selection(dev, rule="mean_last")
    for calls, key in ((100, 2.0), (200, 4.0)):
        shown = generation(calls, key)
        shown.solution[1] = 10 * key
        (point,) = selecting.see(shown)
    np.testing.assert_array_equal(point.solution, [[3.0, 0.0, 0.0], [30.0] * 3])
    assert point.calls == 200


def test_best_is_a_copy():
    selecting = selection(Dev({}))
    shown = generation(1, 5.0)
    selecting.see(shown)
    shown.solution[:] = 0
    assert selecting.best.solution[0, 0] == 5.0


def test_last_generation_is_looked_at_whatever_the_interval():
    dev = Dev({1: 0.5, 2: 0.9})
    selecting = selection(dev)
    search(selecting, {1: 1.0, 50: 2.0})
    assert selecting.best.calls == 1
    (point,) = selecting.see(generation(70, 2.0, last=True))
    assert selecting.best is point
    assert (point.calls, dev.keys) == (70, [1.0, 2.0])


def test_patience_runs_out_so_many_calls_after_the_last_higher_score():
    # The lower loss at 201 makes a better solution, but no progress.
    selecting = selection(Dev({1: 0.5, 2: 0.6, 3: 0.6}, {2: 0.9, 3: 0.1}), patience=200)
    stalled = {}
    for calls, key in {1: 1.0, 101: 2.0, 201: 3.0, 300: 3.0, 301: 3.0}.items():
        selecting.see(generation(calls, key))
        stalled[calls] = selecting.stalled
    assert selecting.best.calls == 201
    assert stalled == {1: False, 101: False, 201: False, 300: False, 301: True}


def test_without_patience_a_search_never_stalls():
    selecting = selection(Dev({}))
    search(selecting, {1: 0.0, 100_000: 0.0})
    assert not selecting.stalled


def released(dev, generations, interval=100):
    """Show generations of numbered candidates: call n's candidate begins with n."""
    selecting, calls = selection(dev, rule="released", interval=interval), 0
    for block, population in generations:
        candidates = np.zeros((population, DIM))
        candidates[:, 0] = np.arange(calls + 1, calls + population + 1)
        calls += population
        shown = generation(calls, -1.0, block=block, candidates=candidates)
        shown.solution[1] = -2.0
        selecting.see(shown)
    return selecting


@pytest.mark.parametrize("population", [20, 30, 7, 250])
def test_released_looks_at_the_very_candidate_of_every_hundredth_call(population):
    dev = Dev({})
    released(dev, [(0, population)] * (610 // population + 1))
    assert dev.keys[:6] == [100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    for whole in dev.seen:
        np.testing.assert_array_equal(whole[1], -2.0)  # the other block's incumbent


def test_released_puts_the_candidate_in_its_own_block():
    dev = Dev({})
    released(dev, [(0, 60), (1, 60)])
    (whole,) = dev.seen
    assert whole[1, 0] == 100.0
    np.testing.assert_array_equal(whole[0], [-1.0, 0.0, 0.0])  # the other block's incumbent


def test_released_puts_a_shorter_candidate_before_its_rows_zeros():
    dev, candidates = Dev({}), np.arange(1.0, 201).reshape(100, 2)
    selecting = selection(dev, rule="released", interval=100)
    selecting.see(generation(100, 0.0, block=1, candidates=candidates))
    (whole,) = dev.seen
    np.testing.assert_array_equal(whole[1], [199.0, 200.0, 0.0])


def test_released_keeps_the_first_of_equal_scores_whatever_their_loss():
    dev = Dev({100: 0.5, 200: 0.7, 300: 0.7, 400: 0.6}, {200: 5.0, 300: 0.1})
    selecting = released(dev, [(0, 20)] * 20)
    assert selecting.best.calls == 200
    np.testing.assert_array_equal(selecting.best.solution[0], [200.0, 0.0, 0.0])


def test_released_does_not_look_where_the_search_ended():
    dev = Dev({})
    selecting = released(dev, [(0, 20)] * 6)
    assert selecting.see(generation(130, 0.0, population=10, last=True)) == []
    assert dev.keys == [100.0]


def test_released_shows_every_look_of_a_generation():
    dev = Dev({100: 0.9})
    selecting = selection(dev, rule="released")
    candidates = np.zeros((250, DIM))
    candidates[:, 0] = np.arange(1, 251)
    looks = selecting.see(generation(250, 0.0, candidates=candidates))
    assert [look.calls for look in looks] == [100, 200]
    assert selecting.best is looks[0]
