"""Every subspace on every family of models: losses are those of a model of one candidate."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.model import Backbone
from dfolora.search.evaluator import PopulationEvaluator
from dfolora.search.subspace import (
    CoreSubspaceSpec,
    LoraSubspaceSpec,
    ParameterSubspaceSpec,
    PromptSubspaceSpec,
    UniLoraSubspaceSpec,
)
from tests.conftest import SIZES, random_batch, tiny_model
from tests.families import CONFIGS
from tests.reference import soft_prompt
from tests.searching import limited

LENGTHS = [19, 5, 11, 7, 19, 5, 13, 6]
TARGETS = ("q", "k", "v", "o")
SPECS = {
    "core": CoreSubspaceSpec(alpha=2.0, targets=TARGETS),
    "lora_xs": CoreSubspaceSpec(alpha=2.0, targets=TARGETS, basis="weight"),
    "subzero": CoreSubspaceSpec(alpha=2.0, targets=TARGETS, basis="random"),
    "factors_up": LoraSubspaceSpec(dim=24, rank=2, targets=TARGETS, factors="up"),
    "parameters": ParameterSubspaceSpec(rank=2, targets=TARGETS),
    "uni_lora": UniLoraSubspaceSpec(dim=24, rank=2, targets=TARGETS),
    "bbtv2": PromptSubspaceSpec(dim=24, positions=3, alpha=2.0),
    "bbt": PromptSubspaceSpec(dim=24, positions=3, alpha=2.0, every_layer=False),
}


@pytest.mark.parametrize(
    "name", [*SIZES, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS)]
)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_losses_of_a_population_are_those_of_one_model_each(spec, name, label_ids):
    batch = random_batch(LENGTHS, [length - 1 for length in LENGTHS])
    # transformers' own capped attention has no numbers in float64 where a row is padded.
    single = name == "gemma2"
    backbone = Backbone(tiny_model(name) if single else tiny_model(name).double())
    subspace = spec.build(backbone, batch.input_ids, batch.attention_mask, 0)
    rng, d = np.random.default_rng(1), spec.size(backbone.architecture)
    solution = rng.normal(size=(subspace.blocks, d))
    evaluate = PopulationEvaluator(
        Engine(limited(backbone, tokens=60), batch, label_ids),
        subspace,
        batch.labels,
        objective="ce",
        metric="accuracy",
    )
    for block in range(subspace.blocks):  # in turn, so that prefixes are carried
        candidates = rng.normal(size=(4, d))
        losses = evaluate(solution, block, candidates).losses
        for loss, candidate in zip(losses, candidates, strict=True):
            whole = solution.copy()
            whole[block] = candidate
            changes = subspace.incumbents(whole).values()
            logits = soft_prompt.answer_logits(backbone, changes, batch, label_ids)
            expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
            assert loss == pytest.approx(expected, abs=1e-4 if single else 1e-5)  # float32 factors
        assert np.ptp(losses) > 1e-3
