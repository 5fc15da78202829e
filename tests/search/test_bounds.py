"""Searches within bounds and with a penalty, and LoraHub's own search, which has both."""

from functools import partial

import nevergrad
import numpy as np
import pytest
from hydra.utils import instantiate

from dfolora.errors import UserError
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.search import Evaluation, Penalised, tune
from dfolora.search.optim import Cma, Point
from dfolora.search.optim.optimizer import PrivateRandomness, reflected
from dfolora.search.subspace import ComposedSubspaceSpec
from tests.adapters import random_adapter
from tests.pipelines.test_conf import composed
from tests.search.test_optim import DIM, build, ellipsoid, every_optimizer, run

BOUND = 0.4


def bounced(point, bound):
    """One number after another, one bounce after another."""
    inside = []
    for number in point:
        x = float(number)
        while abs(x) > bound:
            x = 2 * bound - x if x > 0 else -2 * bound - x
        inside.append(x)
    return inside


def test_reflection_bounces_until_it_is_within():
    points = 4 * np.random.default_rng(0).standard_normal((50, DIM))
    expected = [bounced(point, BOUND) for point in points]
    # 1e-12: sums of numbers of order 10 in another order
    np.testing.assert_allclose(reflected(points, BOUND), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(reflected(points, 99.0), points)
    edges = np.array([BOUND, -BOUND, 3 * BOUND, 0.0])
    np.testing.assert_allclose(reflected(edges, BOUND), [BOUND, -BOUND, -BOUND, 0], atol=1e-12)


@every_optimizer
def test_whatever_is_asked_is_within_the_bounds(make):
    """The minimum is not. To the algorithm the objective goes on beyond them, reflected."""
    within, free = build(make), build(make)
    within.bound = BOUND
    asked, beyond = [], []
    for _ in range(40):
        asked.append(within.ask())
        beyond.append(free.ask())
        losses = ellipsoid(asked[-1])
        within.tell(losses)
        free.tell(losses)
        assert np.abs(within.center).max() <= BOUND
        assert np.abs(within.best.z).max() <= BOUND
    asked = np.concatenate(asked)
    assert np.abs(asked).max() <= BOUND
    assert np.abs(np.concatenate(beyond)).max() > BOUND
    np.testing.assert_array_equal(asked, reflected(np.concatenate(beyond), BOUND))


@every_optimizer
def test_bounds_that_are_far_away_change_nothing(make):
    bounded = build(make)
    bounded.bound = 1e300  # some steps leave for far away
    np.testing.assert_array_equal(run(bounded), run(build(make)))


def test_a_center_on_the_other_side_of_a_bound_is_known_to_the_caller():
    """So that its loss is not paid for twice."""
    optimizer = build(partial(instantiate(composed("optimizer=zo").optimizer), lr=9.0))
    optimizer.bound = BOUND
    for _ in range(5):
        optimizer.tell(ellipsoid(optimizer.ask(Point(z=np.full(DIM, 9.0), loss=0.0))))
    assert np.abs(optimizer._turn.center).max() > BOUND
    assert len(optimizer.ask(Point(z=optimizer.center, loss=1.0))) == 4


def test_penalty_is_of_the_whole_solutions_absolute_numbers():
    """Of the last block, which has fewer, those alone."""

    def evaluate(_solution, _block, candidates):
        return Evaluation(losses=candidates[:, 0], scores=candidates[:, 1])

    rng = np.random.default_rng(0)
    solution, candidates = rng.standard_normal((3, 3)), rng.standard_normal((4, 3))
    solution[2, 2] = 0.0
    for block, searched in (1, candidates), (2, candidates[:, :2]):
        made = Penalised(evaluate, 0.05 / 8)(solution, block, searched)
        for n, z in enumerate(searched):
            whole = [
                number for row in range(3) for number in (z if row == block else solution[row])
            ]
            mean = sum(abs(number) for number in whole) / 8
            assert made.losses[n] == pytest.approx(z[0] + 0.05 * mean, rel=1e-12)
        np.testing.assert_array_equal(made.scores, candidates[:, 1])


def composing(backbone, batch, label_ids, folder, **search):
    """The steps of a search among the mixtures of three adapters."""
    adapters = [random_adapter(folder / str(seed), backbone, seed) for seed in (1, 2, 3)]
    method = LayerwiseSearch(
        subspace=ComposedSubspaceSpec(adapters=adapters),
        optimizer=partial(Cma, population=6), budget=61, dev_interval=20, **search,
    )  # fmt: skip
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    return [progress.step for progress in method.begin(backbone, data, seed=0)]


def test_a_mixtures_weights_stay_within_bounds(backbone, batch, label_ids, tmp_path):
    free, within = (
        composing(backbone, batch, label_ids, tmp_path, bound=bound) for bound in (None, 1.5)
    )
    for steps, most in ((free, np.inf), (within, 1.5)):
        tried = np.concatenate([step.candidates for step in steps])
        assert np.abs(tried).max() <= most
        assert all(np.abs(step.solution).max() <= most for step in steps)
    assert np.abs(np.concatenate([step.candidates for step in free])).max() > 1.5


def test_a_mixtures_loss_has_the_penalty_on_top(backbone, batch, label_ids, tmp_path):
    """The first generation is drawn before anything is known: the same candidates."""
    plain, punished = (
        composing(backbone, batch, label_ids, tmp_path, penalty=penalty)[:2]
        for penalty in (0.0, 0.05)
    )
    assert plain[0].loss == punished[0].loss  # of the base model, whose weights are 0
    np.testing.assert_array_equal(plain[1].candidates, punished[1].candidates)
    mean = np.abs(plain[1].candidates).mean(axis=1)
    np.testing.assert_allclose(punished[1].losses - plain[1].losses, 0.05 * mean, atol=1e-12)
    assert mean.min() > 0.1


def test_lorahubs_row_has_its_published_values():
    row, released = composed("row=compose"), composed("row=compose_released")
    for config in (row, released):
        assert (config.method.bound, config.method.penalty) == (1.5, 0.05)
    assert (released.budget, released.optimizer.name) == (40, "NGOpt")
    assert row.budget == composed().budget
    plain = composed("method=compose").method
    assert (plain.bound, plain.penalty) == (None, 0.0)


@pytest.mark.filterwarnings("ignore:COBYLA:UserWarning")  # of nevergrad's tolerance
@pytest.mark.parametrize("adapters", [2, 7, 20])
def test_lorahubs_row_tries_what_nevergrad_tries_for_lorahub(adapters):
    """An array of nevergrad's with bounds, whose sigma is then its own choice, and NGOpt."""

    def loss(w):
        return np.square(w - np.linspace(-1, 2, adapters)).sum(axis=-1)

    def evaluate(_solution, _block, candidates):
        return Evaluation(losses=loss(candidates), scores=loss(candidates))

    optimizer = instantiate(composed("row=compose_released").optimizer)(
        dim=adapters, budget=40, rng=np.random.default_rng(0)
    )
    optimizer.bound = 1.5
    steps = [*tune(evaluate, [optimizer], dim=adapters, budget=40, incumbent="center")]
    found = np.concatenate([step.candidates for step in steps])
    assert len(found) == 40
    tried = []

    def noting(w):
        tried.append(w.copy())
        return loss(w)

    with PrivateRandomness(np.random.default_rng(0)).lent():
        limits = [1.5] * adapters
        weights = nevergrad.p.Array(
            init=[0] * adapters, upper=limits, lower=[-each for each in limits]
        )
        theirs = nevergrad.optimizers.NGOpt(parametrization=weights, budget=40)
        best = theirs.minimize(noting).value
    np.testing.assert_allclose(found, tried, rtol=0, atol=1e-9)
    np.testing.assert_allclose(steps[-1].solution[0], best, rtol=0, atol=1e-9)
    assert loss(best) < loss(np.zeros(adapters))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bound": 0}, r"method\.bound=0 must be a positive number"),
        ({"bound": -1.5}, r"method\.bound=-1\.5 must be a positive number"),
        ({"penalty": -0.1}, r"method\.penalty=-0\.1 must be 0 or a positive number"),
    ],
)
def test_bounds_and_penalties_that_make_no_sense_are_refused(backbone, values, message):
    with pytest.raises(UserError, match=message):
        LayerwiseSearch(**values).check(backbone.architecture)
