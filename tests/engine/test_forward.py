"""The engine gives what one padded forward of the whole model a candidate gives, with less work."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.data import Batch
from dfolora.engine.forward import COARSE, Engine
from dfolora.model.backbone import Backbone
from tests.conftest import SIZES, random_batch, shared_backbone, tiny_model
from tests.reference import one_candidate
from tests.searching import (
    DIM,
    SUBSETS,
    evaluator_of,
    in_float64,
    limited,
    logits_of,
    some_solution,
    subspace_of,
)

LABELS = torch.tensor([7, 50, 99])
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 forwards, other summation order
SAME = {"rtol": 0, "atol": 1e-6}  # the same operations; logits are of size 1


def check(family, batch, block, *, candidates=3, atol=1e-5, tokens=None, **spec):
    """Losses and ranks of a population are the oracle's."""
    backbone = shared_backbone(family)
    evaluator, subspace = evaluator_of(limited(backbone, tokens=tokens), batch, LABELS, **spec)
    solution, population = some_solution(candidates)
    got = evaluator(solution, block, population).losses
    expected = one_candidate.losses(backbone, subspace, batch, LABELS, solution, block, population)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
    assert list(np.argsort(got)) == list(np.argsort(expected))
    assert np.ptp(expected) > 1e-3 or candidates == 1  # the candidates do differ


def watch(module):
    """How many rows (and inputs of rows) enter a module, noted a call."""
    rows = []
    module.register_forward_pre_hook(lambda _module, args: rows.append(args[0][..., 0].numel()))
    return rows


def count(module, monkeypatch):
    """How many rows a module's own function works on, noted a call."""
    own, rows = module.forward, []

    def counting(x):
        rows.append(x[..., 0].numel())
        return own(x)

    monkeypatch.setattr(module, "forward", counting)
    return rows


def part(backbone, layer, name):
    """A module of one layer: up or down of its FFN."""
    family = backbone.architecture.family
    return backbone.model.get_submodule(f"{family.layers}.{layer}.{getattr(family, name)}")


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("targets", SUBSETS)
def test_losses_are_the_oracles(family, batch, block, targets):
    check(family, batch, block, targets=tuple(targets))


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("candidates", [1, 2, 7])
def test_one_candidate_or_many(family, batch, block, candidates):
    check(family, batch, block, candidates=candidates, targets=("q", "k", "v", "o"))


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(
    ("length", "answer"), [(3, 0), (3, 1), (3, 2), (33, 16), (64, 0), (64, 31), (64, 63)]
)
def test_single_example_of_any_length_and_answer(family, block, length, answer):
    """All maps adapted: who answers at the first position of a causal model sees but itself."""
    batch = random_batch([length], [answer])
    # Rounding is not averaged over examples.
    check(family, batch, block, atol=3e-5, targets=("q", "k", "v", "o"))


SHORT_AND_LONG = random_batch(
    [64, 3, 3, 40, 64, 17, 16, 60, 4, 17, 55], [63, 0, 2, 20, 0, 16, 1, 31, 3, 7, 54]
)


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("targets", ["qk", "vo"])
def test_batch_from_the_shortest_to_the_longest(family, block, targets):
    check(family, SHORT_AND_LONG, block, targets=tuple(targets))


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("tokens", [1, 64, 130, 343, 345, 700, 10_000])
def test_chunks_change_nothing(family, tokens):
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, SHORT_AND_LONG)
    solution, candidates = some_solution(7)
    expected, got = (
        logits_of(
            Engine(limited(backbone, tokens=most), SHORT_AND_LONG, LABELS), subspace, solution, 1,
            candidates,
        )
        for most in (5000, tokens)
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)  # logits up to 10


def test_without_a_searched_layer_the_incumbents_are_the_candidate(family, batch):
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, batch)
    incumbents = subspace.incumbents(some_solution()[0])
    expected = one_candidate.answer_logits(
        one_candidate.merged_model(backbone, incumbents.values()), batch, LABELS
    )
    for tokens in (1, 50, 1000):
        got = Engine(limited(backbone, tokens=tokens), batch, LABELS)(incumbents)
        assert got.shape == (1, 8, 3)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got[0], expected, **CLOSE)


