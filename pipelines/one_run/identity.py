"""A run's identity: its settings, tags, name and the values it uses."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dfolora
from dfolora.errors import UserError
from dfolora.methods import Method
from dfolora.model import Checkpoint, folder_digest
from dfolora.search.subspace import ComposedSubspaceSpec, GainSubspaceSpec
from dfolora.validation import shown, text
from pipelines.jobs.job import SWEPT

SEEDS = ("split_seed", "search_seed")
PARTS = ("task", "model", "data", "method", "engine", *SEEDS)
"""What a run is made of; its record holds these and the values that they refer to."""
BUILT = ("model", "data", "method", "engine")
"""Parts that are constructors with their arguments, and may hold others, such as an optimizer."""
VALUES = (
    "layers", "layers_per_block", "calibration", "objective", "words", "incumbent", "selection",
    "budget_in", "batch_size",
)  # fmt: skip
"""Of a method, that are labels too."""
USUAL = {
    "subspace": "paper", "schedule": "round_robin", "readout": "plain", "calibration": None,
    "objective": "ce", "words": "1", "budget_in": "calls", "selection": "incumbent",
    "batch_size": "None", "layers": "None",
}  # fmt: skip
"""Labels that a name tells where they differ."""
NAMED = {"task", "model", "method", "row", "optimizer", "rank", "seed", *SEEDS, *USUAL}
"""Keys whose values a run's name tells without a sweep."""
ALWAYS = (
    ("budget_in", "calls"), ("batch_size", None), ("layers", None), ("subspace.vectors", None),
    ("bound", None), ("penalty", 0.0), ("optimizer.bound", None), ("optimizer.law.released", False),
)  # fmt: skip
"""Values of a method and its parts that are left out of its settings, so that runs of before have
the same."""
LIBRARY = Path(dfolora.__file__).parent
REFERENCE = re.compile(r"\$\{(?:[\w.]+:)?(\w+)")


@cache
def code() -> str:
    """A digest of the source that runs, committed or not."""
    return _digest(dict.fromkeys((LIBRARY, Path(__file__).parents[1]), ()))


@cache
def source() -> str:
    """A digest of the source that results depend on: of the library all but its record and report.

    What the pipelines do is in a run's settings, or changes no result.
    """
    return _digest({LIBRARY: ("record", "report")})


