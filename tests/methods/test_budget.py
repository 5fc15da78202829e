"""Searches whose candidates cost fractions of a call: minibatches, and budgets in FLOPs."""

import warnings
from itertools import chain

import numpy as np
import pytest
from hydra.utils import instantiate

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods.layerwise import WALK
from tests.methods.test_every_method import SMALL, rows
from tests.pipelines.test_conf import composed

ALL = 16  # train rows, 8 of each class


def fitted(*overrides):
    """The method, its problem and all steps of a fit."""
    config = composed(*SMALL, *overrides)
    checkpoint = instantiate(config.model, _convert_="all")
    method, backbone = instantiate(config.method), checkpoint.load_backbone()
    architecture = backbone.architecture
    problem = instantiate(config.data).pose(
        rows(), checkpoint.load_tokenizer(), method,
        kind=architecture.family.kind, max_length=architecture.max_length, seed=13,
    )  # fmt: skip
    fit = method.begin(backbone, problem.data, 13)
    return [progress.step for progress in fit]


@pytest.fixture
def seen(monkeypatch):
    """Rows and candidates of every pass, the dev set's included."""
    passes = []
    original = Engine.__call__

    def call(self, incumbents, searched=None):
        made = original(self, incumbents, searched or {})
        passes.append((len(self.lengths), len(made)))
        return made

    monkeypatch.setattr(Engine, "__call__", call)
    return passes


def test_minibatch_of_all_rows_is_the_whole_set():
    """In another order, so equal but for rounding."""
    whole, batched = (
        fitted("row=mezo", "budget=12", f"batch_size={size}") for size in ("null", ALL)
    )
    assert [step.calls for step in whole] == [step.calls for step in batched]
    for one, other in zip(whole, batched, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-5)
        np.testing.assert_allclose(one.solution, other.solution, atol=1e-3)


def test_minibatches_cost_their_share(seen):
    steps = fitted("row=mezo", "budget=12", "batch_size=4")
    trained = [candidates for size, candidates in seen if size == 4]
    assert sum(trained) == 12 * ALL // 4 == sum(len(step.losses) for step in steps)
    assert steps[-1].calls == 12
    # Both candidates of a pair see the same rows, the next pair others.
    assert {*trained} == {2}


@pytest.fixture
def drawn(monkeypatch):
    """The rows of every minibatch of four that is passed, in order."""
    drawn = []
    original = Engine.__init__

    def begin(self, backbone, batch, *arguments, **options):
        original(self, backbone, batch, *arguments, **options)
        if len(batch.labels) == 4:
            drawn.append([*batch.rows.texts])

    monkeypatch.setattr(Engine, "__init__", begin)
    return drawn


@pytest.mark.parametrize("row", ["mezo_gv", "mezo_greedy"])
def test_probes_and_the_pair_along_their_guide_see_the_same_rows(row, seen, drawn):
    """Six candidates a step, of a quarter of the rows each: 1.5 calls, in two asks."""
    steps = fitted(f"row={row}", "budget=6", "batch_size=4")
    assert [candidates for size, candidates in seen if size == 4] == [4, 2] * 4
    assert [step.calls for step in steps] == [2, 3, 5, 6]
    assert drawn[::2] == drawn[1::2]
    epoch = sorted(map(str, chain(*drawn[::2])))
    assert len(epoch) == len({*epoch}) == ALL


def test_minibatches_are_other_rows_each_time(drawn):
    fitted("row=mezo", "budget=6", "batch_size=4")
    epochs = [[*chain(*drawn[first : first + 4])] for first in range(0, 12, 4)]
    texts = [sorted(map(str, epoch)) for epoch in epochs]
    assert texts[0] == texts[1] == texts[2]
    assert epochs[0] != epochs[1]


WALKS = {
    "random maps": (["optimizer=zo"], 1),
    "one shared vector": (["optimizer=fzoo", "subspace=uni_lora"], 1),
    "the core": (["optimizer=fzoo", "subspace=core"], 0),
    "CMA-ES": (["optimizer=cma", "budget=64"], 0),
    "steps as long as slopes": (["optimizer=zo", "optimizer.scale=none"], 0),
}


@pytest.mark.parametrize("case", WALKS)
def test_first_steps_that_go_where_chance_has_it_are_told(case):
    overrides, told = WALKS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted("budget=40", "incumbent=mean", *overrides)
    texts = [str(each.message) for each in caught]
    assert texts == [WALK] * told


def test_late_layers_are_searched_longer_at_equal_flops():
    counts = {
        unit: sum(len(step.losses) for step in fitted(
            "row=c_lora_last", "budget=60", f"budget_in={unit}"
        ))
        for unit in ("calls", "flops")
    }  # fmt: skip
    assert counts["calls"] == 60
    # The last of three layers does little for a candidate but what its answer needs.
    assert counts["flops"] > 240


def test_layers_in_turn_are_searched_a_little_longer():
    steps = fitted("row=c_lora", "schedule=last_k", "schedule.k=3", "budget=60", "budget_in=flops")
    in_calls = fitted("row=c_lora", "schedule=last_k", "schedule.k=3", "budget=60")
    assert [step.block for step in steps][:4] == [0, 0, 1, 2]
    # Of three layers in turn, a candidate of the first is a call, of the second half of one.
    assert len(in_calls) < len(steps) < 3 * len(in_calls)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["row=mezo", "batch_size=17"], "batch_size=17 is more than the 16 train rows"),
        (["row=mezo", "batch_size=0"], "batch_size"),
        (["row=c_lora", "batch_size=4"], "incumbent=improving compares losses"),
        (["row=mezo", "batch_size=4", "readout=bias"], "readout=bias is solved on rows of every"),
        (["row=mezo", "batch_size=4", "budget_in=flops"], "one or the other"),
        (["row=mezo", "batch_size=4", "selection=released"], "selection=released looks"),
        (["row=c_lora", "batch_size=4", "incumbent=center", "optimizer=fwa"], "compares losses of"),
        (["row=c_lora", "batch_size=4", "incumbent=center", "optimizer=random"], "compares losses"),
        (
            ["row=c_lora", "batch_size=4", "incumbent=center", "optimizer=two_stage"],
            "The optimizer compares losses of different turns",
        ),
        (["row=c_lora", "budget_in=flops", "budget=5"], "needs .* calls with a population of 20"),
        (["row=mezo", "batch_size=8", "budget=0.5"], "budget=0.5"),
        (["row=c_lora", "budget_in=flops", "selection=released"], "selection=released looks"),
        (["row=c_lora", "budget_in=hours"], "budget_in"),
        (["method=gap3", "selection=mean_last"], "selection=mean_last is for searches of vectors"),
    ],
)
def test_what_cannot_be_had_is_refused(overrides, told):
    with pytest.raises(UserError, match=told):
        fitted(*overrides)
