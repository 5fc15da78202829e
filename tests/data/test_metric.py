import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from dfolora.data.metric import METRICS, accuracy, constant_score, f1, majority_score

LABELS = np.array([0, 1, 1, 0, 1, 0, 0])
POPULATION = np.random.default_rng(0).integers(0, 2, size=(3, 4, len(LABELS)))


@pytest.mark.parametrize(
    ("ours", "oracle"),
    [(accuracy, accuracy_score), (f1, lambda y, p: f1_score(y, p, zero_division=0))],
)
def test_scores_of_a_population_are_sklearns_one_by_one(ours, oracle):
    scores = ours(LABELS, POPULATION)
    expected = [[oracle(LABELS, guess) for guess in row] for row in POPULATION]
    np.testing.assert_allclose(scores, expected, rtol=1e-15)
    assert scores.dtype == np.float64
    assert np.ptp(scores) > 0.1  # the candidates do differ


def test_multiclass_accuracy_is_sklearns():
    labels, guess = [0, 3, 2, 2, 1], [0, 3, 1, 2, 0]
    assert accuracy(labels, guess) == accuracy_score(labels, guess) == 0.6


def test_undefined_f1_is_zero():
    assert f1([0, 0], [0, 0]) == f1_score([0, 0], [0, 0], zero_division=0) == 0.0


def test_all_yes_on_mrpc_is_the_published_constant():
    labels = [1] * 279 + [0] * 129  # MRPC's validation set
    assert round(100 * constant_score(labels, 1, f1), 2) == 81.22
    assert constant_score(labels, 0, f1) == 0.0
    assert majority_score(labels, f1) == constant_score(labels, 1, f1)
    assert majority_score(labels, accuracy) == 279 / 408


def test_majority_is_the_most_frequent_class():
    assert majority_score([2, 0, 2, 1], accuracy) == 0.5


def test_of_equally_frequent_classes_the_lowest_is_the_majority():
    assert majority_score([1, 0, 1, 0], f1) == constant_score([1, 0, 1, 0], 0, f1) == 0.0


@pytest.mark.parametrize("metric", METRICS.values())
@pytest.mark.parametrize("guess", [[1], [1, 0], 1])
def test_unequal_lengths_do_not_broadcast(metric, guess):
    with pytest.raises(ValueError, match=r"Expected labels \(N,\) and predictions \(\.\.\., N\)"):
        metric([1, 0, 1], guess)
