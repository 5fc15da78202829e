"""Zeroth-order descent: closed forms, the papers' loops, and what each method costs.

Tolerances are those of float64 unless said otherwise: losses of order 1 are subtracted and divided
by sigma, and sums are associated differently.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from dfolora.errors import UserError
from dfolora.search import Evaluation, tune
from dfolora.search.optim import LowRank, Point, Probing, ZerothOrder
from dfolora.search.optim.zeroth_order import LAWS, _Moments, hessian_diagonal, rises
from tests.reference import zeroth_order_reference as reference

CONF = Path(__file__).parents[2] / "conf"
DIM = 5
SLOPE = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
SPSA = {"directions": 1, "sides": "two", "scale": "none", "momentum": 0.0, "decay": "none"}
ONE_SIDED = {"scale": "none", "momentum": 0.0, "decay": "none"}
CALLS = {  # of a step: with the loss at the center known, and with it unknown
    "mezo": (2, 2),
    "mezo_momentum": (2, 2),
    "mezo_adam": (2, 2),
    "zo_adamm": (10, 11),
    "r_adazo": (2, 3),
    "meazo": (2, 2),
    "fzoo": (8, 9),
    "es": (30, 30),
    "zo": (4, 5),
    "hizoo": (2, 3),
    "mezo_gv": (6, 6),
    "mezo_greedy": (6, 6),
    "lozo": (2, 2),
    "lozo_m": (2, 2),
    "mezo_parameters": (2, 2),
}
every_method = pytest.mark.parametrize("option", CALLS)


def shipped(option, **values):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"optimizer.{name}={value}" for name, value in values.items()]
        return instantiate(compose(f"optimizer/{option}", overrides).optimizer)


def build(seed=0, kind=ZerothOrder, dim=DIM, budget=1000, **values):
    return kind(dim, budget, np.random.default_rng(seed), **values)


def draws(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def step(optimizer, loss, incumbent=None):
    """Run one generation: how far the center moved."""
    before = optimizer.center
    for _ in range(optimizer.asks):
        optimizer.tell(loss(optimizer.ask(incumbent)))
    return optimizer.center - before


def path(optimizer, loss, steps):
    return np.cumsum([step(optimizer, loss) for _ in range(steps)], axis=0)


def linear(points):
    return points @ SLOPE


def bowl(points):
    """Its minimum is at 1; coordinates depend on each other."""
    y = np.asarray(points) - 1
    return 0.5 * (y**2 * np.arange(1, DIM + 1)).sum(axis=-1) + 0.3 * np.cos(y.sum(axis=-1))


def even(points):
    return np.cos(points @ SLOPE)


def known(loss, dim=DIM):
    zero = np.zeros(dim)
    return Point(z=zero, loss=float(loss(zero[None])[0]))


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 20.0])
def test_a_pair_finds_the_slope_along_its_line(sigma):
    u = draws(0, DIM)
    moved = step(build(**SPSA, sigma=sigma, lr=0.1), linear)
    np.testing.assert_allclose(moved, -0.1 * (SLOPE @ u) * u, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sides", ["one", "two"])
@pytest.mark.parametrize("baseline", ["incumbent", "mean"])
def test_the_estimate_is_the_gradient_on_average(law, sides, baseline):
    values = ONE_SIDED | {"directions": 4, "sides": sides, "law": law, "baseline": baseline}
    optimizer = build(**values, lr=1.0)
    moved = np.array([step(optimizer, linear) for _ in range(4000)])
    error = moved.std(axis=0) / math.sqrt(len(moved))
    assert (np.abs(moved.mean(axis=0) + SLOPE) < 4 * error + 1e-9).all()
    assert error.max() < 0.1  # so that a wrong factor would show


def test_one_side_differs_from_two_by_the_curvature_along_the_direction():
    root = draws(7, DIM, DIM)
    hessian, sigma = root @ root.T, 0.4

    def quadratic(points):
        return 0.5 * ((points - 1) @ hessian * (points - 1)).sum(axis=1)

    one, two = (
        step(build(**SPSA | {"sides": sides}, sigma=sigma, lr=1.0), quadratic)
        for sides in ("one", "two")
    )
    u = draws(0, DIM)
    np.testing.assert_allclose(two - one, sigma / 2 * (u @ hessian @ u) * u, rtol=1e-9)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("zo", {"directions": 1, "sides": "two", "scale": "none", "momentum": 0}),
        ("hizoo", {"curvature": 0}),
    ],
)
def test_without_what_tells_them_from_mezo_others_are_mezo(option, values):
    """To the bit: a pair a step, no momentum, no scaling, no Hessian."""
    mezo, same, other = (
        shipped(name, **given, lr=0.02)(dim=DIM, budget=100, rng=np.random.default_rng(0))
        for name, given in (("mezo", {}), (option, values), (option, {}))
    )
    expected = path(mezo, bowl, 20)
    np.testing.assert_array_equal(path(same, bowl, 20), expected)
    assert not np.allclose(path(other, bowl, 20), expected)


def test_directions_at_right_angles_find_the_whole_gradient():
    values = ONE_SIDED | {"law": "orthogonal", "directions": DIM}
    np.testing.assert_allclose(step(build(**values, lr=0.5), linear), -0.5 * SLOPE, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_directions_have_covariance_one(law):
    u = np.concatenate([LAWS[law](draws(seed, 3, DIM)) for seed in range(4000)])
    np.testing.assert_allclose(u.T @ u / len(u), np.eye(DIM), atol=0.06)  # 12,000 directions
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=0.04)  # signs are chosen by chance
    if law != "normal":
        np.testing.assert_allclose((u**2).sum(axis=1), DIM, rtol=1e-12)


def test_pairs_are_neighbours():
    u = draws(0, 2, DIM)
    asked = build(**SPSA | {"directions": 2}, sigma=0.5).ask()
    np.testing.assert_array_equal(asked, 0.5 * np.array([u[0], -u[0], u[1], -u[1]]))


MEZO = {"eta": 0.02, "eps": 0.3}
ADAM = {"eta": 0.06, "eps": 0.3, "beta1": 0.9, "beta2": 0.999, "added": 1e-8}
FZOO = {"eta": 0.036, "eps": 0.3, "n": 8}
ADAMM = {"eta": 0.06, "eps": 0.3, "q": 10, "beta1": 0.9, "beta2": 0.9}
R_ADAZO = {"eta": 0.03, "mu": 0.3 * math.sqrt(DIM), "k": 2, "beta1": 0.9, "beta2": 0.99}


@pytest.mark.parametrize(
    ("option", "lr", "loop"),
    [
        ("mezo", 0.02, partial(reference.mezo, **MEZO)),
        ("mezo_adam", 0.06 / 0.3, partial(reference.mezo_adam, **ADAM)),
        ("fzoo", 0.036 / 0.3**2, partial(reference.fzoo, **FZOO)),
        ("zo_adamm", 0.06 / 0.3, partial(reference.zo_adamm, **ADAMM)),
        ("r_adazo", 0.03 / 0.3, partial(reference.r_adazo, **R_ADAZO, added=1e-8)),
    ],
)
def test_methods_walk_the_path_of_their_papers(option, lr, loop):
    """What is shipped, but for linear decay, which is ours."""
    decay = "sqrt" if option == "zo_adamm" else "none"
    optimizer = shipped(option, lr=lr, decay=decay)(
        dim=DIM, budget=1000, rng=np.random.default_rng(3)
    )
    expected = loop(bowl, np.random.default_rng(3), dim=DIM, steps=40)
    found = path(optimizer, bowl, 40)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert bowl(found[-1]) < 0.5 * bowl(np.zeros(DIM))


def round_bowl(points):
    """Its minimum is near 1, in any dimension."""
    y = np.asarray(points) - 1
    return 0.5 * (y**2).sum(axis=-1) + 0.3 * np.cos(y.sum(axis=-1))


@pytest.mark.parametrize(("rank", "steps"), [(1, 1), (2, 5), (2, 1000)])
def test_lozo_walks_the_path_of_its_paper(rank, steps):
    """Its perturbation is of U V', whose standard deviation is sqrt(r) times ours."""
    law = LowRank(shape=(2, 3), rank=rank, steps=steps)
    optimizer = build(3, dim=12, **SPSA, law=law, sigma=0.3, lr=0.02)
    expected = reference.lozo(
        round_bowl, np.random.default_rng(3), m=2, n=3, matrices=2, steps=40,
        eta=0.02, eps=0.3 / math.sqrt(rank), r=rank, nu=steps,
    )  # fmt: skip
    found = path(optimizer, round_bowl, 40)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert round_bowl(found[-1]) < 0.9 * round_bowl(np.zeros(12))


