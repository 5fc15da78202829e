"""A run's digest, versions and commit."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("dfolora", "torch", "transformers", "cma", "nevergrad", "numpy")


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, independent of its spelling.

    Of Hydra's keys, which begin with an underscore, only the class name of ``_target_`` counts, so
    moving a class does not change a digest. 1.0 equals 1.

    Args:
        identity: Nested mappings, sequences, strings, numbers.
    """
    text = json.dumps(_canonical(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}} -> {"a.b": 1}``; lists and mappings with free keys stay values."""
    items: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value and all(map(str.isidentifier, value)):
            items.update(flat(value, f"{prefix}{key}."))
        else:
            items[f"{prefix}{key}"] = value
    return items


@lru_cache
def provenance() -> Mapping[str, str]:
    """Versions of the libraries, and the machine."""
    versions = {f"version.{name}": _version(name) for name in RECORDED_PACKAGES}
    return {
        **versions,
        "version.python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@lru_cache
def commit() -> str:
    """The code's git commit, with ``-dirty`` if tracked files differ; without git, the version."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return f"v{_version('dfolora')}"


def _version(package: str) -> str:
    """A package's version; ``unknown`` if it is not installed, or runs from its source alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = {key: _canonical(v) for key, v in value.items() if not key.startswith("_")}
        target = value.get("_target_")
        return items if target is None else {"class": target.rpartition(".")[2], **items}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