def _digest(packages: Mapping[Path, Sequence[str]]) -> str:
    """Of packages' files, without some of their packages."""
    digest = hashlib.sha256()
    for package, without in packages.items():
        for path in sorted(package.rglob("*.py")):
            place = path.relative_to(package)
            if place.parts[0] not in without:
                digest.update(str(place).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def untasked(plain: Any, config: DictConfig) -> Any:
    """The resolved values, with what the method takes from its task left as it refers to it.

    A table's row shares its settings over the tasks, and the rows' digest holds the task.
    """
    raw: Any = OmegaConf.to_container(config, resolve=False)
    given = raw["method"]
    method = {
        key: given[key] if "${task." in str(given[key]) else value
        for key, value in plain["method"].items()
    }
    return {**plain, "method": method}


def settings_of(plain: Any, checkpoint: Checkpoint, method: Method) -> Mapping[str, Any]:
    """The settings that a table row shares: method and model, without task and seed.

    Where files lie, how they are read and how work is cut into pieces does not matter, as the rows'
    own digest holds what was read; nor how a split is drawn to a method that sees none.
    """
    ignored = {"root", "split", "columns", "labels", "missing_classes"}
    if not method.seeded:
        ignored |= {"k", "max_words"}
    return {
        "data": {key: value for key, value in plain["data"].items() if key not in ignored},
        "model": checkpoint.identity(),
        "method": _with_contents(_said(plain["method"]), method),
    }


def _said(plain: Mapping[str, Any], within: str = "") -> Mapping[str, Any]:
    """The values of a method and its parts, but for those that say what always was so before."""
    return {
        key: _said(value, f"{within}{key}.") if isinstance(value, Mapping) else value
        for key, value in plain.items()
        if (f"{within}{key}", value) not in ALWAYS
    }


def _with_contents(plain: Mapping[str, Any], method: Method) -> Mapping[str, Any]:
    """The method's values, with what adapters hold in place of where they lie."""
    held: dict[str, str | list[str]]
    match getattr(method, "subspace", None):
        case ComposedSubspaceSpec(adapters=folders):
            held = {"adapters": [folder_digest(Path(folder)) for folder in folders]}
        case GainSubspaceSpec(adapter=folder):
            held = {"adapter": folder_digest(Path(folder))}
        case _:
            return plain
    return {**plain, "subspace": {**plain["subspace"], **held}}


def check_parts(config: DictConfig) -> None:
    """Raise UserError if a config group holds something other than its options do."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{error.full_key} has no value: {reason}. Set it, or what it refers to."
        ) from error
    assert isinstance(plain, dict)
    for key in ("task", "tracking"):
        if not isinstance(plain.get(key), dict):
            raise UserError(f"{key}={shown(plain.get(key))} must be a mapping, as in conf/.")
    for key in BUILT:
        check_built(plain.get(key), key)
    for name in ("optimizer", "schedule", "readout", "subspace", "trained", "training"):
        if name in plain["method"]:
            check_built(plain["method"][name], f"method.{name}")
    for name in ("uri", "experiment"):
        text(plain["tracking"].get(name), f"tracking.{name}")


def check_built(value: object, where: str) -> None:
    """Raise UserError unless the value names a class, whose arguments the rest then is."""
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        raise UserError(
            f"{where}={shown(value)} must name its class (_target_), as the files in conf/ do; "
            f"choose one of them, and set single values with {where}.NAME=VALUE."
        )


def used_keys(config: DictConfig) -> list[str]:
    """The top-level keys that the run uses."""
    check_parts(config)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    used, waiting = set[str](), list(PARTS)
    while waiting:
        key = waiting.pop()
        used.add(key)
        waiting += (set(REFERENCE.findall(str(raw[key]))) & raw.keys()) - used - {"sweep"}
    return [key for key in raw if key in used]


def labels_of(
    plain: Any, choices: Mapping[str, str], checkpoint: Checkpoint, method: Method
) -> dict[str, str]:
    """The tags by which runs are found and put into tables."""
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
    for group in ("optimizer", "schedule"):
        if group in plain["method"]:
            labels[group] = choices[group]
    if "readout" in plain["method"]:
        labels["readout"] = plain["method"]["readout"]["form"]
    for key in VALUES:
        if key in plain["method"]:
            value = plain["method"][key]
            labels[key] = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    subspace = plain["method"].get("subspace", {})
    if subspace == plain["subspace"]:
        labels["subspace"] = choices["subspace"]
    for key in ("dim", "rank", "alpha"):
        if key in subspace:
            labels[key] = str(subspace[key])
    if "targets" in subspace:
        labels["targets"] = "".join(subspace["targets"])
    return labels


def name_of(plain: Any, choices: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """The run's name."""
    parts = [choices["task"], labels["model"], labels["method"]]
    if "optimizer" in labels:
        optimizer = plain["optimizer"].get("name", labels["optimizer"])  # one of nevergrad's
        parts.append(optimizer)
    differing = [key for key, usual in USUAL.items() if labels.get(key, usual) != usual]
    counted = {"words": "words", "batch_size": "rows", "layers": "layers"}
    parts += [f"{labels[key]}{counted.get(key, '')}" for key in differing]
    if "rank" in labels:
        parts.append(f"r{labels['rank']}")
    if labels["seed"] != "any":
        parts.append(f"seed{labels['seed']}")
    for override in choices.get(SWEPT, "").split():
        key, _, value = override.lstrip("+").partition("=")
        if key not in NAMED:
            parts.append(f"{key.rpartition('.')[2]}{value}")
    return "-".join(parts)
