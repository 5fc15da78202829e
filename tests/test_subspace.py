"""The random map from z to LoRA factors: its zero, its symmetry, its laws."""

import numpy as np
import pytest
import torch

from dfolora.errors import UserError
from dfolora.seeding import stream
from dfolora.subspace import SubspaceSpec, clipped_std
from tests.reference.one_candidate import answer_logits

DIM = 96
ALL_MAPS = ("q", "k", "v", "o")


def build(backbone, batch, seed=0, **options):
    spec = SubspaceSpec(**{"dim": DIM} | options)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed)


def logits_of(backbone, batch, label_ids, *loras):
    with backbone.with_lora(loras):
        return answer_logits(backbone.model, batch, label_ids)


@pytest.mark.parametrize("targets", [("q", "k"), ALL_MAPS], ids="".join)
def test_zero_is_the_base_model_exactly(backbone, batch, label_ids, targets):
    subspace = build(backbone, batch, targets=targets)
    adapted = logits_of(backbone, batch, label_ids, subspace.intervention(1, np.zeros((1, DIM))))
    assert torch.equal(adapted, logits_of(backbone, batch, label_ids))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_objective_is_even_around_the_base_model(backbone, batch, label_ids, layer):
    """f(z) = f(-z): mirrored samples and central differences around 0 would see nothing."""
    subspace = build(backbone, batch)
    z = np.random.default_rng(0).normal(size=(1, DIM))
    plus, minus = (
        logits_of(backbone, batch, label_ids, subspace.intervention(layer, v)) for v in (z, -z)
    )
    assert torch.equal(plus, minus)
    assert (plus - logits_of(backbone, batch, label_ids)).abs().max() > 1e-4


def test_factors_are_the_projected_parts_in_order(backbone, batch):
    subspace = build(backbone, batch, targets=("q", "o"), rank=3, scaling=0.5, seed=5)
    z = np.random.default_rng(1).normal(size=(2, DIM))
    lora = subspace.intervention(2, z)
    projections = subspace._projections[2]
    for index, name in enumerate(("q", "o")):
        part = DIM // 4
        z_a = z[:, 2 * index * part : (2 * index + 1) * part]
        z_b = z[:, (2 * index + 1) * part : (2 * index + 2) * part]
        down = (z_a @ projections.down[index].numpy()).reshape(2, 32, 3)
        up = 0.5 * (z_b @ projections.up[index].numpy()).reshape(2, 3, 32)
        np.testing.assert_allclose(lora.factors[name].down, down, rtol=1e-5, atol=1e-6)  # float32
        np.testing.assert_allclose(lora.factors[name].up, up, rtol=1e-5, atol=1e-6)


def test_projections_follow_equation_6(backbone, batch):
    """Eq. 6: alpha * std_l / (sqrt(d) * sigma) for A and B, with real tokens' hidden states."""
    subspace = build(backbone, batch, alpha=0.5, sigma=2.0, targets=ALL_MAPS)
    states = backbone.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    real = batch.attention_mask.bool()
    stds = [clipped_std(states[layer][real]) for layer in range(3)]
    stds[0] = backbone.embedding.std().item()
    for layer, std in enumerate(stds):
        expected = 0.5 * std / (np.sqrt(DIM) * 2.0)
        for drawn in (subspace._projections[layer].down, subspace._projections[layer].up):
            # 4 * 12 * 64 normal numbers: the standard deviation's own error is about 1.3 %.
            assert drawn.std().item() == pytest.approx(expected, rel=0.05)
            assert drawn.mean().item() == pytest.approx(0, abs=0.05 * expected)


def test_released_law_keeps_the_linear_default_for_b_above_layer_0(backbone, batch):
    ours = build(backbone, batch)
    released = build(backbone, batch, b_projection="linear_default")
    bound = 1 / np.sqrt(DIM / 4)
    assert torch.equal(ours._projections[0].up, released._projections[0].up)
    for layer in (1, 2):
        assert torch.equal(ours._projections[layer].down, released._projections[layer].down)
        up = released._projections[layer].up
        assert 0.98 * bound < up.abs().max() <= bound
        assert up.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.05)  # uniform


def test_padding_counts_only_in_the_released_statistics(backbone, batch):
    longer = {
        "input_ids": torch.nn.functional.pad(batch.input_ids, (0, 20), value=1),
        "attention_mask": torch.nn.functional.pad(batch.attention_mask, (0, 20)),
    }

    def scale(statistics, ids, mask):
        spec = SubspaceSpec(dim=DIM, statistics=statistics)
        return spec.build(backbone, ids, mask, 0)._projections[1].down.std().item()

    short = (batch.input_ids, batch.attention_mask)
    real = [scale("real_tokens", *short), scale("real_tokens", *longer.values())]
    padded = [scale("all_positions", *short), scale("all_positions", *longer.values())]
    assert real[0] == pytest.approx(real[1], rel=1e-5)
    assert abs(padded[0] / padded[1] - 1) > 1e-3


def test_clipped_std_is_five_rounds_of_three_sigma_clipping():
    values = stream(0, "test").standard_t(2, size=20_000)
    expected = values.copy()
    for _ in range(5):
        mean, std = expected.mean(), expected.std(ddof=1)
        expected = np.clip(expected, mean - 3 * std, mean + 3 * std)
    got = clipped_std(torch.from_numpy(values))
    assert got == pytest.approx(expected.std(ddof=1), rel=1e-4)  # float32 sums
    assert got < 0.9 * values.std(ddof=1)


def test_same_seed_same_map_and_layers_differ(backbone, batch):
    first, again, other = (build(backbone, batch, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first._projections[1].down, again._projections[1].down)
    assert not torch.allclose(first._projections[1].down, other._projections[1].down)
    ratio = first._projections[1].down / first._projections[2].down
    assert ratio.std() > 0.1  # not one draw, rescaled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 502}, r"dim=502 does not divide into 4 .* legal dim is 500 or 504"),
        ({"dim": 2}, r"dim=2 does not divide into 4 .* legal dim is 4\."),
        ({"dim": 500, "targets": ("q", "k", "v")}, r"6 equal parts .* 498 or 504"),
        ({"rank": 0}, "rank=0 must be a whole number, 1 or more"),
        ({"rank": 33}, "rank=33 must lie between 1 and 32"),
        ({"alpha": 0.0}, "subspace.alpha=0.0 must be a positive number"),
        ({"sigma": float("inf")}, "optimizer.sigma=inf must be a positive number"),
        ({"targets": ("q", "z")}, "choose a non-empty subset of q, k, v, o"),
    ],
)
def test_what_makes_no_sense_is_refused(backbone, options, message):
    with pytest.raises(UserError, match=message):
        SubspaceSpec(**{"dim": DIM} | options).check(backbone.architecture)