@pytest.mark.parametrize(("rank", "steps"), [(1, 1), (2, 5), (1, 7), (2, 1000)])
def test_lozo_m_walks_the_path_of_its_paper(rank, steps):
    """The reference keeps N and turns it from the old V to the new one."""
    law = LowRank(shape=(2, 3), rank=rank, steps=steps)
    optimizer = build(3, dim=12, **SPSA | {"momentum": 0.8}, law=law, sigma=0.3, lr=0.02)
    expected = reference.lozo_m(
        round_bowl, np.random.default_rng(3), m=2, n=3, matrices=2, steps=40,
        eta=0.02, eps=0.3 / math.sqrt(rank), r=rank, nu=steps, beta=0.8,
    )  # fmt: skip
    found = path(optimizer, round_bowl, 40)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert round_bowl(found[-1]) < 0.9 * round_bowl(np.zeros(12))


def test_where_v_never_changes_lozo_m_is_momentum_on_the_whole_matrix():
    """On a slope, as in closed form: m is the average of the gradients along what was asked."""
    slope, law = draws(9, 12), LowRank(shape=(3, 4), rank=2, steps=1000)
    optimizer = build(dim=12, **SPSA | {"momentum": 0.9}, law=law, sigma=0.5, lr=0.1)
    m = np.zeros(12)
    for _ in range(20):
        c = optimizer.center
        asked = optimizer.ask()
        optimizer.tell(asked @ slope)
        u = (asked[0] - c) / 0.5
        m = 0.9 * m + 0.1 * (slope @ u) * u
        np.testing.assert_allclose(optimizer.center - c, -0.1 * m, rtol=1e-8, atol=1e-10)


