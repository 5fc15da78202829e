"""Names what the check needs that a machine for large models lacks, as pip takes it.

python -m pipelines.gpu_check.wheels
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEEDED = ("dfolora[pipelines]", "pytest", "pytest-timeout")
THERE = (
    "torch", "transformers", "peft", "scipy", "scikit-learn", "pandas", "matplotlib",
    "datasets",  # used for the hub alone
)  # fmt: skip
"""What such a machine has or the check does not use, with all that these need."""


def lacking(needed: Iterable[str] = NEEDED, there: Iterable[str] = THERE) -> list[str]:
    """``name==version`` of every package needed that is not there, at this environment's version.

    dfolora itself is run from its folder.
    """
    names = closure(needed) - closure(there) - {"dfolora"}
    return [f"{name}=={version(name)}" for name in sorted(names)]


def closure(named: Iterable[str]) -> set[str]:
    """Packages, and all that they need, as far as they are installed."""
    found, ahead = dict[str, set[str]](), [*map(Requirement, named)]
    while ahead:
        asked = ahead.pop()
        name, extras = canonicalize_name(asked.name), {"", *asked.extras}
        if extras <= found.get(name, set()):
            continue
        try:
            needed = map(Requirement, requires(name) or ())
        except PackageNotFoundError:  # of another system or version of Python
            continue
        found[name] = extras | found.get(name, set())
        ahead += [
            each
            for each in needed
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return set(found)


if __name__ == "__main__":
    print(*lacking())
