"""Populations evaluated together equal candidates evaluated one by one, the slow way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.backbone import Backbone
from dfolora.data import Batch
from dfolora.errors import UserError
from dfolora.evaluate import PopulationEvaluator, PopulationForward, batch_logits
from dfolora.metric import accuracy
from dfolora.objective import cross_entropy, hinge, metric_objective
from dfolora.subspace import SubspaceSpec
from tests.conftest import tiny_model
from tests.reference import one_candidate

DIM = 96


def make(backbone, batch, label_ids, *, tokens=2048, objective="ce", **spec):
    # A stretch of 2, so that candidates differ by far more than rounding.
    subspace = SubspaceSpec(**{"dim": DIM, "alpha": 2.0} | spec).build(
        backbone, batch.input_ids, batch.attention_mask, 0
    )
    forward = PopulationForward(backbone, subspace, batch, label_ids, tokens=tokens)
    evaluator = PopulationEvaluator(forward, batch.labels, objective=objective, metric="accuracy")
    return evaluator, subspace


def some_solution(candidates=5):
    rng = np.random.default_rng(2)
    return rng.normal(size=(3, DIM)), rng.normal(size=(candidates, DIM))


@pytest.mark.parametrize("targets", [("q", "k"), ("v",), ("q", "k", "v", "o")], ids="".join)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_population_equals_the_one_candidate_oracle(backbone, batch, label_ids, block, targets):
    evaluator, subspace = make(backbone, batch, label_ids, targets=targets)
    solution, candidates = some_solution()
    got = evaluator(solution, block, candidates).losses
    expected = one_candidate.losses(
        backbone, subspace, batch, label_ids, solution, block, candidates
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)  # float32 forwards
    assert list(np.argsort(got)) == list(np.argsort(expected))
    assert np.ptp(expected) > 1e-3  # the candidates do differ


@pytest.mark.parametrize("tokens", [1, 19, 40, 200, 400, 10_000])
def test_chunks_change_nothing(backbone, batch, label_ids, tokens):
    solution, candidates = some_solution(7)
    whole, _ = make(backbone, batch, label_ids)
    chunked, _ = make(backbone, batch, label_ids, tokens=tokens)
    np.testing.assert_allclose(
        chunked(solution, 1, candidates).losses, whole(solution, 1, candidates).losses,
        rtol=0, atol=1e-5,
    )  # fmt: skip


def test_bfloat16_weights_give_nearly_the_same_losses(family, batch, label_ids):
    solution, candidates = some_solution()
    exact, _ = make(Backbone(tiny_model(family)), batch, label_ids)
    half, _ = make(Backbone(tiny_model(family).bfloat16()), batch, label_ids)
    expected = exact(solution, 1, candidates).losses
    np.testing.assert_allclose(half(solution, 1, candidates).losses, expected, rtol=0, atol=0.1)


def test_row_of_the_searched_block_and_the_callers_arrays_do_not_matter(backbone, batch, label_ids):
    evaluator, _ = make(backbone, batch, label_ids)
    solution, candidates = some_solution()
    other = solution.copy()
    other[1] = 9.0
    kept = other.copy(), candidates.copy()
    assert np.array_equal(
        evaluator(solution, 1, candidates).losses, evaluator(other, 1, candidates).losses
    )
    assert np.array_equal(other, kept[0])
    assert np.array_equal(candidates, kept[1])


def test_answers_in_the_padding_keep_it(label_ids):
    """The released GPT-2 readout answers at the last padded column."""
    backbone = Backbone(tiny_model("gpt2"))
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = Batch(
        input_ids=ids, attention_mask=mask, answer=torch.tensor([4, 4]),
        labels=torch.tensor([0, 1]), truncated=0,
    )  # fmt: skip
    for tokens in (1, 100):
        ours = batch_logits(backbone, batch, label_ids, tokens=tokens)[0]
        oracle = one_candidate.answer_logits(backbone.model, batch, label_ids)
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-5)


def test_no_forward_exceeds_the_token_limit(backbone, batch, label_ids, monkeypatch):
    sizes = []
    original = backbone.answer_logits

    def spy(input_ids, *rest):
        sizes.append(input_ids.numel())
        return original(input_ids, *rest)

    monkeypatch.setattr(backbone, "answer_logits", spy)
    evaluator, _ = make(backbone, batch, label_ids, tokens=64)
    solution, candidates = some_solution()
    evaluator(solution, 0, candidates)
    assert max(sizes) <= 64
    assert sum(sizes) < 5 * batch.input_ids.numel()  # buckets hold less padding than the batch


def test_scores_are_the_metric_of_the_arg_max(backbone, batch, label_ids):
    evaluator, subspace = make(backbone, batch, label_ids)
    solution, candidates = some_solution()
    forward = PopulationForward(backbone, subspace, batch, label_ids, tokens=99)
    predictions = forward(solution, 0, candidates).argmax(-1).numpy()
    np.testing.assert_array_equal(
        evaluator(solution, 0, candidates).scores, accuracy(batch.labels.numpy(), predictions)
    )


def test_metric_objective_is_the_score_with_ties_by_loss(backbone, batch, label_ids):
    plain, _ = make(backbone, batch, label_ids)
    metric, _ = make(backbone, batch, label_ids, objective="metric")
    solution, candidates = some_solution(12)
    by_loss = plain(solution, 2, candidates)
    order = np.lexsort([by_loss.losses, -by_loss.scores])
    assert list(np.argsort(metric(solution, 2, candidates).losses)) == list(order)
    assert len(set(by_loss.scores)) < 12  # there are ties


def test_unknown_objective_names_the_known_ones(backbone, batch, label_ids):
    with pytest.raises(UserError, match="'mse'; choose one of ce, hinge, metric"):
        make(backbone, batch, label_ids, objective="mse")


LOGITS = torch.tensor([[[2.0, 0.5, -1.0], [0.0, 3.0, 2.5]]])
LABELS = torch.tensor([0, 2])


def test_hinge_by_hand():
    # Gold 2.0: max(0, 2+0.5-2) + max(0, 2-1-2) = 0.5; gold 2.5: 0 + max(0, 2+3-2.5) = 2.5.
    assert hinge(LOGITS, LABELS) == pytest.approx([(0.5 + 2.5) / 2])


def test_cross_entropy_is_torchs():
    expected = torch.nn.functional.cross_entropy(LOGITS[0].double(), LABELS)
    assert cross_entropy(LOGITS, LABELS) == pytest.approx([expected.item()], rel=1e-12)


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
