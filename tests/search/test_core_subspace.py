"""The core subspace: its bases by an oracle on all tokens, its zero, its linearity, its export."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, TinyLoraConfig, get_peft_model

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.model import Backbone, Limits
from dfolora.model.quantize import quantize_layers
from dfolora.search.subspace import (
    CoreSubspace,
    CoreSubspaceSpec,
    LoraSubspaceSpec,
    ParameterSubspaceSpec,
    PromptSubspaceSpec,
)
from dfolora.search.subspace.core import signed
from tests.conftest import random_batch, tiny_model
from tests.emulation import emulated_cuda
from tests.reference.one_candidate import answer_logits

ALL_MAPS = ("q", "k", "v", "o")
FAMILIES = ["roberta", "gpt2", "llama", "gpt_neox", "gemma2"]
BASES = ["activation", "weight", "random"]
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32, other summation order, logits up to 10


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def last():
    """Rows that end at their answers: a causal model reads every token."""
    lengths = [19, 14, 12, 17, 19, 14, 13, 11]
    return random_batch(lengths, [length - 1 for length in lengths])


def built(backbone, batch, seed=0, **options):
    spec = CoreSubspaceSpec(**options)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed)


def logits_of(backbone, batch, label_ids, lora):
    return Engine(backbone, batch, label_ids)({lora.layer: lora})[0]


def seen(family, batch):
    """X and Y of every map at real tokens, ``(M, d)``, from the padded forward of transformers."""
    backbone = Backbone(tiny_model(family))
    kept, hooks = {}, []
    real = batch.attention_mask.bool()
    for index, layer in enumerate(backbone.layers):
        for name, linear in layer.maps.items():

            def see(_module, given, output, key=(index, name), columns=linear.columns):
                kept[key] = given[0][real].double(), output[real][:, columns].double()

            hooks.append(linear.module.register_forward_hook(see))
    with torch.no_grad():
        backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return kept


def sides(subspace, layer, name):
    """A and B of one map, which R = I shows."""
    rank = subspace.spec.rank
    z = np.tile(np.eye(rank).flatten(), len(subspace.spec.targets))
    factors = subspace.intervention(layer, z[None]).factors[name]
    return factors.down[0].double(), factors.up[0].double()


def test_activation_basis_is_that_of_a_plain_svd_of_all_tokens(family, last):
    subspace = built(Backbone(tiny_model(family)), last, rank=3, targets=ALL_MAPS, alpha=0.5)
    for (layer, name), (x, y) in seen(family, last).items():
        down, up = sides(subspace, layer, name)
        centred, changed = x - x.mean(0), y - y.mean(0)
        _u, of_x, right = torch.linalg.svd(centred, full_matrices=False)
        _u, of_y, right_y = torch.linalg.svd(changed, full_matrices=False)
        root = np.sqrt(len(x))
        expected = signed(right[:3].T) * (root / of_x[:3])
        # Float32 hidden states, and neighbouring singular values that differ by some percent.
        torch.testing.assert_close(down, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
        expected = 0.5 * (of_y[:3, None] / root) * signed(right_y[:3].T).T
        torch.testing.assert_close(up, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
        stds = (x @ down).std(0, correction=0)
        torch.testing.assert_close(stds, torch.ones_like(stds), rtol=0, atol=1e-4)


@pytest.mark.parametrize("basis", ["weight", "random"])
@pytest.mark.parametrize("whiten", [True, False])
def test_other_bases_have_the_same_size(family, last, basis, whiten):
    backbone = Backbone(tiny_model(family))
    options = {"rank": 3, "targets": ALL_MAPS}
    subspace = built(backbone, last, basis=basis, whiten=whiten, **options)
    reference = built(backbone, last, **options)
    for (layer, name), (x, _y) in seen(family, last).items():
        down, up = sides(subspace, layer, name)
        stds = (x @ down).std(0, correction=0)
        if whiten:
            torch.testing.assert_close(stds, torch.ones_like(stds), rtol=0, atol=1e-4)
        assert stds.square().mean().item() == pytest.approx(1, abs=1e-4)
        size = sides(reference, layer, name)[1].norm().item()
        assert up.norm().item() == pytest.approx(size, rel=1e-5)
        rows = up @ up.T
        torch.testing.assert_close(rows, rows[0, 0] * torch.eye(3).double(), rtol=0, atol=1e-5)
        if basis == "weight" and not whiten:  # LoRA-XS's U Sigma and V', but for their scales
            weight = backbone.layers[layer].maps[name].weight.double()
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            product = (left[:, :3] * values[:3]) @ right[:3]
            ours = down @ up
            torch.testing.assert_close(
                ours / ours.norm(), product / product.norm(), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("options", [{}, {"diagonal": True}, {"numbers": 5}], ids=str)
def test_zero_is_the_base_model_exactly(family, last, label_ids, options):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, last, targets=ALL_MAPS, **options)
    size = subspace.spec.size(backbone.architecture)
    assert size == {"{}": 16, "{'diagonal': True}": 8, "{'numbers': 5}": 5}[str(options)]
    base = Engine(backbone, last, label_ids)({})[0]
    changed = subspace.intervention(1, np.zeros((1, size)))
    assert torch.equal(logits_of(backbone, last, label_ids, changed), base)
    assert not subspace.incumbents(np.zeros((3, size)))
    moved = subspace.intervention(1, np.ones((1, size)))
    assert (logits_of(backbone, last, label_ids, moved) - base).abs().max() > 1e-3


@pytest.mark.parametrize("basis", BASES)
def test_z_and_its_mirror_image_differ_and_the_product_is_linear(last, label_ids, basis):
    backbone = Backbone(tiny_model("llama"))
    subspace = built(backbone, last, basis=basis)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 1, 8))
    plus, minus = (
        logits_of(backbone, last, label_ids, subspace.intervention(1, z)) for z in (one, -one)
    )
    assert (plus - minus).abs().max() > 1e-3

    def product(z):
        factors = subspace.intervention(1, z).factors["k"]
        return factors.down[0] @ factors.up[0]

    torch.testing.assert_close(product(3 * one + other), 3 * product(one) + product(other))


def test_full_rank_reaches_any_update(last):
    """R = A^+ D B^+ makes A R B the update D, if neither side is singular."""
    backbone = Backbone(tiny_model("gpt2"))  # whose maps are square
    subspace = built(backbone, last, rank=32, basis="random", targets=("q",))
    down, up = sides(subspace, 1, "q")
    wanted = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double()
    core = torch.linalg.pinv(down) @ wanted @ torch.linalg.pinv(up)
    factors = subspace.intervention(1, core.numpy().reshape(1, -1)).factors["q"]
    got = factors.down[0] @ factors.up[0]
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-3)  # float32, ill-conditioned


def test_peft_gives_our_logits(family, last, label_ids, tmp_path):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, last, targets=ALL_MAPS)
    solution = np.random.default_rng(0).normal(size=(3, 16))
    subspace.save(tmp_path, backbone, solution)
    ours = Engine(backbone, last, label_ids)(subspace.incumbents(solution))[0]
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    theirs = answer_logits(loaded, last, label_ids)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (theirs - answer_logits(tiny_model(family), last, label_ids)).abs().max() > 1e-2


def test_basis_does_not_depend_on_the_order_of_rows_or_on_how_they_are_packed(last, monkeypatch):
    backbone = Backbone(tiny_model("llama"))
    order = torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])
    shuffled = replace(
        last, input_ids=last.input_ids[order], attention_mask=last.attention_mask[order]
    )
    whole, permuted = built(backbone, last), built(backbone, shuffled)
    monkeypatch.setattr("dfolora.search.subspace.statistics.STATISTICS_TOKENS", 40)
    for other in (permuted, built(backbone, last)):
        for layer in range(3):
            for ours, theirs in zip(
                sides(whole, layer, "k"), sides(other, layer, "k"), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * ours.abs().max())


def test_unit_matrices_make_tiny_lora_the_core_itself(last):
    backbone = Backbone(tiny_model("roberta"))
    core = built(backbone, last)
    tiny = CoreSubspace(
        core.spec, core._sides, mixings=[torch.eye(8)] * 3, dtype=backbone.dtype
    )  # fmt: skip
    z = np.random.default_rng(0).normal(size=(2, 8))
    for name, factors in core.intervention(1, z).factors.items():
        assert torch.equal(tiny.intervention(1, z).factors[name].down, factors.down)


PAIRS = {"roberta": {"q": "query", "k": "key"}, "llama": {"q": "q_proj", "k": "k_proj"}}
"""Modules of q and k that PEFT adapts one by one."""


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize(("vectors", "tying"), [(1, 1.0), (None, 0.5)])
def test_tiny_lora_is_pefts(family, last, label_ids, vectors, tying):
    """With PEFT's matrices P, and its singular vectors in place of ours, which span the same.

    Its A is sqrt(S) V' and its B U sqrt(S), of weights that stand transposed there.
    """
    modules = [*PAIRS[family].values()]
    config = TinyLoraConfig(r=2, u=5, weight_tying=tying, target_modules=modules)
    theirs: Any = get_peft_model(tiny_model(family), config).eval()
    shared = theirs.base_model.tinylora_v["default"]
    v = np.random.default_rng(0).normal(size=(vectors or 3, 5))
    for group, own in shared.items():
        own.data.copy_(torch.from_numpy(v[int(group)]))
    assert len(shared) == len(v)
    backbone = Backbone(tiny_model(family))
    options = {"basis": "weight", "whiten": False, "numbers": 5, "vectors": vectors}
    bases = built(backbone, last, **options | {"numbers": None})
    adapted: dict[str, Any] = {
        at: each for at, each in theirs.named_modules() if hasattr(each, "tinylora_P")
    }
    mixings = []
    for layer in range(3):
        mixed = []
        for name, called in PAIRS[family].items():
            (module,) = (
                each for at, each in adapted.items() if f".{layer}." in at and called in at
            )
            down, up = (side.double() for side in sides(bases, layer, name))
            a, p, b = (
                getattr(module, f"tinylora_{part}")["default"].double() for part in ("A", "P", "B")
            )
            left, right = torch.linalg.pinv(down) @ a.T, b.T @ torch.linalg.pinv(up)
            torch.testing.assert_close(down @ left, a.T, rtol=0, atol=1e-4)  # the same span
            torch.testing.assert_close(right @ up, b.T, rtol=0, atol=1e-4)
            mixed.append((left @ p.mT @ right).flatten(1))
        mixings.append(torch.cat(mixed, dim=1).float())
    ours = CoreSubspace(
        CoreSubspaceSpec(**options), bases._sides, mixings=mixings, dtype=backbone.dtype,
        blocks=vectors,
    )  # fmt: skip
    expected = answer_logits(theirs, last, label_ids)
    got = Engine(backbone, last, label_ids)(ours.incumbents(v))[0]
    torch.testing.assert_close(got, expected, **CLOSE)
    assert (got - answer_logits(tiny_model(family), last, label_ids)).abs().max() > 1e-2


@pytest.mark.parametrize("vectors", [1, 2, 3])
@pytest.mark.parametrize("numbers", [None, 6])
def test_layers_that_share_a_vector_are_those_of_one_each_with_equal_ones(
    family, last, label_ids, vectors, numbers
):
    backbone = Backbone(tiny_model(family))
    apart = built(backbone, last, numbers=numbers)
    tied = built(backbone, last, numbers=numbers, vectors=vectors)
    size = tied.spec.size(backbone.architecture)
    assert tied.spec.blocks(backbone.architecture) == tied.blocks == vectors
    layers = {1: [[0, 1, 2]], 2: [[0], [1, 2]], 3: [[0], [1], [2]]}[vectors]
    z = np.random.default_rng(0).normal(size=(vectors, size))
    spread = np.repeat(z, [*map(len, layers)], axis=0)
    engine = Engine(backbone, last, label_ids)
    assert torch.equal(engine(tied.incumbents(z)), engine(apart.incumbents(spread)))
    for block, own in enumerate(layers):
        assert list(tied.interventions(block, z[:1])) == own
        assert set(tied.incumbents(z, without=[block])) == {0, 1, 2} - {*own}
    assert tied.incumbents(z)[2] is tied.incumbents(z.copy())[2]
    assert not tied.incumbents(0 * z)


def test_peft_gives_the_logits_of_layers_that_share_a_vector(last, label_ids, tmp_path):
    backbone = Backbone(tiny_model("llama"))
    subspace = built(backbone, last, basis="weight", whiten=False, numbers=13, vectors=1)
    solution = 3 * np.random.default_rng(0).normal(size=(1, 13))
    subspace.save(tmp_path, backbone, solution)
    ours = Engine(backbone, last, label_ids)(subspace.incumbents(solution))[0]
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    torch.testing.assert_close(ours, answer_logits(loaded, last, label_ids), **CLOSE)
    assert (ours - answer_logits(tiny_model("llama"), last, label_ids)).abs().max() > 1e-2


@pytest.mark.parametrize("vectors", [1, 2, None])
def test_as_many_numbers_as_are_allowed_are_free_and_no_more_can_be(last, vectors):
    """The rank of the map from u numbers to the R's of the layers that share them, q's and k's."""
    backbone = Backbone(tiny_model("roberta"))
    most = {1: 24, 2: 8, None: 8}[vectors]  # r^2 times the maps of the fewest layers that share
    subspace = built(backbone, last, numbers=most, vectors=vectors)
    of_first = torch.cat(
        [subspace._mixings[layer] for layer in subspace.interventions(0, np.ones((1, most)))], dim=1
    )
    assert of_first.shape == (most, most)
    assert torch.linalg.matrix_rank(of_first.double()) == most


