"""What makes a run this run: its settings, its tags, its name, and which values belong to it."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dfolora.checkpoint import Checkpoint
from dfolora.methods import Method

SEEDS = ("split_seed", "search_seed")
PARTS = ("task", "model", "data", "method", *SEEDS)
"""What a run is made of; its record holds these and the values that they refer to."""
REFERENCE = re.compile(r"\$\{(?:[\w.]+:)?(\w+)")


def settings_of(plain: Any, checkpoint: Checkpoint, method: Method) -> Mapping[str, Any]:
    """What is the same in one row of a table: the method and the model, whatever task and seed.

    Where files lie and how work is cut into pieces does not matter, nor how a split is drawn to a
    method that sees none.
    """
    ignored = {"root"} if method.seeded else {"root", "k", "max_words"}
    return {
        "data": {key: value for key, value in plain["data"].items() if key not in ignored},
        "model": checkpoint.identity(),
        "method": {key: value for key, value in plain["method"].items() if key != "limits"},
    }


def used_keys(config: DictConfig) -> list[str]:
    """The top-level keys that matter to the run: not, for example, another method's."""
    raw = OmegaConf.to_container(config, resolve=False)
    used, waiting = set[str](), list(PARTS)
    while waiting:
        key = waiting.pop()
        used.add(key)
        waiting += (set(REFERENCE.findall(str(raw[key]))) & raw.keys()) - used - {"sweep"}
    return [key for key in raw if key in used]


def labels_of(
    plain: Any, choices: Mapping[str, str], checkpoint: Checkpoint, method: Method
) -> dict[str, str]:
    """The tags by which runs are told apart, filtered and put into tables."""
    labels = {
        "task": plain["task"]["name"],
        "model": checkpoint.label or choices["model"],
        "method": choices["method"],
        "profile": choices["profile"],
        "seed": "any",
    }
    if method.seeded:
        split, search = (plain[key] for key in SEEDS)
        labels["seed"] = str(split) if split == search else f"{split}/{search}"
    if "optimizer" in plain["method"]:
        labels["optimizer"] = choices["optimizer"]
    subspace = plain["method"].get("subspace", {})
    if subspace == plain["subspace"]:
        labels["subspace"] = choices["subspace"]
    for key in ("dim", "rank"):
        if key in subspace:
            labels[key] = str(subspace[key])
    if "targets" in subspace:
        labels["targets"] = "".join(subspace["targets"])
    return labels


def name_of(plain: Any, choices: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """What people call the run."""
    parts = [choices["task"], labels["model"], labels["method"]]
    if "optimizer" in labels:
        optimizer = plain["optimizer"].get("name", labels["optimizer"])  # one of nevergrad's
        parts.append(optimizer)
    if "rank" in labels:
        parts.append(f"r{labels['rank']}")
    if labels["seed"] != "any":
        parts.append(f"seed{labels['seed']}")
    return "-".join(parts)
