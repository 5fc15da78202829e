"""Logits become losses and scores."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.data.metric import METRICS
from dfolora.engine.forward import Engine
from dfolora.engine.objective import (
    cross_entropy,
    exact_match,
    hinge,
    metric_objective,
    vocabulary_cross_entropy,
)
from dfolora.errors import UserError
from dfolora.search import Evaluation, PopulationEvaluator, Remembered
from tests.conftest import shared_backbone
from tests.searching import evaluator_of, logits_of, some_solution, subspace_of


@pytest.mark.parametrize(("objective", "loss"), [("ce", cross_entropy), ("hinge", hinge)])
def test_losses_are_the_objective_of_the_logits(backbone, batch, label_ids, objective, loss):
    evaluator, subspace = evaluator_of(backbone, batch, label_ids, objective=objective)
    solution, candidates = some_solution()
    engine = Engine(backbone, batch, label_ids)
    logits = logits_of(engine, subspace, solution, 1, candidates)
    got = evaluator(solution, 1, candidates).losses
    np.testing.assert_allclose(got, loss(logits, batch.labels), rtol=1e-6)
    assert np.ptp(got) > 1e-3


def test_vocabulary_objective_adds_the_words_share_of_all_probability(family, batch, label_ids):
    """CE among all tokens is CE among the label words minus the log of their mass together."""
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution()
    calls = subspace.incumbents(solution, without=[1]), subspace.interventions(1, candidates)
    logits = Engine(backbone, batch, label_ids)(*calls)
    shares = Engine(backbone, batch, label_ids, normalised=True)(*calls)
    mass = shares.double().logsumexp(-1)
    assert (mass < -0.1).all()  # the rest of the vocabulary has a part
    expected = cross_entropy(logits, batch.labels) - mass.mean(-1).numpy()
    got = vocabulary_cross_entropy(shares, batch.labels)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)  # float32 logits
    every = torch.arange(len(backbone.embedding))
    whole = Engine(backbone, batch, every)(*calls)
    among_all = cross_entropy(whole, label_ids[batch.labels])
    np.testing.assert_allclose(got, among_all, rtol=0, atol=1e-5)


def test_vocabulary_objective_in_parts_is_that_at_once(family, batch, label_ids, monkeypatch):
    engine = Engine(shared_backbone(family), batch, label_ids, normalised=True)
    whole = engine({})
    monkeypatch.setattr("dfolora.engine.forward.VOCABULARY_NUMBERS", 350)
    torch.testing.assert_close(engine({}), whole, rtol=0, atol=1e-6)


def test_the_likeliest_other_token_is_one_more_column(family, batch, label_ids):
    """Beside the classes' own, from a vocabulary read at once and with several words a class."""
    backbone = shared_backbone(family)
    every = Engine(backbone, batch, label_ids).vocabulary()[:, 0].log_softmax(-1)
    likeliest = every.argmax(-1).unique()[:2]  # of some rows, which no label word may be beside
    for ids in (label_ids, likeliest, torch.stack([likeliest, label_ids[:2]], dim=1)):
        got = Engine(backbone, batch, ids, others=True)({})
        plain = Engine(backbone, batch, ids, normalised=True)({})
        assert torch.equal(got[..., :-1], plain)
        other = every.index_fill(-1, ids.flatten(), -torch.inf).amax(-1)
        torch.testing.assert_close(got[0, :, -1], other, rtol=0, atol=1e-5)


def test_exact_match_asks_all_tokens(backbone, batch, label_ids):
    """The share whose arg max over the vocabulary is the gold word; scores stay the classes'."""
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution(12)
    gold = Engine(backbone, batch, label_ids).vocabulary()[:, 0].argmax(-1)
    # Words that the model says for half of the rows: else nothing would ever match.
    said, labels = gold.unique(return_inverse=True)
    labels[::2] = (labels[::2] + 1) % len(said)
    evaluate = PopulationEvaluator(
        Engine(backbone, batch, said, others=True),
        subspace, labels, objective="exact", metric="accuracy",
    )  # fmt: skip
    got = evaluate(solution, 1, candidates)
    every = torch.arange(len(backbone.embedding))
    whole = logits_of(Engine(backbone, batch, every), subspace, solution, 1, candidates)
    hits = (whole.argmax(-1) == said[labels]).double().mean(-1).numpy()
    assert 0 < hits.max() < 1
    likelihood = cross_entropy(whole, said[labels])
    expected = metric_objective(hits, likelihood, len(labels))
    np.testing.assert_allclose(got.losses, expected, rtol=0, atol=1e-6)
    among_words = whole[..., said].argmax(-1)
    np.testing.assert_array_equal(got.scores, (among_words == labels).double().mean(-1).numpy())


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_the_metric_of_the_arg_max(backbone, batch, label_ids, metric):
    evaluator, subspace = evaluator_of(backbone, batch, label_ids, metric=metric)
    solution, candidates = some_solution(12)
    engine = Engine(backbone, batch, label_ids)
    predictions = logits_of(engine, subspace, solution, 0, candidates).argmax(-1).numpy()
    got = evaluator(solution, 0, candidates).scores
    np.testing.assert_array_equal(got, METRICS[metric](batch.labels.numpy(), predictions))