def test_a_new_v_takes_the_momentum_along():
    """Of two and a half matrices; also where the step in which V changes tells nothing."""
    law = LowRank(shape=(3, 4), rank=2, steps=4)
    optimizer = build(dim=30, **SPSA | {"momentum": 0.9}, law=law, sigma=0.5, lr=0.1)
    again, m, slope = law.directions(np.random.default_rng(0), 1, 30), np.zeros(30), draws(9, 30)
    rng = np.random.default_rng(0)
    for number in range(12):
        if number % 4 == 0:
            v = rng.standard_normal((3, 4, 2))
            filled = np.concatenate([m, np.zeros(6)]).reshape(3, 3, 4)
            turned = [matrix @ (w @ w.T) / 4 for matrix, w in zip(filled, v, strict=True)]
            m = np.ravel(turned)[:30]
        rng.standard_normal((1, 3, 3, 2))
        u = next(again)[0][0]
        failed = number == 8
        moved = step(optimizer, lambda z, failed=failed: np.nan * z[:, 0] if failed else z @ slope)
        if not failed:
            m = 0.9 * m + 0.1 * (slope @ u) * u
        np.testing.assert_allclose(moved, 0 if failed else -0.1 * m, rtol=1e-8, atol=1e-10)


def test_lozo_m_without_momentum_is_lozo_to_the_bit():
    lozo, same, other = (
        shipped(option, **values)(dim=12, budget=1000, rng=np.random.default_rng(0))
        for option, values in (
            ("lozo", {"lr": 0.1}), ("lozo_m", {"lr": 0.1, "momentum": 0}), ("lozo_m", {"lr": 0.1})
        )
    )  # fmt: skip
    expected = path(lozo, round_bowl, 25)
    np.testing.assert_array_equal(path(same, round_bowl, 25), expected)
    assert not np.allclose(path(other, round_bowl, 25), expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_lozo_moves_along_what_it_measured_also_where_v_is_new(steps):
    """On a slope, whatever the rank: cosine 1, of either sign."""
    slope = draws(9, 12)
    optimizer = build(dim=12, **SPSA, law=LowRank(shape=(3, 4), rank=3, steps=steps), lr=1.0)
    for _ in range(7):
        c = optimizer.center
        asked = optimizer.ask()
        optimizer.tell(asked @ slope)
        moved, measured = optimizer.center - c, asked[0] - c
        cosine = moved @ measured / np.linalg.norm(moved) / np.linalg.norm(measured)
        assert abs(cosine) == pytest.approx(1, abs=1e-12)
        assert moved @ slope < 0


def lozo_cosines(seed, steps, **law):
    """Of what each of some steps measured and where it went, on a slope."""
    law = LowRank(shape=(3, 4), rank=3, steps=3, **law)
    optimizer, found = build(seed, dim=12, **SPSA, law=law, lr=1.0), []
    for _ in range(steps):
        c, asked = optimizer.center, optimizer.ask()
        losses = asked @ draws(9, 12)
        optimizer.tell(losses)
        ahead, moved = (asked[0] - c) * np.sign(losses[1] - losses[0]), optimizer.center - c
        found.append(ahead @ moved / np.linalg.norm(ahead) / np.linalg.norm(moved))
    return found


def test_released_lozo_moves_along_what_it_did_not_measure_where_v_is_new():
    """On average at right angles to it; 0.05 is 4 standard errors of a cosine's mean."""
    cosines = np.array([lozo_cosines(seed, 7, released=True) for seed in range(600)])
    renewed = np.arange(7) % 3 == 0
    np.testing.assert_allclose(cosines[:, ~renewed], 1, rtol=1e-9)
    np.testing.assert_allclose(cosines[:, renewed].mean(axis=0), 0, atol=0.05)
    assert np.abs(cosines[:, renewed]).max() < 0.99
    np.testing.assert_allclose([lozo_cosines(seed, 7) for seed in range(20)], 1, rtol=1e-9)


def test_released_lozo_makes_u_of_the_numbers_that_v_was():
    """Of one matrix, as the released code draws: V first where it is new, and U after it."""
    rank, rng = 2, np.random.default_rng(0)
    drawn = LowRank(shape=(3, 4), rank=rank, steps=2, released=True).directions(rng, 1, 12)
    (measured, gone, _), (again, same, _) = next(drawn), next(drawn)
    numbers = draws(0, 4 * rank + 3 * rank + 3 * rank)
    v, u, later = np.split(numbers, [4 * rank, 7 * rank])
    v = v.reshape(4, rank)
    for u_of, direction in ((u, measured), (numbers[: 3 * rank], gone), (later, again)):
        expected = u_of.reshape(3, rank) @ v.T / math.sqrt(rank)
        np.testing.assert_allclose(direction.reshape(3, 4), expected, rtol=1e-12)
    assert same is again


def test_released_lozo_draws_matrix_after_matrix():
    """Three of them, as its code does: V and U of each in turn, and then the U's alone."""
    rank, count, rng = 2, 3, np.random.default_rng(0)
    law = LowRank(shape=(3, 4), rank=rank, steps=2, released=True)
    measured, gone, _ = next(law.directions(rng, 1, 12 * count))
    numbers = draws(0, (4 + 3) * rank * count)
    v, u = np.split(numbers, [4 * rank * count])
    v, u = v.reshape(count, 4, rank), u.reshape(count, 3, rank)
    stream = iter([x for own in zip(v, u, strict=True) for part in own for x in part.ravel()])
    others = [[[next(stream) for _ in range(rank)] for _ in range(3)] for _ in range(count)]
    for left, direction in ((u, measured), (np.array(others), gone)):
        expected = left @ v.transpose(0, 2, 1) / math.sqrt(rank)
        np.testing.assert_allclose(direction.reshape(count, 3, 4), expected, rtol=1e-12)


def test_lozos_directions_have_covariance_one_over_all_v():
    law = LowRank(shape=(2, 3), rank=2, steps=1)
    drawn = law.directions(np.random.default_rng(0), 1, 15)
    u = np.concatenate([next(drawn)[0] for _ in range(40_000)])
    np.testing.assert_allclose(u.T @ u / len(u), np.eye(15), atol=0.06)  # heavy tails


def test_lozos_directions_are_of_low_rank_and_keep_v_for_its_steps():
    law = LowRank(shape=(3, 4), rank=1, steps=2)
    drawn = law.directions(np.random.default_rng(0), 5, 24)
    first, second, third = (next(drawn)[0].reshape(5, 2, 3, 4) for _ in range(3))
    assert (np.linalg.matrix_rank(first, tol=1e-9) == 1).all()
    for matrix in range(2):
        rows = [step[:, matrix].reshape(-1, 4) for step in (first, second, third)]
        assert np.linalg.matrix_rank(np.concatenate(rows[:2]), tol=1e-9) == 1  # of all five too
        assert np.linalg.matrix_rank(np.concatenate(rows), tol=1e-9) == 2
    both = first.transpose(0, 2, 1, 3).reshape(-1, 8)
    assert np.linalg.matrix_rank(both, tol=1e-9) == 2  # a V for each matrix


def test_momentum_is_an_average_of_gradients():
    gradients = draws(0, 12, DIM)
    moments = _Moments(0.9, 0.0, "none", corrected=False, damping=0.0)
    found = [moments.direction(g) for g in gradients][-1]
    weights = 0.1 * 0.9 ** np.arange(12)[::-1]
    np.testing.assert_allclose(found, weights @ gradients, rtol=1e-12)


def test_torchs_sgd_takes_a_lower_lr_for_the_same_momentum():
    """As the comment in mezo_momentum.yaml says: lr (1 - momentum)."""
    point = torch.zeros(DIM, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([point], lr=0.5 * (1 - 0.9), momentum=0.9)
    moments, mine = _Moments(0.9, 0.0, "none", corrected=False, damping=0.0), np.zeros(DIM)
    for g in draws(0, 12, DIM):
        point.grad = torch.from_numpy(g)
        sgd.step()
        mine -= 0.5 * moments.direction(g)
    np.testing.assert_allclose(mine, point.detach().numpy(), rtol=1e-10)


def test_corrected_moments_are_torchs_adam():
    point = torch.zeros(DIM, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([point], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    moments, mine = _Moments(0.8, 0.95, "gradient", corrected=True, damping=1e-3), np.zeros(DIM)
    for g in draws(0, 12, DIM):
        point.grad = torch.from_numpy(g)
        adam.step()
        mine -= 0.1 * moments.direction(g)
    np.testing.assert_allclose(mine, point.detach().numpy(), rtol=1e-10)


def test_a_scalar_second_moment_is_of_the_mean_square():
    first, second = draws(0, 2, DIM)
    moments = _Moments(0.0, 0.9, "scalar", corrected=False, damping=0.0)
    moments.direction(first)
    v = 0.9 * 0.1 * (first**2).mean() + 0.1 * (second**2).mean()
    np.testing.assert_allclose(moments.direction(second), second / math.sqrt(v), rtol=1e-12)


def test_adamms_steps_shrink_with_the_gradient():
    """Without averaging, v is the highest square so far: |g| / its highest."""
    moments, steps = _Moments(0.0, 0.0, "max", corrected=False, damping=0.0), []
    highest = []
    for factor in (1.0, 0.8, 0.3, 0.1):
        steps.append(np.abs(moments.direction(factor * (SLOPE + 1))))
        highest.append(moments.highest)
    np.testing.assert_allclose(steps, [[f] * DIM for f in (1.0, 0.8, 0.3, 0.1)], rtol=1e-12)
    assert (np.diff(highest, axis=0) >= 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_r_adazos_first_step_is_the_same_in_every_coordinate(momentum, beta2):
    make = shipped("r_adazo", momentum=momentum, beta2=beta2, damping=0, lr=0.1)
    moved = step(make(dim=DIM, budget=1000, rng=np.random.default_rng(0)), bowl)
    np.testing.assert_allclose(np.abs(moved), 0.1 * 0.3 / math.sqrt(1 - beta2), rtol=1e-10)
    assert moved @ (np.ones(DIM)) != pytest.approx(np.abs(moved).sum())  # signs differ


@pytest.mark.parametrize(
    "option", ["mezo_adam", "zo_adamm", "r_adazo", "meazo", "fzoo", "es", "zo"]
)
def test_normalised_steps_are_the_same_for_losses_of_any_scale(option):
    make = (
        shipped(option) if option in ("meazo", "fzoo", "es", "zo") else shipped(option, damping=0)
    )
    plain, other = (make(dim=DIM, budget=1000, rng=np.random.default_rng(0)) for _ in range(2))
    expected = path(plain, bowl, 15)
    # 1e-8: adding 7 rounds the losses
    found = path(other, lambda points: 0.02 * bowl(points) + 7, 15)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert np.abs(expected).max() > 0.1


def test_es_standardises_each_loss_by_the_others():
    optimizer = shipped("es", lr=1.5)(dim=DIM, budget=1000, rng=np.random.default_rng(0))
    z = draws(0, 30, DIM)
    losses = bowl(0.3 * z)
    others = (losses.sum() - losses) / 29
    expected = -1.5 * 0.3 * ((losses - others) / losses.std(ddof=1)) @ z / 30
    np.testing.assert_allclose(step(optimizer, bowl), expected, rtol=1e-10)


def test_es_with_the_incumbents_baseline_is_fzoo():
    """With as many directions, of signs; its step is in units of sigma squared."""
    changed = {"directions": 8, "law": "rademacher", "baseline": "incumbent", "decay": "none"}
    es = shipped("es", lr=FZOO["eta"] / FZOO["eps"] ** 2, **changed)
    found = path(es(dim=DIM, budget=1000, rng=np.random.default_rng(3)), bowl, 40)
    expected = reference.fzoo(bowl, np.random.default_rng(3), dim=DIM, steps=40, **FZOO)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_steps_of_zo_have_the_length_named(momentum):
    optimizer = build(momentum=momentum, decay="none", sigma=0.2, lr=0.7)
    for _ in range(5):
        assert np.sqrt((step(optimizer, bowl) ** 2).mean()) == pytest.approx(0.7 * 0.2, rel=1e-12)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]),  # turns 6 and 7 were not expected
        ("sqrt", [1 / math.sqrt(t) for t in range(1, 8)]),
    ],
)
@pytest.mark.parametrize(
    ("kind", "values", "calls"),
    [
        (ZerothOrder, {"scale": "none", "momentum": 0.0}, 5),
        (ZerothOrder, SPSA, 2),
        (ZerothOrder, SPSA | {"curvature": 1e-12}, 3),  # has no say yet
        (Probing, {}, 6),
    ],
    ids=["one", "two", "hizoo", "probing"],
)
def test_steps_decay_over_the_budget(kind, values, calls, decay, expected):
    """On a slope they are otherwise what a search without decay does."""
    decaying, constant = (
        build(kind=kind, budget=5 * calls + calls - 1, **values | {"decay": name, "lr": 0.1})
        for name in (decay, "none")
    )
    factors = [step(decaying, linear) / step(constant, linear) for _ in expected]
    np.testing.assert_allclose(factors, np.repeat(np.array(expected)[:, None], DIM, 1), rtol=1e-8)


@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_below_one_step_still_makes_it(budget):
    assert step(build(budget=budget), linear).any()


@every_method
def test_a_step_costs_what_the_table_says(option):
    with_known, with_unknown = CALLS[option]
    optimizer = shipped(option)(dim=40, budget=1000, rng=np.random.default_rng(0))
    assert optimizer.population == with_known

    def loss(points):
        return 0.01 * (points**2).sum(axis=1)

    for _ in range(4):
        spent = optimizer.evaluations
        at_center = Point(z=optimizer.center, loss=float(loss(optimizer.center[None])[0]))
        step(optimizer, loss, at_center)
        assert optimizer.evaluations - spent == with_known
        spent = optimizer.evaluations
        step(optimizer, loss, Point(z=np.full(40, 9.0), loss=0.0))
        assert optimizer.evaluations - spent == with_unknown


def test_the_loss_of_the_center_is_the_one_told():
    told, asked = (build(**ONE_SIDED) for _ in range(2))
    np.testing.assert_array_equal(step(told, bowl, known(bowl)), step(asked, bowl))
    worse = Point(z=np.zeros(DIM), loss=100.0)  # all directions look good, as the context has it
    assert not np.allclose(step(build(**ONE_SIDED), bowl, worse), step(build(**ONE_SIDED), bowl))


@every_method
@pytest.mark.parametrize("incumbent", ["improving", "mean", "center"])
@pytest.mark.parametrize("budget", [61, 62, 63, 64, 65, 66, 67])
def test_a_search_meets_its_budget_and_repeats_to_the_bit(option, incumbent, budget):
    def search():
        make = shipped(option, lr=0.01)
        optimizers = [make(dim=DIM, budget=30, rng=np.random.default_rng(b)) for b in (0, 1)]

        def evaluate(solution, block, candidates):
            whole = np.repeat(solution[None], len(candidates), axis=0)
            whole[:, block] = candidates
            losses = bowl(whole).sum(axis=1)
            return Evaluation(losses=losses, scores=losses)

        return list(tune(evaluate, optimizers, dim=DIM, budget=budget, incumbent=incumbent))

    first, again = search(), search()
    assert first[-1].calls == budget
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.candidates, other.candidates)
        np.testing.assert_array_equal(one.losses, other.losses)


