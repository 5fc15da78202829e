"""Several label words a class: how they are found, what they cost, what they predict."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import dfolora
from dfolora.data import Encoder
from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import FewShotData
from dfolora.methods.label_words import words_by_margin
from dfolora.search.optim import Lotfwa
from tests.conftest import shared_backbone
from tests.methods.test_every_method import rows
from tests.pipelines.test_conf import composed

LABELS = torch.tensor([0, 0, 1, 1, 1])
GIVEN = torch.tensor([4, 1])


def logits_for(shares):
    """Of rows of probabilities."""
    return torch.tensor(shares, dtype=torch.float64).log()


def test_words_are_those_with_the_highest_margin_by_hand():
    logits = logits_for(
        [
            [0.30, 0.10, 0.20, 0.10, 0.20, 0.10],
            [0.30, 0.10, 0.10, 0.10, 0.20, 0.20],
            [0.10, 0.10, 0.10, 0.30, 0.10, 0.30],
            [0.10, 0.10, 0.10, 0.40, 0.10, 0.20],
            [0.10, 0.10, 0.10, 0.30, 0.10, 0.30],
        ]
    )
    # Margins of class 0, by logarithms: 0 has 1.1, 4 .7, 2 .35, 1 none, 5 -.62, 3 -1.19.
    assert words_by_margin(logits, LABELS, GIVEN, 2).tolist() == [[4, 0], [1, 3]]
    assert words_by_margin(logits, LABELS, GIVEN, 3).tolist() == [[4, 0, 2], [1, 3, 5]]
    assert words_by_margin(logits, LABELS, GIVEN, 1).tolist() == [[4], [1]]
    others = torch.tensor([False, True, True, True, True, True])
    found = words_by_margin(logits, LABELS, GIVEN, 2, among=others)
    assert found.tolist() == [[4, 2], [1, 3]]
    with pytest.raises(UserError, match="words=4 is more than the 3 tokens"):
        words_by_margin(logits, LABELS, GIVEN, 4)
    with pytest.raises(UserError, match="class 1 has none"):
        words_by_margin(logits, torch.zeros(5, dtype=torch.long), GIVEN, 2)


def test_words_are_distinct_across_classes_and_begin_with_the_given_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 200, generator=generator)
    given = torch.tensor([10, 20, 30])
    found = words_by_margin(logits, torch.arange(24) % 3, given, 6)
    assert found.shape == (3, 6)
    assert torch.equal(found[:, 0], given)
    assert len(set(found.flatten().tolist())) == 18
    # A constant added to an example's logits says nothing of words.
    shifted = logits + torch.randn(24, 1, generator=generator)
    assert torch.equal(words_by_margin(shifted, torch.arange(24) % 3, given, 6), found)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_class_has_the_mean_of_its_words_logits(family, batch, normalised):
    backbone = shared_backbone(family)
    words = torch.tensor([[7, 8], [50, 3], [99, 20]])
    one, all_of_them = (
        Engine(backbone, batch, ids, normalised=normalised)({}) for ids in (words, words.flatten())
    )
    torch.testing.assert_close(one, all_of_them.unflatten(-1, (3, 2)).mean(-1), rtol=0, atol=0)
    single, plain = (
        Engine(backbone, batch, ids, normalised=normalised)({})
        for ids in (words[:, :1], words[:, 0])
    )
    assert torch.equal(single, plain)


def posed(*overrides, more_words=()):
    config = composed(
        "optimizer=fwa", "profile=mini", "budget=37", "dim=40", "data.k=8", *overrides
    )
    checkpoint = instantiate(config.model, _convert_="all")
    backbone, method = checkpoint.load_backbone(), instantiate(config.method)
    architecture = backbone.architecture
    problem = instantiate(config.data).pose(
        with_words(rows(), more_words), checkpoint.load_tokenizer(), method,
        kind=architecture.family.kind, max_length=architecture.max_length, seed=13,
    )  # fmt: skip
    return backbone, method, problem


def with_words(given, more_words):
    """The same rows, of a task whose prompt has these words beside."""
    prompts = given.task.prompts
    prompt = replace(prompts["released"]["masked"], more_words=more_words)
    task = replace(given.task, prompts={**prompts, "released": {"masked": prompt}})
    return replace(given, task=task)


MORE = (("awful", "dull"), ("lovely", "fine"))


@pytest.mark.parametrize("readout", ["plain", "words"])
def test_words_of_the_task_cost_no_call(readout):
    backbone, method, problem = posed("words=2", f"readout={readout}", more_words=MORE)
    fit = method.begin(backbone, problem.data, 13)
    steps = [progress.step for progress in fit]
    assert steps[0].calls == 1
    assert sum(len(step.losses) for step in steps) == 37
    tokenizer = problem.data.encode.tokenizer
    named = [[tokenizer.convert_tokens_to_ids(word) for word in words] for words in (
        ("bad", "awful"), ("great", "lovely"),
    )]  # fmt: skip
    assert fit._label_ids.tolist() == named
    assert "bad (" in problem.summary()
    assert "negative (also awful, dull)" in problem.summary()


def test_words_of_the_task_are_for_those_who_ask():
    logits = []
    for more_words in ((), MORE):
        backbone, method, problem = posed(more_words=more_words)
        fit = method.begin(backbone, problem.data, 13)
        list(fit)
        logits.append(fit.predictor().logits(problem.test))
    assert torch.equal(*logits)


def test_fewer_words_than_asked_for_are_told_before_any_weight_is_loaded():
    with pytest.raises(UserError, match=r"words=4 needs 3 words of each class .* has 2 of some"):
        posed("words=4", more_words=MORE)


def test_finding_them_is_one_of_the_calls():
    backbone, method, problem = posed("words=3")
    asked = []

    def memo(question, compute):
        asked.append(question)
        return compute()

    fit = method.begin(backbone, problem.data, 13, memo)
    steps = [progress.step for progress in fit]
    assert [step.calls for step in steps[:2]] == [2, 7]  # the words, the base; then 5 sparks
    assert steps[-1].calls == 37
    assert asked[0] == {"label_words": 3}
    measured = sum(len(step.losses) for step in steps)
    assert measured + 1 == 37


def test_one_word_is_the_task_of_today():
    logits = []
    for overrides in ([], ["words=1"]):
        backbone, method, problem = posed(*overrides)
        fit = method.begin(backbone, problem.data, 13)
        list(fit)
        logits.append(fit.predictor().logits(problem.test))
    assert torch.equal(*logits)


def test_words_are_tokens_that_texts_can_have(monkeypatch):
    backbone, method, problem = posed("words=3")
    encode, vocabulary = problem.data.encode, len(backbone.embedding)
    among = encode.texts_tokens(vocabulary + 10)
    tokenizer = encode.tokenizer
    assert len(tokenizer) <= vocabulary
    assert not among[len(tokenizer) :].any()
    assert not among[tokenizer.all_special_ids].any()
    assert among.sum() == len(tokenizer) - len(set(tokenizer.all_special_ids))
    first = method.begin(backbone, problem.data, 13)._label_ids
    chosen = int(first[0, 1])
    assert among[chosen]
    among = encode.texts_tokens(vocabulary)
    among[chosen] = False
    monkeypatch.setattr(Encoder, "texts_tokens", lambda _encode, _vocabulary: among)
    assert chosen not in method.begin(backbone, problem.data, 13)._label_ids


def test_words_are_read_from_the_train_set_alone():
    backbone, method, problem = posed("words=4")
    data = problem.data
    logits = Engine(backbone, data.train, data.label_ids).vocabulary()[:, 0]
    expected = words_by_margin(logits, data.train.labels, data.label_ids, 4)
    blind = FewShotData(
        train=data.train, dev=data.train, label_ids=data.label_ids, metric=data.metric
    )
    found = method.begin(backbone, blind, 13)._label_ids
    assert torch.equal(found, expected)


def test_a_saved_classifier_answers_with_its_words(tmp_path):
    texts = [f"the garden was {word} ." for word in ("awful", "lovely", "dull", "fine") * 4]
    labels = ["bad", "good"] * 8
    options = {
        "model": "mini-roberta",
        "prompt": "{text} It was {mask}.",
        "words": {"bad": "bad", "good": "great"},
        "k": 4,
    }
    made = dfolora.FewShotClassifier(
        method=dfolora.CLora(budget=30, dim=40, optimizer=Lotfwa, words=3), **options
    ).fit(texts, labels)
    expected = made.predict_proba(texts)
    for _ in range(2):  # a second time over the first
        made.save(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "label_words.json").read_text())
    assert np.shape(stored) == (2, 3)
    loaded = dfolora.FewShotClassifier.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict_proba(texts), expected, rtol=0, atol=1e-6)
    (tmp_path / "saved" / "label_words.json").unlink()
    with pytest.raises(UserError, match="holds no whole classifier"):
        dfolora.FewShotClassifier.load(tmp_path / "saved")
    plain = dfolora.FewShotClassifier(
        method=dfolora.CLora(budget=30, dim=40, optimizer=Lotfwa), **options
    ).fit(texts, labels)
    assert np.abs(plain.predict_proba(texts) - expected).max() > 1e-3
    made.save(tmp_path / "again")
    plain.save(tmp_path / "again")  # over the other's file, which is no longer read
    again = dfolora.FewShotClassifier.load(tmp_path / "again")
    np.testing.assert_allclose(
        again.predict_proba(texts), plain.predict_proba(texts), rtol=0, atol=1e-6
    )
