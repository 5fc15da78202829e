"""Streamed layers: the bits of resident ones, each layer copied once a call, within the memory."""

import re
import warnings
from contextlib import contextmanager
from math import ceil

import numpy as np
import pytest
import torch

from dfolora.engine import classify
from dfolora.engine.forward import COARSE, Engine
from dfolora.errors import UserError
from dfolora.model import Backbone, Limits
from dfolora.model.quantize import quantize_layers
from dfolora.model.streaming import RATES, Streaming
from tests.conftest import SIZES, random_batch, tiny_model
from tests.engine.test_limits import (
    RUN_OUT,
    WIDE,
    least_megabytes,
    peak_bytes,
    run_out_above,
    up,
)
from tests.families import CONFIGS
from tests.searching import evaluator_of, limited, logits_of, some_solution, subspace_of

FAMILIES = [(family, 40) for family in CONFIGS]
FAMILIES += [(family, tokens) for family in SIZES for tokens in (25, 60, 1000)]


def model_in(family, precision, **changes):
    model = tiny_model(family, **changes).to(
        torch.float32 if precision == "fp32" else torch.bfloat16
    )
    if precision == "int8":
        pytest.importorskip("torchao")
        quantize_layers(model)
    return model


def both(family, precision="fp32", **limits):
    """The same model with its layers on the device, and with streamed ones."""
    return (
        Backbone(model_in(family, precision), Limits(**limits)),
        Backbone(model_in(family, precision), Limits(stream=True, **limits)),
    )


@pytest.fixture
def copied(monkeypatch):
    """The bytes of each copy of a layer to the device."""
    sizes, copy = [], Streaming._copy

    def noting(self, layer, slot):
        sizes.append(layer.nbytes)
        copy(self, layer, slot)

    monkeypatch.setattr(Streaming, "_copy", noting)
    return sizes


