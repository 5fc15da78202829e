"""The solved readout: the best affine map of class logits, each candidate's for itself."""

from dataclasses import replace
from math import inf, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from dfolora.engine import Affine, SolvedReadout, cross_entropy
from dfolora.engine.readout import FORMS, GRADIENT
from dfolora.errors import UserError

CLASSES = 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 3])
SOLVED = [
    SolvedReadout(form="bias"),
    SolvedReadout(form="bias", ridge=0.05),
    SolvedReadout(form="scale_bias", ridge=0.05),
    SolvedReadout(form="words", ridge=0.05),
    SolvedReadout(form="linear", ridge=0.05),
]
WORDS = 3


def some_logits(scale=2.0, candidates=5):
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(candidates, len(LABELS), CLASSES, generator=generator)
    return scale * (drawn + torch.tensor([2.0, 0.0, -1.0, 0.5]))


def penalised(readout, logits, maps):
    """What a form minimises, by its definition: ``(P,)``."""
    losses = torch.tensor(cross_entropy(maps(logits), LABELS))
    weight, bias = maps.weight, maps.bias
    free = weight.square().sum((-1, -2))
    if readout.form == "scale_bias":
        free = weight.diagonal(dim1=-2, dim2=-1).square().mean(-1)
    return losses + readout.ridge / 2 * (free + bias.square().sum(-1))


def slow(readout, logits):
    """One candidate's minimum by scipy: the oracle."""
    shown, gold = logits.double().numpy(), LABELS.numpy()
    about = shown - shown.mean(-1, keepdims=True)

    def weight(free):
        if readout.form == "bias":
            return np.zeros((CLASSES, CLASSES))
        if readout.form == "scale_bias":
            return free[CLASSES] * np.eye(CLASSES)
        if readout.form == "words":  # of one word each: a factor a class
            return np.diag(free[CLASSES:])
        return free[CLASSES:].reshape(CLASSES, CLASSES)

    def loss(free):
        mapped = shown + about @ weight(free) + free[:CLASSES]
        probability = np.exp(mapped) / np.exp(mapped).sum(-1, keepdims=True)
        return -np.log(probability[np.arange(len(gold)), gold]).mean() + (
            readout.ridge / 2 * np.square(free).sum()
        )

    size = (
        CLASSES
        + {
            "bias": 0,
            "scale_bias": 1,
            "words": CLASSES,
            "linear": CLASSES**2,
        }[readout.form]
    )
    return minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-7}).fun


@pytest.mark.parametrize("readout", SOLVED, ids=str)
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_minimum_is_that_of_scipy(readout, scale):
    logits = some_logits(scale)
    expected = [slow(readout, one) for one in logits]
    got = penalised(readout, logits, readout.solve(logits, LABELS))
    # BFGS by differences stops at 1e-5 of the slope, whose square the loss is off by.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)
    plain = penalised(readout, logits, SolvedReadout().solve(logits, LABELS))
    assert (got < plain - 1e-4).all()


@pytest.mark.parametrize("readout", SOLVED, ids=str)
@pytest.mark.parametrize("scale", [0.1, 2.0, 100.0, 1000.0])
def test_gradient_at_the_solution_is_nothing(readout, scale):
    """By autograd; of ``scale_bias`` along its factor."""
    logits = some_logits(scale)
    maps = readout.solve(logits, LABELS)
    weight, bias = maps.weight.requires_grad_(), maps.bias.requires_grad_()
    mapped = Affine(weight=weight, bias=bias)(logits)
    losses = torch.nn.functional.cross_entropy(
        mapped.mT, LABELS.expand(len(logits), -1), reduction="none"
    ).mean(-1)
    slopes = torch.autograd.grad(losses.sum(), [weight, bias])
    # Centred after the last step, which moves it by less than the bound. Logits of 1,000 have a
    # curvature of 10^6, and rounding of the numbers times that is what is left.
    bound = GRADIENT * max(2, scale / 100)
    assert (slopes[1] + readout.ridge * bias).abs().max() < bound
    if readout.form == "linear":
        assert (slopes[0] + readout.ridge * weight).abs().max() < bound
    if readout.form == "scale_bias":
        factor = weight[:, 0, 0]
        along = slopes[0].diagonal(dim1=-2, dim2=-1).sum(-1)
        assert (along + readout.ridge * factor).abs().max() < bound


def some_words(scale=2.0, candidates=5):
    """Logits of each class's words, ``(P, N, C W)``."""
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(candidates, len(LABELS), CLASSES * WORDS, generator=generator)
    return scale * (drawn + torch.linspace(-1, 1, CLASSES * WORDS))


