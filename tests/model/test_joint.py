"""Maps of the same input in one product: what each module gives alone."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dfolora.engine.forward import Engine
from dfolora.model import Backbone
from dfolora.model import layer as layer_of
from dfolora.model.joint import can_join, join, product
from dfolora.model.streaming import Streaming
from tests.conftest import tiny_model
from tests.emulation import emulated_cuda
from tests.searching import logits_of, some_solution, subspace_of

WIDTHS = (24, 6, 10)
"""Of biases whose bytes are no multiple of what weights are aligned to."""


def modules(*, bias=True, dtype=torch.float32):
    return [nn.Linear(16, width, bias=bias, dtype=dtype) for width in WIDTHS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_one_product_gives_what_each_gives_alone(bias, dtype):
    apart, x = modules(bias=bias, dtype=dtype), torch.randn(2, 5, 16, dtype=dtype)
    expected = [module(x) for module in apart]
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in apart]
    join(apart)
    joint, parts = product(apart, x)
    assert joint.shape == (2, 5, sum(WIDTHS))
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    for module, alone, state in zip(apart, expected, before, strict=True):
        torch.testing.assert_close(parts[module], alone, rtol=0, atol=tolerance)
        assert parts[module].untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
        assert all(map(torch.equal, module.state_dict().values(), state.values()))
    some = product(apart[1:], x)[1]  # k and v, where q is asked for the answers alone
    torch.testing.assert_close(some[apart[2]], expected[2], rtol=0, atol=tolerance)


def test_each_module_keeps_its_own_part():
    """What trains or writes one of them, changes that one in the product too."""
    joined, x = modules(), torch.randn(3, 16)
    join(joined)
    before = product(joined, x)[1]
    with torch.no_grad():
        joined[1].weight.mul_(2)
        joined[1].bias.mul_(2)
    after = product(joined, x)[1]
    torch.testing.assert_close(after[joined[1]], 2 * before[joined[1]])
    assert torch.equal(after[joined[0]], before[joined[0]])
    assert torch.equal(after[joined[2]], before[joined[2]])


def test_weights_that_were_replaced_are_told():
    joined = modules()
    join(joined)
    joined[2].weight = nn.Parameter(joined[2].weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"no longer lie side by side.*Make a new one"):
        product(joined, torch.randn(3, 16))


class Special(nn.Linear):
    """Something that does more than multiply, for all that is known."""


def test_others_stay_apart():
    assert can_join(modules())
    assert not can_join(modules()[:1])
    assert not can_join([*modules(), *modules(bias=False)])
    assert not can_join([*modules(), Special(16, 8)])
    assert not can_join([*modules(), Conv1D(8, 16)])


def test_weights_in_8_bits_stay_apart():
    quantization = pytest.importorskip("torchao.quantization")
    rounded = nn.Sequential(*modules())
    quantization.quantize_(rounded, quantization.Int8WeightOnlyConfig())
    assert not can_join([*rounded])


def test_streamed_weights_stay_side_by_side():
    """In host memory, and in either place on the device."""
    layers = [nn.ModuleList(modules()) for _ in range(3)]
    x = torch.randn(4, 16)
    for layer in layers:
        join([*layer])
    expected = [product([*layer], x)[0] for layer in layers]
    streaming = Streaming(layers, torch.device("cpu"))
    for index, layer in enumerate(layers):
        assert torch.equal(product([*layer], x)[0], expected[index])
        with streaming.lent(index):
            assert torch.equal(product([*layer], x)[0], expected[index])


@pytest.mark.parametrize(("family", "joined"), [("llama", True), ("gpt2", False)])
def test_layers_are_joined_on_a_gpu_alone(family, joined):
    """Also by a second backbone of the model."""
    with emulated_cuda():
        model = tiny_model(family).to("cuda")
        assert [Backbone(model)._joined for _ in range(2)] == [joined, joined]
    assert not Backbone(tiny_model(family))._joined


@pytest.mark.parametrize("family", ["roberta", "gpt2", "phi3"])
def test_factors_are_put_side_by_side_once_a_solution(family, batch, label_ids, monkeypatch):
    made, beside = [], layer_of.beside
    monkeypatch.setattr(layer_of, "beside", lambda held: made.append(held) or beside(held))
    with emulated_cuda():
        backbone = Backbone(tiny_model(family).to("cuda"))
        subspace = subspace_of(backbone, batch)
        solution, candidates = some_solution(3)
        engine, counts, found = Engine(backbone, batch, label_ids), [], []
        for _ in range(3):
            made.clear()
            found.append(logits_of(engine, subspace, solution, 0, candidates).cpu())
            counts.append(len(made))
        solution[2] += 1
        made.clear()
        changed = logits_of(engine, subspace, solution, 0, candidates).cpu()
        fresh = Engine(Backbone(tiny_model(family).to("cuda")), batch, label_ids)
        again = logits_of(fresh, subspace, solution, 0, candidates).cpu()
    assert counts[0] - counts[1] == counts[0] - counts[2] > 0  # layers 1 and 2 are the solution's
    assert all(torch.equal(logits, found[0]) for logits in found)
    assert len(made) > counts[1]
    assert torch.equal(changed, again)
    assert not torch.equal(changed, found[0])


def test_solutions_that_live_side_by_side_are_told_apart(batch, label_ids):
    backbone = Backbone(tiny_model("gpt2"))
    subspace, solutions = subspace_of(backbone, batch), []
    for seed in (1, 2):
        found = subspace.incumbents(some_solution(seed=seed)[0])
        solutions.append({layer: lora.cloned() for layer, lora in found.items()})
    engine = Engine(backbone, batch, label_ids)
    one, other, again = (engine(solutions[number]) for number in (0, 1, 0))
    assert torch.equal(one, again)
    assert torch.equal(other, Engine(Backbone(tiny_model("gpt2")), batch, label_ids)(solutions[1]))
    assert not torch.allclose(one, other, rtol=0, atol=1e-4)
