"""Calibrations of the zero-shot prompt, and searches whose readout is solved inside each call."""

import json
from math import inf

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import dfolora
from dfolora.data import Encoder
from dfolora.engine import Affine, Answers, SolvedReadout, answers, classify, cross_entropy
from dfolora.errors import UserError
from dfolora.methods import CalibratedPrompt, FewShotData
from dfolora.methods.calibrated_prompt import CALIBRATIONS, CONTENT_FREE, RIDGES
from dfolora.methods.probe import GRADIENT, Probe
from dfolora.methods.readouts import BatchMean, Neighbours, applied, load_readout, save_readout
from dfolora.model.architecture import Architecture
from dfolora.search.optim import Lotfwa
from tests.methods.test_every_method import SMALL, rows
from tests.pipelines.test_conf import composed


def posed(*overrides, task="sst2"):
    quick = [] if any(each.startswith("row=") for each in overrides) else ["optimizer=fwa"]
    config = composed(*quick, *SMALL, *overrides)
    checkpoint = instantiate(config.model, _convert_="all")
    backbone, method = checkpoint.load_backbone(), instantiate(config.method)
    architecture = backbone.architecture
    problem = instantiate(config.data).pose(
        rows(task), checkpoint.load_tokenizer(), method,
        kind=architecture.family.kind, max_length=architecture.max_length, seed=13,
    )  # fmt: skip
    return backbone, method, problem


def fitted(*overrides, task="sst2"):
    backbone, method, problem = posed(*overrides, task=task)
    fit = method.begin(backbone, problem.data, 13)
    steps = [progress.step for progress in fit]
    return backbone, problem, steps, fit.predictor()


def calibrated(name, task="sst2"):
    return fitted("method=calibrated_prompt", f"calibration={name}", task=task)


def plain_logits(backbone, problem, batch):
    return classify(backbone, problem.data.label_ids, batch).double()


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_one_call_is_counted_and_its_losses_told(name):
    backbone, problem, steps, predictor = calibrated(name)
    (step,) = steps
    train = problem.data.train
    assert step.calls == 1
    before = cross_entropy(plain_logits(backbone, problem, train)[None], train.labels)
    np.testing.assert_allclose(step.losses, before, rtol=0, atol=1e-6)
    after = cross_entropy(predictor.logits(train)[None], train.labels)
    assert step.loss == pytest.approx(after[0], abs=1e-5)


def test_contextual_divides_by_what_is_said_of_nothing():
    backbone, problem, _, predictor = calibrated("contextual")
    plain = problem.data.encode
    rows_of = problem.data.train.rows
    empty = [dict.fromkeys(rows_of.texts[0], text) for text in CONTENT_FREE]
    probabilities = [
        plain_logits(
            backbone, problem, plain(type(rows_of)(texts=(text,), labels=(0,)))
        ).softmax(-1)[0]
        for text in empty
    ]  # fmt: skip
    prior = torch.stack(probabilities).mean(0)
    asked = plain_logits(backbone, problem, problem.test).softmax(-1)
    expected = (asked / prior) / (asked / prior).sum(-1, keepdim=True)
    got = predictor.logits(problem.test).double().softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (prior[0] - prior[1]).abs() > 0.01


@pytest.mark.parametrize(("name", "over"), [("batch", "train"), ("batch_test", "test")])
def test_batch_divides_by_the_mean_over_its_rows(name, over):
    backbone, problem, _, predictor = calibrated(name)
    of_test = plain_logits(backbone, problem, problem.test).softmax(-1)
    of_train = plain_logits(backbone, problem, problem.data.train).softmax(-1)
    prior = {"train": of_train, "test": of_test}[over].mean(0)
    expected = (of_test / prior) / (of_test / prior).sum(-1, keepdim=True)
    got = predictor.logits(problem.test).double().softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (of_train.mean(0) - of_test.mean(0)).abs().max() > 1e-3


def test_linear_has_the_ridge_of_the_least_dev_loss_and_sees_no_test_row():
    backbone, problem, _, predictor = calibrated("linear", task="agnews")
    train, dev = problem.data.train, problem.data.dev
    of_train, of_dev = (plain_logits(backbone, problem, batch) for batch in (train, dev))
    losses = {}
    for ridge in RIDGES:
        maps = SolvedReadout(form="linear", ridge=ridge).solve(of_train[None], train.labels)
        losses[ridge] = cross_entropy(maps(of_dev[None]), dev.labels)[0]
    assert predictor.found["ridge"] == min(losses, key=losses.get)
    assert len(set(losses.values())) == len(RIDGES)


