"""The random solution: which one it is, and that nothing chose it."""

import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.methods import FewShotData, RandomLora
from dfolora.search.subspace import LoraSubspaceSpec
from dfolora.seeding import stream
from tests.searching import DIM


@pytest.fixture
def data(batch, label_ids):
    return FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")


def predicted(backbone, data, seed=0, **spec):
    method = RandomLora(subspace=LoraSubspaceSpec(**{"dim": DIM, "alpha": 2.0} | spec))
    return method.begin(backbone, data, seed).predictor()


def test_solution_is_drawn_from_the_law_that_a_search_starts_with(backbone, data):
    spec = LoraSubspaceSpec(dim=DIM, alpha=2.0)
    subspace = spec.build(backbone, data.train.input_ids, data.train.attention_mask, 5)
    solution = stream(5, "random_lora").standard_normal((3, DIM))
    engine = Engine(backbone, data.train, data.label_ids)
    expected = engine(subspace.incumbents(solution))[0]
    drawn = predicted(backbone, data, seed=5)
    assert torch.equal(drawn.logits(data.train), expected)


def test_it_differs_from_the_base_model_and_by_seed(backbone, data):
    base = Engine(backbone, data.train, data.label_ids)({})[0]
    first, second = (predicted(backbone, data, seed).logits(data.train) for seed in (0, 1))
    assert (first - base).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3


def test_nothing_is_searched_and_all_is_stored(backbone, data, tmp_path):
    predictor = predicted(backbone, data)
    assert predictor.searched == 0
    assert predictor.stored == 3 * 2 * (32 * 2 + 2 * 32)  # layers, maps, A and B of rank 2
    assert predictor.dev is None
    predictor.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
