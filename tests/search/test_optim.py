"""The optimizer contract, over every optimizer in conf/, and what holds for some of them."""

import os
import random
import subprocess
import sys
from pathlib import Path

import cma
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from dfolora.errors import UserError
from dfolora.search import Evaluation, tune
from dfolora.search.optim import Cma, Nevergrad, Probing, RandomSearch, Turn, ZerothOrder

CONF = Path(__file__).parents[2] / "conf"
DIM = 6


def factory(option, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(f"optimizer/{option}", list(overrides)).optimizer)


FACTORIES = {p.stem: factory(p.stem) for p in sorted((CONF / "optimizer").glob("*.yaml"))}
every_optimizer = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)


def build(make, seed=0, dim=DIM, budget=3000):
    return make(dim=dim, budget=budget, rng=np.random.default_rng(seed))


def ellipsoid(points):
    """Condition 100, its minimum 0 at (1, ..., 1), away from the start."""
    return ((points - 1) ** 2) @ np.geomspace(1, 100, points.shape[1])


def run(optimizer, loss=ellipsoid, turns=12):
    """Ask and tell; all that was asked."""
    asked = []
    for _ in range(turns):
        asked.append(optimizer.ask())
        optimizer.tell(loss(asked[-1]))
    return np.concatenate(asked)


def generators():
    return random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002