@pytest.mark.parametrize("option", ["zo", "fzoo", "r_adazo", "zo_adamm"])
def test_where_the_mean_is_adopted_the_center_costs_one_call_a_step(option):
    def evaluate(_solution, _block, candidates):
        losses = bowl(candidates)
        return Evaluation(losses=losses, scores=losses)

    optimizer = shipped(option)(dim=DIM, budget=100, rng=np.random.default_rng(0))
    generations = list(tune(evaluate, [optimizer], dim=DIM, budget=60, incumbent="mean"))
    spent = np.diff([generation.calls for generation in generations])
    assert (spent[:-1] == CALLS[option][1]).all()


@every_method
def test_pairs_alone_learn_nothing_from_an_even_objective_at_zero(option):
    """Losses that are equal to the bit; one side still moves, if anywhere."""
    optimizer = shipped(option)(dim=DIM, budget=1000, rng=np.random.default_rng(0))
    moved = [step(optimizer, even) for _ in range(3)]
    assert optimizer.symmetric == (not np.any(moved))
    assert optimizer.symmetric == (option.startswith("me") or option in ("hizoo", "lozo", "lozo_m"))


@every_method
def test_normalised_steps_from_an_even_objectives_0_are_long_whatever_is_to_be_learned(option):
    """They are those of an objective a thousand times as flat."""
    steep, flat = (
        shipped(option)(dim=DIM, budget=1000, rng=np.random.default_rng(0)) for _ in "ab"
    )
    moved, far = step(steep, even), step(flat, lambda points: 1e-3 * even(points))
    # 1e-2: R-AdaZO adds 1e-8
    same = bool(np.any(moved)) and np.allclose(moved, far, rtol=1e-2)
    assert steep.normalised == same
    assert steep.normalised == (option in ("zo", "fzoo", "es", "zo_adamm", "r_adazo"))
    assert not build(**ONE_SIDED).normalised


