"""PromptBoosting: weights by closed forms, learners by loops, passes by count."""

import json
from dataclasses import replace
from functools import cache
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import dfolora
from dfolora.data import Encoder, Prompt, Rows
from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import PromptBoosting, Templates
from dfolora.methods.prompt_boosting import (
    Learner,
    boost,
    guesses,
    screen,
    screened,
    vote,
    votes,
    word_tuples,
)
from dfolora.seeding import stream
from tests.conftest import mini_tokenizer
from tests.methods.test_every_method import posed
from tests.pipelines.test_conf import composed
from tests.reference import boosting_reference

SETTINGS = {"learners": 30, "words": 3, "tuples": 1000, "rng": stream(0, "word tuples")}


def boosted_problem() -> Any:
    return posed("prompt_boosting")


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_a_vote_at_chance_counts_nothing(classes):
    chance = (classes - 1) / classes
    assert vote(chance, classes, 8) == pytest.approx(0, abs=1e-12)
    assert vote(chance + 0.01, classes, 8) < 0 < vote(chance - 0.01, classes, 8)
    assert vote(1.0, classes, 8) == -float("inf")
    assert vote(0.25, classes, 8) == pytest.approx(log(3) + log(classes - 1))
    assert vote(0.0, classes, 8) == vote(1 / 16, classes, 8)  # half a row of eight


def test_two_learners_by_hand():
    """Five rows, one template a learner; the second template is right where the first is wrong."""
    labels = torch.tensor([0, 0, 0, 1, 1])
    first = torch.tensor([[2, 1], [2, 1], [1, 2], [1, 2], [1, 2]]).log()  # misses row 2
    second = torch.tensor([[2, 1], [1, 2], [2, 1], [1, 2], [1, 2]]).log()  # misses row 1
    found = boost([first, second], labels, classes=2, **SETTINGS | {"learners": 2, "words": 1})
    # Row 2 then weighs 4/5 : 1/5 of four others, a half; the second learner misses 1/8.
    assert [(one.template, one.words) for one in found] == [(0, (0, 1)), (1, (0, 1))]
    assert [one.weight for one in found] == pytest.approx([log(4), log(7)])
    logits = [first, second]
    cast = votes(found, lambda template, words: logits[template][:, words], 5, 2)
    assert cast.sum(0)[0].tolist() == pytest.approx([log(28), 0])
    assert cast.sum(0)[1].tolist() == pytest.approx([log(4), log(7)])
    assert cast.sum(0).argmax(-1).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(("classes", "templates"), [(2, 1), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_learners_are_those_of_the_loops(classes, templates, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(5 * classes) % classes
    logits = [torch.randn(len(labels), 60, generator=generator).double() for _ in range(templates)]
    for each in logits:  # some tokens lean towards a class, none tells it
        each[torch.arange(len(labels)), labels] += 0.7
    found = boost(logits, labels, classes=classes, **SETTINGS)
    shares = [each.softmax(-1).tolist() for each in logits]
    expected = boosting_reference.boosted(shares, labels.tolist(), classes, 30, 3)
    assert len(found) > 2 * templates
    assert [(one.template, one.words) for one in found] == [each[:2] for each in expected]
    assert [one.weight for one in found] == pytest.approx([each[2] for each in expected], abs=1e-9)


def test_boosting_ends_when_no_template_changes_the_weights():
    labels = torch.tensor([0, 0, 1, 1])
    perfect = torch.nn.functional.one_hot(labels, 2).float()
    useless = torch.zeros(4, 2)  # says class 0 of every row: at chance
    found = boost([perfect, useless], labels, classes=2, **SETTINGS)
    assert found == [Learner(template=0, words=(0, 1), weight=pytest.approx(log(7)))]
    assert boost([useless], labels, classes=2, **SETTINGS) == []


def test_words_are_screened_by_weighted_signed_probability():
    shares = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.2, 0.5, 0.1, 0.2], [0.1, 0.3, 0.1, 0.5]])
    labels = torch.tensor([0, 1, 1])
    even = torch.full((3,), 1 / 3)
    assert screen(shares, labels, even, 2, 2).tolist() == [[0, 2], [1, 3]]
    last = torch.tensor([0.1, 0.1, 0.8])
    assert screen(shares, labels, last, 2, 2)[1].tolist() == [3, 1]