def test_searched_layers_incumbent_does_not_matter(family, batch):
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, batch)
    engine = Engine(backbone, batch, LABELS)
    solution, candidates = some_solution()
    searched = subspace.interventions(1, candidates)
    all_of_them = engine(subspace.incumbents(solution), searched)
    without = engine(subspace.incumbents(solution, without=[1]), searched)
    assert torch.equal(all_of_them, without)


def test_causal_models_never_see_what_follows_the_answer(batch):
    backbone = shared_backbone("gpt2")
    changed = batch.input_ids.clone()
    for row, answer in zip(changed, batch.answer.tolist(), strict=True):
        row[answer + 1 :] = 42
    other = Batch(**vars(batch) | {"input_ids": changed})
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution()
    logits, same = (
        logits_of(Engine(backbone, given, LABELS), subspace, solution, 0, candidates)
        for given in (batch, other)
    )
    assert not torch.equal(batch.input_ids, changed)
    assert torch.equal(logits, same)


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("tokens", [1, 12, 25, 60, 1000])
def test_answers_in_the_padding_keep_it(block, tokens):
    """As the released GPT-2 readout has them: in the last column, or anywhere in the padding."""
    batch = random_batch([3, 5, 11, 4, 12, 6, 9], [11, 11, 11, 7, 11, 3, 10])
    check("gpt2", batch, block, tokens=tokens, targets=("q", "k", "v", "o"))


def orders():
    rng = np.random.default_rng(4)
    return {
        "in_turn": [0, 1, 2] * 2,
        "backwards": [2, 1, 0, 2],
        "at_random": rng.integers(3, size=8).tolist(),
        "staying": [2, 2, 1, 1, 0, 2],
    }


@pytest.mark.parametrize("change", ["searched", "below"])
@pytest.mark.parametrize("order", orders())
def test_carried_prefix_is_a_fresh_ones(family, batch, order, change):
    """As ``tune`` takes its turns, and as it does not, with or without packs and carrying."""
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, batch, targets=("q", "v"))
    engines = [
        Engine(limited(backbone, tokens=tokens), batch, LABELS, carry=carry)
        for tokens in (50, 2000)
        for carry in (True, False)
    ]
    solution = some_solution()[0]
    for turn, block in enumerate(orders()[order]):
        candidates = some_solution(3, seed=turn)[1]
        fresh = Engine(limited(backbone, tokens=2000), batch, LABELS)
        expected = logits_of(fresh, subspace, solution, block, candidates)
        for engine, tolerance in zip(engines, (CLOSE, CLOSE, SAME, SAME), strict=True):
            got = logits_of(engine, subspace, solution, block, candidates)
            torch.testing.assert_close(got, expected, **tolerance)
        if change == "searched":
            solution[block] = candidates[turn % 3]
        elif change == "below":
            solution[0] = candidates[0]


def test_carried_prefix_survives_an_interruption(family, batch):
    backbone = Backbone(tiny_model(family))
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution()
    engine = Engine(backbone, batch, LABELS)

    def interrupt(_module, _args):
        raise KeyboardInterrupt

    handle = part(backbone, 1, "up").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        logits_of(engine, subspace, solution, 2, candidates)
    handle.remove()
    fresh = Engine(backbone, batch, LABELS)
    torch.testing.assert_close(
        logits_of(engine, subspace, solution, 2, candidates),
        logits_of(fresh, subspace, solution, 2, candidates),
        **SAME,
    )