@pytest.mark.parametrize("scale", ["none", "std", "rms"])
@pytest.mark.parametrize("sides", ["one", "two"])
@pytest.mark.parametrize("baseline", ["incumbent", "mean"])
@pytest.mark.parametrize("failed", [np.nan, np.inf])
def test_a_failed_direction_is_left_out(scale, sides, baseline, failed):
    values = {"scale": scale, "sides": sides, "baseline": baseline, "decay": "none"}
    four, three = build(directions=4, **values), build(directions=3, **values)

    def last_fails(points):
        losses = bowl(points)
        losses[-1] = failed
        return losses

    moved = step(four, last_fails)  # both begin with the same three directions
    np.testing.assert_allclose(moved, step(three, bowl), rtol=1e-12)
    assert moved.any()


def test_a_center_that_fails_is_left_by_comparing_the_others():
    def center_fails(points):
        return np.where(points.any(axis=1), bowl(points), np.nan)

    mean = build(**ONE_SIDED, baseline="mean")
    np.testing.assert_allclose(step(build(**ONE_SIDED), center_fails), step(mean, bowl), rtol=1e-12)


@every_method
def test_nothing_moves_where_nothing_can_be_told(option):
    optimizer = shipped(option)(dim=DIM, budget=1000, rng=np.random.default_rng(0))
    assert step(optimizer, lambda points: bowl(points) - 2).any()  # momentum is no reason
    assert not step(optimizer, lambda points: np.full(len(points), 0.1)).any()
    assert not step(optimizer, lambda points: np.full(len(points), np.nan)).any()
    assert step(optimizer, bowl).any()