def test_mixed_entries_have_variance_one(last):
    """So that alpha means the same with and without mixing."""
    spec = CoreSubspaceSpec(rank=16, numbers=400)
    mixing = spec._mixing(0, 1)
    assert mixing.shape == (400, 512)
    assert mixing.square().sum(0).mean().item() == pytest.approx(1, rel=0.01)  # 200,000 draws
    assert not torch.equal(mixing, spec._mixing(0, 2))


def test_diagonal_is_the_full_core_of_a_diagonal_r(last):
    backbone = Backbone(tiny_model("roberta"))
    full, diagonal = built(backbone, last), built(backbone, last, diagonal=True)
    z = np.array([[1.0, 2.0, 3.0, 4.0]])
    spread = np.array([[1.0, 0, 0, 2.0, 3.0, 0, 0, 4.0]])
    for name in ("q", "k"):
        ours, theirs = diagonal.intervention(1, z), full.intervention(1, spread)
        assert torch.equal(ours.factors[name].down, theirs.factors[name].down)


def test_directions_without_spread_are_dropped_and_told(label_ids):
    """Five tokens spread along four directions at most."""
    backbone, few = Backbone(tiny_model("roberta")), random_batch([5], [2])
    with pytest.warns(RuntimeWarning, match=r"do not spread along \d+ of the maps' 36 directions"):
        subspace = built(backbone, few, rank=6)
    down, _up = sides(subspace, 1, "q")
    assert down[:, :4].any(0).all()
    assert not down[:, 4:].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(backbone, few, rank=2)


