"""Blocks of several layers: each candidate's logits are those of its own merged model."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.search.evaluator import PopulationEvaluator
from dfolora.search.subspace import Grouped
from tests.conftest import random_batch, shared_backbone
from tests.reference import one_candidate
from tests.searching import DIM, limited, logits_of, some_solution, subspace_of

LABELS = torch.tensor([5, 6, 7])
BATCH = random_batch([19, 4, 11, 6, 19, 5, 13, 4], [7, 0, 10, 2, 18, 3, 12, 1])
CLOSE = {"rtol": 0, "atol": 3e-5}


class Chosen:
    """Some blocks of a subspace as one, whatever lies between them."""

    def __init__(self, inner, members):
        self.inner, self.members = inner, members

    def interventions(self, candidates):
        changes = {}
        for member, part in zip(
            self.members, np.split(candidates, len(self.members), axis=1), strict=True
        ):
            changes |= self.inner.interventions(member, np.ascontiguousarray(part))
        return changes


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
@pytest.mark.parametrize("members", [(0, 1, 2), (0, 1), (1, 2), (0, 2), (2,)])
def test_each_candidate_is_its_own_merged_model(family, members, tokens):
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, BATCH)
    solution, _ = some_solution()
    candidates = np.random.default_rng(3).normal(size=(4, DIM * len(members)))
    engine = Engine(limited(backbone, tokens=tokens), BATCH, LABELS)
    got = engine(
        subspace.incumbents(solution, without=members),
        Chosen(subspace, members).interventions(candidates),
    )
    for index, candidate in enumerate(candidates):
        whole = solution.copy()
        whole[list(members)] = candidate.reshape(len(members), DIM)
        layers = [subspace.intervention(layer, z[None]) for layer, z in enumerate(whole)]
        model = one_candidate.merged_model(backbone, layers)
        expected = one_candidate.answer_logits(model, BATCH, LABELS)
        torch.testing.assert_close(got[index], expected, **CLOSE)
    assert (got[0] - got[1]).abs().max() > 1e-2  # they do differ


@pytest.mark.parametrize(
    "groups", [[[0], [1], [2]], [[0, 1, 2]], [[0, 1], [2]], [[0, 2]], [[1], [2]]], ids=str
)
def test_a_group_is_its_members(family, groups):
    backbone = shared_backbone(family)
    inner = subspace_of(backbone, BATCH)
    grouped = Grouped(inner, groups)
    assert (grouped.blocks, grouped.stored) == (len(groups), inner.stored)
    vectors = some_solution()[0]
    solution = np.zeros((len(groups), DIM * len(groups[0])))
    for row, members in zip(solution, groups, strict=True):
        row[: DIM * len(members)] = vectors[members].flatten()
    searched = [layer for members in groups for layer in members]
    for block, members in enumerate(groups):
        candidates = np.random.default_rng(4).normal(size=(2, DIM * len(members)))
        changes = grouped.interventions(block, candidates)
        assert list(changes) == members
        for layer, part in zip(changes, np.split(candidates, len(members), axis=1), strict=True):
            expected = inner.intervention(layer, np.ascontiguousarray(part))
            assert torch.equal(changes[layer].factors["q"].down, expected.factors["q"].down)
        kept = grouped.incumbents(solution, without=[block])
        assert set(kept) == set(searched) - set(changes)
        assert all(kept[layer] is grouped.incumbents(solution)[layer] for layer in kept)
    for layer, made in grouped.incumbents(solution).items():
        expected = inner.intervention(layer, vectors[layer][None])
        assert torch.equal(made.factors["q"].down, expected.factors["q"].down)


def test_saved_groups_are_the_inner_subspaces_adapter(tmp_path):
    backbone = shared_backbone("roberta")
    inner = subspace_of(backbone, BATCH)
    vectors = some_solution()[0]
    shorter = np.concatenate([vectors.flatten(), np.zeros(DIM)]).reshape(2, -1)
    Grouped(inner, [[0, 1], [2]]).save(tmp_path / "grouped", backbone, shorter)
    inner.save(tmp_path / "inner", backbone, vectors)
    ours, theirs = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes()
        for name in ("grouped", "inner")
    )
    assert ours == theirs


def test_taking_turns_in_blocks_the_prefix_is_carried_and_exact(family):
    """As a search goes: blocks {0}, {1, 2} and all layers in turn, against a fresh engine each."""
    backbone = shared_backbone(family)
    subspace = subspace_of(backbone, BATCH)
    solution = some_solution()[0]
    engine = Engine(backbone, BATCH, LABELS)
    rng = np.random.default_rng(5)
    for members in [(0,), (1, 2), (2,), (0, 1, 2), (1,), (1, 2), (0, 2)]:
        candidates = rng.normal(size=(3, DIM * len(members)))
        incumbents = subspace.incumbents(solution, without=members)
        searched = Chosen(subspace, members).interventions(candidates)
        fresh = Engine(backbone, BATCH, LABELS, carry=False)(incumbents, searched)
        assert torch.equal(engine(incumbents, searched), fresh)
        solution[list(members)] = candidates[0].reshape(len(members), DIM)


def test_an_evaluator_of_groups_scores_the_same_solutions(family):
    """The base, and candidates that differ in one layer of the group alone."""
    backbone = shared_backbone(family)
    inner = subspace_of(backbone, BATCH)
    solution, candidates = some_solution(3)
    both = [
        PopulationEvaluator(
            Engine(backbone, BATCH, LABELS), subspace, BATCH.labels, objective="ce",
            metric="accuracy",
        )
        for subspace in (inner, Grouped(inner, [[0, 1, 2]]))
    ]  # fmt: skip
    alone = both[0](solution, 1, candidates)
    whole = np.stack([np.concatenate([solution[0], z, solution[2]]) for z in candidates])
    together = both[1](solution.reshape(1, -1), 0, whole)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(together.scores, alone.scores)


def test_groups_of_one_are_the_subspace_itself(family):
    backbone = shared_backbone(family)
    inner = subspace_of(backbone, BATCH)
    solution, candidates = some_solution(3)
    engines = (Engine(backbone, BATCH, LABELS) for _ in range(2))
    ours, theirs = (
        logits_of(engine, subspace, solution, 1, candidates)
        for engine, subspace in zip(engines, (inner, Grouped(inner, [[0], [1], [2]])), strict=True)
    )
    assert torch.equal(ours, theirs)
