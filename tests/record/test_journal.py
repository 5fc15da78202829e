"""The journal: exact numbers, one line a generation, on disk at once."""

import hashlib
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.errors import UserError
from dfolora.methods import Progress
from dfolora.record.journal import Journal
from dfolora.search.loop import Generation
from dfolora.search.selection import DevPoint


def progress(losses, *, block=2, calls=40, candidates=None, looks=()):
    losses = np.array(losses, dtype=np.float64)
    step = Generation(
        block=block,
        calls=calls,
        candidates=np.zeros((len(losses), 3)) if candidates is None else candidates,
        losses=losses,
        solution=np.zeros((4, 3)),
        loss=float(losses.min()),
        step_size=1.0,
        last=False,
    )
    points = [DevPoint(calls=calls, score=score, loss=loss, solution=None) for score, loss in looks]
    return Progress(step=step, looks=points, selected=None)


def written(path, *steps, key="key"):
    """A journal of these steps, one a second."""
    with Journal(path, key) as journal:
        for second, step in enumerate(steps, 1):
            journal.take(step, float(second), {"process": 100.0 + second})
    return path


STEPS = [progress([0.5, 0.1 + calls / 7], calls=calls) for calls in (2, 4, 6)]


def lines(path):
    return [json.loads(line, parse_constant=_reject) for line in path.read_text().splitlines()]


def _reject(name):
    raise ValueError(f"{name} is not JSON")


@settings(deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=20), st.floats())
def test_losses_and_looks_are_read_back_exactly(losses, dev_loss):
    with TemporaryDirectory() as folder:
        path = written(Path(folder) / "j", progress(losses, looks=[(0.75, dev_loss)]))
        lines(path)  # no word that JSON lacks
        (past,) = Journal(path, "key").past
    expected = [x if math.isfinite(x) else math.inf for x in losses]
    assert past.losses.tolist() == expected
    assert past.looks == [(0.75, dev_loss if math.isfinite(dev_loss) else math.inf)]


def test_each_step_is_a_line_that_can_be_read_at_once(tmp_path):
    path = tmp_path / "j"
    with Journal(path, "key") as journal:
        for number, step in enumerate(STEPS, 1):
            assert journal.take(step, 1.5 * number, {})["seconds"] == 1.5 * number
            assert [line["calls"] for line in lines(path)] == [2, 4, 6][:number]
    assert path.read_text().endswith("\n")


def test_digest_is_that_of_the_candidates_bytes(tmp_path):
    candidates = np.random.default_rng(0).normal(size=(2, 3))
    moved = candidates.copy()
    moved[1, 2] = np.nextafter(moved[1, 2], np.inf)
    asked = (candidates, moved, np.asfortranarray(candidates))
    path = written(tmp_path / "j", *(progress([0.1, 0.2], candidates=each) for each in asked))
    first, second, third = (line["candidates_sha256"] for line in lines(path))
    assert first == hashlib.sha256(candidates.tobytes()).hexdigest()
    assert second != first
    assert third == first  # the numbers count, not how memory holds them


def test_a_fit_goes_on_where_the_journal_ends(tmp_path):
    path = written(tmp_path / "j", *STEPS[:2])
    before = path.read_bytes()
    with Journal(path, "key") as journal:
        assert (journal.seconds, journal.megabytes) == (2.0, {"process": 102.0})
        for number, step in enumerate(STEPS[:2], 1):
            kept = journal.take(step, 100.0, {})
            assert kept["seconds"] == number  # when it was, not when it was repeated
            assert path.read_bytes() == before
        journal.take(STEPS[2], 3.0, {"process": 103.0})
    assert path.read_bytes() == written(tmp_path / "whole", *STEPS).read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        progress([0.5, 0.2], calls=4),
        progress([0.5, 0.1 + 4 / 7], calls=5),
        progress([0.5, 0.1 + 4 / 7], calls=4, block=1),
        progress([0.5, 0.1 + 4 / 7], calls=4, candidates=np.ones((2, 3))),
        progress([0.5, 0.1 + 4 / 7], calls=4, looks=[(0.5, 0.5)]),
    ],
    ids=["losses", "calls", "block", "candidates", "looks"],
)
def test_another_step_than_the_one_written_is_refused(tmp_path, other):
    path = written(tmp_path / "j", *STEPS)
    with Journal(path, "key") as journal:
        journal.take(STEPS[0], 1.0, {})
        with pytest.raises(UserError, match=r"Step 2 is not the one in .*j, .* delete .* anew"):
            journal.take(other, 2.0, {})


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    whole = written(tmp_path / "whole", *STEPS).read_bytes()
    two = whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 1]
    for end in range(len(two), len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        assert len(Journal(tmp_path / "j", "key").past) == 2
        assert (tmp_path / "j").read_bytes() == two


def test_any_damage_before_the_last_line_is_told(tmp_path):
    """One bit of any byte, a line gone, two lines in each other's place, a line twice."""
    whole = written(tmp_path / "whole", *STEPS).read_bytes()
    a, b, c = whole.splitlines(keepends=True)
    damaged = [b + c, b + a + c, a + a + b + c, a + b + b + c, b"\n" + whole]
    flips = np.random.default_rng(0).integers(8, size=len(a + b) - 1)
    for place, bit in enumerate(flips):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(bit)
        damaged.append(bytes(flipped))
    for content in damaged:
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(UserError, match=r"Line [123] of .*j is damaged, .* Delete .* anew"):
            Journal(tmp_path / "j", "key")


def test_lines_of_another_run_are_not_taken(tmp_path):
    path = written(tmp_path / "j", *STEPS, key="other")
    with pytest.raises(UserError, match=r"Line 1 of .*j is damaged, or of another run"):
        Journal(path, "key")


def test_a_fit_without_steps_leaves_no_file(tmp_path):
    written(tmp_path / "j")
    assert not (tmp_path / "j").exists()