def test_tuples_are_all_or_random_ones():
    candidates = torch.tensor([[7, 8, 9], [4, 5, 6]])
    rng = np.random.default_rng(0)
    every = word_tuples(candidates, 9, rng).tolist()
    assert every == [[a, b] for a in (7, 8, 9) for b in (4, 5, 6)]
    some = word_tuples(candidates, 8, rng)
    assert some.shape == (8, 2)
    assert {a for a, _ in some.tolist()} <= {7, 8, 9}
    assert {b for _, b in some.tolist()} <= {4, 5, 6}
    again = word_tuples(candidates, 8, np.random.default_rng(0))
    assert torch.equal(again, some)


def test_guesses_are_the_arg_max_of_the_words():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (6, 12), generator=generator).float()  # with ties
    tuples = torch.randint(12, (40, 4), generator=generator)
    expected = logits[:, tuples].numpy().argmax(-1)  # of equals the first
    np.testing.assert_array_equal(guesses(logits, tuples).numpy(), expected.T)


def test_numbers_of_words_are_the_released_ones():
    assert [screened(classes) for classes in (2, 3, 4, 6, 14)] == [50, 10, 10, 5, 5]


def plain(kind="masked", **changes):
    pattern = "{text} It was {mask}." if kind == "masked" else "{text} It was"
    prompt = Prompt(kind=kind, pattern=pattern, label_words=("bad", "great"))
    return Encoder(prompt=prompt, tokenizer=mini_tokenizer(kind), max_length=40, **changes)


ROWS = Rows(texts=({"text": "the food was fine"},), labels=(1,))


def test_templates_are_those_of_the_models_kind_each_once():
    method = PromptBoosting(templates=["All {mask}: {text}", "{text} So,", "{text} It was {mask}."])
    masked: Any = method.encoder(plain(), ROWS, 0)
    assert masked.patterns == ["{text} It was {mask}.", "All {mask}: {text}"]
    causal: Any = method.encoder(plain("causal"), ROWS, 0)
    assert causal.patterns == ["{text} It was", "{text} So,"]
    assert torch.equal(masked(ROWS).input_ids, plain()(ROWS).input_ids)
    alone: Any = PromptBoosting(templates=[]).encoder(plain(), ROWS, 0)
    assert alone.patterns == ["{text} It was {mask}."]


def test_templates_may_be_none_but_the_tasks():
    _, backbone = boosted_problem()
    PromptBoosting(templates=[]).check(backbone.architecture)
    with pytest.raises(UserError, match=r"method\.templates repeats an entry"):
        PromptBoosting(templates=["{text}", "{text}"]).check(backbone.architecture)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (
            ["{title} {mask}"],
            r"template '\{title\} \{mask\}' has placeholders \['title'\], and a row",
        ),
        (["{mask} {text} {mask}"], r"has 2 \{mask\}; write it exactly once"),
    ],
)
def test_templates_that_do_not_fit_are_told(templates, message):
    with pytest.raises(UserError, match=message):
        PromptBoosting(templates=templates).encoder(plain(), ROWS, 0)


def test_the_released_readout_is_refused():
    with pytest.raises(UserError, match=r"use data\.readout=last_token"):
        PromptBoosting(templates=["{text}"]).encoder(plain("causal", readout="released"), ROWS, 0)


def test_a_template_is_one_pass_over_train(monkeypatch):
    read = []
    original = Engine.vocabulary

    def vocabulary(self, places=None):
        read.append(len(self._sequences.lengths))
        return original(self, places)

    monkeypatch.setattr(Engine, "vocabulary", vocabulary)
    problem, backbone = boosted_problem()
    method = instantiate(composed("method=prompt_boosting").method)
    steps = list(method.begin(backbone, problem.data, 13))
    templates = len(problem.data.encode.encoders)
    assert templates >= 2
    assert [step.step.calls for step in steps] == [*range(1, templates + 1)]
    assert read == [len(problem.data.train.labels), len(problem.data.dev.labels)] * templates


