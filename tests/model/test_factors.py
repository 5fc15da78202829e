"""Maps of fused and separate modules, and the factors that join their output."""

import pytest
import torch

from dfolora.model.factors import LinearMap, LoraFactors

CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 products of width 32, other summation order


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_factors(candidates, width=32, rank=2):
    return LoraFactors(
        down=0.3 * draw(candidates, width, rank, seed=1),
        up=0.3 * draw(candidates, rank, width, seed=2),
    )


@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 3, 5, 32)])
@pytest.mark.parametrize("name", ["q", "k", "v", "o"])
def test_map_is_its_columns_of_the_modules_output(backbone, name, shape):
    """In GPT-2 the maps q, k and v are one module."""
    for layer in backbone.layers:
        linear, x = layer.maps[name], draw(*shape)
        expected = linear.module(x.reshape(-1, 32))[..., linear.columns].reshape(shape)
        torch.testing.assert_close(linear(x), expected, **CLOSE)


def test_map_may_be_a_block_of_rows_of_a_fused_linear():
    module = torch.nn.Linear(8, 24).requires_grad_(False)
    module.weight.copy_(draw(24, 8, seed=5))
    for block in range(3):
        columns = slice(8 * block, 8 * block + 8)
        linear = LinearMap(module=module, path="", columns=columns, d_in=8, d_out=8, d_module=24)
        x = draw(2, 5, 8)
        torch.testing.assert_close(linear(x), module(x)[..., columns], **CLOSE)


@pytest.mark.parametrize(
    ("inputs", "candidates"), [(1, 1), (1, 4), (4, 1), (4, 4)],
    ids=["one", "shared input", "shared factors", "one input a candidate"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_added_is_the_explicit_sum_of_each_candidate(inputs, candidates, dtype):
    factors = random_factors(candidates)
    x, output = draw(inputs, 7, 32, seed=3).to(dtype), draw(inputs, 7, 32, seed=4).to(dtype)
    before, x_before = output.clone(), x.clone()
    got = factors.added(output, x)
    assert got.shape == (max(inputs, candidates), 7, 32)
    assert got.dtype == dtype
    for index, result in enumerate(got):
        down, up = (part[index % candidates].double() for part in (factors.down, factors.up))
        own = index % inputs
        expected = before[own].double() + x_before[own].double() @ down @ up
        tolerance = 1e-5 if dtype == torch.float32 else 0.1  # sums up to 5, of 8 bits
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
        assert (expected - before[own]).abs().max() > 0.5  # the factors do something
    assert torch.equal(x, x_before)
    # What all candidates share is never written; the rest is, in place of new memory.
    assert torch.equal(output, before) == (inputs == 1)
    assert (got.data_ptr() == output.data_ptr()) == (inputs > 1)


def test_factors_are_rounded_to_the_type_of_what_they_meet():
    """As one who rounds them first would have it."""
    factors = random_factors(3)
    x, output = draw(1, 7, 32).bfloat16(), draw(1, 7, 32, seed=4).bfloat16()
    got = factors.added(output, x)
    assert torch.equal(got, factors.to(torch.bfloat16).added(output, x))
    assert factors.down.dtype == torch.float32


def test_part_keeps_the_candidates_in_order():
    factors, x = random_factors(5), draw(1, 7, 32)
    whole = factors.added(torch.zeros(1, 7, 32), x)
    part = factors.part(slice(2, 4)).added(torch.zeros(1, 7, 32), x)
    torch.testing.assert_close(part, whole[2:4], **CLOSE)