def test_a_round_passes_every_prefix_layer_once(family, batch):
    """Seen by the rows that enter its FFN: M of a prefix, P M of a population."""
    depth = {"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}
    backbone = Backbone(tiny_model(family, **depth))
    subspace = subspace_of(backbone, batch)
    rows = [watch(part(backbone, layer, "up")) for layer in range(5)]
    work = Engine(limited(backbone, tokens=10_000), batch, LABELS)
    tokens = int((batch.answer + 1 if family == "gpt2" else batch.attention_mask.sum(-1)).sum())
    solution = some_solution(layers=5)[0]
    for turn in range(3):
        for block in range(5):
            candidates = some_solution(3, seed=5 * turn + block)[1]
            logits_of(work, subspace, solution, block, candidates)
            solution[block] = candidates[0]
        assert [noted.count(tokens) for noted in rows] == [1, 1, 1, 1, 0]
        assert [noted.count(3 * tokens) for noted in rows] == [1, 2, 3, 4, 0]
        for noted in rows:
            noted.clear()


def test_another_generation_of_the_same_layer_passes_no_prefix(family, batch):
    backbone = Backbone(tiny_model(family))
    subspace = subspace_of(backbone, batch)
    engine = Engine(backbone, batch, LABELS)
    solution, candidates = some_solution()
    logits_of(engine, subspace, solution, 2, candidates)
    rows = watch(part(backbone, 0, "up"))
    solution[2] = candidates[0]  # at the layer or above it
    logits_of(engine, subspace, solution, 2, candidates)
    assert rows == []
    solution[1] = candidates[0]  # below
    logits_of(engine, subspace, solution, 2, candidates)
    assert len(rows) == 1


@pytest.mark.parametrize("tokens", [20, 90, 200, 10_000])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_candidates_share_the_frozen_maps_of_the_searched_layer(batch, block, tokens, monkeypatch):
    backbone = Backbone(tiny_model("roberta"))
    subspace = subspace_of(backbone, batch)
    maps = backbone.layers[block].maps
    rows = {name: count(maps[name].module, monkeypatch) for name in ("q", "k", "v")}
    solution, candidates = some_solution(7)
    engine = Engine(limited(backbone, tokens=tokens), batch, LABELS)
    logits_of(engine, subspace, solution, block, candidates)
    every, answers = int(batch.attention_mask.sum()), len(batch.answer)
    asking = answers if block == 2 else every
    assert {name: sum(noted) for name, noted in rows.items()} == {
        "q": asking, "k": every, "v": every,
    }  # fmt: skip


def test_last_layer_asks_and_feeds_forward_for_the_answers_alone(batch, family):
    backbone = Backbone(tiny_model(family))
    subspace = subspace_of(backbone, batch)
    rows = watch(part(backbone, 2, "down"))
    solution, candidates = some_solution(5)
    for tokens in (1, 60, 10_000):
        engine = Engine(limited(backbone, tokens=tokens), batch, LABELS)
        for block in range(3):
            logits_of(engine, subspace, solution, block, candidates)
            assert sum(rows) == 5 * 8
            rows.clear()
        engine(subspace.incumbents(solution))
        assert sum(rows) == 8
        rows.clear()


def test_vocabulary_head_never_runs(batch, family, monkeypatch):
    backbone = Backbone(tiny_model(family))

    def refuse(*_arguments):
        raise AssertionError("the vocabulary head ran")

    decoder = backbone.model.get_output_embeddings()
    monkeypatch.setattr(decoder, "forward", refuse)
    evaluator, _ = evaluator_of(backbone, batch, LABELS)
    solution, candidates = some_solution()
    for block in range(3):
        evaluator(solution, block, candidates)
    with pytest.raises(AssertionError, match="vocabulary head ran"):
        backbone.model(input_ids=batch.input_ids)


def test_nothing_of_the_model_or_the_callers_is_written(batch, family):
    backbone = Backbone(tiny_model(family))
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    evaluator, _ = evaluator_of(backbone, batch, LABELS, targets=("q", "k", "v", "o"))
    solution, candidates = some_solution()
    given = solution.copy(), candidates.copy()
    first = [evaluator(solution, block, candidates).losses for block in range(3)]
    again = [evaluator(solution, block, candidates).losses for block in range(3)]
    assert np.array_equal(first, again)
    assert np.array_equal(solution, given[0])
    assert np.array_equal(candidates, given[1])
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


def test_bfloat16_weights_give_nearly_the_same_losses(family, batch):
    solution, candidates = some_solution()
    exact, _ = evaluator_of(shared_backbone(family), batch, LABELS)
    half, _ = evaluator_of(Backbone(tiny_model(family).bfloat16()), batch, LABELS)
    for block in range(3):
        expected = exact(solution, block, candidates).losses
        got = half(solution, block, candidates).losses
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.1)  # 8 bits of mantissa