def test_probe_has_the_ridge_of_the_least_dev_loss():
    backbone, problem, _, predictor = calibrated("probe", task="agnews")
    data = problem.data
    train, dev = (answers(backbone, data.label_ids, part) for part in (data.train, data.dev))
    losses = {}
    for ridge in RIDGES:
        probe = Probe.fit(train.logits, train.states, data.train.labels, ridge)
        losses[ridge] = cross_entropy(applied(probe, dev)[None], data.dev.labels)[0]
    assert predictor.found["ridge"] == min(losses, key=losses.get)
    assert len(set(losses.values())) == len(RIDGES)


@pytest.mark.parametrize("model", ["mini_roberta", "mini_gpt2"])
def test_answers_are_what_classify_says_of_what_the_head_reads(model):
    """GPT-2 has a norm after its last layer."""
    backbone, _, problem = posed("method=calibrated_prompt", f"model={model}")
    ids, test = problem.data.label_ids, problem.test
    asked = answers(backbone, ids, test)
    assert torch.equal(asked.logits, classify(backbone, ids, test))
    said = backbone.answer_logits(asked.states, ids)
    torch.testing.assert_close(said, asked.logits, rtol=0, atol=1e-5)
    hidden = backbone.forward(input_ids=test.input_ids, attention_mask=test.attention_mask)
    read = hidden[torch.arange(len(test.answer)), test.answer]
    torch.testing.assert_close(asked.states, read, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def shots():
    """Logits, states and labels that a probe is fitted to: fewer rows than numbers."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(24) % 3
    states = torch.randn(24, 40, generator=generator) + 5
    states[:, 0] += 20 * labels
    return torch.randn(24, 3, generator=generator), states, labels


@pytest.mark.parametrize("ridge", [0.001, 1.0])
def test_probe_is_where_the_penalised_loss_is_flat(shots, ridge):
    logits, states, labels = shots
    probe = Probe.fit(logits, states, labels, ridge)
    mean = states.double().mean(0)
    scale = (states.double() - mean).square().sum(-1).mean().sqrt()
    weight, bias = (part.clone().requires_grad_() for part in (probe.weight, probe.bias))
    mapped = logits.double() + states.double() @ weight + bias
    penalty = ridge / 2 * (weight * scale).square().sum()
    loss = torch.nn.functional.cross_entropy(mapped, labels) + penalty
    slope, shift = torch.autograd.grad(loss, (weight, bias))
    assert shift.abs().max() < 10 * GRADIENT
    assert ((slope - mean[:, None] * shift) / scale).abs().max() < 10 * GRADIENT
    assert probe.weight.abs().max() > 1e-4


def test_probe_of_infinite_ridge_is_the_bias(shots):
    logits, states, labels = shots
    probe = Probe.fit(logits, states, labels, 1e9)
    bias = SolvedReadout(form="bias").solve(logits[None], labels)[0]
    torch.testing.assert_close(probe(logits, states), bias(logits), rtol=0, atol=1e-6)
    stronger = Probe.fit(logits, states, labels, 1e-4)(logits, states)
    assert (stronger.argmax(-1) == labels).all()
    assert not (bias(logits).argmax(-1) == labels).all()


def test_probe_does_not_mind_where_states_lie_nor_their_unit(shots):
    logits, states, labels = shots
    plain = Probe.fit(logits, states, labels, 0.1)(logits, states)
    moved = 8 * states - 100
    other = Probe.fit(logits, moved, labels, 0.1)(logits, moved)
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_probe_of_states_that_are_not_finite_is_the_bias(shots, broken):
    logits, states, labels = shots
    states = states.clone()
    states[2, 3] = broken
    probe = Probe.fit(logits, states, labels, 0.1)
    assert not probe.weight.any()
    assert torch.equal(probe.bias, SolvedReadout(form="bias").solve(logits[None], labels).bias[0])


def test_probe_of_states_that_are_all_alike_is_the_bias(shots):
    logits, states, labels = shots
    probe = Probe.fit(logits, torch.ones_like(states), labels, 0.1)
    bias = SolvedReadout(form="bias").solve(logits[None], labels)[0]
    torch.testing.assert_close(probe(logits, states), bias(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 1000])
def test_knn_votes_as_the_nearest_train_rows(neighbours):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(9, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    labels = torch.arange(9) % 3
    asked = torch.randn(20, 3, generator=generator)
    readout = Neighbours(log_probabilities=train, labels=labels, neighbours=neighbours)
    for row, got in zip(asked.double().log_softmax(-1), readout(asked).argmax(-1), strict=True):
        divergences = [float((row.exp() * (row - known)).sum()) for known in train]
        nearest = np.argsort(divergences)[:neighbours]
        votes = np.bincount(labels[nearest], minlength=3) + row.exp().numpy() / 2
        assert got == votes.argmax()
    if neighbours == 1000:  # all vote, each class the same: the rows' own opinion is left
        assert torch.equal(readout(asked).argmax(-1), asked.argmax(-1))


def test_two_votes_of_three_decide_however_sure_a_row_is():
    train = torch.tensor([[0.0, -18.0], [-1.0, 0.0], [0.0, -1.0]]).double().log_softmax(-1)
    readout = Neighbours(log_probabilities=train, labels=torch.tensor([0, 1, 1]), neighbours=3)
    assert readout(torch.tensor([[40.0, -40.0]])).float().argmax() == 1


def test_batch_mean_leaves_a_single_row_as_it_is():
    got = BatchMean()(torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(got, torch.tensor([[3.0, -1.0]]).double())


def test_batch_mean_leaves_out_rows_that_are_not_finite():
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    broken = torch.cat([logits, torch.tensor([[np.nan, 0.0, 0.0]])])
    torch.testing.assert_close(BatchMean()(broken)[:-1], BatchMean()(logits))
    assert BatchMean()(broken)[-1].isnan().any()


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_readout_is_the_same_after_saving(name, tmp_path):
    predictor = calibrated(name)[-1]
    predictor.save(tmp_path)
    again = load_readout(tmp_path)
    logits = 3 * torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    save_readout(tmp_path / "twice", again)
    answered = Answers(logits=logits, states=torch.randn(30, 128))
    twice = load_readout(tmp_path / "twice")
    assert torch.equal(applied(twice, answered), applied(again, answered))
    assert json.loads((tmp_path / "readout.json").read_text())["kind"] in (
        "Affine", "BatchMean", "Neighbours", "Probe",
    )  # fmt: skip


@pytest.mark.parametrize("row", ["c_lora", "bbt", "bbtv2", "zo"])
def test_without_a_search_a_solved_bias_is_the_calibrated_prompt(row):
    """Soft prompts have filler words in the prompt; of these rows the LoRA ones have none."""
    backbone, problem, _, predictor = fitted(f"row={row}", "readout=bias", "budget=0")
    train = problem.data.train
    plain = [plain_logits(backbone, problem, batch) for batch in (train, problem.test)]
    maps = SolvedReadout(form="bias").solve(plain[0][None], train.labels)[0]
    got = predictor.logits(problem.test).double()
    torch.testing.assert_close(got, maps(plain[1]), rtol=0, atol=1e-4)
    assert (got - plain[1]).abs().max() > 0.1


@pytest.mark.parametrize("row", ["c_lora", "bbtv2", "gap3", "zo", "c_lora optimizer=nevergrad"])
@pytest.mark.parametrize("form", ["bias", "scale_bias", "linear", "words"])
def test_solution_keeps_the_readout_that_its_loss_was_measured_with(row, form):
    """The predictor's train loss is the search's; dev was scored by train's readout."""
    everything = [*f"row={row}".split(), f"readout={form}", "dev_interval=1", "budget=90"]
    everything.append("individuals=8")
    if form == "words" and row != "gap3":
        everything.append("words=3")
    backbone, method, problem = posed(*everything)
    fit = method.begin(backbone, problem.data, 13)
    history = list(fit)
    predictor = fit.predictor()
    at = {progress.step.calls: progress.step.loss for progress in history}
    train, dev = problem.data.train, problem.data.dev
    of_train, of_dev = (predictor.logits(batch) for batch in (train, dev))
    measured = cross_entropy(of_train[None], train.labels)[0]
    assert measured == pytest.approx(at[predictor.dev.calls], abs=1e-4)
    assert predictor.dev.loss == pytest.approx(cross_entropy(of_dev[None], dev.labels)[0], abs=1e-4)


@pytest.mark.parametrize("form", ["bias", "scale_bias", "words", "linear"])
def test_infinite_ridge_is_the_search_of_today(form):
    trajectories = []
    for overrides in ([], [f"readout={form}"]):
        backbone, method, problem = posed("budget=40", *overrides)
        if overrides:
            method = type(method)(
                **{**vars(method), "readout": SolvedReadout(form=form, ridge=inf)}
            )
        fit = method.begin(backbone, problem.data, 13)
        trajectories.append([progress.step.losses.tolist() for progress in fit])
    assert trajectories[0] == trajectories[1]


@pytest.mark.parametrize(
    "method",
    [
        dfolora.CLora(
            budget=30, dim=40, optimizer=Lotfwa, readout=SolvedReadout(form="bias")
        ),
        dfolora.CLora(
            budget=30, dim=40, optimizer=Lotfwa, words=3,
            readout=SolvedReadout(form="words", ridge=0.01),
        ),
        "calibrated_prompt",
        CalibratedPrompt(calibration="probe"),
    ],
    ids=["search", "words", "prompt", "probe"],
)  # fmt: skip
def test_saved_classifier_answers_with_its_readout(method, tmp_path):
    texts = [f"the garden was {word} ." for word in ("awful", "lovely", "dull", "fine") * 4]
    options = {
        "model": "mini-roberta",
        "prompt": "{text} It was {mask}.",
        "words": {"bad": "bad", "good": "great"},
        "k": 4,
    }
    labels = ["bad", "good"] * 8
    made = dfolora.FewShotClassifier(method=method, **options).fit(texts, labels)
    expected = made.predict_proba(texts)
    made.save(tmp_path)
    loaded = dfolora.FewShotClassifier.load(tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(texts), expected, rtol=0, atol=1e-6)
    manual = dfolora.FewShotClassifier(method="manual_prompt", **options).fit(texts, labels)
    assert np.abs(manual.predict_proba(texts) - expected).max() > 0.01
    (tmp_path / "readout.json").unlink()
    with pytest.raises(UserError, match="holds no whole classifier"):
        dfolora.FewShotClassifier.load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["readout=bias", "readout.ridge=null"], r"readout\.ridge=None must be a positive"),
        (["readout=bias", "readout.ridge=abc"], r"readout\.ridge=abc must be a positive"),
        (["readout=bias", "readout.ridge=-inf"], r"readout\.ridge=-inf must be a positive"),
        (["readout=bias", "objective=ce_vocab"], "choose objective=ce or readout=plain"),
        (["readout=linear", "readout.ridge=0"], r"readout\.ridge=0 must be a positive"),
        (["method=calibrated_prompt", "calibration=none"], "Unknown calibration=none; choose"),
        (["method=gap3", "readout.form=cubic"], r"Unknown readout\.form=cubic; choose one"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(overrides, told):
    config = composed(*SMALL, *overrides)
    checkpoint = instantiate(config.model, _convert_="all")
    with pytest.raises(UserError, match=told):
        instantiate(config.method).check(Architecture.of(checkpoint.config()))


@pytest.mark.parametrize("row", ["calibrated_bias", "calibrated_probe", "c_lora_bias", "gap3"])
def test_class_without_a_train_row_is_refused_with_the_data(row):
    config = composed(*SMALL, f"row={row}", "readout=bias")
    checkpoint = instantiate(config.model, _convert_="all")
    encoder = Encoder(
        prompt=rows("agnews").task.prompt("released", "masked"),
        tokenizer=checkpoint.load_tokenizer(), max_length=300,
    )  # fmt: skip
    method, train = instantiate(config.method), rows("agnews").train
    three = train.select(n for n, label in enumerate(train.labels[:100]) if label)
    with pytest.raises(UserError, match="have 3 of 4 classes"):
        method.encoder(encoder, three, 13)
    method.encoder(encoder, train.select(range(100)), 13)


def test_contextual_leaves_out_what_is_no_token_to_a_causal_model():
    options = {"model": "mini-gpt2", "prompt": "{text}", "words": {"bad": "bad", "good": "great"}}
    texts = [f"the garden was {word} ." for word in ("awful", "lovely") * 4]
    made = dfolora.FewShotClassifier(
        method=CalibratedPrompt(calibration="contextual"), k=2, **options
    ).fit(texts, ["bad", "good"] * 4)
    assert np.isfinite(made.predict_proba(texts)).all()


def test_contextual_needs_the_rows_encoder():
    backbone, method, problem = posed("method=calibrated_prompt", "calibration=contextual")
    data = problem.data
    blind = FewShotData(
        train=data.train, dev=data.dev, label_ids=data.label_ids, metric=data.metric
    )
    with pytest.raises(TypeError, match=r"needs data\.encode"):
        list(method.begin(backbone, blind, 13))


@pytest.mark.parametrize("row", ["mezo", "es"])
def test_dev_sees_the_start_of_a_search_that_does_not_measure_it(row):
    """Steps that are much too long lead away from it, and it is what is left."""
    much = ["optimizer.lr=300", "budget=90", "dev_interval=30"]
    backbone, method, problem = posed(f"row={row}", *much)
    fit = method.begin(backbone, problem.data, 13)
    looks = [[look.calls for look in progress.looks] for progress in fit]
    assert looks[0][0] == 0  # shown once, so that it is on the curve
    assert [calls for each in looks for calls in each].count(0) == 1
    predictor = fit.predictor()
    assert predictor.dev.calls == 0
    got = predictor.logits(problem.test).double()
    expected = plain_logits(backbone, problem, problem.test)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_readout_by_name_alone_is_refused():
    method = dfolora.CLora(readout="bias")
    with pytest.raises(UserError, match=r"such as SolvedReadout\(form='bias'\)"):
        method.check(posed()[0].architecture)


def test_affine_of_json_is_in_float64(tmp_path):
    maps = Affine(weight=torch.eye(2).double() / 3, bias=torch.tensor([0.1, -0.1]).double())
    save_readout(tmp_path, maps)
    again = load_readout(tmp_path)
    assert isinstance(again, Affine)
    assert torch.equal(again.weight, maps.weight)
    assert torch.equal(again.bias, maps.bias)
