"""CMA-ES, then COBYLA: where the second stage begins, and that it is scipy's."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from scipy.optimize import minimize

from dfolora.errors import UserError
from dfolora.search import Evaluation, tune
from dfolora.search.optim import Cma, Point, TwoStage
from tests.search.test_optim import DIM, ellipsoid, generators, run

BUDGET, POPULATION = 200, 10


def two_stage(seed=0, budget=BUDGET, dim=DIM, **options):
    rng = np.random.default_rng(seed)
    return TwoStage(dim, budget, rng, **{"population": POPULATION} | options)


def after_cma(optimizer, incumbent=None, loss=ellipsoid):
    """The first candidate after 10 generations of CMA-ES, whose last turn has this incumbent."""
    for turn in range(10):
        candidates = optimizer.ask(incumbent if turn == 9 else None)
        assert len(candidates) == POPULATION
        optimizer.tell(loss(candidates))
    (first,) = optimizer.ask()
    return first


def test_the_first_stage_is_cma_es():
    alone = Cma(DIM, BUDGET, np.random.default_rng(0), population=POPULATION)
    expected = run(alone, turns=20)
    np.testing.assert_array_equal(run(two_stage(first=1.0), turns=20), expected)
    np.testing.assert_array_equal(run(two_stage(), turns=10), expected[:100])
    short = run(two_stage(first=0.0), turns=3)  # one generation at least
    np.testing.assert_array_equal(short[:POPULATION], expected[:POPULATION])
    assert len(short) == POPULATION + 2


def test_the_second_stage_is_scipys_cobyla_from_the_best():
    optimizer = two_stage(step=0.3)
    run(optimizer, turns=10)
    best = optimizer.best.z
    expected = []

    def objective(z):
        expected.append(z.copy())
        return ellipsoid(z[None])[0]

    options = {"rhobeg": 0.3, "maxiter": 120}
    minimize(objective, best, method="COBYLA", tol=3e-5, options=options)
    got = run(optimizer, turns=len(expected))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got[0], best)
    np.testing.assert_allclose(got[1 : 1 + DIM].max(0) - best, 0.3, rtol=1e-12)  # each in its turn
    lowest = got[ellipsoid(got).argmin()]
    np.testing.assert_array_equal(optimizer.center, lowest)


def test_it_begins_again_where_it_has_converged():
    optimizer = two_stage(dim=2, step=0.1)
    run(optimizer, turns=10)
    asked = run(optimizer, turns=400)
    away = np.abs(np.diff(asked, axis=0)).max(1)
    assert (away[-200:] > 0.05).any()  # steps of the first length, long after it got there
    np.testing.assert_allclose(optimizer.center, 1, atol=1e-3)


@pytest.mark.parametrize("better", [False, True])
def test_it_starts_from_the_incumbent_if_that_has_the_lower_loss(better):
    plain = two_stage()
    run(plain, turns=10)
    theirs = Point(z=np.full(DIM, 7.0), loss=plain.best.loss * (0.5 if better else 2))
    start = after_cma(two_stage(), theirs)
    np.testing.assert_array_equal(start, theirs.z if better else plain.best.z)


def test_it_starts_from_the_center_where_everything_failed():
    optimizer = two_stage()
    start = after_cma(optimizer, loss=lambda z: np.full(len(z), np.nan))
    np.testing.assert_array_equal(start, optimizer.center)
    assert np.isfinite(start).all()


def test_every_evaluation_is_counted():
    evaluated = []

    def evaluate(_solution, block, candidates):
        evaluated.extend([block] * len(candidates))
        losses = ellipsoid(candidates)
        return Evaluation(losses=losses, scores=losses)

    optimizers = [two_stage(block, budget=60) for block in range(3)]
    generations = list(tune(evaluate, optimizers, dim=DIM, budget=180))
    assert generations[-1].calls == len(evaluated) == 180
    turns = [len(generation.losses) for generation in generations[1:]]
    assert turns == 9 * [POPULATION] + 89 * [1]  # 1 for the unadapted model
    assert generations[-1].loss < generations[9].loss  # the second stage helps
    assert sum(optimizer.evaluations for optimizer in optimizers) == 179


def test_interleaved_second_stages_do_not_disturb_each_other():
    alone = [run(two_stage(seed), turns=60) for seed in (0, 1)]
    pair = [two_stage(seed) for seed in (0, 1)]
    before = generators()
    turns = [[run(optimizer, turns=1) for optimizer in pair] for _ in range(60)]
    for expected, together in zip(alone, zip(*turns, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(together), expected)
    np.testing.assert_equal(generators(), before)


def cobylas():
    return [thread for thread in threading.enumerate() if thread.name == "cobyla"]


def test_a_thread_ends_with_its_optimizer():
    others = cobylas()
    optimizer = two_stage()
    run(optimizer, turns=30)
    (own,) = [thread for thread in cobylas() if thread not in others]
    del optimizer
    gc.collect()
    own.join(30)
    assert not own.is_alive()


def test_a_process_ends_with_searches_that_do_not():
    code = (
        "import numpy as np\n"
        "from dfolora.search.optim import TwoStage\n"
        "optimizer = TwoStage(4, 40, np.random.default_rng(0), first=0.0)\n"
        "for _ in range(5):\n"
        "    optimizer.tell((optimizer.ask() ** 2).sum(1))\n"
        "print(optimizer.evaluations)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["24"]


def test_a_fault_within_cobyla_is_raised(monkeypatch):
    def broken(*_given, **_named):
        raise ArithmeticError("of its own")

    optimizer = two_stage()
    run(optimizer, turns=9)
    monkeypatch.setattr("scipy.optimize.minimize", broken)
    with pytest.raises(ArithmeticError, match="of its own"):
        run(optimizer, turns=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 2}, "first=2 must be a probability"),
        ({"step": 0}, "step=0 must be a positive number"),
        ({"population": 3}, "CMA-ES needs 4 or more"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(UserError, match=message):
        two_stage(**options)


def test_a_missing_scipy_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UserError, match=r"scipy\.optimize is not installed"):
        two_stage()
