"""The random map from z to LoRA factors: its zero, its symmetry, its laws."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import LayerwiseSearch
from dfolora.model.backbone import Backbone
from dfolora.search.optim import Cma, Lotfwa, RandomSearch
from dfolora.search.subspace import LoraSubspaceSpec
from dfolora.search.subspace.statistics import clipped_std, layer_stds
from dfolora.seeding import stream
from tests.conftest import tiny_model
from tests.searching import DIM, some_solution

ALL_MAPS = ("q", "k", "v", "o")
CONF = Path(__file__).parents[2] / "conf"


def build(backbone, batch, seed=0, **options):
    spec = LoraSubspaceSpec(**{"dim": DIM} | options)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed)


def projections(subspace, layer, name):
    """The matrices of A and B of one map, read off the candidates 1 0 0 ..., 0 1 0 ..., ..."""
    factors = subspace.intervention(layer, np.eye(DIM)).factors[name]
    parts = 2 * len(subspace.spec.targets)
    first = 2 * list(subspace.spec.targets).index(name)
    down, up = (part.flatten(1).unflatten(0, (parts, -1)) for part in (factors.down, factors.up))
    mine = torch.arange(parts)
    assert not down[mine != first].any()  # each part of z is for one of them
    assert not up[mine != first + 1].any()
    return down[first], up[first + 1]


def logits_of(backbone, batch, label_ids, *loras):
    engine = Engine(backbone, batch, label_ids)
    return engine({lora.layer: lora for lora in loras})


def first_changes(method, backbone, batch):
    """What the first candidates of a search change in layer 0, each (P, ...)."""
    subspace = method.subspace.build(backbone, batch.input_ids, batch.attention_mask, 0)
    candidates = method.block_optimizer(0, backbone.architecture, 0).ask()
    change = subspace.intervention(0, candidates)
    if hasattr(change, "vectors"):
        return [change.vectors]
    return [part for pair in change.factors.values() for part in (pair.down, pair.up)]


def configured(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("run", ["prompt_tokens=10", *overrides]).method)


def assert_scaled(changes, reference, factor):
    for ours, theirs in zip(changes, reference, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-7)  # float32


@pytest.mark.parametrize("family", ["roberta"], indirect=True)
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("dfo_lora", name) for name in ("cma", "cma_diagonal", "cma_tpa", "fwa", "random")]
    + [("bbt", "cma"), ("bbtv2", "cma")],
)
def test_sigma_and_alpha_of_a_config_each_scale_the_first_step(backbone, batch, method, optimizer):
    chosen = f"method={method}", f"optimizer={optimizer}"
    alpha = "subspace.alpha" if method == "dfo_lora" else "method.subspace.alpha"
    default = first_changes(configured(*chosen, f"{alpha}=1"), backbone, batch)
    small = configured(*chosen, "optimizer.sigma=0.1", f"{alpha}=1")
    assert_scaled(first_changes(small, backbone, batch), default, 0.1)
    stretched = configured(*chosen, "optimizer.sigma=0.1", f"{alpha}=5")
    assert_scaled(first_changes(stretched, backbone, batch), default, 0.5)


@pytest.mark.parametrize("family", ["roberta"], indirect=True)
@pytest.mark.parametrize("optimizer", [Cma, Lotfwa, RandomSearch])
def test_sigma_and_alpha_of_the_library_each_scale_the_first_step(backbone, batch, optimizer):
    def changes(alpha, **options):
        method = LayerwiseSearch(
            subspace=LoraSubspaceSpec(alpha=alpha), optimizer=partial(optimizer, **options)
        )
        return first_changes(method, backbone, batch)

    assert_scaled(changes(1.0, sigma=0.1), changes(1.0), 0.1)
    assert_scaled(changes(5.0, sigma=0.1), changes(1.0), 0.5)


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
    for index, name in enumerate(("q", "o")):
        part = DIM // 4
        z_a = z[:, 2 * index * part : (2 * index + 1) * part]
        z_b = z[:, (2 * index + 1) * part : (2 * index + 2) * part]
        of_a, of_b = projections(subspace, 2, name)
        down = (z_a @ of_a.numpy()).reshape(2, 32, 3)
        up = (z_b @ of_b.numpy()).reshape(2, 3, 32)
        np.testing.assert_allclose(lora.factors[name].down, down, rtol=1e-5, atol=1e-6)  # float32
        np.testing.assert_allclose(lora.factors[name].up, up, rtol=1e-5, atol=1e-6)


def test_with_a_fixed_the_map_is_linear_and_z_and_its_mirror_image_differ(
    backbone, batch, label_ids
):
    subspace = build(backbone, batch, targets=("q", "v"), factors="up", scaling=0.5)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 1, DIM))
    base, zero, plus, minus = (
        logits_of(backbone, batch, label_ids, *loras)
        for loras in ([], *([subspace.intervention(1, z)] for z in (0 * one, one, -one)))
    )
    assert torch.equal(zero, base)
    assert (plus - minus).abs().max() > 1e-3
    ups, downs = (
        [getattr(subspace.intervention(1, z).factors["v"], part) for z in vectors]
        for part, vectors in (("up", (one, other, 3 * one + other)), ("down", (one, other)))
    )
    assert torch.equal(*downs)
    torch.testing.assert_close(ups[2], 3 * ups[0] + ups[1], rtol=1e-4, atol=1e-6)
    half = one.copy()
    half[:, : DIM // 2] = 0  # the first half is for q alone
    assert torch.equal(subspace.intervention(1, half).factors["v"].up, ups[0])
    assert not subspace.intervention(1, half).factors["q"].up.any()


def test_fixed_a_is_as_large_as_b_of_a_normal_z(backbone, batch):
    subspace = build(backbone, batch, factors="up", statistics="one", rank=16, alpha=0.5)
    z = np.random.default_rng(0).normal(size=(50, DIM))
    factors = subspace.intervention(1, z).factors["k"]
    # 512 entries of A; the entries of B share their few vectors z.
    assert factors.down[0].std().item() == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert factors.up.std().item() == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_scaling_is_in_b(backbone, batch):
    plain, scaled = (build(backbone, batch, scaling=factor) for factor in (1.0, 0.5))
    for name in ("q", "k"):
        (down, up), (same, half) = (projections(s, 1, name) for s in (plain, scaled))
        assert torch.equal(down, same)
        assert torch.equal(0.5 * up, half)


@pytest.mark.parametrize("statistics", ["real_tokens", "all_positions"])
def test_projections_follow_equation_6(backbone, batch, statistics):
    """Eq. 6 at sigma 1: alpha * std_l / sqrt(d) for A and B, with transformers' hidden states."""
    given = {"alpha": 0.5, "targets": ALL_MAPS, "statistics": statistics}
    subspace = build(backbone, batch, seed=3, **given)
    states = backbone.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    counted = batch.attention_mask.bool()
    if statistics == "all_positions":
        counted = torch.ones_like(counted)
    stds = [clipped_std(states[layer][counted]) for layer in range(3)]
    stds[0] = backbone.embedding.std().item()
    for layer, std in enumerate(stds):
        scale = 0.5 * std / np.sqrt(DIM)
        for name in ALL_MAPS:
            rng = stream(3, f"projection/{layer}/{name}")
            for drawn in projections(subspace, layer, name):
                normal = rng.standard_normal(tuple(drawn.shape), dtype=np.float32)
                # Float32 states; their standard deviation is summed in another order.
                np.testing.assert_allclose(drawn.numpy(), scale * normal, rtol=1e-5, atol=1e-9)


