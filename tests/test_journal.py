"""The journal: exact numbers, one line a generation, on disk at once."""

import hashlib
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.journal import Journal
from dfolora.tune import Generation


def generation(losses, *, block=2, calls=40, candidates=None):
    losses = np.array(losses, dtype=np.float64)
    return Generation(
        block=block,
        calls=calls,
        candidates=np.zeros((len(losses), 3)) if candidates is None else candidates,
        losses=losses,
        solution=np.zeros((4, 3)),
        loss=float(losses.min()),
        step_size=1.0,
        last=False,
    )


def lines(path):
    return [json.loads(line, parse_constant=_reject) for line in path.read_text().splitlines()]


def _reject(name):
    raise ValueError(f"{name} is not JSON")


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_losses_are_read_back_exactly(losses):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with Journal(path) as journal:
            journal.append(generation(losses))
        (line,) = lines(path)
    assert line["losses"] == [x if math.isfinite(x) else None for x in losses]


def test_no_finite_number_is_null(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append(generation([1.5, math.inf, -math.inf, math.nan]))
    assert lines(tmp_path / "j")[0]["losses"] == [1.5, None, None, None]


def test_each_generation_is_a_line_that_can_be_read_at_once(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        for calls in (1, 21, 41):
            journal.append(generation([0.5], block=calls % 4, calls=calls))
            assert lines(path)[-1]["calls"] == calls
            assert lines(path)[-1]["block"] == calls % 4
    assert [line["calls"] for line in lines(path)] == [1, 21, 41]
    assert path.read_text().endswith("\n")


def test_digest_is_that_of_the_candidates_bytes(tmp_path):
    candidates = np.random.default_rng(0).normal(size=(2, 3))
    moved = candidates.copy()
    moved[1, 2] = np.nextafter(moved[1, 2], np.inf)
    with Journal(tmp_path / "j") as journal:
        for asked in (candidates, moved, np.asfortranarray(candidates)):
            journal.append(generation([0.1, 0.2], candidates=asked))
    first, second, third = (line["candidates_sha256"] for line in lines(tmp_path / "j"))
    assert first == hashlib.sha256(candidates.tobytes()).hexdigest()
    assert second != first
    assert third == first  # the numbers count, not how memory holds them
