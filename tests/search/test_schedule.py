"""Schedules: whose turn it is, and what they make of the losses they are told."""

from itertools import islice

import numpy as np
import pytest

from dfolora.errors import UserError
from dfolora.search import Bandit, Generation, LastK, Late, Lisa, RoundRobin, Spread, WholeRounds

EVERY = (RoundRobin(), WholeRounds(), LastK(k=2), Late(), Spread(), Bandit(), Lisa(active=2))
every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda made: type(made).__name__)


def turns(schedule, number, *, blocks=4, losses=None, seed=0):
    """The first turns.

    ``losses`` gives those of a turn, ``(block, turn) -> losses, loss``, and may add its step.
    """
    rng = np.random.default_rng(seed)
    order = schedule.order(blocks, turns=500 * blocks, rng=rng)
    taken, block = [], next(order)
    for turn in range(number):
        taken.append(block)
        told, loss, *step = losses(block, turn) if losses else ([1.0, 1.0], 1.0)
        block = order.send(
            Generation(
                block=block, calls=2 * turn + 2, candidates=np.zeros((len(told), 3)),
                losses=np.array(told), solution=np.zeros((blocks, 3)), loss=loss,
                step_size=step[0] if step else 0.5, last=False,
            )
        )  # fmt: skip
    return taken


def noisy(block, turn):
    rng = np.random.default_rng([block, turn])
    return rng.normal(size=2 * 10**block), float(rng.normal())


@every_schedule
def test_turns_are_a_function_of_the_stream_and_the_losses(schedule):
    first, again = (turns(schedule, 60, losses=noisy) for _ in range(2))
    assert first == again
    assert set(first) <= set(range(4))


@every_schedule
@pytest.mark.parametrize("failed", [np.nan, np.inf])
def test_turns_go_on_when_nothing_has_a_loss(schedule, failed):
    taken = turns(schedule, 60, losses=lambda *_: ([failed, failed], failed))
    assert len(taken) == 60


@pytest.mark.parametrize("schedule", [RoundRobin(), LastK(k=2), Late(growth=1.5), Lisa(active=3)])
def test_blocks_have_as_many_turns_as_their_weights_say(schedule):
    counts = np.bincount(turns(schedule, 6000), minlength=4)
    weights = np.array(schedule.weights(4))
    np.testing.assert_allclose(counts / 6000, weights / weights.sum(), atol=0.05)


def test_round_robin_is_ascending():
    assert turns(RoundRobin(), 6, blocks=4) == [0, 1, 2, 3, 0, 1]


def test_whole_rounds_end_before_the_budget_does():
    order = WholeRounds().order(3, turns=8, rng=np.random.default_rng(0))
    assert list(islice(order, 100)) == [0, 1, 2] * 2  # told nothing
    assert WholeRounds().least(3) == 3


def test_the_last_k_take_turns_alone():
    assert turns(LastK(k=2), 5, blocks=4) == [2, 3, 2, 3, 2]
    assert LastK(k=2).weights(4) == [0, 0, 1, 1]
    assert turns(LastK(k=4), 6, blocks=4) == turns(RoundRobin(), 6, blocks=4)


def test_late_with_equal_weights_is_round_robin():
    assert turns(Late(growth=1), 12) == turns(RoundRobin(), 12)


def test_late_gives_each_block_its_share_in_every_stretch():
    taken = turns(Late(growth=2), 45, blocks=4)
    for start in range(0, 45, 15):
        assert np.bincount(taken[start : start + 15]).tolist() == [1, 2, 4, 8]


@pytest.mark.parametrize("slopes", [[1.0, 5.0, 2.0, 3.0], [0.1, 0.2, 0.05, 0.9]])
def test_spread_goes_where_the_slope_is_steepest(slopes):
    """F = sum of a_l g_l' z_l with |g_l| = 1: losses of normal candidates spread by sigma a_l."""

    def losses(block, turn):
        rng = np.random.default_rng([block, turn])
        return 0.5 * slopes[block] * rng.normal(size=200), 1.0

    taken = turns(Spread(explore=0), 40, losses=losses)
    assert taken[:4] == [0, 1, 2, 3]  # each has one turn first
    assert set(taken[4:]) == {int(np.argmax(slopes))}
    explored = turns(Spread(explore=0.4), 4000, losses=losses)
    share = explored.count(int(np.argmin(slopes))) / 4000
    assert share == pytest.approx(0.1, abs=0.02)  # 0.4 of the turns among four blocks