def test_zero_candidates_are_the_base_model(family, batch):
    backbone = shared_backbone(family)
    engine = Engine(backbone, batch, LABELS)
    subspace = subspace_of(backbone, batch)
    zero = np.zeros((3, DIM))
    for block in range(3):
        got = logits_of(engine, subspace, zero, block, zero)
        torch.testing.assert_close(got, engine({}).expand(3, -1, -1), **SAME)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_sequence_of_calls(data):
    """Of lengths, answers, limits, populations, targets, layers and changes of the solution.

    In float64, for random choices find those where rounding in float32 grows above 1e-5.
    """
    draw = data.draw
    lengths = draw(st.lists(st.integers(3, 24), min_size=1, max_size=6), label="lengths")
    answers = [draw(st.integers(0, length - 1), label="answer") for length in lengths]
    family = draw(st.sampled_from(sorted(SIZES)), label="family")
    backbone = shared_backbone(family, torch.float64)
    batch = random_batch(lengths, answers, seed=draw(st.integers(0, 99), label="seed"))
    tokens = draw(st.none() | st.integers(1, 200), label="tokens")
    with patch.dict(COARSE, cpu=draw(st.booleans(), label="coarse")):
        evaluator, subspace = evaluator_of(
            limited(backbone, tokens=tokens), batch, LABELS, carry=draw(st.booleans()),
            targets=tuple(draw(st.sampled_from(SUBSETS), label="targets")),
        )  # fmt: skip
    in_float64(subspace)
    solution, _ = some_solution()
    for _ in range(draw(st.integers(1, 4), label="calls")):
        block = draw(st.integers(0, 2), label="block")
        _, candidates = some_solution(draw(st.integers(1, 4), label="P"), seed=block)
        got = evaluator(solution, block, candidates).losses
        expected = one_candidate.losses(
            backbone, subspace, batch, LABELS, solution, block, candidates
        )
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)  # logits are float32
        if draw(st.booleans(), label="changed"):
            solution[draw(st.integers(0, 2), label="row")] = candidates[0]


@pytest.mark.parametrize("tokens", [2048, 30])
def test_vocabulary_is_read_at_any_place(family, batch, tokens, grouping):
    """Several positions a row; of a causal row none past its answer."""
    backbone = shared_backbone(family)
    places = torch.stack([batch.answer, batch.answer // 2, batch.answer * 0], dim=1)
    got = Engine(limited(backbone, tokens=tokens), batch, LABELS).vocabulary(places)
    model = backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    expected = model.logits[torch.arange(len(places))[:, None], places]
    torch.testing.assert_close(got, expected, **CLOSE)
    assert expected.std() > 0.1
    answers = Engine(limited(backbone, tokens=tokens), batch, LABELS).vocabulary()
    torch.testing.assert_close(answers, expected[:, :1], **CLOSE)


@pytest.mark.parametrize("tokens", [2048, 30])
def test_engine_of_another_batch_has_the_bits_of_a_fresh_one(family, batch, tokens, grouping):
    """And the first one those that it had."""
    backbone = limited(shared_backbone(family), tokens=tokens)
    other = random_batch(batch.attention_mask.sum(-1).tolist(), batch.answer.tolist(), seed=7)
    first = Engine(backbone, batch, LABELS, carry=False)
    before, places = first.vocabulary(), batch.answer[:, None] // 2
    for asked in (None, places):
        fresh = Engine(backbone, other, LABELS, carry=False).vocabulary(asked)
        assert torch.equal(first.of(other).vocabulary(asked), fresh)
    assert torch.equal(first.vocabulary(), before)
    assert not torch.allclose(fresh, before, atol=0.1)


def test_engine_of_a_batch_of_other_lengths_is_refused(batch):
    lengths, answers = batch.attention_mask.sum(-1).tolist(), batch.answer.tolist()
    engine = Engine(shared_backbone("roberta"), batch, LABELS)
    for other in (
        ([*lengths[:-1], lengths[-1] + 1], answers),
        (lengths, [answers[0] + 1, *answers[1:]]),
    ):
        with pytest.raises(ValueError, match="lengths or answers are not"):
            engine.of(random_batch(*other))