def test_equal_losses_have_no_deviation_even_where_their_mean_is_rounded():
    """The center's loss differs, so a division by a deviation of 1e-17 would leave for infinity."""
    optimizer = build(scale="std", directions=3)
    moved = step(optimizer, lambda points: np.where(points.any(axis=1), 0.1, 5.0))
    assert not moved.any()
    assert np.full(3, 0.1).std() > 0


@pytest.mark.parametrize("fails", [0, 1])
def test_a_pair_with_a_failure_along_a_guide_makes_no_step(fails):
    optimizer = build(kind=Probing)
    optimizer.tell(linear(optimizer.ask()))
    losses = linear(optimizer.ask())
    losses[fails] = np.inf
    optimizer.tell(losses)
    np.testing.assert_array_equal(optimizer.center, 0)


def test_hessian_is_estimated_without_bias():
    root = draws(7, DIM, DIM)
    hessian, h, sigma = root @ root.T, np.geomspace(0.5, 4, DIM), 0.3
    z = draws(0, 200_000, DIM)
    u = sigma * z / np.sqrt(h)
    bends = 0.5 * (u @ hessian * u).sum(axis=1)
    found = hessian_diagonal(np.stack([bends + 2, bends + 2], 1), 2.0, z, h, sigma)
    # 4 standard errors or so; the trace's share, without the -1, would be 20 and more
    np.testing.assert_allclose(found, np.diagonal(hessian), atol=0.35)