def test_spread_is_told_apart_from_the_step():
    """The block with the larger step, whose losses spread most, is the flattest."""
    steps, slopes = [0.1, 0.2, 5.0, 0.4], [4.0, 3.0, 1.0, 2.0]

    def losses(block, turn):
        rng = np.random.default_rng([block, turn])
        return steps[block] * slopes[block] * rng.normal(size=200), 1.0, steps[block]

    assert set(turns(Spread(explore=0), 40, losses=losses)[4:]) == {0}


def test_spread_knows_slopes_of_turns_of_one_candidate():
    """As of COBYLA: by a block's last two losses. Block 1 is the steepest, but none starves."""

    def losses(block, turn):
        return np.random.default_rng([block, turn]).normal(size=1) * [1, 25, 1, 1][block], 1.0

    taken = turns(Spread(explore=0.2), 4000, losses=losses)
    assert taken[:8] == [0, 0, 1, 1, 2, 2, 3, 3]
    counts = np.bincount(taken) / 4000
    assert counts.argmax() == 1
    assert counts.min() >= 0.04  # 0.2 among four


def test_bandit_is_exp3():
    """Against the algorithm as printed, its weights multiplied turn by turn."""
    gamma, blocks = 0.3, 3
    bandit = Bandit(explore=gamma)
    falls, loss, weights = [], np.nan, np.ones(blocks)
    rng = np.random.default_rng(0)
    expected = []
    for turn in range(600):
        chances = (1 - gamma) * weights / weights.sum() + gamma / blocks
        block = int(rng.choice(blocks, p=chances))
        expected.append(block)
        told, now = noisy(block, turn)
        if turn:
            falls.append((loss - now) / len(told))
            reward = np.mean([(fall < falls[-1]) + 0.5 * (fall == falls[-1]) for fall in falls])
            weights[block] *= np.exp(gamma * reward / chances[block] / blocks)
        loss = now
    assert turns(bandit, 600, blocks=blocks, losses=noisy) == expected


def test_bandit_learns_which_block_lowers_the_loss():
    state = {"loss": 100.0}

    def losses(block, turn):
        state["loss"] -= 1.0 if block == 2 else 0.0
        return [state["loss"]] * 2, state["loss"]

    taken = turns(Bandit(explore=0.2), 600, losses=losses)
    assert taken[300:].count(2) > 200  # of 300; at random 75


def test_lisa_draws_blocks_for_an_interval():
    taken = turns(Lisa(interval=3, active=2), 24)
    for start in range(0, 24, 6):
        stretch = taken[start : start + 6]
        assert stretch == stretch[:2] * 3
        assert len(set(stretch)) == 2
    rounds = turns(Lisa(interval=1, active=4), 40)
    assert all(sorted(rounds[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 40, 4))
    assert len({tuple(rounds[i : i + 4]) for i in range(0, 40, 4)}) > 5


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (LastK(k=5), r"schedule\.k=5 is more than the 4 blocks"),
        (LastK(k=0), r"schedule\.k=0"),
        (Late(growth=0.5), r"schedule\.growth=0\.5 is below 1"),
        (Spread(explore=1.5), r"schedule\.explore=1\.5 must be a probability"),
        (Bandit(explore=0.0), r"schedule\.explore=0\.0"),
        (Lisa(active=5), r"schedule\.active=5 is more than the 4 blocks"),
        (Lisa(interval=0), r"schedule\.interval=0"),
    ],
)
def test_values_out_of_range_are_refused(schedule, message):
    with pytest.raises(UserError, match=message):
        schedule.check(4)
