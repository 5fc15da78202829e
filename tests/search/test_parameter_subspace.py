"""LoRA's parameters as the search space: what z is, where A begins, and what PEFT reads."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.model import Backbone
from dfolora.search.subspace import ParameterSubspaceSpec
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits

ALL_MAPS = ("q", "k", "v", "o")


@pytest.fixture(params=["roberta", "gpt2", "llama"])
def family(request):
    return request.param


def built(backbone, batch, seed=0, **options):
    spec = ParameterSubspaceSpec(**options)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, seed)


def test_z_is_what_is_added_to_the_factors(family, batch):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, batch, targets=ALL_MAPS, rank=3, scaling=0.5)
    size = subspace.spec.size(backbone.architecture)
    places = backbone.architecture.maps
    assert size == 3 * sum(places[name].d_in + places[name].d_out for name in ALL_MAPS)
    assert subspace.stored == 3 * size
    z = np.random.default_rng(0).normal(size=(2, size))
    start = subspace.intervention(1, np.zeros((1, size)))
    moved, first = subspace.intervention(1, z), 0
    for name in ALL_MAPS:
        place, (ours, before) = places[name], (each.factors[name] for each in (moved, start))
        of_a = z[:, first : (first := first + 3 * place.d_in)].reshape(2, place.d_in, 3)
        of_b = z[:, first : (first := first + 3 * place.d_out)].reshape(2, 3, place.d_out)
        # Sums and products of float32.
        np.testing.assert_allclose(ours.down - before.down, of_a, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.up, 0.5 * of_b, rtol=0, atol=1e-6)
    assert first == size


def test_a_begins_as_pefts(batch):
    """Kaiming's uniform law, as ``torch.nn.Linear`` begins: within 1 / sqrt(d_in)."""
    subspace = built(Backbone(tiny_model("llama")), batch, rank=16)
    zero = np.zeros((1, subspace.spec.size(Backbone(tiny_model("llama")).architecture)))
    downs = [subspace.intervention(layer, zero).factors["q"].down for layer in range(3)]
    bound = 1 / np.sqrt(32)
    for down in downs:
        assert 0.95 * bound < down.abs().max() <= bound
        assert down.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.1)  # 512 draws
    assert not torch.allclose(downs[0], downs[1])


def test_zero_is_the_base_model_exactly_and_the_map_is_not_even(family, batch, label_ids):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, batch, targets=ALL_MAPS)
    size = subspace.spec.size(backbone.architecture)
    engine = Engine(backbone, batch, label_ids)
    zero, z = np.zeros((1, size)), 0.1 * np.random.default_rng(0).normal(size=(1, size))
    base, changed, plus, minus = (
        engine({} if x is None else {1: subspace.intervention(1, x)}) for x in (None, zero, z, -z)
    )
    assert torch.equal(base, changed)
    assert not subspace.incumbents(np.zeros((3, size)))
    assert (plus - minus).abs().max() > 1e-3


def test_peft_gives_our_logits(family, batch, label_ids, tmp_path):
    backbone = Backbone(tiny_model(family))
    subspace = built(backbone, batch, targets=ALL_MAPS, scaling=2.0)
    solution = np.random.default_rng(0).normal(
        size=(3, subspace.spec.size(backbone.architecture)), scale=0.1
    )
    subspace.save(tmp_path, backbone, solution)
    ours = Engine(backbone, batch, label_ids)(subspace.incumbents(solution))[0]
    theirs = answer_logits(
        PeftModel.from_pretrained(tiny_model(family), tmp_path).eval(), batch, label_ids
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # float32, other summation order
    assert (theirs - answer_logits(tiny_model(family), batch, label_ids)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 33}, "rank=33 must lie between 1 and 32"),
        ({"rank": 1.0}, "rank=1.0 must be a whole number"),
        ({"scaling": -1}, "scaling=-1 must be a positive number"),
        ({"targets": ()}, "choose a non-empty subset of q, k, v, o"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    architecture = Backbone(tiny_model("llama")).architecture
    with pytest.raises(UserError, match=message):
        ParameterSubspaceSpec(**options).check(architecture)
