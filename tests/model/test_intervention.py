"""Soft prompts equal hooks on transformers' padded forward, alone and beside other changes."""

import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.model.backbone import Backbone
from dfolora.model.factors import LoraFactors
from dfolora.model.intervention import LayerLora, SoftPrompt
from dfolora.model.packing import Sequences
from tests.conftest import random_batch, tiny_model
from tests.reference import soft_prompt
from tests.searching import limited, some_solution, subspace_of

LENGTHS = [19, 4, 11, 6, 19, 5, 13, 4]


def prompt(layer, *, start=1, positions=2, candidates=1, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(candidates, positions, width, generator=generator)
    return SoftPrompt(layer=layer, start=start, vectors=vectors)


@pytest.fixture
def exact(family):
    """In float64, for the vectors make rounding of float32 grow to 2e-5."""
    return Backbone(tiny_model(family).double())


def last_answers(lengths=LENGTHS):
    """Every token is needed, of causal models too."""
    return random_batch(lengths, [length - 1 for length in lengths])


@pytest.mark.parametrize("tokens", [60, 10_000])
@pytest.mark.parametrize("beside", ["nothing", "lora", "prompt", "both"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_population_of_soft_prompts_is_the_hooked_models(exact, label_ids, layer, beside, tokens):
    batch = last_answers()
    lora = subspace_of(exact, batch).incumbents(some_solution()[0], without=[layer])
    others = [other for other in range(3) if other != layer]
    incumbents = {
        "nothing": {},
        "lora": lora,
        "prompt": {other: prompt(other, seed=other) for other in others},
        "both": {others[0]: prompt(others[0], seed=7), others[1]: lora[others[1]]},
    }[beside]
    searched = prompt(layer, candidates=3, seed=9)
    engine = Engine(limited(exact, tokens=tokens), batch, label_ids)
    got = engine(incumbents, {layer: searched})
    assert got.shape == (3, 8, 3)
    for index, logits in enumerate(got):
        alone = [*incumbents.values(), searched.part(slice(index, index + 1))]
        expected = soft_prompt.answer_logits(exact, alone, batch, label_ids)
        torch.testing.assert_close(
            logits, expected.float(), rtol=0, atol=1e-5
        )  # logits are float32
    assert (got[0] - got[1]).abs().max() > 1e-2  # they do differ


@pytest.mark.parametrize(("start", "positions"), [(0, 1), (0, 4), (1, 3), (3, 1)])
def test_every_position_up_to_the_shortest_length(exact, label_ids, start, positions):
    batch = last_answers()
    searched = prompt(1, start=start, positions=positions, candidates=2)
    got = Engine(exact, batch, label_ids)({}, {1: searched})
    for index in range(2):
        alone = searched.part(slice(index, index + 1))
        expected = soft_prompt.answer_logits(exact, [alone], batch, label_ids)
        torch.testing.assert_close(got[index], expected.float(), rtol=0, atol=1e-5)


def test_lora_candidates_above_a_soft_prompt(exact, label_ids):
    batch = last_answers()
    subspace = subspace_of(exact, batch)
    searched = subspace.intervention(2, some_solution(3)[1])
    incumbents = {0: prompt(0), 1: prompt(1, seed=1)}
    engine = Engine(limited(exact, tokens=60), batch, label_ids)
    for layers in ({0}, {0, 1}, {1}, set()):  # a prefix carried, changed, and dropped
        chosen = {layer: incumbents[layer] for layer in layers}
        got = engine(chosen, {2: searched})
        for index in range(3):
            alone = [*chosen.values(), searched.part(slice(index, index + 1))]
            expected = soft_prompt.answer_logits(exact, alone, batch, label_ids)
            torch.testing.assert_close(got[index], expected.float(), rtol=0, atol=1e-5)


def test_soft_prompt_leaves_its_input_alone():
    batch = random_batch([5, 3, 5], [0, 0, 0])
    sequences = Sequences(
        input_ids=batch.input_ids, lengths=torch.tensor([5, 3, 5]),
        real=torch.tensor([5, 3, 5]), answer=batch.answer,
    )  # fmt: skip
    (pack,) = sequences.packs(100, torch.device("cpu"))
    hidden = torch.randn(1, 13, 32, generator=torch.Generator().manual_seed(0))
    before = hidden.clone()
    searched = prompt(0, candidates=2)
    changed = searched.enter(hidden, pack)
    assert torch.equal(hidden, before)
    for candidate in range(2):
        expected = before[0].clone()
        for start in (0, 3, 8):  # of the sequences, shortest first
            expected[start + 1 : start + 3] += searched.vectors[candidate]
        assert torch.equal(changed[candidate], expected)


def test_parts_are_some_of_the_candidates():
    soft = prompt(1, candidates=5)
    generator = torch.Generator().manual_seed(3)
    factors = LoraFactors(
        down=torch.randn(5, 32, 2, generator=generator),
        up=torch.randn(5, 2, 32, generator=generator),
    )
    lora = LayerLora(layer=1, factors={"q": factors, "o": factors})
    assert soft.population == lora.population == 5
    assert torch.equal(soft.part(slice(1, 3)).vectors, soft.vectors[1:3])
    some = lora.part(slice(1, 3))
    assert (some.layer, some.population, list(some.factors)) == (1, 2, ["q", "o"])
    assert torch.equal(some.factors["o"].down, factors.down[1:3])
    assert torch.equal(some.factors["o"].up, factors.up[1:3])
    assert lora.to(torch.bfloat16).factors["q"].up.dtype == torch.bfloat16


def test_numbers_are_those_of_both_factors():
    factors = LoraFactors(down=torch.zeros(2, 8, 3), up=torch.zeros(2, 3, 5))
    lora = LayerLora(layer=0, factors={"q": factors, "v": factors})
    assert lora.numbers == 2 * (2 * 8 * 3 + 2 * 3 * 5)
