"""The oracle: one candidate, one full padded forward, merged weights, the whole vocabulary head."""

import copy

import torch

from dfolora.data import Batch
from dfolora.model.backbone import Backbone


def merged_model(backbone: Backbone, layers):
    """A copy of the model whose weights hold the factors: ``W + A B`` for each adapted map."""
    model = copy.deepcopy(backbone.model)
    for lora in layers:
        for name, factors in lora.factors.items():
            linear = backbone.layers[lora.layer].maps[name]
            weight = model.get_parameter(f"{linear.path}.weight")
            update = factors.down[0] @ factors.up[0]
            if isinstance(linear.module, torch.nn.Linear):
                weight.data[linear.place.columns] += update.T
            else:
                weight.data[:, linear.place.columns] += update
    return model


@torch.no_grad()
def answer_logits(model, batch: Batch, label_ids):
    """``(N, C)``: all logits everywhere, then the label words' where the answer is."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[torch.arange(len(batch.answer)), batch.answer][:, label_ids]


def losses(backbone, subspace, batch, label_ids, solution, block, candidates):
    """Cross-entropy of each candidate on its own: ``(P,)``."""
    values = []
    for candidate in candidates:
        whole = solution.copy()
        whole[block] = candidate
        layers = [subspace.intervention(i, whole[i : i + 1]) for i in range(len(whole))]
        logits = answer_logits(merged_model(backbone, layers), batch, label_ids)
        values.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    return values
