"""Uni-LoRA's map: an isometry, even, and all layers in one call."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, UniLoraConfig, get_peft_model

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.model import Backbone
from dfolora.search.evaluator import PopulationEvaluator
from dfolora.search.subspace import UniLoraSubspaceSpec
from tests.conftest import tiny_model
from tests.emulation import emulated_cuda
from tests.reference.one_candidate import answer_logits, merged_model

ALL_MAPS = ("q", "k", "v", "o")
DIM = 40
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32, other summation order


def built(backbone, batch, seed=0, **options):
    spec = UniLoraSubspaceSpec(**{"dim": DIM, "alpha": 2.0} | options)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed)


def entries_of(subspace, candidates):
    """All entries of A and B, ``(P, D)``, float64."""
    changed = subspace.interventions(0, candidates)
    return torch.cat(
        [
            part.flatten(1).double()
            for layer in sorted(changed)
            for factors in changed[layer].factors.values()
            for part in (factors.down, factors.up)
        ],
        dim=1,
    )


def some(candidates=4, seed=2):
    return np.random.default_rng(seed).normal(size=(candidates, DIM))


@pytest.mark.parametrize("targets", [("q", "k"), ALL_MAPS], ids="".join)
def test_map_is_an_isometry_but_for_one_scale(family, batch, targets):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, batch, targets=targets, rank=3)
    basis = entries_of(subspace, np.eye(DIM))  # P'
    assert basis.shape == (DIM, subspace.stored)
    assert ((basis != 0).sum(0) == 1).all()  # each entry is one of the numbers
    gram = basis @ basis.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(DIM).double(), rtol=1e-6, atol=1e-7)
    # Entries of variance s^2 for z of unit normal numbers, and r H s^4 = alpha^4.
    variance = gram[0, 0].item() * DIM / subspace.stored
    assert 3 * 32 * variance**2 == pytest.approx(2.0**4, rel=1e-5)


def test_layers_draw_apart_and_seeds_too(batch):
    backbone = Backbone(tiny_model("roberta"))
    subspace = built(backbone, batch)
    z = some(1)
    changed = subspace.interventions(0, z)
    assert not torch.equal(changed[0].factors["q"].down, changed[1].factors["q"].down)
    assert torch.equal(entries_of(built(backbone, batch), z), entries_of(subspace, z))
    assert not torch.equal(entries_of(built(backbone, batch, seed=1), z), entries_of(subspace, z))


def test_zero_is_the_base_model_exactly_and_the_map_is_even(family, batch, label_ids):
    backbone = Backbone(tiny_model(family))
    subspace, engine = built(backbone, batch), Engine(backbone, batch, label_ids)
    base = engine({})
    assert torch.equal(engine({}, subspace.interventions(0, np.zeros((1, DIM)))), base)
    assert not subspace.incumbents(np.zeros((1, DIM)))
    assert not subspace.incumbents(some(1), without=[0])
    z = some(1)
    plus, minus = (engine(subspace.incumbents(each)) for each in (z, -z))
    torch.testing.assert_close(plus, minus, **CLOSE)
    assert (plus - base).abs().max() > 1e-2
    assert subspace.incumbents(z)[1] is subspace.incumbents(z.copy())[1]


def test_a_call_changes_all_layers_of_each_candidate(family, batch, label_ids):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, batch, targets=ALL_MAPS)
    evaluate = PopulationEvaluator(
        Engine(backbone, batch, label_ids), subspace, batch.labels,
        objective="ce", metric="accuracy",
    )  # fmt: skip
    candidates = some()
    together = evaluate(some(1, seed=3), 0, candidates).losses
    alone = []
    for each in candidates:
        changed = subspace.interventions(0, each[None])
        assert set(changed) == {0, 1, 2}
        logits = answer_logits(merged_model(backbone, changed.values()), batch, label_ids)
        alone.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert np.ptp(together) > 1e-2


def test_peft_gives_our_logits(family, batch, label_ids, tmp_path):
    backbone = Backbone(tiny_model(family))
    subspace, solution = built(backbone, batch, targets=ALL_MAPS), some(1)
    subspace.save(tmp_path, backbone, solution)
    ours = Engine(backbone, batch, label_ids)(subspace.incumbents(solution))[0]
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    torch.testing.assert_close(ours, answer_logits(loaded, batch, label_ids), **CLOSE)
    assert (ours - answer_logits(tiny_model(family), batch, label_ids)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "called"), [("roberta", ["query", "key"]), ("llama", ["q_proj", "k_proj"])]
)
def test_it_is_pefts_uni_lora_with_its_indices(family, called, batch, label_ids, monkeypatch):
    """Our entries are PEFT's but for the scale that alpha gives; A and B stand transposed there."""
    config = UniLoraConfig(r=2, theta_d_length=DIM, target_modules=called)
    with torch.random.fork_rng():
        theirs: Any = get_peft_model(tiny_model(family), config).eval()
    adapted: dict[str, Any] = {
        at: each for at, each in theirs.named_modules() if hasattr(each, "unilora_dropout")
    }

    class Drawn:
        """In place of a layer's stream."""

        def __init__(self, _seed, purpose):
            self.layer = f".{purpose.split('/')[1]}."

        def integers(self, high, size):
            own = [each for name in called for at, each in adapted.items()
                   if self.layer in at and name in at]  # fmt: skip
            indices = torch.cat([
                each["default"].T.flatten()
                for module in own for each in (module.unilora_indices_A, module.unilora_indices_B)
            ])  # fmt: skip
            assert (len(own), len(indices), int(indices.max()) < high) == (2, size, True)
            return indices.numpy()

    monkeypatch.setattr("dfolora.search.subspace.uni_lora.stream", Drawn)
    backbone = Backbone(tiny_model(family))
    subspace, z = built(backbone, batch), some(1)
    # Variance of an entry for z of unit normal numbers; PEFT's is d / D.
    scale = 2.0 / (2 * 32) ** 0.25 * np.sqrt(subspace.stored / DIM)
    theta = torch.from_numpy(scale * z[0]).float()
    theirs.base_model.unilora_theta_d["default"].data.copy_(theta)
    ours = Engine(backbone, batch, label_ids)(subspace.incumbents(z))[0]
    torch.testing.assert_close(ours, answer_logits(theirs, batch, label_ids), **CLOSE)
    assert (ours - answer_logits(tiny_model(family), batch, label_ids)).abs().max() > 1e-2


