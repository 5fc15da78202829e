"""Which layers are searched, and in blocks of which size."""

from functools import partial

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.search import LastK
from dfolora.search.optim import Cma
from dfolora.search.subspace import CoreSubspaceSpec
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits, merged_model

CORE = CoreSubspaceSpec(alpha=2.0)


def searched(backbone, batch, label_ids, budget=61, **options):
    """A search, dev being train; its steps and what it gives."""
    method = LayerwiseSearch(
        subspace=CORE, optimizer=partial(Cma, population=6), budget=budget, dev_interval=10,
        **options,
    )  # fmt: skip
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    fit = method.begin(backbone, data, seed=0)
    return method, [progress.step for progress in fit], fit.predictor()


def test_all_layers_by_number_are_all_layers(backbone, batch, label_ids):
    _, steps, _ = searched(backbone, batch, label_ids)
    _, same, _ = searched(backbone, batch, label_ids, layers=[2, 0, 1])
    for one, other in zip(steps, same, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        np.testing.assert_array_equal(one.solution, other.solution)


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"layers": [2, 0]}, [[0], [2]]),
        ({"layers": [2]}, [[2]]),
        ({"layers": [0, 2], "layers_per_block": "all"}, [[0, 2]]),
        ({"layers_per_block": 2}, [[0, 1], [2]]),
    ],
    ids=str,
)
def test_losses_are_those_of_merged_models(
    family, backbone, batch, label_ids, options, groups, tmp_path
):
    """Of every candidate; layers that are not named stay the model's own, in the adapter too."""
    method, steps, predictor = searched(backbone, batch, label_ids, **options)
    assert method.groups(backbone.architecture) == groups
    assert predictor.searched == 8 * sum(map(len, groups))
    inner = CORE.build(backbone, batch.input_ids, batch.attention_mask, 0)
    whole = np.zeros((3, 8))
    for step in steps:
        members = groups[step.block]
        for candidate, loss in zip(step.candidates, step.losses, strict=True):
            tried = whole.copy()
            tried[members] = candidate.reshape(len(members), 8)
            layers = [inner.intervention(layer, z[None]) for layer, z in enumerate(tried)]
            logits = answer_logits(merged_model(backbone, layers), batch, label_ids)
            expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
            assert loss == pytest.approx(expected, abs=1e-4)
        if step.losses.min() == step.loss:  # adopted
            best = step.candidates[step.losses.argmin()]
            whole[members] = best.reshape(len(members), 8)
    assert steps[-1].loss < steps[0].loss - 1e-3
    left = sorted({0, 1, 2} - {layer for group in groups for layer in group})
    assert not whole[left].any()
    predictor.save(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    theirs = answer_logits(loaded, batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), theirs, rtol=0, atol=1e-4)
    for name, module in loaded.named_modules():
        if any(f".{layer}." in name for layer in left) and hasattr(module, "lora_B"):
            assert not module.get_delta_weight("default").any()


def test_turns_are_among_the_chosen_layers(backbone, batch, label_ids):
    """The last one of them; and of the numbers it alone is counted."""
    _, steps, predictor = searched(backbone, batch, label_ids, layers=[0, 1], schedule=LastK(k=1))
    assert {step.block for step in steps[1:]} == {1}
    assert predictor.searched == 8
