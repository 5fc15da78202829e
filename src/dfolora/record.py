"""What identifies a run, and where it came from."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("dfolora", "torch", "transformers", "cma", "nevergrad", "numpy")


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of plain data. Keys that begin with an underscore (Hydra's) do not count.

    Args:
        identity: Nested mappings, sequences, strings, numbers.
    """
    text = json.dumps(_without_private_keys(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}} -> {"a.b": 1}``; lists and mappings of free text stay values."""
    items: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value and all(map(str.isidentifier, value)):
            items.update(flat(value, f"{prefix}{key}."))
        else:
            items[f"{prefix}{key}"] = value
    return items


@lru_cache
def provenance() -> Mapping[str, str]:
    """Versions and machine, once a process."""
    versions = {f"version.{name}": version(name) for name in RECORDED_PACKAGES}
    return {
        **versions,
        "version.python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@lru_cache
def commit() -> str:
    """The code's git commit, with ``-dirty`` where tracked files differ; else the version."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return f"v{version('dfolora')}"


def _without_private_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_private_keys(v) for k, v in value.items() if not k.startswith("_")}
    if isinstance(value, list | tuple):
        return [_without_private_keys(item) for item in value]
    return value