def by_words(logits, weight, bias):
    """Class logits of ``(..., C W)``, class by class as they are defined."""
    about = logits - logits.mean(-1, keepdim=True)
    classes = []
    for number in range(CLASSES):
        own = slice(number * WORDS, (number + 1) * WORDS)
        added = (about[..., own] * weight[..., number, :].unsqueeze(-2)).sum(-1)
        classes.append(logits[..., own].mean(-1) + added + bias[..., number].unsqueeze(-1))
    return torch.stack(classes, -1)


@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_weights_of_words_are_the_best_there_are(scale):
    """By their definition, at a gradient of nothing, in a problem that is convex."""
    readout, logits = SolvedReadout(form="words", ridge=0.05), some_words(scale).double()
    maps = readout.solve(logits, LABELS, words=WORDS)
    blocks = maps.weight.unflatten(-2, (CLASSES, WORDS))
    own = blocks.diagonal(dim1=-3, dim2=-1).mT  # (P, C, W)
    assert maps.weight.count_nonzero() == own.numel()  # a word adds to its own class alone
    weight, bias = own.clone().requires_grad_(), maps.bias.clone().requires_grad_()
    mapped = by_words(logits, weight, bias)
    torch.testing.assert_close(maps(logits), mapped, rtol=0, atol=1e-9)
    losses = torch.nn.functional.cross_entropy(
        mapped.mT, LABELS.expand(len(logits), -1), reduction="none"
    ).mean(-1)
    penalty = readout.ridge / 2 * (weight.square().sum((-1, -2)) + bias.square().sum(-1))
    (losses + penalty).sum().backward()
    assert weight.grad.abs().max() < 2 * GRADIENT
    assert bias.grad.abs().max() < 2 * GRADIENT


@pytest.mark.parametrize("readout", SOLVED, ids=str)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 20.0), more=st.integers(0, 30),
    ridge=st.floats(1e-3, 1.0),
)  # fmt: skip
def test_inner_gradient_of_random_logits_is_nothing(readout, seed, scale, more, ridge):
    """By autograd in a form's own numbers. Centring the bias at most doubles an entry."""
    words = WORDS if readout.apart else 1
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(CLASSES), torch.randint(CLASSES, (more,), generator=generator)]
    )
    shape = 3, len(labels), CLASSES * words
    logits = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    readout = replace(readout, ridge=ridge if readout.ridge else 0.0)
    maps = readout.solve(logits, labels, words=words)
    free = {
        "bias": maps.weight[:, :0, 0],
        "scale_bias": maps.weight[:, 0, 0],
        "linear": maps.weight,
        "words": maps.weight.unflatten(-2, (CLASSES, words)).diagonal(dim1=-3, dim2=-1).mT,
    }[readout.form]
    free, bias = free.clone().requires_grad_(), maps.bias.clone().requires_grad_()
    plain = logits.unflatten(-1, (CLASSES, words)).mean(-1)
    about = logits - logits.mean(-1, keepdim=True)
    added = {
        "bias": lambda: 0.0,
        "scale_bias": lambda: free[:, None, None] * about,
        "linear": lambda: about @ free,
        "words": lambda: by_words(logits, free, torch.zeros_like(bias)) - plain,
    }
    mapped = plain + added[readout.form]() + bias[:, None]
    torch.testing.assert_close(maps(logits), mapped.detach(), rtol=0, atol=1e-9)
    losses = torch.nn.functional.cross_entropy(
        mapped.mT, labels.expand(len(logits), -1), reduction="none"
    ).mean(-1)
    penalty = readout.ridge / 2 * (free.square().sum() + bias.square().sum())
    slopes = torch.autograd.grad(losses.sum() + penalty, [free, bias])
    assert torch.cat([slope.flatten() for slope in slopes]).abs().max() < 2 * 1e-10


def test_weights_find_the_word_that_says_something():
    logits = some_words(candidates=1).double()
    gold = torch.nn.functional.one_hot(LABELS, CLASSES).double()
    logits[..., 1::WORDS] = 3 * gold  # the second of each class
    maps = SolvedReadout(form="words", ridge=0.01).solve(logits, LABELS, words=WORDS)
    weight = maps.weight[0].unflatten(0, (CLASSES, WORDS)).sum(-1)
    assert (weight.argmax(-1) == 1).all()
    mean = logits.unflatten(-1, (CLASSES, WORDS)).mean(-1)
    best = SolvedReadout(form="bias").solve(mean, LABELS)
    assert cross_entropy(maps(logits), LABELS) < cross_entropy(best(mean), LABELS) - 0.2


def test_words_at_an_infinite_ridge_are_their_mean_to_the_bit():
    logits = some_words().double()
    maps = SolvedReadout(form="words", ridge=inf).solve(logits, LABELS, words=WORDS)
    assert torch.equal(maps(logits), logits.unflatten(-1, (CLASSES, WORDS)).mean(-1))