def test_on_a_gpu_it_is_the_cpus(batch):
    here = entries_of(built(Backbone(tiny_model("roberta")), batch), some())
    with emulated_cuda():
        there = built(Backbone(tiny_model("roberta").to("cuda")), batch).interventions(0, some())
        assert {str(f.down.device) for f in there[1].factors.values()} == {"cuda:0"}
        found = there[0].factors["q"].down.flatten(1).cpu()
    torch.testing.assert_close(found.double(), here[:, : found.shape[1]], **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number, 1 or more"),
        ({"dim": 769}, "dim=769 is more than the 768 entries .* rank=2 with q, k"),
        ({"rank": 33}, "rank=33 must lie between 1 and 32"),
        ({"alpha": 0}, "subspace.alpha=0 must be a positive number"),
        ({"targets": "qk"}, "targets=qk must be a list"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    architecture = Backbone(tiny_model("roberta")).architecture
    UniLoraSubspaceSpec(dim=768).check(architecture)
    with pytest.raises(UserError, match=message):
        UniLoraSubspaceSpec(**options).check(architecture)


def test_it_says_that_it_is_one_even_block():
    architecture = Backbone(tiny_model("roberta")).architecture
    spec = UniLoraSubspaceSpec()
    assert spec.even
    assert (spec.blocks(architecture), spec.size(architecture)) == (1, 500)