def test_hizoo_steps_along_what_it_measured_and_then_learns_the_metric():
    values = SPSA | {"curvature": 0.2, "sigma": 0.4, "lr": 0.05}
    optimizer = build(**values)
    z, c, h = draws(0, 2, DIM), np.zeros(DIM), np.ones(DIM)
    for t in range(2):
        u = z[t] / np.sqrt(h)
        asked = optimizer.ask()
        np.testing.assert_allclose(asked, [c, c + 0.4 * u, c - 0.4 * u], rtol=1e-12)
        at, ahead, behind = losses = bowl(asked)
        optimizer.tell(losses)
        c = c - 0.05 * (ahead - behind) / 0.8 * u
        np.testing.assert_allclose(optimizer.center, c, rtol=1e-10)
        bend = (ahead + behind - 2 * at) / (2 * 0.4**2)
        h = 0.8 * h + 0.2 * np.abs(bend * (h * z[t] ** 2 - h))
    assert np.ptp(h) > 0.1


@pytest.mark.parametrize("guide", ["contrast", "best"])
def test_a_guide_is_made_of_the_probes(guide):
    optimizer, z = build(kind=Probing, guide=guide, sigma=0.5, lr=0.1), draws(0, 4, DIM)
    asked = optimizer.ask()
    np.testing.assert_array_equal(asked, 0.5 * z)
    optimizer.tell([3.0, 1.0, np.nan, 2.0])
    v = (z[1] + z[3] - z[0] - z[2]) / 2 if guide == "contrast" else z[1]
    pair = optimizer.ask()
    np.testing.assert_allclose(pair, [0.5 * v, -0.5 * v], rtol=1e-12)
    optimizer.tell(linear(pair))
    np.testing.assert_allclose(optimizer.center, -0.1 * (SLOPE @ v) * v, rtol=1e-10)


def test_two_probes_are_mezo_with_twice_the_lr():
    """The pair is even in the guide, and z_1 - z_2 is sqrt(2) times a normal u."""
    guided = build(kind=Probing, probes=2, sigma=0.3, lr=0.02, decay="none")
    z = draws(0, 2, DIM)
    u = (z[0] - z[1]) / math.sqrt(2)
    mezo = reference.pair_gradient(bowl, np.zeros(DIM), u, 0.3 * math.sqrt(2))
    np.testing.assert_allclose(step(guided, bowl), -2 * 0.02 * np.array(mezo), rtol=1e-10)


