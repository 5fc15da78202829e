"""How much goes through the model at once: tokens, bytes, and what happens where both are wrong."""

import re

import pytest
import torch

from dfolora.engine.forward import COARSE, Engine
from dfolora.errors import UserError
from dfolora.model import Backbone, Limits
from tests.conftest import random_batch, tiny_model
from tests.emulation import SHORTAGES, emulated_cuda
from tests.reference.live_bytes import LiveBytes
from tests.searching import limited, logits_of, some_solution, subspace_of

LABELS = torch.tensor([7, 50, 99])
WIDE = {
    "roberta": {"hidden_size": 64, "intermediate_size": 256},
    "bert": {"hidden_size": 64, "intermediate_size": 256},
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 256},
    "gemma2": {"hidden_size": 64, "intermediate_size": 256},
    "modernbert": {"hidden_size": 64, "intermediate_size": 256},
    "opt": {"hidden_size": 64, "ffn_dim": 256, "word_embed_proj_dim": 64},
}
LENGTHS = torch.linspace(5, 60, 16).long().tolist()
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
)
RUN_OUT = {
    **SHORTAGES,
    "cpu": RuntimeError(CPU),
    "python": MemoryError("no more"),
}


def up(backbone, layer):
    family = backbone.architecture.family
    return backbone.model.get_submodule(f"{family.layers}.{layer}.{family.up}")


def watch(backbone):
    """Rows that enter a layer's FFN, all candidates' counted, noted a call."""
    rows = []
    for layer in range(backbone.architecture.layers):
        up(backbone, layer).register_forward_pre_hook(
            lambda _module, args: rows.append(args[0][..., 0].numel())
        )
    return rows


def run_out_above(backbone, most, error):
    """Fails where more rows than ``most`` enter an FFN; what was refused is noted."""
    refused = []

    def hook(_module, args):
        rows = args[0][..., 0].numel()
        if rows > most:
            refused.append(rows)
            raise error

    for layer in range(backbone.architecture.layers):
        up(backbone, layer).register_forward_pre_hook(hook)
    return refused


@pytest.mark.parametrize("tokens", [1, 4, 19, 20, 64, 200, 350])
def test_no_pass_exceeds_the_token_limit_but_a_single_longer_example(
    backbone, batch, label_ids, tokens
):
    rows = watch(backbone)
    subspace = subspace_of(backbone, batch)
    rows.clear()
    engine = Engine(limited(backbone, tokens=tokens), batch, label_ids)
    solution, candidates = some_solution(7)
    for block in range(3):
        logits_of(engine, subspace, solution, block, candidates)
    engine(subspace.incumbents(solution))
    single = batch.attention_mask.sum(-1).tolist() + (batch.answer + 1).tolist()
    assert all(size <= tokens or size in single for size in rows)
    assert max(rows) > tokens / 2  # the limit is used


def test_larger_limit_needs_fewer_passes(backbone, batch, label_ids):
    subspace = subspace_of(backbone, batch)
    rows, passes = watch(backbone), []
    for tokens in (20, 100, 1000):
        rows.clear()
        solution, candidates = some_solution(7)
        engine = Engine(limited(backbone, tokens=tokens), batch, label_ids)
        logits_of(engine, subspace, solution, 0, candidates)
        passes.append(len(rows))
    assert passes[0] > passes[1] > passes[2] == 3  # one a layer


def peak_bytes(backbone, batch, targets, population):
    """Of all that an engine and two of its calls hold beside the weights and the factors."""
    subspace = subspace_of(backbone, batch, targets=targets)
    solution, candidates = some_solution(population)
    calls = [
        (subspace.incumbents(solution, without=[block]), subspace.interventions(block, candidates))
        for block in (1, 0)
    ]
    with LiveBytes() as live:
        engine = Engine(backbone, batch, LABELS)
        for call in calls:
            engine(*call)
    return live.peak