@pytest.mark.parametrize("basis", BASES)
def test_streamed_and_8_bit_layers_have_it_too(last, label_ids, basis):
    plain = tiny_model("gpt2")
    expected = built(Backbone(plain), last, basis=basis)
    streamed = built(Backbone(tiny_model("gpt2"), Limits(stream=True)), last, basis=basis)
    quantized = tiny_model("gpt2")
    quantize_layers(quantized)
    rounded = built(Backbone(quantized), last, basis=basis)
    for ours, same, near in zip(
        *(sides(each, 1, "k") for each in (expected, streamed, rounded)), strict=True
    ):
        assert torch.equal(ours, same)
        cosine = torch.cosine_similarity(ours.flatten(), near.flatten(), 0)
        assert cosine > 0.98


@pytest.mark.parametrize("basis", BASES)
def test_on_a_gpu_it_is_the_cpus(last, basis):
    here = built(Backbone(tiny_model("roberta")), last, basis=basis, targets=ALL_MAPS, numbers=6)
    z = np.random.default_rng(0).normal(size=(2, 6))
    with emulated_cuda() as gpu:
        backbone = Backbone(tiny_model("roberta").to("cuda"))
        there = built(backbone, last, basis=basis, targets=ALL_MAPS, numbers=6)
        assert gpu.kernels.total() > 100
        found = there.intervention(1, z).factors
        assert {str(each.down.device) for each in found.values()} == {"cuda:0"}
        found = {name: (each.down.cpu(), each.up.cpu()) for name, each in found.items()}
    for name, factors in here.intervention(1, z).factors.items():
        torch.testing.assert_close(found[name][0], factors.down, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[name][1], factors.up, rtol=1e-3, atol=1e-4)