def test_four_probes_are_worth_the_published_factors():
    """E[(v'g)^2] / |g|^2, which is 1 for MeZO at a third of the calls; 0.2 is 4 standard errors."""
    gains = {"contrast": [], "best": []}
    for guide, gained in gains.items():
        for seed in range(3000):
            optimizer = build(seed, Probing, guide=guide, lr=1.0, decay="none")
            moved = step(optimizer, linear)
            gained.append(-(moved @ SLOPE) / (SLOPE @ SLOPE))
    assert np.mean(gains["contrast"]) == pytest.approx(2.10, abs=0.2)
    assert np.mean(gains["best"]) == pytest.approx(1.55, abs=0.2)


def test_a_direction_is_compared_with_the_others():
    losses = np.array([[1.0], [2.0], [6.0]])
    np.testing.assert_allclose(rises(losses, math.nan), [1 - 4, 2 - 3.5, 6 - 1.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ZerothOrder, {"directions": 0}, "directions=0 must be a whole number, 1 or more"),
        (ZerothOrder, {"sigma": 0}, "sigma=0 must be a positive number"),
        (ZerothOrder, {"lr": -1}, "lr=-1 must be a positive number"),
        (ZerothOrder, {"sides": "three"}, "sides=three; choose one of one, two"),
        (ZerothOrder, {"law": "cauchy"}, "law=cauchy; choose one of normal, rademacher"),
        (ZerothOrder, {"decay": "cosine"}, "decay=cosine; choose one of linear"),
        (ZerothOrder, {"baseline": "zero"}, "baseline=zero; choose one of incumbent, mean"),
        (ZerothOrder, {"scale": "max"}, "scale=max; choose one of none, std, rms"),
        (ZerothOrder, {"second": "third"}, "second=third; choose one of none, gradient"),
        (ZerothOrder, {"momentum": 1.0}, "momentum=1.0 must be less than 1"),
        (ZerothOrder, {"beta2": -0.1}, "beta2=-0.1 must be"),
        (ZerothOrder, {"damping": -1}, "damping=-1 must be 0 or a positive number"),
        (ZerothOrder, {"bias_correction": 1}, "bias_correction must be true or false"),
        (ZerothOrder, {"directions": 1, "scale": "std"}, "set directions to 2 or more"),
        (ZerothOrder, {"directions": 1, "baseline": "mean"}, "set directions to 2 or more"),
        (ZerothOrder, {"directions": 6, "law": "orthogonal"}, "in dim=5 at most 5 are orthogonal"),
        (ZerothOrder, {"law": LowRank(shape=4)}, r"law.shape=4 must be a matrix's rows and col"),
        (ZerothOrder, {"law": LowRank(shape=(2,))}, r"must be a matrix's rows and columns"),
        (ZerothOrder, {"law": LowRank(shape=(0, 2))}, r"law.shape, size=0 must be a whole number"),
        (ZerothOrder, {"law": LowRank(shape=(2, 3))}, r"\[2, 3\] is 6 numbers, more than dim=5"),
        (ZerothOrder, {"law": LowRank(rank=3)}, r"law.rank=3 is more than the 2 that a matrix of"),
        (ZerothOrder, {"law": LowRank(rank=0)}, "law.rank=0 must be a whole number, 1 or more"),
        (ZerothOrder, {"law": LowRank(released=1)}, "law.released must be true or false"),
        (ZerothOrder, {"law": LowRank(steps=0)}, "law.steps=0 must be a whole number, 1 or more"),
        (
            ZerothOrder,
            {"curvature": 0.1, "sides": "two", "law": LowRank()},
            "law=normal only; got sides=two and law=LowRank",
        ),
        (ZerothOrder, {"curvature": 0.1}, "sides=two and law=normal only; got sides=one"),
        (
            ZerothOrder,
            {"curvature": 0.1, "sides": "two", "law": "rademacher"},
            "got sides=two and law=rademacher",
        ),
        (Probing, {"probes": 1}, "probes=1 must be a whole number, 2 or more"),
        (Probing, {"guide": "worst"}, "guide=worst; choose one of contrast, best"),
        (Probing, {"best": 0.2}, "best=0.2 of 4 probes are 0; a contrast needs one"),
        (Probing, {"best": 1.0}, "best=1.0 of 4 probes are 4"),
        (Probing, {"decay": "cosine"}, "decay=cosine; choose one of"),
    ],
)
def test_bad_values_are_named(kind, values, message):
    with pytest.raises(UserError, match=message):
        build(kind=kind, **values)
