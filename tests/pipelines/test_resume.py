"""A fit that goes on from its journal is, bit by bit, the one that was never broken off."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.record.journal import Journal
from dfolora.search.optim import Probing, ZerothOrder
from pipelines.one_run.fit import _points
from tests.methods.test_every_method import FITTING, SMALL, configured, rows
from tests.pipelines.test_conf import composed, options

ZEROTH_ORDER = sorted(set(options("row")) & set(options("optimizer")))
"""Rows that are named after their optimizer."""
VARIANTS = {
    "dfo_lora": [],
    "fwa": ["optimizer=fwa"],
    "cma_tpa": ["optimizer=cma_tpa"],
    "nevergrad": ["optimizer=nevergrad"],
    "random": ["optimizer=random"],
    "released": ["incumbent=released", "schedule=released", "selection=released"],
    "mean": ["incumbent=mean", "patience=40"],
    "words": ["words=3", "optimizer=fwa"],
    "readout": ["readout=bias", "optimizer=fwa"],
    "all tokens": ["objective=ce_vocab", "optimizer=fwa"],
    # Three steps at least, and a last one that the budget cuts short.
    **{name: [f"row={name}", "budget=41"] for name in ZEROTH_ORDER},
    "es": ["row=es", "budget=97"],
    "exact": ["objective=exact", "optimizer=fwa"],
    "weights of words": ["words=3", "readout=words", "optimizer=fwa"],
    "crossed": ["selection=crossed", "readout=bias", "optimizer=fwa"],
    "mean_best": ["selection=mean_best", "optimizer=fwa"],
    "flops": ["budget_in=flops", "schedule=last_k", "optimizer=fwa", "budget=20"],
    "minibatches": ["row=mezo", "batch_size=5", "budget=14"],
    "guides on minibatches": ["row=mezo_gv", "batch_size=5", "budget=14"],
    "bounds and a penalty": ["method.bound=1", "method.penalty=0.05", "optimizer=fwa"],
    "two_stage": ["row=bbt_rgb"],
    "bandit": ["schedule=bandit", "optimizer=fwa"],
    "spread": ["schedule=spread", "optimizer=fwa"],
    "lisa": ["schedule=lisa", "schedule.interval=2", "optimizer=fwa"],
    "blocks of layers": ["layers_per_block=all", "optimizer=fwa"],
    "a last block with fewer": ["layers_per_block=2", "optimizer=fwa"],
    "some layers": ["layers=[0,2]", "optimizer=fwa"],
    "a shared vector": ["subspace=tiny_lora", "optimizer=fwa"],
    "bbt": ["method=bbt"],
    "bbtv2": ["method=bbtv2"],
    "gap3": ["method=gap3"],
    "gap3 readout": ["method=gap3", "readout=bias"],
}


class Kept:
    """One uninterrupted fit and what it left."""

    def __init__(self, name, folder):
        config = composed(*SMALL, *VARIANTS[name])
        checkpoint = instantiate(config.model, _convert_="all")
        self.method = instantiate(config.method)
        self.backbone = checkpoint.load_backbone()
        architecture = self.backbone.architecture
        self.problem = instantiate(config.data).pose(
            rows(), checkpoint.load_tokenizer(), self.method,
            kind=architecture.family.kind, max_length=architecture.max_length, seed=13,
        )  # fmt: skip
        self.path = folder / name
        self.steps, self.logits = self.fit(self.path)

    def fit(self, path):
        """All steps and the test logits, going on from what the file holds."""
        with Journal(path, "key") as journal:
            fit = self.method.begin(self.backbone, self.problem.data, 13, journal)
            steps = []
            for progress in fit:
                journal({"points": _points(progress)}, dict)
                steps.append(progress)
            predictor = fit.predictor()
        return steps, predictor.logits(self.problem.test)


def lines(path):
    """All lines, but for what a clock measured."""
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: line[key] for key in line.keys() - {"seconds", "check"}} for line in kept]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journals")
    return cache(lambda name: Kept(name, folder))


def assert_same_points(one, other):
    assert (one is None) == (other is None)
    if one is not None:
        assert (one.calls, one.score, one.loss) == (other.calls, other.score, other.loss)
        np.testing.assert_equal(one.solution, other.solution)


@pytest.fixture
def passes(monkeypatch):
    """Every call of an engine."""
    calls = []
    original = Engine.__call__

    def call(self, *arguments):
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Engine, "__call__", call)
    return calls


@pytest.mark.parametrize("name", VARIANTS)
def test_fit_goes_on_wherever_it_was_broken_off(name, kept, tmp_path):
    """Steps, candidates, losses, incumbents, looks at dev, selection and logits: no tolerance."""
    whole = kept(name)
    raw = whole.path.read_bytes().splitlines(keepends=True)
    assert sum("points" in line for line in lines(whole.path)) == len(whole.steps) >= 3
    for cut in range(len(raw), -1, -3):  # within steps, and between them
        path = tmp_path / str(cut)
        path.write_bytes(b"".join(raw[:cut]))
        steps, logits = whole.fit(path)
        assert path.read_bytes().startswith(b"".join(raw[:cut]))
        assert lines(path) == lines(whole.path)  # a search's candidates by their digest
        for again, before in zip(steps, whole.steps, strict=True):
            one, other = again.step, before.step
            for part in ("calls", "losses", "loss", "step_size", "solution"):
                np.testing.assert_array_equal(getattr(one, part, 0), getattr(other, part, 0))
            assert_same_points(again.selected, before.selected)
        assert torch.equal(logits, whole.logits)


@pytest.mark.parametrize("name", ["dfo_lora", "gap3"])
def test_what_is_past_costs_no_pass(name, kept, passes, tmp_path):
    whole = kept(name)
    passes.clear()  # of the whole fit, if it was made just now
    shutil.copy(whole.path, tmp_path / "j")
    steps, _ = whole.fit(tmp_path / "j")
    assert len(steps) == len(whole.steps)
    assert len(passes) == 1  # of the test set


def test_other_candidates_than_those_in_the_journal_are_refused(kept, tmp_path):
    whole = kept("dfo_lora")
    shutil.copy(whole.path, tmp_path / "j")
    with Journal(tmp_path / "j", "key") as journal:
        # Of another seed; the first step is the unadapted model's, whatever the seed.
        steps = iter(whole.method.begin(whole.backbone, whole.problem.data, 14, journal))
        journal({"points": _points(next(steps))}, dict)
        with pytest.raises(UserError, match=r"Line \d of .* answers another question"):
            next(steps)


def test_searches_can_be_resumed():
    assert {name for name in options("method") if configured(name).resumable} == {
        "dfo_lora", "compose", "gains", "bbt", "bbtv2", "gap3",
    } <= set(FITTING)  # fmt: skip


def test_every_zeroth_order_optimizer_is_broken_off():
    made = {
        name: instantiate(composed(f"optimizer={name}").optimizer) for name in options("optimizer")
    }
    assert [name for name in made if made[name].func in (ZerothOrder, Probing)] == ZEROTH_ORDER