def test_specs_say_whether_they_are_even():
    assert LoraSubspaceSpec().even
    others = LoraSubspaceSpec(factors="up"), CoreSubspaceSpec(), ParameterSubspaceSpec()
    assert not any(spec.even for spec in (*others, PromptSubspaceSpec()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be a whole number, 1 or more"),
        ({"rank": 17}, "rank=17 must lie between 1 and 16"),
        ({"basis": "inputs"}, "Unknown subspace.basis=inputs; choose one of activation, weight"),
        ({"alpha": 0}, "subspace.alpha=0 must be a positive number"),
        ({"whiten": 1}, "subspace.whiten must be true or false"),
        ({"diagonal": "no"}, "subspace.diagonal must be true or false"),
        ({"numbers": 0}, "subspace.numbers=0 must be a whole number"),
        ({"numbers": 9}, r"subspace.numbers=9 is more than the 8 entries .* rank=2 with q, k"),
        ({"numbers": 5, "diagonal": True}, "more than the 4 entries"),
        ({"vectors": 0}, "subspace.vectors=0 must be a whole number, 1 or more"),
        ({"vectors": 4}, "subspace.vectors=4 is more than the 3 layers that there are to share"),
        ({"numbers": 9, "vectors": 2}, "numbers=9 is more than the 8 entries .* of a layer have"),
        ({"numbers": 25, "vectors": 1}, "than the 24 entries .* of 3 layers, which share a vector"),
        ({"numbers": 13, "vectors": 1, "targets": ["q"]}, "than the 12 entries .* rank=2 with q:"),
        ({"targets": ("q", "z")}, "choose a non-empty subset of q, k, v, o"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    architecture = Backbone(tiny_model("llama")).architecture
    with pytest.raises(UserError, match=message):
        CoreSubspaceSpec(**options).check(architecture)


def test_largest_entry_of_a_direction_is_positive():
    columns = torch.tensor([[1.0, -0.5], [-3.0, 2.0], [2.0, 0.0]])
    expected = torch.tensor([[-1.0, -0.5], [3.0, 2.0], [-2.0, 0.0]])
    assert torch.equal(signed(columns), expected)
