"""The training loop, on a linear classifier whose training can be written down."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dfolora.data import Batch
from dfolora.errors import UserError
from dfolora.methods import FewShotData, TrainingSpec
from dfolora.methods.gradient import Attached
from dfolora.methods.gradient.training import Training, all_logits, readers
from dfolora.seeding import stream
from tests.conftest import random_batch

WIDTH, CLASSES = 6, 3


def features(batch: Batch) -> torch.Tensor:
    """A random vector a row, the same for the same tokens."""
    seeds = (batch.input_ids * batch.attention_mask).sum(-1).tolist()
    draws = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


class Linear:
    """A linear map, what it was asked for, and a fault that it can be given."""

    def __init__(self, fails=lambda number: False, new_head=False, scale=1.0):
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH, generator=generator))
        self.asked = []
        self._fails = fails
        self._scale = scale
        self.attached = Attached(
            parameters={"weight": self.weight}, reader=self.reader, new_head=new_head
        )

    def reader(self, batch):
        inputs = features(batch) * self._scale

        def read(rows):
            if torch.is_grad_enabled():
                self.asked.append(rows.tolist())
                if self._fails(len(self.asked)):
                    return inputs[rows] @ self.weight.T * torch.nan
            return inputs[rows] @ self.weight.T

        return read


def data_of(*, seed=1, dev_labels=None) -> FewShotData:
    train = random_batch([9, 4, 11, 7, 8, 5, 13, 6, 7, 12], [0] * 10, seed=seed)
    dev = random_batch([7, 3, 10, 7, 5, 9, 8], [0] * 7, seed=seed + 1)
    if dev_labels is not None:
        dev.labels[:] = dev_labels
    return FewShotData(train=train, dev=dev, label_ids=torch.tensor([5, 6, 7]), metric="accuracy")


def spec_of(**changes) -> TrainingSpec:
    given = {"learning_rates": [0.1], "epochs": 4, "batch_size": 4, "dev_every": 2}
    return TrainingSpec(**given | changes)


def trained(linear, spec, data=None, seed=0):
    return list(Training(linear.attached, data or data_of(), spec, seed, tokens=30))


def by_hand(spec, rate, data, seed=0):
    """AdamW by torch's documentation, without its optimizer: weights after each epoch, losses."""
    weight, inputs, labels = (
        Linear().weight.detach().clone(),
        features(data.train),
        data.train.labels,
    )
    mean, square, step = torch.zeros_like(weight), torch.zeros_like(weight), 0
    rng, weights, losses = stream(seed, "batches"), [], []
    for _ in range(spec.epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), spec.batch_size):
            rows = torch.from_numpy(order[start : start + spec.batch_size])
            probabilities = (inputs[rows] @ weight.T).softmax(-1)
            gold = functional.one_hot(labels[rows], CLASSES)
            losses.append(-(probabilities * gold).sum(-1).log().mean().item())
            gradient = (probabilities - gold).T @ inputs[rows] / len(rows)
            gradient *= min(1.0, spec.clip / gradient.norm().item())
            step += 1
            weight *= 1 - rate * spec.weight_decay
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
            weight = weight - rate * mean / (1 - 0.9**step) / scale
        weights.append(weight.clone())
    return weights, losses


@pytest.mark.parametrize("changes", [{}, {"clip": 0.05}, {"weight_decay": 0.3}, {"batch_size": 16}])
def test_training_is_adamw_written_out(changes):
    spec, data = spec_of(**changes), data_of()
    linear = Linear()
    history = trained(linear, spec, data)
    weights, losses = by_hand(spec, 0.1, data)
    torch.testing.assert_close(linear.weight.detach(), weights[-1], rtol=0, atol=1e-4)  # float32
    got = np.concatenate([progress.step.losses for progress in history])
    np.testing.assert_allclose(got, losses, atol=1e-4)
    assert history[-1].step.loss < history[0].step.loss - 0.05
    assert np.ptp(losses) > 0.1


def test_epochs_are_counted_and_described():
    history = trained(Linear(), spec_of(learning_rates=[0.1, 0.01], epochs=2))
    steps = [progress.step for progress in history]
    assert [step.calls for step in steps] == [3, 6, 9, 12]
    assert spec_of(learning_rates=[0.1, 0.01], epochs=2).budget == 12
    assert [step.step_size for step in steps] == [0.1, 0.1, 0.01, 0.01]
    assert (steps[1].learning_rate, steps[1].epoch) == (0.1, 2)
    assert all(len(step.losses) == 3 for step in steps)  # 4 + 4 + 2 rows
    assert steps[0].loss == pytest.approx(np.average(steps[0].losses, weights=[4, 4, 2]))


