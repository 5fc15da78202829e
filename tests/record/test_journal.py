"""The journal: exact answers, one line a question, on disk at once."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.errors import UserError
from dfolora.record import journal as module
from dfolora.record.journal import Journal

ASKED = [{"train": number, "at": [number, [0.1 + number / 7]]} for number in range(3)]


def answer(question):
    return {"losses": [0.5, question["train"] / 3, None]}


def asked(journal, questions):
    """The journal's lines for these questions."""
    return [journal(each, lambda each=each: answer(each)) for each in questions]


def unexpected():
    raise AssertionError("this was answered before")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by one second whenever it is read."""
    now = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))


def written(path, questions=ASKED, key="key"):
    with Journal(path, key) as journal:
        asked(journal, questions)
    return path


def lines(path):
    return [json.loads(line, parse_constant=_reject) for line in path.read_text().splitlines()]


def _reject(name):
    raise ValueError(f"{name} is not JSON")


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_numbers_are_read_back_exactly(numbers):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        with Journal(path, "key") as journal:
            journal({}, lambda: {"losses": numbers})
        with Journal(path, "key") as journal:
            got = journal({}, unexpected)["losses"]
    assert list(map(repr, got)) == list(map(repr, numbers))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_no_answer(number, tmp_path):
    with Journal(tmp_path / "j", "key") as journal, pytest.raises(ValueError, match="JSON"):
        journal({}, lambda: {"loss": number})


def test_computed_and_kept_answers_are_the_same(tmp_path):
    """Of JSON's types both: a fit cannot tell whether it goes on."""
    with Journal(tmp_path / "j", "key") as journal:
        first = journal({"child": ((1, 2), ())}, lambda: {"genome": ((1,), (2,))})
    with Journal(tmp_path / "j", "key") as journal:
        again = journal({"child": ((1, 2), ())}, unexpected)
    assert first == again
    assert again["genome"] == [[1], [2]]


def test_each_answer_is_a_line_that_can_be_read_at_once(tmp_path):
    path = tmp_path / "j"
    with Journal(path, "key") as journal:
        for number, question in enumerate(ASKED):
            journal(question, lambda question=question: answer(question))
            assert [line["train"] for line in lines(path)] == list(range(number + 1))
    assert path.read_text().endswith("\n")
    assert [line["losses"] for line in lines(path)] == [answer(each)["losses"] for each in ASKED]


@pytest.mark.usefixtures("clock")
def test_a_fit_goes_on_where_the_journal_ends(tmp_path):
    path = written(tmp_path / "j", ASKED[:2])
    before = path.read_bytes()
    with Journal(path, "key") as journal:
        kept = [journal(question, unexpected) for question in ASKED[:2]]
        assert [line["seconds"] for line in kept] == [1.0, 2.0]  # when it was, not when it was read
        assert path.read_bytes() == before
        asked(journal, ASKED[2:])
        assert journal.seconds == 4.0  # those between the two do not count
    assert path.read_bytes() == written(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "other", [{"train": 2}, {"dev": 1}, {"at": [1, [0.1 + 2 / 7]]}], ids=["value", "key", "nested"]
)
def test_another_question_than_the_one_written_is_refused(tmp_path, other):
    path = written(tmp_path / "j")
    with Journal(path, "key") as journal:
        asked(journal, ASKED[:1])
        with pytest.raises(UserError, match=r"Line 2 of .*j answers another .* delete .* anew"):
            journal(other, unexpected)


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    whole = written(tmp_path / "whole").read_bytes()
    two = whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 1]
    for end in range(len(two), len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        assert len(Journal(tmp_path / "j", "key").lines) == 2
        assert (tmp_path / "j").read_bytes() == two


def test_any_damage_before_the_last_line_is_told(tmp_path):
    """One bit of any byte, a line gone, two lines in each other's place, a line twice."""
    whole = written(tmp_path / "whole").read_bytes()
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
    path = written(tmp_path / "j", key="other")
    with pytest.raises(UserError, match=r"Line 1 of .*j is damaged, or of another run"):
        Journal(path, "key")


def test_a_fit_that_asks_nothing_leaves_no_file(tmp_path):
    written(tmp_path / "j", [])
    assert not (tmp_path / "j").exists()
