"""What is trained, the obvious way: a copy of the model that is changed for good."""

import copy

import torch
from torch import nn


def loaded(model, tensors):
    """A copy with some parameters replaced."""
    changed = copy.deepcopy(model)
    _missing, unexpected = changed.load_state_dict(tensors, strict=False)
    assert not unexpected
    changed.tie_weights()
    return changed


def lora_merged(model, factors, scale):
    """A copy with ``W + scale B A`` in each module: ``{module: (A, B)}``."""
    changed = copy.deepcopy(model)
    for path, (down, up) in factors.items():
        module = changed.get_submodule(path)
        update = scale * up @ down
        module.weight.data += update if isinstance(module, nn.Linear) else update.T
    return changed


class Adapted(nn.Module):
    """A map with a bottleneck after it."""

    def __init__(self, module, tensors):
        super().__init__()
        self.module, self.tensors = module, tensors

    def forward(self, x):
        y = self.module(x)
        inner = y @ self.tensors["down.weight"].T + self.tensors["down.bias"]
        cubic = 0.7978845608028654 * (inner + 0.044715 * inner**3)  # sqrt(2 / pi)
        inner = 0.5 * inner * (1 + torch.tanh(cubic))
        return y + inner @ self.tensors["up.weight"].T + self.tensors["up.bias"]


def adapted(model, adapters):
    """A copy with bottlenecks after modules: ``{module: tensors}``."""
    changed = copy.deepcopy(model)
    for path, tensors in adapters.items():
        parent, _, name = path.rpartition(".")
        setattr(changed.get_submodule(parent), name, Adapted(changed.get_submodule(path), tensors))
    return changed


@torch.no_grad()
def last_hidden(model, batch):
    """Each row's own last hidden states, ``(T, H)``, from a forward of that row alone."""
    lengths = batch.attention_mask.sum(-1).tolist()
    return [
        model(input_ids=ids[None, :length], output_hidden_states=True).hidden_states[-1][0]
        for ids, length in zip(batch.input_ids, lengths, strict=True)
    ]


@torch.no_grad()
def bilstm_states(lstm, row):
    """The last state of either direction over one row ``(T, H)``, step by step: ``(2 H,)``."""
    ends = []
    for suffix, steps in (("_l0", row), ("_l0_reverse", row.flip(0))):
        w_in, w_on, b_in, b_on = (
            getattr(lstm, f"{name}{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = cell = torch.zeros(row.shape[-1])
        for x in steps:
            gates = (w_in @ x + b_in + w_on @ hidden + b_on).chunk(4)
            enter, forget, leave = (gates[i].sigmoid() for i in (0, 1, 3))
            cell = forget * cell + enter * gates[2].tanh()
            hidden = leave * cell.tanh()
        ends.append(hidden)
    return torch.cat(ends)