@every_optimizer
def test_a_run_is_a_function_of_the_stream(make):
    first, again, other = (run(build(make, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float64
    assert first.shape[1] == DIM


@every_optimizer
def test_process_wide_generators_are_neither_changed_nor_read(make):
    np.random.seed(1)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002, leaves a second normal number waiting, which is state too
    random.seed(1)
    before = generators()
    first = run(build(make))
    after = generators()
    np.testing.assert_equal(after, before)
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    np.testing.assert_array_equal(run(build(make)), first)


@every_optimizer
def test_interleaved_optimizers_do_not_disturb_each_other(make):
    alone = [run(build(make, seed)) for seed in (0, 1)]
    pair = [build(make, seed) for seed in (0, 1)]
    turns = [[run(optimizer, turns=1) for optimizer in pair] for _ in range(12)]
    for expected, together in zip(alone, zip(*turns, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(together), expected)


@every_optimizer
def test_looking_changes_nothing(make):
    optimizer, watched = build(make), []
    for _ in range(12):
        watched.append(run(optimizer, turns=1))
        assert optimizer.center.shape == (DIM,)
        assert np.isnan(optimizer.step_size) or optimizer.step_size > 0
        optimizer.center[:] = 9
        optimizer.best.z.sum()
    np.testing.assert_array_equal(np.concatenate(watched), run(build(make)))


@every_optimizer
@pytest.mark.parametrize("failed", [np.nan, np.inf, -np.inf])
def test_failed_evaluations_rank_worst(make, failed):
    def failing(value):
        def loss(points):
            losses = ellipsoid(points)
            losses[1::2] = value
            return losses

        return loss

    optimizer = build(make)
    asked = run(optimizer, failing(failed))
    # 5,000 is above any loss here, and any run's improvement on it as hopeful as on infinity. An
    # estimate of slopes would weigh it, so there a failure is left out, however it is written.
    weighs = isinstance(optimizer, ZerothOrder | Probing)
    np.testing.assert_array_equal(asked, run(build(make), failing(np.inf if weighs else 5000)))
    assert np.isfinite(optimizer.best.loss)
    assert np.isfinite(optimizer.center).all()


@every_optimizer
def test_a_search_survives_when_all_evaluations_fail(make):
    optimizer = build(make)
    run(optimizer, lambda points: np.full(len(points), np.nan), turns=4)
    best = optimizer.best
    assert best is None
    run(optimizer)
    assert np.isfinite(optimizer.best.loss)


@pytest.mark.parametrize("name", ["OnePlusOne", "TBPSA", "DE"])
@pytest.mark.parametrize("population", [1, 5])
def test_nevergrad_finds_its_way_after_a_failed_beginning(name, population):
    """OnePlusOne never forgets its best."""
    sized = factory("nevergrad", f"optimizer.name={name}", f"optimizer.population={population}")
    optimizer = build(sized)
    run(optimizer, lambda points: np.full(len(points), np.nan), turns=1)
    run(optimizer, turns=1500 // population)
    start = ellipsoid(np.zeros((1, DIM)))[0]
    assert ellipsoid(optimizer.center[None])[0] < 0.5 * start


@every_optimizer
def test_arrays_of_the_caller_are_left_alone(make):
    optimizer, asked = build(make), []
    for _ in range(12):
        population = optimizer.ask()
        asked.append(population.copy())
        losses = ellipsoid(population)
        losses[0] = np.nan
        kept = losses.copy()
        population[:] = 7  # what the caller does with its copy does not matter
        optimizer.tell(losses)
        np.testing.assert_array_equal(losses, kept)
        losses[:] = -1
    assert optimizer.best.loss >= 0

    def first_fails(points):
        return np.concatenate([[np.nan], ellipsoid(points[1:])])

    np.testing.assert_array_equal(np.concatenate(asked), run(build(make), first_fails))


@every_optimizer
def test_asks_and_tells_alternate(make):
    optimizer = build(make)
    with pytest.raises(ValueError, match="nothing to tell of; call ask"):
        optimizer.tell([1.0])
    population = optimizer.ask()
    with pytest.raises(ValueError, match=f"{len(population)} candidates wait for their losses"):
        optimizer.ask()
    one_more = np.ones(len(population) + 1)
    expected = rf"shape \({len(one_more)},\); it needs \({len(population)},\)"
    with pytest.raises(ValueError, match=expected):
        optimizer.tell(one_more)
    optimizer.tell(ellipsoid(population))  # after all that, the run goes on as if nothing happened
    asked = np.concatenate([population, run(optimizer, turns=11)])
    np.testing.assert_array_equal(asked, run(build(make)))


@every_optimizer
def test_best_is_the_lowest_loss_ever_told(make):
    optimizer = build(make)
    told, asked = [], []
    best = optimizer.best
    assert best is None
    np.testing.assert_array_equal(optimizer.center, 0)
    for turn in range(12):
        asked.extend(optimizer.ask())
        losses = ellipsoid(np.array(asked[len(told) :])) + 50 * (turn > 5)  # the context worsens
        told.extend(losses)
        optimizer.tell(losses)
        assert optimizer.best.loss == min(told)
        np.testing.assert_array_equal(optimizer.best.z, asked[int(np.argmin(told))])


@every_optimizer
def test_a_generation_costs_what_it_says(make):
    optimizer = build(make)
    again = optimizer._turn.revisited if isinstance(optimizer._turn, Turn) else 0
    cost = len(run(optimizer, turns=optimizer.asks))
    # fireworks and centers, whose losses nobody told, are measured as well
    assert cost in (optimizer.population, optimizer.population + again)


LR_OF_THE_ELLIPSOID = {
    # Plain SGD diverges on a curvature of 200 unless lr (d + 2) 200 < 2; a guide is longer than u.
    "mezo": 5e-4,
    "mezo_momentum": 5e-4,
    "mezo_parameters": 5e-4,
    "mezo_gv": 5e-4,
    "mezo_greedy": 5e-4,
    "lozo_m": 1e-4,
    "lozo": 1e-4,  # products of two normal numbers have long tails
    "fzoo": 2.0,
}


@pytest.mark.parametrize("option", sorted(FACTORIES.keys() - {"random"}))
def test_the_search_finds_its_way(option):
    lr = LR_OF_THE_ELLIPSOID.get(option)
    make = FACTORIES[option] if lr is None else factory(option, f"optimizer.lr={lr}")
    optimizer, spent = build(make), 0
    while spent < 2500:
        spent += len(run(optimizer, turns=1))
    start = ellipsoid(np.zeros((1, DIM)))[0]
    assert ellipsoid(optimizer.center[None])[0] < 0.05 * start
    assert optimizer.best.loss < 0.05 * start


@every_optimizer
def test_hyper_parameters_that_users_sweep_are_keys_of_the_group(make):
    option = next(name for name, other in FACTORIES.items() if other is make)
    smaller = run(build(factory(option, "optimizer.sigma=0.25")), turns=1)
    assert not np.array_equal(smaller, run(build(make), turns=1))


def test_nevergrad_is_chosen_by_name():
    tbpsa = build(factory("nevergrad", "optimizer.name=TBPSA"))
    assert not np.array_equal(run(tbpsa), run(build(FACTORIES["nevergrad"])))


def test_cma_is_pycma_driven_by_a_private_generator():
    ours = Cma(DIM, 0, np.random.default_rng(0), population=12, sigma=0.5)
    rng = np.random.default_rng(0)
    theirs = cma.CMAEvolutionStrategy(
        DIM * [0.0],
        0.5,
        {
            "popsize": 12,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "verbose": -9,
        },
    )
    for _ in range(40):
        population = theirs.ask()
        np.testing.assert_array_equal(ours.ask(), population)
        losses = ellipsoid(np.array(population))
        theirs.tell(population, losses.tolist())
        ours.tell(losses)
    np.testing.assert_array_equal(ours.center, theirs.mean)  # no option tells them apart
    assert ours.step_size == theirs.sigma < 0.5


def sigma_after_12_generations(rule, covariance):
    """Mean of five seeds on the sphere, d = 500, from the optimum, with sigma 1."""
    found = []
    for seed in range(5):
        optimizer = Cma(
            500, 0, np.random.default_rng(seed), step_size_rule=rule, covariance=covariance
        )
        run(optimizer, lambda z: (z**2).sum(axis=1))
        found.append(optimizer.step_size)
    return np.mean(found)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_step_size_rule_is_the_one_named(covariance):
    """By itself pycma picks TPA for a diagonal covariance (and 4.5 for all) when d >= 300."""
    assert sigma_after_12_generations("csa", covariance) == pytest.approx(0.89, abs=0.01)
    assert sigma_after_12_generations("tpa", covariance) == pytest.approx(0.53, abs=0.05)


@pytest.mark.parametrize("population", [4, 5, 20])
@pytest.mark.parametrize("rule", ["csa", "tpa"])
def test_the_first_generation_holds_no_mirrored_pair(rule, population):
    """The objective is even about the start, so the loss of -z would be that of z again."""
    optimizer = Cma(DIM, 0, np.random.default_rng(0), population=population, step_size_rule=rule)
    z = optimizer.ask()
    assert not np.isclose(z[:, None], -z[None, :]).all(axis=2).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 3}, "population is 3; CMA-ES needs 4 or more"),
        ({"sigma": 0}, "sigma=0 must be a positive number"),
        ({"step_size_rule": "psr"}, "step_size_rule=psr; choose one of csa, tpa"),
        ({"covariance": "low_rank"}, "covariance=low_rank; choose one of full, diagonal"),
        ({"options": {"CMA_activ": 1}}, "'CMA_activ', which pycma .* does not have; did you mean"),
        ({"options": {"popsize": 9}}, "pycma's 'popsize'; set the parameter 'population'"),
    ],
)
def test_bad_values_for_cma_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Cma(DIM, 0, np.random.default_rng(0), **arguments)


def test_options_reach_pycma():
    active, passive = (
        Cma(DIM, 0, np.random.default_rng(0), options={"CMA_active": value})
        for value in (True, False)
    )
    assert not np.array_equal(run(active), run(passive))


def test_failed_evaluations_pass_pycmas_penalty_of_bounds():
    options = {"bounds": [-2, 2], "BoundaryHandler": cma.BoundPenalty}
    optimizer = Cma(DIM, 0, np.random.default_rng(0), options=options)
    run(optimizer, lambda z: np.where(z[:, 0] > 0, ellipsoid(z), np.nan), turns=30)
    assert np.isfinite(optimizer.center).all()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"bounds": [-2, 0.5]}, lambda z: (z >= -2) & (z <= 0.5)),
        (
            {"bounds": [-2, 0.5], "BoundaryHandler": cma.BoundPenalty},
            lambda z: (z >= -2) & (z <= 0.5),
        ),
        ({"fixed_variables": {1: 1.5}}, lambda z: z[..., 1] == 1.5),
        ({"integer_variables": [0, 1]}, lambda z: z[..., :2] == np.round(z[..., :2])),
        ({"scaling_of_variables": [1, 2, 3, 4, 5, 6]}, lambda z: np.abs(z - 1) < 0.2),
        ({"typical_x": DIM * [3]}, lambda z: np.abs(z - 1) < 0.2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "allowed",
)
@pytest.mark.filterwarnings("ignore:(?s).*transformations induced by")  # pycma would rather not
def test_the_center_is_a_point_that_could_have_been_asked(options, allowed):
    """The mean of pycma is in coordinates of its own, which such options tell from the caller's."""
    optimizer = Cma(DIM, 0, np.random.default_rng(0), options=options)
    asked = run(optimizer, turns=60)
    assert optimizer.center.shape == asked[-1].shape == optimizer.best.z.shape
    assert allowed(asked[-20:]).all()
    assert allowed(optimizer.center).all()
    assert allowed(optimizer.best.z).all()