def test_the_length_is_the_best_on_dev():
    """Of the first 1, 2, ... learners, after each template: by score, loss, and the shortest."""
    problem, backbone = boosted_problem()
    # One word a class is right too seldom for the boosting to end at once.
    data = problem.data
    method = instantiate(composed("method=prompt_boosting", "method.words=1").method)
    history = list(method.begin(backbone, data, 13))
    train, dev, shorter = [], [], []
    for encoder, progress in zip(data.encode.encoders, history, strict=True):
        for logits, part in ((train, data.train), (dev, data.dev)):
            read = Engine(backbone, encoder(part.rows), data.label_ids).vocabulary()
            logits.append(read[:, 0])
        learners = boost(
            train, data.train.labels,
            classes=2, learners=200, words=1, tuples=20_000, rng=stream(13, "word tuples"),
        )  # fmt: skip

        def scored(length, logits, labels, learners=learners):
            rows = len(labels)
            cast = votes(learners[:length], lambda at, ids: logits[at][:, ids], rows, 2).sum(0)
            loss = torch.nn.functional.cross_entropy(cast, labels).item()
            return (cast.argmax(-1) == labels).double().mean().item(), loss

        on_dev = [scored(n, dev, data.dev.labels) for n in range(len(learners) + 1)]
        best = min(range(1, len(on_dev)), key=lambda n: (-round(on_dev[n][0], 9), on_dev[n][1], n))
        (look,) = progress.looks
        shorter.append(best < len(learners))
        assert look.solution == tuple(learners[:best])
        assert (look.score, look.loss) == pytest.approx(on_dev[best])
        assert progress.step.loss == pytest.approx(scored(best, train, data.train.labels)[1])
    assert any(shorter)


def test_a_learner_without_finite_logits_has_no_vote():
    logits = torch.tensor([[1.0, 2.0], [torch.nan, 2.0]])
    learner = Learner(template=0, words=(0, 1), weight=1.0)
    cast = votes([learner], lambda _template, words: logits[:, words], 2, 2)[0]
    assert cast[0].tolist() == [0, 1]
    assert cast[1].isnan().all()


def test_a_model_of_nans_is_refused():
    problem, backbone = boosted_problem()
    next(backbone.model.parameters()).data.fill_(torch.nan)
    method = instantiate(composed("method=prompt_boosting").method)
    with pytest.raises(UserError, match=r"logits under the template '.*' are NaN"):
        list(method.begin(backbone, problem.data, 13))


@cache
def classifier():
    texts = [f"the garden was {word} ." for word in ("awful", "lovely", "dull", "fine") * 4]
    method = PromptBoosting(templates=["It was {mask}: {text}", "{text} So {mask}."], learners=9)
    made = dfolora.FewShotClassifier(
        "mini-roberta", prompt="{text} It was {mask}.", words={"bad": "bad", "good": "great"},
        k=4, method=method,
    )  # fmt: skip
    return made.fit(texts, ["bad", "good"] * 8), texts


def test_a_saved_ensemble_answers_as_it_did(tmp_path):
    made, texts = classifier()
    made.save(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "ensemble.json").read_text())
    assert len(stored["templates"]) == 3
    assert all(len(one["tokens"]) == len(one["words"]) == 2 for one in stored["learners"])
    loaded = dfolora.FewShotClassifier.load(tmp_path / "saved")
    expected = made.predict_proba(texts)
    np.testing.assert_allclose(loaded.predict_proba(texts), expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0.1
    (tmp_path / "saved" / "ensemble.json").unlink()
    with pytest.raises(UserError, match="holds no whole classifier"):
        dfolora.FewShotClassifier.load(tmp_path / "saved")


def test_it_needs_its_own_encoder():
    problem, backbone = boosted_problem()
    other = replace(problem.data, encode=problem.data.encode.encoders[0])
    with pytest.raises(TypeError, match="its own encoder"):
        PromptBoosting(templates=["{text}"]).begin(backbone, other, 13)
    assert isinstance(problem.data.encode, Templates)