def whole_search(backbone, batch, label_ids, **spec):
    """All logits of a round and a turn, of the solution itself, of tokens of the vocabulary."""
    subspace = subspace_of(backbone, batch, **spec)
    solution, results = some_solution()[0], []
    for carry in (True, False):
        engine = Engine(backbone, batch, label_ids, carry=carry)
        for turn in range(4):
            candidates = some_solution(5, seed=turn)[1]
            results.append(logits_of(engine, subspace, solution, turn % 3, candidates))
            solution[turn % 3] = candidates[0]
        results.append(engine(subspace.incumbents(solution)))
        results.append(engine.vocabulary())
        results.append(engine.vocabulary(torch.stack([batch.answer, batch.answer // 2], 1)))
    results.append(classify(backbone, label_ids, batch, subspace.incumbents(solution)))
    return results


@pytest.mark.parametrize(("family", "tokens"), FAMILIES)
def test_bits_are_those_of_resident_layers(family, batch, label_ids, tokens):
    """Of several packs and several pieces of each, or of one."""
    expected, got = (whole_search(b, batch, label_ids) for b in both(family, tokens=tokens))
    assert all(map(torch.equal, got, expected))


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("family", [*SIZES, "llama", "modernbert", "phi3"])
def test_bits_are_those_of_resident_layers_in_any_precision(family, batch, label_ids, precision):
    expected, got = (
        whole_search(b, batch, label_ids, targets=("q", "k", "v", "o"))
        for b in both(family, precision, tokens=60)
    )
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bits_do_not_depend_on_how_many_pieces_go_side_by_side(family, batch, label_ids, copied):
    """The fewer, the more often a layer is copied."""
    depth = {"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}
    backbone = Backbone(model_in(family, "fp32", **depth), Limits(stream=True, tokens=60))
    subspace, copies, results = subspace_of(backbone, batch), [], []
    solution, candidates = some_solution(7, layers=5)
    for abreast in (10_000, 250, 0):
        engine = Engine(backbone, batch, label_ids)
        engine._abreast = abreast
        copied.clear()
        results.append(logits_of(engine, subspace, solution, 1, candidates))
        copies.append(len(copied))
    assert all(torch.equal(result, results[0]) for result in results)
    assert copies[0] <= 5  # one may still be there
    assert copies == sorted(set(copies))


def test_each_layer_is_copied_once_a_call(batch, label_ids, copied):
    """Whatever there is of packs and candidates; none below the prefix, and none that is there."""
    backbone = Backbone(tiny_model("roberta", num_hidden_layers=6), Limits(stream=True, tokens=25))
    subspace = subspace_of(backbone, batch)
    assert len(copied) == 6  # the statistics' pass, which fetches one ahead
    solution, candidates = some_solution(7, layers=6)
    engine = Engine(backbone, batch, label_ids)
    for block, needed in enumerate([6, 6, 5, 4, 2, 0]):  # the prefix passes one layer a turn
        copied.clear()
        logits_of(engine, subspace, solution, block, candidates)
        assert len(copied) == needed
        solution[block] = candidates[0]


def test_host_weights_stay_where_they_are(batch, label_ids, copied):
    backbone = Backbone(tiny_model("gpt2"), Limits(stream=True))
    engine = Engine(backbone, batch, label_ids)
    before = {name: weight.data_ptr() for name, weight in backbone.model.state_dict().items()}
    engine({})
    after = {name: weight.data_ptr() for name, weight in backbone.model.state_dict().items()}
    assert copied
    assert before == after


@pytest.mark.parametrize("family", WIDE)
def test_memory_stays_below_what_is_allowed(family, monkeypatch):
    """The two layers that the device holds belong to the weights."""
    monkeypatch.setitem(COARSE, "cpu", True)
    backbone = Backbone(model_in(family, "bf16", **WIDE[family]), Limits(stream=True))
    lengths = torch.linspace(5, 60, 16).long().tolist()
    batch = random_batch(lengths, [length - 1 for length in lengths])
    least = least_megabytes(backbone, batch)
    for allowed, population in ((least, 3), (4 * least, 12), (10 * least, 40)):
        within = limited(backbone, memory=allowed, tokens=10_000)
        used = peak_bytes(within, batch, ("q", "k", "v", "o"), population) / 1e6
        assert 0.4 * allowed <= used <= allowed


def test_memory_in_8_bits_has_room_for_a_weight_in_full(batch):
    """Short texts, beside which a weight is large."""
    pytest.importorskip("torchao")
    for stream in (False, True):
        backbone = Backbone(model_in("gpt2", "int8", n_embd=128), Limits(stream=stream))
        least = least_megabytes(backbone, batch)
        within = limited(backbone, memory=least, tokens=10_000)
        assert peak_bytes(within, batch, ("q", "k"), 4) / 1e6 <= least
        assert backbone.unpacked_nbytes == 2 * 128 * 512


def test_megabytes_named_are_enough_and_less_is_refused():
    backbone = Backbone(tiny_model("gpt2", n_embd=128), Limits(stream=True))
    batch = random_batch([64] * 4, [63] * 4)
    weights = ceil(backbone.device_nbytes / 1e6)
    message = (
        rf"needs (\d+) MB beside the weights' {weights} MB \(64 tokens in the longest example\); "
        rf"0\.1 MB are allowed\. Raise engine\.memory, or lower data\.max_length or k\."
    )
    with pytest.raises(UserError, match=message) as refused:
        Engine(limited(backbone, memory=0.1), batch, torch.tensor([7, 50]))
    named = int(re.search(message, str(refused.value))[1])
    Engine(limited(backbone, memory=named), batch, torch.tensor([7, 50]))
    assert named - 1 < least_megabytes(backbone, batch) <= named


@pytest.mark.parametrize("error", RUN_OUT.values(), ids=RUN_OUT)
def test_out_of_memory_goes_on_with_less_at_once(batch, label_ids, error):
    """Both a pass and what goes side by side; the bits are those of an engine that began so."""
    backbone = Backbone(tiny_model("roberta"), Limits(stream=True))
    subspace = subspace_of(backbone, batch)
    call = subspace, some_solution()[0], 0, some_solution(5)[1]
    refused = run_out_above(backbone, 90, error)
    engine = Engine(backbone, batch, label_ids)
    with pytest.warns(UserWarning, match="A lower engine.memory avoids it") as told:
        got = logits_of(engine, *call)
    assert [re.findall(r"\d+", str(warning.message)) for warning in told] == [
        ["410", "410", "205", "205"], ["164", "205", "82", "102"],
    ]  # fmt: skip
    assert len(refused) == 2
    expected = logits_of(Engine(limited(backbone, tokens=82), batch, label_ids), *call)
    assert torch.equal(got, expected)
    refused.clear()
    assert torch.equal(logits_of(engine, *call), got)
    assert refused == []


def test_no_memory_for_one_candidate_on_one_example(batch, label_ids):
    backbone = Backbone(tiny_model("roberta"), Limits(stream=True))
    subspace = subspace_of(backbone, batch)
    run_out_above(backbone, 18, RUN_OUT["cpu"])
    engine = Engine(backbone, batch, label_ids)
    with (
        pytest.warns(UserWarning, match="going on with"),
        pytest.raises(UserError, match="Out of memory with one candidate on one example"),
    ):
        logits_of(engine, subspace, some_solution()[0], 1, some_solution()[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("something else")])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_interruption_leaves_model_and_engine_usable(batch, label_ids, error, layer):
    """In the second pack, so that packs have come to different layers."""
    resident, backbone = both("gpt2", tokens=25)
    subspace, visits = subspace_of(backbone, batch), []
    call = subspace, some_solution()[0], 2, some_solution()[1]
    engine = Engine(backbone, batch, label_ids)
    before = {name: weight.data_ptr() for name, weight in backbone.model.named_parameters()}

    def interrupt(_module, _args):
        visits.append(layer)
        if len(visits) == 2:
            raise error

    handle = up(backbone, layer).register_forward_pre_hook(interrupt)
    with pytest.raises(type(error)):
        logits_of(engine, *call)
    handle.remove()
    assert before == {name: w.data_ptr() for name, w in backbone.model.named_parameters()}
    expected = logits_of(Engine(resident, batch, label_ids), *call)
    assert torch.equal(logits_of(engine, *call), expected)


@contextmanager
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_transfer_that_nothing_hides_is_told_once(batch, label_ids, monkeypatch):
    """A layer of 38 kB at 1 kB a second: 38 s; 410 tokens take no time to pass it."""
    monkeypatch.setitem(RATES, "cpu", 1e3)
    backbone = Backbone(tiny_model("roberta"), Limits(stream=True))
    evaluate, _ = evaluator_of(backbone, batch, label_ids)
    solution, candidates = some_solution(5)
    with silence():
        evaluate(solution, 0, candidates[:1])  # one candidate hides nothing, and comes but once
    with pytest.warns(UserWarning, match="The device will wait") as told:
        evaluate(solution, 0, candidates)
    assert [str(warning.message) for warning in told] == [
        "The device will wait for the layers' weights: 0.0379 MB a layer take about 3.8e+04 ms to "
        "come, 410 tokens (5 candidates) about 3.4e-05 ms to pass it. If the weights fit on the "
        "device, set engine.stream=false."
    ]
    with silence():
        evaluate(solution, 0, candidates)


def test_transfer_is_hidden_by_tokens_enough(batch, label_ids, monkeypatch):
    """Twice an operation a weight and a token, against a byte count: the rates' ratio decides."""
    backbone = Backbone(tiny_model("roberta"), Limits(stream=True))
    evaluate, _ = evaluator_of(backbone, batch, label_ids)
    solution, candidates = some_solution(5)
    numbers = 4 * 32 * 32 + 2 * 32 * 64
    hidden = backbone.streaming.layer_nbytes * 200e12 / (2 * 410 * numbers)
    monkeypatch.setitem(RATES, "cpu", 1.01 * hidden)
    with silence():
        evaluate(solution, 0, candidates)
    monkeypatch.setitem(RATES, "cpu", 0.99 * hidden)
    evaluate, _ = evaluator_of(backbone, batch, label_ids)
    with pytest.warns(UserWarning, match="The device will wait"):
        evaluate(solution, 0, candidates)


def test_search_finds_the_same(batch, label_ids):
    resident, streamed = (
        evaluator_of(backbone, batch, label_ids)[0] for backbone in both("llama", tokens=60)
    )
    solution, candidates = some_solution(5)
    for block in range(3):
        expected, got = (evaluate(solution, block, candidates) for evaluate in (resident, streamed))
        assert np.array_equal(expected.losses, got.losses)
        assert np.array_equal(expected.scores, got.scores)