@pytest.mark.parametrize("name", ["CMA", "DE", "NGOpt", "PSO", "TBPSA", "QODE", "EDA"])
def test_nevergrad_is_deterministic_and_keeps_to_itself(name):
    def once():
        return run(Nevergrad(40, 240, np.random.default_rng(0), name=name))

    before = generators()
    first = once()
    np.testing.assert_equal(generators(), before)
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(once(), first)


@pytest.mark.parametrize("name", ["MetaRecentering", "LHSSearch", "NGO", "Portfolio"])
@pytest.mark.parametrize("budget", [62, 100, 121])
def test_nevergrad_is_told_all_that_it_will_be_asked_for(name, budget):
    """Some of it fail beyond, in the last generation of a search."""
    optimizers = [
        Nevergrad(DIM, budget // 3, np.random.default_rng(block), name=name) for block in range(3)
    ]

    def evaluate(_solution, _block, candidates):
        losses = (candidates**2).sum(1)
        return Evaluation(losses=losses, scores=losses)

    generations = list(tune(evaluate, optimizers, dim=DIM, budget=budget))
    assert generations[-1].calls == budget


@pytest.mark.parametrize("name", ["PSO", "SQOPSO", "ParaPortfolio"])
def test_nevergrads_that_leave_for_infinity_are_bounded(name):
    asked = run(Nevergrad(40, 400, np.random.default_rng(0), name=name, sigma=2.0), turns=20)
    assert 5 < np.abs(asked).max() <= 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OnePlusTwo", "no optimizer 'OnePlusTwo'; did you mean OnePlusOne"),
        ("SPSA", "SPSA takes one candidate at a time; got population 20, set it to 1"),
    ],
)
def test_bad_names_for_nevergrad_are_answered(name, message):
    with pytest.raises(UserError, match=message):
        Nevergrad(DIM, 100, np.random.default_rng(0), name=name)


def test_random_search_draws_from_a_normal_of_the_given_sigma():
    z = RandomSearch(500, 0, np.random.default_rng(0), sigma=0.3).ask()
    assert z.shape == (20, 500)
    assert z.mean() == pytest.approx(0, abs=0.01)  # 10,000 numbers
    assert z.std() == pytest.approx(0.3, rel=0.03)


def test_nevergrad_is_imported_only_when_asked_for():
    code = "import sys, dfolora.search.optim; sys.exit('nevergrad' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_library_sets_how_threads_wait_but_not_over_the_user():
    code = (
        "import dfolora, os, threadpoolctl;"
        "threads = {each['num_threads'] for each in threadpoolctl.threadpool_info()"
        " if each['internal_api'] == 'openblas'};"
        "print(os.environ['OMP_WAIT_POLICY'], *threads)"
    )
    for given, expected in [({}, "PASSIVE 1"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 1")]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "OPENBLAS_"))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
