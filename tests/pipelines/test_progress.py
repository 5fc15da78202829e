"""What a command tells on its way, on a terminal and where nobody watches."""

import io
from contextlib import redirect_stderr
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.progress import Jobs, RunBar


class Terminal(io.StringIO):
    """Of unknown width."""

    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def shown(terminal):
    """Everything drawn so far, oldest first."""
    return [line.strip() for line in terminal.getvalue().replace("\r", "\n").split("\n") if line]


def step(calls, loss=0.5, dev=None):
    taken = SimpleNamespace(calls=calls, losses=np.array([loss, 2.0]))
    return SimpleNamespace(step=taken, selected=None if dev is None else SimpleNamespace(score=dev))


def test_single_run_has_no_number_and_no_summary(capsys):
    with Jobs() as jobs:
        jobs.begin(1)
        with jobs.run("a run", 100) as bar:
            bar.show(step(50))
        jobs.end("done", "a run: test 0.5")
    out, err = capsys.readouterr()
    assert out == "a run: test 0.5\n"
    assert err == ""


def test_sweep_tells_one_line_a_job_and_sums_up(capsys):
    endings = ("done", "in the store already", "done", "failed", "in the store already", "done")
    with Jobs() as jobs:
        for number, ending in enumerate(endings, 1):
            jobs.begin(len(endings))
            jobs.end(ending, f"job {number}")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *(f"[{number}/6] job {number}" for number in range(1, 7)),
        "6 runs: 3 done, 2 in the store already, 1 failed",
    ]
    assert err == ""


def test_summary_leaves_out_what_did_not_happen(capsys):
    with Jobs() as jobs:
        for _ in range(2):
            jobs.begin(2)
            jobs.end("in the store already", "a run")
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 2 in the store already"


def test_aborted_sweep_is_not_summed_up(capsys):
    jobs = Jobs()
    jobs.begin(2)
    jobs.end("done", "job 1")
    with pytest.raises(KeyboardInterrupt), jobs:
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "[1/2] job 1\n"


def test_time_left_is_that_of_runs_at_the_pace_of_runs(clock, capsys):
    """Of ten jobs four are in the store; one takes a minute, so the other five take five."""
    with redirect_stderr(Terminal()) as terminal, Jobs() as jobs:
        for _ in range(4):
            jobs.begin(10)
            jobs.end("in the store already", "a run")
        assert "?" in shown(terminal)[-1]
        jobs.begin(10)
        with jobs.run("a run", 200) as bar:
            clock.now += 30
            bar.show(step(100))
            assert "[5/10] 4 in the store already  45%" in shown(terminal)[-1]
            assert shown(terminal)[-1].endswith("00:30<05:30")
            clock.now += 30
            bar.show(step(200))
        jobs.end("done", "a run")
        jobs.begin(10)
        assert "[6/10] 1 done, 4 in the store already  50%" in shown(terminal)[-1]
        assert shown(terminal)[-1].endswith("01:00<05:00")
    assert capsys.readouterr().out.count("[") == 5  # on the terminal the lines are as they were


@pytest.mark.parametrize(("total", "expected"), [(1, "asked\n"), (2, "")])
def test_what_is_asked_is_told_of_a_single_run_alone(total, expected, capsys):
    with Jobs() as jobs:
        jobs.begin(total)
        with jobs.run("a run", 100) as bar:
            bar.tell("asked")
        assert capsys.readouterr().out == expected


def test_bar_of_a_run_shows_lowest_loss_and_dev_score(clock):
    with redirect_stderr(Terminal()) as terminal, RunBar("a run", 200) as bar:
        bar.show(step(21, loss=0.75))
        clock.now += 1
        bar.show(step(41, loss=0.25, dev=0.625))
        clock.now += 1
        bar.show(step(61, loss=0.5, dev=0.625))
        assert "a run:  30%" in shown(terminal)[-1]
        assert "61/200" in shown(terminal)[-1]
        assert "loss 0.2500, dev 0.625" in shown(terminal)[-1]