def test_scale_of_layer_0_is_that_of_the_words_as_the_model_takes_them(batch):
    """Gemma multiplies word embeddings by sqrt(H)."""
    backbone = Backbone(tiny_model("gemma2"))
    words = backbone.model.get_input_embeddings()
    std = next(layer_stds(backbone, batch.input_ids, batch.attention_mask, "real_tokens"))
    assert std == pytest.approx(words(torch.arange(words.num_embeddings)).std().item())


def test_scale_of_one_is_the_same_in_every_layer(backbone, batch):
    """RI of Table 4: Eq. 6 with a standard deviation of 1 for all."""
    subspace = build(backbone, batch, seed=3, alpha=0.5, statistics="one")
    for layer, name in itertools.product(range(3), ("q", "k")):
        rng = stream(3, f"projection/{layer}/{name}")
        for drawn in projections(subspace, layer, name):
            normal = rng.standard_normal(tuple(drawn.shape), dtype=np.float32)
            scale = 0.5 / np.sqrt(DIM)
            np.testing.assert_allclose(drawn.numpy(), scale * normal, rtol=1e-5, atol=1e-9)


def test_statistics_do_not_depend_on_how_rows_are_packed(backbone, batch, monkeypatch):
    whole = build(backbone, batch)
    monkeypatch.setattr("dfolora.search.subspace.statistics.STATISTICS_TOKENS", 20)
    parts = build(backbone, batch)
    for layer in range(3):
        for one, other in zip(
            projections(whole, layer, "q"), projections(parts, layer, "q"), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_released_law_keeps_the_linear_default_for_b_above_layer_0(backbone, batch):
    ours = build(backbone, batch)
    released = build(backbone, batch, b_projection="linear_default")
    bound = 1 / np.sqrt(DIM / 4)
    assert torch.equal(projections(ours, 0, "q")[1], projections(released, 0, "q")[1])
    for layer in (1, 2):
        (down, _), (same, up) = (projections(each, layer, "q") for each in (ours, released))
        assert torch.equal(down, same)
        assert 0.98 * bound < up.abs().max() <= bound
        # 24 * 64 uniform numbers: the standard deviation's own error is about 1 %.
        assert up.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_padding_counts_only_in_the_released_statistics(backbone, batch):
    longer = {
        "input_ids": torch.nn.functional.pad(batch.input_ids, (0, 20), value=1),
        "attention_mask": torch.nn.functional.pad(batch.attention_mask, (0, 20)),
    }

    def scale(statistics, ids, mask):
        spec = LoraSubspaceSpec(dim=DIM, statistics=statistics)
        return projections(spec.build(backbone, ids, mask, 0), 1, "q")[0].std().item()

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
    first, again, other = (
        projections(build(backbone, batch, seed=seed), 1, "q")[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    ratio = first / projections(build(backbone, batch, seed=3), 2, "q")[0]
    assert ratio.std() > 0.1  # not one draw, rescaled


def test_incumbents_are_the_interventions_of_the_rows(backbone, batch):
    subspace = build(backbone, batch)
    solution = some_solution()[0]
    incumbents = subspace.incumbents(solution)
    assert list(incumbents) == [0, 1, 2]
    for layer, incumbent in incumbents.items():
        assert (incumbent.layer, incumbent.population) == (layer, 1)
        expected = subspace.intervention(layer, solution[layer : layer + 1])
        for name, factors in expected.factors.items():
            assert torch.equal(incumbent.factors[name].down, factors.down)
            assert torch.equal(incumbent.factors[name].up, factors.up)


def test_incumbents_leave_out_zero_rows_and_the_one_named(backbone, batch):
    subspace = build(backbone, batch)
    solution = some_solution()[0]
    assert list(subspace.incumbents(solution, without=[1])) == [0, 2]
    solution[0] = 0
    assert list(subspace.incumbents(solution, without=[1])) == [2]
    assert subspace.incumbents(np.zeros((3, DIM))) == {}


def test_incumbents_are_the_same_objects_as_long_as_their_rows_are(backbone, batch):
    """By which an engine knows that what it has carried so far still holds."""
    subspace = build(backbone, batch)
    solution = some_solution()[0]
    first = subspace.incumbents(solution)
    again = subspace.incumbents(solution.copy(), without=[2])
    assert again[0] is first[0]
    assert again[1] is first[1]
    solution[1, 7] += 1e-9
    changed = subspace.incumbents(solution)
    assert changed[0] is first[0]
    assert changed[1] is not first[1]
    assert changed[2] is first[2]  # though it was left out in between


def test_incumbents_are_rounded_to_the_models_type(family, batch):
    backbone = Backbone(tiny_model(family).bfloat16())
    subspace = build(backbone, batch)
    solution = some_solution()[0]
    factors = subspace.incumbents(solution)[1].factors["q"]
    assert factors.down.dtype == factors.up.dtype == torch.bfloat16
    assert subspace.intervention(1, solution[1:2]).factors["q"].down.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 502}, r"dim=502 does not divide into 4 .* legal dim is 500 or 504"),
        ({"dim": 2}, r"dim=2 does not divide into 4 .* legal dim is 4\."),
        ({"dim": 500, "targets": ("q", "k", "v")}, r"6 equal parts .* 498 or 504"),
        ({"dim": 3, "factors": "up"}, r"2 equal parts \(one B for each of q, k\); .* is 2 or 4"),
        ({"factors": "down"}, "Unknown subspace.factors=down; choose one of both, up"),
        ({"rank": 0}, "rank=0 must be a whole number, 1 or more"),
        ({"rank": 33}, "rank=33 must lie between 1 and 32"),
        ({"alpha": 0.0}, "subspace.alpha=0.0 must be a positive number"),
        ({"alpha": float("inf")}, "subspace.alpha=inf must be a positive number"),
        ({"targets": ("q", "z")}, "choose a non-empty subset of q, k, v, o"),
    ],
)
def test_what_makes_no_sense_is_refused(backbone, options, message):
    with pytest.raises(UserError, match=message):
        LoraSubspaceSpec(**{"dim": DIM} | options).check(backbone.architecture)
