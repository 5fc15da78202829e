"""The emulated devices have CUDA's rules: planted mistakes are caught, and nothing else is."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.emulation import REPLACED, SHORTAGES, aten, emulated_cuda


@pytest.fixture
def gpu():
    with emulated_cuda(devices=2) as emulation:
        yield emulation


@pytest.fixture
def x(gpu):
    return torch.arange(12.0).view(3, 4).to("cuda")


MISTAKES = {
    "numpy without cpu": (lambda x: x.numpy(), TypeError, "can't convert cuda:0"),
    "an array of it": (lambda x: np.asarray(x), TypeError, "can't convert cuda:0"),
    "a CPU operand": (lambda x: x + torch.ones(4), RuntimeError, "same device"),
    "a CPU operand inside a function": (
        lambda x: functional.linear(x, torch.ones(2, 4)), RuntimeError, "same device",
    ),
    "a CPU operand in place": (lambda x: x.add_(torch.ones(4)), RuntimeError, "same device"),
    "CPU ids of embeddings": (
        lambda x: functional.embedding(torch.tensor([1]), x), RuntimeError, "same device",
    ),
    "an index on the GPU of a tensor that is not": (
        lambda x: torch.ones(3)[torch.tensor([1], device="cuda")], RuntimeError, "same device",
    ),
    "another device's tensor": (
        lambda x: x + torch.ones(4, device="cuda:1"), RuntimeError, "same device",
    ),
    "another device's number": (
        lambda x: x + torch.tensor(1.0, device="cuda:1"), RuntimeError, "same device",
    ),
    "a device that is not there": (lambda x: x.cuda(2), RuntimeError, "invalid device ordinal"),
    "the global generator": (
        lambda x: torch.randn(3, device="cuda"), AssertionError, "global generator",
    ),
    "the global generator in a function": (
        lambda x: functional.dropout(x), AssertionError, "global generator",
    ),
    "all global generators' seed": (
        lambda x: torch.manual_seed(0), AssertionError, "global generator",
    ),
    "a CPU generator": (
        lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
        RuntimeError, "Expected a 'cuda' device type for generator",
    ),
    "lengths of sequences on the GPU": (
        lambda x: torch.nn.utils.rnn.pack_padded_sequence(
            x[None], torch.tensor([3], device="cuda"), batch_first=True
        ),
        RuntimeError, "lengths",
    ),
    "pinning": (lambda x: x.pin_memory(), AssertionError, "cannot pin"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistake_is_caught(name, x):
    make, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        make(x)


def test_what_is_made_is_where_its_operands_are(x):
    made = [x[1:], x.T, x + 1, x @ x.T, x.detach(), torch.zeros_like(x), x.new_zeros(2)]
    made += [x.double(), x.to(torch.bfloat16), deepcopy(x), torch.ones(2, device=x.device)]
    assert {str(tensor.device) for tensor in made} == {"cuda:0"}
    assert all(tensor.is_cuda and not tensor.is_cpu for tensor in made)
    moved = [x.cpu(), x.to("cpu"), x.to(torch.ones(1)), torch.zeros_like(x, device="cpu")]
    assert {str(tensor.device) for tensor in moved} == {"cpu"}
    assert str(x.to("cuda:1").sum().device) == "cuda:1"
    assert torch.equal(x.cpu(), torch.arange(12.0).view(3, 4))


def test_modules_and_their_gradients_are_there_and_the_numbers_are_the_cpus(gpu):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    x, grads = torch.ones(3, 4), []
    for device in ("cpu", "cuda"):
        one = deepcopy(module).to(device)
        one(x.to(device)).square().sum().backward()
        grads.append([weight.grad for weight in one.parameters()])
        torch.optim.AdamW(one.parameters()).step()
        assert {weight.device.type for weight in one.parameters()} == {device}
    assert all(grad.is_cuda for grad in grads[1])
    assert all(torch.equal(one, other.cpu()) for one, other in zip(*grads, strict=True))


def test_traffic_and_kernels_are_counted(gpu):
    x = torch.ones(3, 4).to("cuda")
    gpu.kernels.clear()
    gpu.traffic.clear()
    functional.linear(x, x).T[1:].reshape(-1).softmax(-1)
    assert gpu.kernels == {"mm": 1, "clone": 1, "_softmax": 1}
    assert not +gpu.traffic
    x.cpu()
    x[torch.tensor([1])]
    x.copy_(torch.zeros(4))
    float(x.sum())
    x[x > 0]
    torch.ones(2).pin_memory()
    torch.cuda.synchronize()
    told = {"to host": 1, "index to device": 1, "to device": 1, "wait": 3, "pinned": 1}
    assert +gpu.traffic == told


@pytest.mark.parametrize("kind", SHORTAGES)
def test_memory_runs_out_once_where_it_is_told_to(kind, gpu, x):
    gpu.run_out(SHORTAGES[kind], after=2)
    y = x + 1
    x.view(-1)  # no kernel
    y = y * 2
    with pytest.raises(type(SHORTAGES[kind])) as raised:
        y + x
    assert raised.value is SHORTAGES[kind]
    assert torch.equal((y + x).cpu(), x.cpu() * 3 + 2)


def test_graph_is_carried_out_at_replays_alone(gpu, x):
    """It reads and writes where it did; what Python knew when it was recorded stays."""
    y, factor, graph = torch.zeros_like(x), 2, torch.cuda.CUDAGraph()
    gpu.kernels.clear()
    with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle(), stream=None):
        left = x.view(-1).mul(factor).view(3, 4)
        y.add_(left)
    assert not gpu.kernels
    assert left.isnan().all()
    assert torch.equal(y, torch.zeros_like(y))
    gpu.kernels.clear()
    graph.replay()
    x += 1
    factor = 7
    graph.replay()
    assert gpu.kernels == {"graph": 2, "add_": 1}
    assert torch.equal(left, 2 * x)
    assert torch.equal(y, 2 * (x - 1) + 2 * x)


@pytest.mark.parametrize(
    "ask", [Tensor.tolist, Tensor.cpu, Tensor.sum, torch.nonzero], ids=lambda ask: ask.__name__
)
def test_graph_has_nothing_to_wait_for(gpu, x, ask):
    with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=None, stream=None):
        if ask is Tensor.sum:
            assert ask(x).is_cuda
            return
        with pytest.raises(torch.AcceleratorError, match="not permitted"):
            ask(x)


def test_operation_can_be_replaced(x, gpu, monkeypatch):
    monkeypatch.setitem(REPLACED, aten.tanh.default, lambda given: given * 0 + 7)
    assert torch.tanh(x).tolist() == [[7.0] * 4] * 3
    assert torch.tanh(x).is_cuda


def test_nothing_is_left_of_it():
    with emulated_cuda():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    assert not torch.ones(1).is_cuda
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1).to("cuda")
