"""What identifies a run, and where it came from."""

import re
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.record.provenance import RECORDED_PACKAGES, commit, digest, flat, provenance

IDENTITY: dict[str, Any] = {
    "task": {"name": "sst2", "words": ["bad", "great"]},
    "seed": 8,
    "sigma": 1.0,
    "p": None,
}


def test_digest_ignores_the_order_of_keys():
    turned = {key: IDENTITY[key] for key in reversed(IDENTITY)}
    turned["task"] = {"words": ["bad", "great"], "name": "sst2"}
    assert list(turned) != list(IDENTITY)
    assert digest(turned) == digest(IDENTITY)


def test_digest_ignores_hydras_keys_wherever_they_are():
    marked = {**IDENTITY, "_convert_": "all", "task": {**IDENTITY["task"], "_partial_": True}}
    assert digest(marked) == digest(IDENTITY)
    assert digest({"steps": [{"_partial_": True, "n": 1}]}) == digest({"steps": [{"n": 1}]})


def test_digest_follows_the_class_and_not_its_module():
    one, moved, other = (digest({"_target_": t, "n": 1}) for t in ("a.B", "a.b.B", "a.C"))
    assert one == moved != other
    assert one != digest({"n": 1})


def test_whole_floats_are_whole_numbers():
    assert digest({"sigma": 1.0}) == digest({"sigma": 1}) != digest({"sigma": True})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 9},
        {"seed": "8"},
        {"sigma": 1.0000000000000002},
        {"p": False},
        {"task": {"name": "sst2", "words": ["great", "bad"]}},
        {"task": {"name": "sst2"}},
        {"more": None},
    ],
    ids=str,
)
def test_digest_changes_with_any_value(change):
    assert digest({**IDENTITY, **change}) != digest(IDENTITY)


def test_package_that_is_not_installed_has_no_version(monkeypatch):
    """As nevergrad, which is optional, and dfolora itself where it runs from its source."""

    def version(package):
        if package in ("nevergrad", "dfolora"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("dfolora.record.provenance.version", version)
    told = provenance.__wrapped__()
    assert told["version.nevergrad"] == told["version.dfolora"] == "unknown"
    assert told["version.torch"] == "1.0"


def test_digest_of_an_identity_never_changes():
    """A stored value: another one would make every finished run run again."""
    stored = "c4457747b15c54cadc0b91d043833c9d7eb18b648527a5b8709f56fab6be7d6c"
    assert digest(IDENTITY) == stored


def test_flat_joins_names_with_dots():
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None}) == {
        "a.b.c": 1,
        "d": [1, 2],
        "e": None,
    }


def test_flat_keeps_mappings_whose_keys_are_no_names():
    """A text to replace is no name of a parameter, and nothing is lost with an empty mapping."""
    assert flat({"replace": {"\\n": " "}, "options": {}}) == {
        "replace": {"\\n": " "},
        "options": {},
    }


names = st.text("abc", min_size=1, max_size=3)


@settings(deadline=None)
@given(
    st.recursive(
        st.dictionaries(names, st.integers(), min_size=1),
        lambda inner: st.dictionaries(names, inner | st.integers(), min_size=1),
        max_leaves=8,
    )
)
def test_flat_loses_nothing(nested):
    rebuilt = {}
    for dotted, value in flat(nested).items():
        *outer, last = dotted.split(".")
        inner = rebuilt
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    assert rebuilt == nested


def test_provenance_names_every_version_as_text():
    found = provenance()
    for package in (*RECORDED_PACKAGES, "python"):
        assert re.match(r"\d+\.\d+", found[f"version.{package}"]), package
    assert found["machine"].strip()
    assert all(isinstance(value, str) for value in found.values())


def test_commit_is_a_hash_or_a_version():
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|v\d+\.\d+\.\d+", commit())


def test_commit_outside_of_a_repository_is_the_version(monkeypatch, tmp_path):
    monkeypatch.setattr("dfolora.record.provenance.__file__", str(tmp_path / "record.py"))
    assert re.fullmatch(r"v\d+\.\d+\.\d+", commit.__wrapped__())
