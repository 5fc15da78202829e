"""LoRA factors: the hooked model is the merged model, and it is restored."""

import pytest
import torch

from dfolora.lora import LayerLora, LoraFactors
from tests.reference.one_candidate import answer_logits, merged_model

TARGETS = [("q", "k"), ("v",), ("o",), ("q", "k", "v", "o"), ("k", "o")]


def random_lora(layer, targets, candidates=1, width=32, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)  # noqa: E731
    factors = {
        name: LoraFactors(down=draw(candidates, width, rank), up=draw(candidates, rank, width))
        for name in targets
    }
    return LayerLora(layer=layer, factors=factors)


@pytest.mark.parametrize("targets", TARGETS, ids="".join)
@pytest.mark.parametrize("layer", [0, 2])
def test_adapted_model_is_the_merged_model(backbone, batch, label_ids, targets, layer):
    lora = random_lora(layer, targets)
    with backbone.with_lora([lora]):
        hooked = answer_logits(backbone.model, batch, label_ids)
    merged = answer_logits(merged_model(backbone, [lora]), batch, label_ids)
    torch.testing.assert_close(hooked, merged, rtol=0, atol=1e-5)  # float32, other summation order
    plain = answer_logits(backbone.model, batch, label_ids)
    assert (hooked - plain).abs().max() > 1e-2  # the factors do change the model


def test_each_candidate_of_a_population_has_its_own_factors(backbone, batch, label_ids):
    lora = random_lora(1, ("q", "k", "v"), candidates=3)
    ids, mask = batch.input_ids.repeat(3, 1), batch.attention_mask.repeat(3, 1)
    with backbone.with_lora([lora]):
        together = backbone.answer_logits(ids, mask, batch.answer.repeat(3), label_ids)
    for index in range(3):
        single = {
            name: LoraFactors(down=f.down[index : index + 1], up=f.up[index : index + 1])
            for name, f in lora.factors.items()
        }
        alone = answer_logits(
            merged_model(backbone, [LayerLora(layer=1, factors=single)]), batch, label_ids
        )
        torch.testing.assert_close(together.reshape(3, 8, 3)[index], alone, rtol=0, atol=1e-5)


def test_model_is_restored_on_leaving_even_by_an_error(backbone, batch, label_ids):
    before = answer_logits(backbone.model, batch, label_ids)
    weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), backbone.with_lora([random_lora(0, ("q",))]):
        raise RuntimeError("inside")
    assert torch.equal(answer_logits(backbone.model, batch, label_ids), before)
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_factors_stay_float32_beside_a_half_precision_model(backbone):
    lora = random_lora(0, ("q",)).factors["q"]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    delta = lora.delta(x)
    assert delta.dtype == torch.bfloat16
    exact = (x.float() @ lora.down[0]) @ lora.up[0]
    torch.testing.assert_close(delta, exact.bfloat16(), rtol=0, atol=0)