def test_each_epoch_takes_every_row_once_in_an_order_of_its_own_and_each_rate_the_same_orders():
    linear = Linear()
    trained(linear, spec_of(learning_rates=[0.1, 0.01], epochs=3))
    epochs = [list(chain(*linear.asked[first : first + 3])) for first in range(0, 18, 3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[:3] == epochs[3:]
    other = Linear()
    trained(other, spec_of(epochs=1), seed=1)
    assert list(chain(*other.asked)) != epochs[0]


def test_each_rate_starts_anew():
    both = trained(Linear(), spec_of(learning_rates=[0.3, 0.02]))
    alone = trained(Linear(), spec_of(learning_rates=[0.02]))
    for progress, expected in zip(both[4:], alone, strict=True):
        assert progress.step.losses.tolist() == expected.step.losses.tolist()
    assert both[0].step.losses.tolist() != alone[0].step.losses.tolist()


@pytest.mark.parametrize(
    ("epochs", "dev_every", "expected"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 7, [3])]
)
def test_dev_is_looked_at_after_these_epochs_and_at_the_start(epochs, dev_every, expected):
    spec = spec_of(epochs=epochs, dev_every=dev_every)
    looks = [look.calls // 3 for progress in trained(Linear(), spec) for look in progress.looks]
    assert looks == [0, *expected]
    headed = trained(Linear(new_head=True), spec)
    assert [look.calls // 3 for progress in headed for look in progress.looks] == expected


def test_looks_are_at_the_parameters_of_their_time():
    spec, data = spec_of(epochs=3, dev_every=1), data_of()
    weights, _ = by_hand(spec, 0.1, data)
    looks = [look for progress in trained(Linear(), spec, data) for look in progress.looks]
    inputs, labels = features(data.dev), data.dev.labels
    for look, weight in zip(looks[1:], weights, strict=True):
        logits = inputs @ weight.T
        assert look.score == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
        assert look.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-4)
        assert look.solution is None


def test_selection_goes_by_dev_alone_which_training_does_not_see():
    chosen, losses = [], []
    spec = spec_of(learning_rates=[0.1, 0.02], epochs=6, dev_every=1)
    for dev_labels in ([0, 1, 2, 0, 1, 2, 0], [2, 2, 1, 1, 0, 0, 1], [1, 0, 0, 2, 2, 1, 2]):
        history = trained(Linear(), spec, data_of(dev_labels=torch.tensor(dev_labels)))
        looks = [look for progress in history for look in progress.looks]
        best = min(
            looks, key=lambda look: (-look.score, look.loss)
        )  # min takes the first of equals
        selected = history[-1].selected
        assert (selected.calls, selected.score, selected.loss) == (
            best.calls,
            best.score,
            best.loss,
        )
        chosen.append(selected.calls)
        losses.append([progress.step.losses.tolist() for progress in history])
    assert losses[0] == losses[1] == losses[2]
    assert len(set(chosen)) > 1


def test_selected_tensors_are_those_looked_at_and_their_rate():
    spec, data = spec_of(learning_rates=[0.01, 0.1], epochs=4, dev_every=1), data_of()
    history = trained(Linear(), spec, data)
    selected = history[-1].selected
    assert selected.calls > 0
    rate = spec.learning_rates[selected.calls > 12]
    weights, _ = by_hand(spec, rate, data)
    expected = weights[(selected.calls // 3 - 1) % 4]
    torch.testing.assert_close(selected.solution.tensors["weight"], expected, rtol=0, atol=1e-4)
    assert selected.solution.learning_rate == rate
    for before, after in pairwise(history):
        ranks = [(-p.selected.score, p.selected.loss) for p in (before, after)]
        assert ranks[1] <= ranks[0]


def test_start_is_kept_where_nothing_beats_it():
    linear = Linear()
    start = linear.weight.detach().clone()
    right = (features(data_of().dev) @ start.T).argmax(-1)
    history = trained(linear, spec_of(learning_rates=[3.0]), data_of(dev_labels=right))
    selected = history[-1].selected
    assert (selected.calls, selected.solution.learning_rate) == (0, 0.0)
    assert torch.equal(selected.solution.tensors["weight"], start)
    assert not torch.equal(linear.weight, start)


def test_first_of_equal_looks_is_kept():
    """With a rate too small to change a single weight every look is the same."""
    history = trained(Linear(), spec_of(learning_rates=[1e-30, 1e-31], dev_every=1))
    assert len({look.loss for progress in history for look in progress.looks}) == 1
    assert history[-1].selected.calls == 0
    headed = trained(Linear(new_head=True), spec_of(learning_rates=[1e-30, 1e-31], dev_every=1))
    assert headed[-1].selected.calls == 3


def test_rate_that_diverges_stops_and_the_others_go_on():
    history = trained(
        Linear(lambda number: number == 5), spec_of(learning_rates=[0.3, 0.02], dev_every=1)
    )
    steps = [progress.step for progress in history]
    assert [step.learning_rate for step in steps] == [0.3, 0.3, 0.02, 0.02, 0.02, 0.02]
    assert np.isfinite(steps[1].losses[:1]).all()
    assert steps[1].losses[1:].tolist() == [np.inf]
    assert steps[1].loss == np.inf
    assert history[1].looks == []
    assert [step.calls for step in steps] == [3, 6, 9, 12, 15, 18]
    alone = trained(Linear(), spec_of(learning_rates=[0.02]))
    assert steps[2].losses.tolist() == alone[0].step.losses.tolist()


def test_update_to_no_number_is_seen_by_dev_and_never_selected():
    """A step so large that the logits overflow; a single batch, so that no further loss tells."""
    spec = spec_of(learning_rates=[1e37, 0.02], epochs=2, batch_size=16, dev_every=1)
    history = trained(Linear(new_head=True, scale=1e3), spec)
    assert [progress.step.learning_rate for progress in history] == [1e37, 0.02, 0.02]
    assert history[0].looks == []
    assert history[0].selected is None
    assert history[-1].selected.solution.learning_rate == 0.02


def test_gradient_of_no_number_makes_no_update():
    class Broken(Linear):
        def reader(self, batch):
            inputs = features(batch)
            # The square root's slope at 0 is infinite, its value is not.
            return lambda rows: inputs[rows] @ self.weight.T + (self.weight.sum() * 0).sqrt()

    broken = Broken()
    start = broken.weight.detach().clone()
    with pytest.raises(UserError, match="diverged"):
        trained(broken, spec_of())
    assert torch.equal(broken.weight, start)


def test_all_rates_diverging_is_told():
    linear = Linear(lambda _number: True)
    with pytest.raises(UserError, match=r"every learning rate of \[0.3, 0.1\].*Choose lower"):
        trained(linear, spec_of(learning_rates=[0.3, 0.1]))


def test_pieces_come_back_in_the_batchs_order(batch):
    linear = Linear()
    expected = features(batch) @ linear.weight.T
    for tokens in (1, 25, 1000):
        got = all_logits(readers(linear.attached, batch, tokens))
        torch.testing.assert_close(got, expected)
        assert not got.requires_grad


MISTAKES = [
    ({"learning_rates": []}, r"learning_rates=\[\] must be a list of numbers"),
    ({"learning_rates": 0.1}, r"learning_rates=0.1 must be a list"),
    ({"learning_rates": [0.1, -1]}, r"learning_rate=-1 must be a positive number"),
    ({"learning_rates": [0.1, "a"]}, r"learning_rate=a must be a positive number"),
    ({"learning_rates": [0.1, 0.1]}, r"learning_rates=\[0.1, 0.1\] repeats a number"),
    ({"epochs": 0}, r"training.epochs=0 must be a whole number, 1 or more"),
    ({"epochs": 1.5}, r"training.epochs=1.5 must be a whole number"),
    ({"batch_size": 0}, r"training.batch_size=0"),
    ({"dev_every": 0}, r"training.dev_every=0"),
    ({"weight_decay": -0.1}, r"training.weight_decay=-0.1 must be 0 or a positive number"),
    ({"clip": 0}, r"training.clip=0 must be a positive number"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_values_that_make_no_sense_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        spec_of(**changes).check()


def test_sound_values_pass():
    spec_of().check()