def least_megabytes(backbone, batch, **options):
    """The smallest memory that an engine takes, by bisection."""
    refused, taken = 0.0, 100.0
    while taken - refused > 1e-4 * taken:
        middle = (refused + taken) / 2
        try:
            Engine(limited(backbone, memory=middle), batch, LABELS, **options)
            taken = middle
        except UserError:
            refused = middle
    return taken


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("targets", [("q", "k"), ("q", "k", "v", "o")], ids="".join)
@pytest.mark.parametrize(
    ("dtype", "coarse"), [(torch.float32, False), (torch.bfloat16, True)], ids=["fp32", "bf16"]
)
def test_memory_stays_below_what_is_allowed(family, dtype, targets, coarse, monkeypatch):
    monkeypatch.setitem(COARSE, "cpu", coarse)
    backbone = Backbone(tiny_model(family, **WIDE[family]).to(dtype))
    batch = random_batch(LENGTHS, [length - 1 for length in LENGTHS])
    least = least_megabytes(backbone, batch)
    # At the least, candidates go one by one, however many there are.
    for allowed, population in ((least, 3), (4 * least, 6), (40 * least, 20)):
        within = limited(backbone, memory=allowed, tokens=10_000)
        used = peak_bytes(within, batch, targets, population) / 1e6
        assert 0.3 * allowed <= used <= allowed


def test_what_is_not_carried_is_not_charged(family, batch):
    backbone = Backbone(tiny_model(family))
    tokens = batch.answer + 1 if family == "gpt2" else batch.attention_mask.sum(-1)
    carried = int(tokens.sum()) * 32 * 4 / 1e6
    with_carry, without = (least_megabytes(backbone, batch, carry=c) for c in (True, False))
    assert with_carry - without == pytest.approx(carried, rel=0.02)


def test_without_carrying_nothing_stays_between_calls(family, batch):
    backbone = Backbone(tiny_model(family))
    subspace = subspace_of(backbone, batch)
    incumbents = subspace.incumbents(some_solution()[0], without=[2])
    searched = subspace.interventions(2, some_solution()[1])
    held = {}
    for carry in (True, False):
        with LiveBytes() as live:
            engine = Engine(limited(backbone, tokens=40), batch, LABELS, carry=carry)
            before = live.now
            engine(incumbents, searched)
            held[carry] = live.now - before
    tokens = batch.answer + 1 if family == "gpt2" else batch.attention_mask.sum(-1)
    # The solution's factors of maps in one module, q's and k's in two layers, lie side by side for
    # as long as it lives: they were put so when there was carrying.
    factors = 2 * (2 + 2) * (32 + 96) * 4 if family == "gpt2" else 0
    assert held == {True: int(tokens.sum()) * 32 * 4 + factors, False: 0}


def test_factors_side_by_side_go_with_the_solution(batch):
    backbone = Backbone(tiny_model("gpt2"))
    subspace = subspace_of(backbone, batch)
    engine = Engine(backbone, batch, LABELS, carry=False)
    kept = subspace.incumbents(some_solution()[0])
    incumbents = {layer: lora.cloned() for layer, lora in kept.items()}
    with LiveBytes() as live:
        for _ in range(2):
            engine(incumbents)
            assert live.now == 3 * (2 + 2) * (32 + 96) * 4
        incumbents.clear()
        assert live.now == 0