def test_metric_objective_is_the_score_with_ties_by_loss(backbone, batch, label_ids):
    plain, _ = evaluator_of(backbone, batch, label_ids)
    metric, _ = evaluator_of(backbone, batch, label_ids, objective="metric")
    solution, candidates = some_solution(12)
    by_loss = plain(solution, 2, candidates)
    order = np.lexsort([by_loss.losses, -by_loss.scores])
    assert list(np.argsort(metric(solution, 2, candidates).losses)) == list(order)
    assert len(set(by_loss.scores)) < 12  # there are ties


def test_row_of_the_searched_block_does_not_matter(backbone, batch, label_ids):
    evaluator, _ = evaluator_of(backbone, batch, label_ids)
    solution, candidates = some_solution()
    other = solution.copy()
    other[1] = 9.0
    losses = [evaluator(given, 1, candidates).losses for given in (solution, other)]
    assert np.array_equal(*losses)


def test_unknown_objective_names_the_known_ones(backbone, batch, label_ids):
    with pytest.raises(UserError, match="'mse'; choose one of ce, hinge, ce_vocab, exact, metric"):
        evaluator_of(backbone, batch, label_ids, objective="mse")


LOGITS = torch.tensor([[[2.0, 0.5, -1.0], [0.0, 3.0, 2.5]]])
LABELS = torch.tensor([0, 2])


def test_hinge_by_hand():
    # Gold 2.0: max(0, 2+0.5-2) + max(0, 2-1-2) = 0.5; gold 2.5: 0 + max(0, 2+3-2.5) = 2.5.
    assert hinge(LOGITS, LABELS) == pytest.approx([(0.5 + 2.5) / 2])


def test_cross_entropy_is_torchs():
    expected = torch.nn.functional.cross_entropy(LOGITS[0].double(), LABELS)
    assert cross_entropy(LOGITS, LABELS) == pytest.approx([expected.item()], rel=1e-12)


def test_exact_match_by_hand():
    logits = torch.log_softmax(LOGITS, dim=-1)
    labels = torch.tensor([0, 1])
    # The gold words lead in both rows, until another word is likelier in the second.
    for other, said in ((-3.0, 1.0), (-0.1, 0.5)):
        third = torch.full((1, 2, 1), -3.0)
        third[0, 1] = other
        got = exact_match(torch.cat([logits, third], dim=-1), labels)
        tie = vocabulary_cross_entropy(logits, labels)
        assert got == pytest.approx(1 - said + tie / (1 + tie) / 16, rel=1e-12)


def test_exact_match_of_a_vocabulary_of_label_words_ranks_as_accuracy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, 3, generator=generator).double().log_softmax(-1)
    labels = torch.arange(8) % 3
    none = torch.full((200, 8, 1), -torch.inf)
    scores = METRICS["accuracy"](labels.numpy(), logits.argmax(-1).numpy())
    got = exact_match(torch.cat([logits, none], dim=-1), labels)
    by_accuracy = np.lexsort([cross_entropy(logits, labels), -scores])
    np.testing.assert_array_equal(np.argsort(got), by_accuracy)


@settings(deadline=None)
@given(
    examples=st.integers(2, 60), data=st.data(),
    losses=st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
)  # fmt: skip
def test_a_loss_never_outweighs_an_f1_difference(examples, data, losses):
    """F1 = 2 tp / (2 tp + wrong) over the same examples: two different values, any losses."""
    draw = [
        (tp := data.draw(st.integers(0, examples)), data.draw(st.integers(0, examples - tp)))
        for _ in range(2)
    ]
    first, second = (2 * tp / (2 * tp + wrong) if tp + wrong else 0.0 for tp, wrong in draw)
    values = metric_objective(np.array([first, second]), np.array(losses), examples)
    if first != second:
        assert (values[0] < values[1]) == (first > second)


def test_memo_is_asked_by_the_very_numbers_and_answers_in_json():
    solution, candidates = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    questions = []

    def memo(question, compute):
        questions.append(question)
        return json.loads(json.dumps(compute(), allow_nan=False))

    def evaluate(_solution, _block, _candidates):
        return Evaluation(losses=np.array([1 / 3, np.nan]), scores=np.array([0.1, 0.7]))

    remembered = Remembered(evaluate, memo, "train")
    got = remembered(solution, 1, candidates)
    np.testing.assert_array_equal(got.losses, [1 / 3, np.nan])
    np.testing.assert_array_equal(got.scores, [0.1, 0.7])
    assert questions[0]["train"] == 1
    digest = hashlib.sha256(solution.tobytes() + candidates.tobytes()).hexdigest()
    assert questions[0]["candidates_sha256"] == digest
    moved = solution.copy()
    moved[0, 2] = np.nextafter(moved[0, 2], np.inf)
    for arguments in ((moved, 1, candidates), (solution, 1, 2 * candidates)):
        remembered(*arguments)
        assert questions[-1] != questions[0]
    remembered(np.asfortranarray(solution), 1, np.asfortranarray(candidates))
    assert questions[-1] == questions[0]  # the numbers count, not how memory holds them