@pytest.mark.parametrize("form", FORMS)
def test_infinite_ridge_is_the_plain_objective_to_the_bit(form):
    logits = some_logits()
    maps = SolvedReadout(form=form, ridge=inf).solve(logits, LABELS)
    np.testing.assert_array_equal(
        cross_entropy(maps(logits), LABELS), cross_entropy(logits, LABELS)
    )


def test_candidates_that_only_shift_a_class_have_the_loss_of_the_base():
    base = some_logits(candidates=1)
    shifts = torch.tensor([[0.0] * 4, [5.0, 0, 0, 0], [0, -3.0, 8.0, 0], [0, 0, 0, 40.0]])
    shifted = base.double() + shifts[:, None]
    maps = SolvedReadout(form="bias").solve(shifted, LABELS)
    losses = cross_entropy(maps(shifted), LABELS)
    np.testing.assert_allclose(losses, losses[0], rtol=0, atol=1e-9)
    plain = cross_entropy(shifted, LABELS)
    assert np.ptp(plain) > 1
    # The maps differ by the shifts, about their mean.
    expected = shifts.double() - shifts.double().mean(-1, keepdim=True)
    torch.testing.assert_close(maps.bias[0] - maps.bias, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", SOLVED, ids=str)
def test_what_is_added_to_all_logits_of_a_row_changes_nothing(readout):
    logits = some_logits().double()
    rows = torch.linspace(-30, 30, len(LABELS), dtype=torch.float64)[None, :, None]
    one, other = (readout.solve(given, LABELS) for given in (logits, logits + rows))
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.bias, other.bias, rtol=0, atol=1e-8)


def test_bias_of_logits_that_say_nothing_is_the_classes_shares():
    logits = torch.zeros(1, len(LABELS), CLASSES)
    (bias,) = SolvedReadout(form="bias").solve(logits, LABELS).bias
    counts = torch.bincount(LABELS).double()
    expected = counts.log() - counts.log().mean()
    torch.testing.assert_close(bias, expected, rtol=0, atol=1e-8)
    assert cross_entropy(logits, LABELS)[0] == pytest.approx(log(CLASSES))


@pytest.mark.parametrize("readout", SOLVED, ids=str)
def test_a_candidates_map_does_not_depend_on_the_others(readout):
    logits = torch.cat([some_logits(0.1), some_logits(50.0)])
    together = readout.solve(logits, LABELS)
    for candidate in (0, 7):
        alone = readout.solve(logits[candidate : candidate + 1], LABELS)[0]
        for name in ("weight", "bias"):
            apart, beside = getattr(alone, name), getattr(together[candidate], name)
            torch.testing.assert_close(apart, beside, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_logits_that_are_not_finite_disturb_no_other_candidate(bad):
    logits = some_logits()
    expected = SolvedReadout(form="bias").solve(logits, LABELS)
    logits[2, 5, 1] = bad
    got = SolvedReadout(form="bias").solve(logits, LABELS)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(got.bias[others], expected.bias[others], rtol=0, atol=1e-13)
    assert (got.bias[2] == 0).all()
    assert np.isfinite(cross_entropy(got(logits), LABELS)[2]) == np.isfinite(bad)


def test_candidates_solved_a_few_at_a_time_are_those_solved_at_once(monkeypatch):
    logits = some_logits()
    whole = SOLVED[-1].solve(logits, LABELS)
    monkeypatch.setattr("dfolora.engine.readout.HESSIAN_NUMBERS", 800)
    parts = SOLVED[-1].solve(logits, LABELS)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-13)


def test_class_without_a_row_needs_a_ridge():
    labels = LABELS.clamp(max=2)
    with pytest.raises(UserError, match=r"have 3 of 4 classes.*readout\.ridge=0\.01"):
        SolvedReadout(form="bias").solve(some_logits(), labels)
    maps = SolvedReadout(form="bias", ridge=0.01).solve(some_logits(), labels)
    assert torch.isfinite(maps.bias).all()


@pytest.mark.parametrize(
    ("readout", "told"),
    [
        (SolvedReadout(form="linear"), "readout.ridge=0.0 must be a positive number"),
        (SolvedReadout(form="scale_bias", ridge=-1), "readout.ridge=-1 must be a positive"),
        (SolvedReadout(form="bias", ridge=-1), "readout.ridge=-1 must be a positive"),
        (SolvedReadout(form="cubic"), "Unknown readout.form=cubic; choose one of plain, bias"),
    ],
)
def test_maps_without_a_best_value_are_refused(readout, told):
    with pytest.raises(UserError, match=told):
        readout.check()