def test_megabytes_named_are_enough_and_less_is_refused(family):
    sizes = {"gpt2": {"n_embd": 128}}.get(family, {"hidden_size": 128, "intermediate_size": 512})
    backbone = Backbone(tiny_model(family, **sizes))
    batch = random_batch([64] * 4, [63] * 4)
    message = r"needs (\d+) MB .*64 tokens in the longest example.*; 0\.1 MB are allowed"
    with pytest.raises(UserError, match=message) as refused:
        Engine(limited(backbone, memory=0.1), batch, LABELS)
    named = int(re.search(message, str(refused.value))[1])
    Engine(limited(backbone, memory=named), batch, LABELS)
    assert named - 1 < least_megabytes(backbone, batch) <= named


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tokens": 0}, "engine.tokens=0 must be a whole number, 1 or more"),
        ({"tokens": 1.5}, "engine.tokens=1.5 must be a whole number, 1 or more"),
        ({"memory": 0}, "engine.memory=0 must be a positive number of megabytes"),
        ({"memory": float("inf")}, "engine.memory=inf must be a positive number of megabytes"),
        ({"memory": float("nan")}, "engine.memory=nan must be a positive number of megabytes"),
        ({"memory": True}, "engine.memory=True must be a positive number of megabytes"),
        ({"memory": "1GB"}, "engine.memory=1GB must be a positive number of megabytes"),
        ({"free_share": 0}, "engine.free_share=0 must be a positive number"),
        ({"free_share": 1.5}, "engine.free_share=1.5 must be a probability, from 0 to 1"),
        ({"free_share": True}, "engine.free_share=True must be"),
        ({"stream": 1}, "engine.stream must be true or false, got 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    Limits()
    Limits(tokens=1, memory=0.5)
    with pytest.raises(UserError, match=message):
        Limits(**limits)


def ffn_rows(batch, **limits):
    """The most rows that enter a layer's FFN at once, on a GPU of which 1 MB is free."""
    with emulated_cuda(free=10**6):
        backbone = Backbone(tiny_model("roberta").to("cuda"), Limits(**limits))
        subspace = subspace_of(backbone, batch)
        rows = watch(backbone)
        engine = Engine(backbone, batch, LABELS)
        logits_of(engine, subspace, some_solution()[0], 0, some_solution(20)[1])
    return max(rows)


def test_memory_is_planned_from_the_share_of_what_is_free(batch):
    whole, half = ffn_rows(batch, memory=0.8), ffn_rows(batch, memory=0.4)
    assert half < whole < 20 * 82
    assert ffn_rows(batch) == ffn_rows(batch, free_share=0.8) == whole
    assert ffn_rows(batch, free_share=0.4) == half


@pytest.mark.parametrize("error", RUN_OUT.values(), ids=RUN_OUT)
@pytest.mark.parametrize(("block", "most"), [(0, 25), (0, 90), (0, 200), (1, 25), (1, 90), (2, 25)])
def test_out_of_memory_goes_on_with_smaller_pieces(batch, label_ids, block, most, error):
    backbone = Backbone(tiny_model("roberta"))
    subspace = subspace_of(backbone, batch)
    call = subspace, some_solution()[0], block, some_solution(5)[1]
    expected = logits_of(Engine(backbone, batch, label_ids), *call)
    refused = run_out_above(backbone, most, error)
    engine = Engine(backbone, batch, label_ids)
    with pytest.warns(UserWarning, match=r"Out of memory .* engine\.tokens=\d+ avoids") as told:
        got = logits_of(engine, *call)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # float32, other packs
    assert len(told) == len(refused)
    refused.clear()
    again = logits_of(engine, *call)  # a warning would be an error here
    torch.testing.assert_close(again, got, rtol=0, atol=1e-6)
    assert refused == []


def test_out_of_memory_tells_what_was_tried_and_what_is_next(batch, label_ids):
    """82 tokens of 5 candidates, though 2,048 were allowed; then half of that, in whole passes."""
    backbone = Backbone(tiny_model("roberta"))
    subspace = subspace_of(backbone, batch)
    refused = run_out_above(backbone, 200, RUN_OUT["cpu"])
    engine = Engine(backbone, batch, label_ids)
    with pytest.warns(UserWarning, match="with 410 tokens at once; going on with 205"):
        logits_of(engine, subspace, some_solution()[0], 0, some_solution(5)[1])
    assert refused == [410]


@pytest.mark.parametrize("error", RUN_OUT.values(), ids=RUN_OUT)
def test_no_memory_for_one_candidate_on_one_example(batch, label_ids, error):
    backbone = Backbone(tiny_model("roberta"))
    subspace = subspace_of(backbone, batch)
    run_out_above(backbone, 18, error)  # the longest has 19
    engine = Engine(backbone, batch, label_ids)
    with (
        pytest.warns(UserWarning, match="going on with"),
        pytest.raises(UserError, match="Out of memory with one candidate on one example") as told,
    ):
        logits_of(engine, subspace, some_solution()[0], 1, some_solution()[1])
    assert str(error).partition("\n")[0][:60] in str(told.value)


def test_other_errors_pass_through(batch, label_ids):
    backbone = Backbone(tiny_model("roberta"))
    subspace = subspace_of(backbone, batch)
    error = RuntimeError("expected scalar type Float but found BFloat16")
    refused = run_out_above(backbone, 100, error)
    engine = Engine(backbone, batch, label_ids)
    with pytest.raises(RuntimeError) as raised:
        logits_of(engine, subspace, some_solution()[0], 0, some_solution(5)[1])
    assert raised.value is error
    assert refused == [410]  # tried once


def test_live_bytes_are_those_of_the_tensors_held():
    weight = torch.zeros(100)  # 400 bytes that are not counted
    with LiveBytes() as live:
        kept = weight + 1
        view = kept[:50]
        assert live.now == 400
        del kept
        assert live.now == 400  # the view still holds it
        doubled = view.double() * 2  # 400 of two results, one dropped
        assert (live.now, live.peak) == (800, 1200)
        doubled += 1
        weight.add_(1)
        assert (live.now, live.peak) == (800, 1200)
        del view, doubled
        assert live.now == 0
