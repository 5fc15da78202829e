"""Soft prompts on transformers' own padded forward, by a hook before each layer."""

from contextlib import ExitStack

from dfolora.model.intervention import SoftPrompt
from tests.reference import one_candidate


def answer_logits(backbone, interventions, batch, label_ids):
    """``(N, C)`` of one candidate: LoRA merged into a copy, vectors added to layers' inputs."""
    prompts = [change for change in interventions if isinstance(change, SoftPrompt)]
    loras = [change for change in interventions if not isinstance(change, SoftPrompt)]
    model = one_candidate.merged_model(backbone, loras)
    layers = model.get_submodule(backbone.architecture.family.layers)
    with ExitStack() as stack:
        for prompt in prompts:
            handle = layers[prompt.layer].register_forward_pre_hook(_adder(prompt))
            stack.callback(handle.remove)
        return one_candidate.answer_logits(model, batch, label_ids)


def _adder(prompt):
    def add(_module, args):
        hidden = args[0].clone()
        for row in hidden:
            for offset, vector in enumerate(prompt.vectors[0]):
                row[prompt.start + offset] += vector
        return (hidden, *args[1:])

    return add
