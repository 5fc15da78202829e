"""Maps of fused and separate modules, and the factors that join their output."""

import pytest
import torch

from dfolora.model.backbone import Backbone
from dfolora.model.factors import LinearMap, LoraFactors, MapPlace, beside
from tests.conftest import tiny_model

CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 products of width 32, other summation order


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_factors(candidates, width=32, rank=2):
    return LoraFactors(
        down=0.3 * draw(candidates, width, rank, seed=1),
        up=0.3 * draw(candidates, rank, width, seed=2),
    )


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "modernbert"])
def test_maps_of_a_fused_module_share_its_columns_out(name):
    places = Backbone(tiny_model(name)).architecture.maps
    assert len({places[part].module for part in "qkv"}) == 1
    width = places["q"].d_module
    columns = [torch.arange(width)[places[part].columns] for part in "qkv"]
    assert sorted(torch.cat(columns).tolist()) == list(range(width))
    assert [len(part) for part in columns] == [places[part].d_out for part in "qkv"]


@pytest.mark.parametrize("columns", [slice(8, 16), torch.tensor([3, 0, 23, 9])])
@pytest.mark.parametrize("candidates", [1, 3])
def test_factors_beside_each_other_are_each_maps_own(columns, candidates):
    """Of two maps in one module: what is added to its output is added to their columns."""
    module, width = torch.nn.Linear(8, 24), len(torch.arange(24)[columns])
    maps = [
        LinearMap(
            module=module,
            path="",
            place=MapPlace(module="", columns=where, d_in=8, d_out=d_out, d_module=24),
            columns=where,
        )
        for where, d_out in ((slice(16, 24), 8), (columns, width))
    ]
    factors = [
        LoraFactors(down=draw(candidates, 8, rank), up=draw(candidates, rank, d_out, seed=1))
        for rank, d_out in ((2, 8), (3, width))
    ]
    x, zero = draw(1, 5, 8, seed=2), torch.zeros(1, 5, 24)
    expected = torch.zeros(candidates, 5, 24)
    for linear, own in zip(maps, factors, strict=True):
        expected[..., linear.place.columns] += (x @ own.down) @ own.up
    got = beside(list(zip(maps, factors, strict=True)))
    assert got.down.shape[-1] == 5
    torch.testing.assert_close(got.added(zero, x), expected, **CLOSE)


def test_factors_of_a_whole_module_are_as_they_were():
    place = MapPlace(module="", columns=slice(0, 32), d_in=32, d_out=32, d_module=32)
    factors = random_factors(3)
    linear = LinearMap(module=torch.nn.Linear(32, 32), path="", place=place, columns=place.columns)
    assert beside([(linear, factors)]) is factors


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
