"""What a sweep would take: closed forms, bounds, and the runs whose times are taken."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfolora.errors import UserError
from dfolora.record import Store
from pipelines.plan import BESIDE_SECONDS, NEAR, START_SECONDS, costs, enough, makespan, told

SECONDS = st.lists(st.floats(1.0, 1e4), min_size=1, max_size=60)


@pytest.mark.parametrize(("jobs", "workers"), [(1, 1), (6, 2), (7, 2), (7, 3), (5, 9)])
def test_equal_jobs_take_whole_rounds(jobs, workers):
    rounds = math.ceil(jobs / workers)
    assert makespan([30.0] * jobs, workers) == START_SECONDS + 30.0 * rounds


def test_long_job_at_the_end_is_waited_for():
    assert makespan([1.0, 1.0, 1.0, 9.0], 2) == START_SECONDS + 10.0


@given(SECONDS, st.integers(1, 80))
def test_no_plan_undercuts_the_longest_job_or_the_work(seconds, workers):
    took = makespan(seconds, workers) - START_SECONDS
    least = max(max(seconds), sum(seconds) / workers)
    assert least <= took * (1 + 1e-9)
    assert took <= sum(seconds) / workers + max(seconds) + 1e-6


@given(SECONDS)
def test_enough_workers_are_the_fewest(seconds):
    most = enough(seconds)
    least = NEAR * (START_SECONDS + max(seconds))
    assert makespan(seconds, most) <= least
    assert most == 1 or makespan(seconds, most - 1) > least


@pytest.fixture
def runs(in_folder):
    """Of one row two tasks, which ran at 2 and 4 TFLOP/s; of another one, at 10."""
    store = Store(f"sqlite:///{in_folder}/mlflow.db")
    for tags, fit, computed in (
        (labels("sst2", "8"), 10.0, 22.0),
        (labels("sst2", "13"), 20.0, 42.0),
        (labels("rte", "8"), 59.0, 240.0),
        (labels("rte", "8", method="lora"), 9.0, 100.0),
        (labels("rte", "8", method="older"), 7.0, None),
    ):
        digest = f"{tags['method']}{tags['task']}{tags['seed']}"
        with store.start("runs", "a run", tags=tags | {"digest": digest}, params={}) as log:
            log.metrics({"time/fit_s": fit, "time/test_s": 1.0})
            if computed is not None:
                log.metrics({"work/fit_tflop": computed - 1.0, "work/test_tflop": 1.0})
    return store.runs()


def labels(task, seed, method="dfo_lora", optimizer="cma", model="m"):
    return {
        "task": task, "seed": seed, "method": method, "optimizer": optimizer, "model": model,
        "profile": "mini",
    }  # fmt: skip


def never(_number):
    raise AssertionError


def test_job_takes_what_its_other_seeds_took(runs):
    jobs = [labels("sst2", "42"), labels("rte", "42"), labels("rte", "42", method="older")]
    assert costs(jobs, runs, None, never) == [BESIDE_SECONDS + cost for cost in (16.0, 60.0, 8.0)]


@pytest.mark.parametrize(
    ("job", "teraflops_a_second"),
    [
        ({}, 304 / 92),  # the row's own, of other tasks
        ({"optimizer": "fwa"}, 304 / 92),  # its method's
        ({"method": "lora"}, 10.0),
        ({"method": "bbt"}, 404 / 102),  # its model's
    ],
)
def test_job_without_times_takes_its_arithmetic_at_the_speed_of_the_runs_most_like_it(
    runs, job, teraflops_a_second
):
    asked = []

    def teraflops(number):
        asked.append(number)
        return 606.0

    jobs = [labels("rte", "8"), *(labels("snli", seed, **job) for seed in ("8", "13"))]
    _known, *seconds = costs(jobs, runs, None, teraflops)
    expected = BESIDE_SECONDS + 606.0 / teraflops_a_second
    assert seconds == [pytest.approx(expected)] * 2
    assert asked == [1]  # another seed's arithmetic is the same


def test_job_of_which_nothing_is_known_is_refused_or_given(runs):
    jobs = [labels("sst2", "42"), labels("sst2", "42", model="another")]
    with pytest.raises(UserError, match=r"how fast another is with profile=mini.*\+seconds=N"):
        costs(jobs, runs, None, never)
    assert costs(jobs, runs, 300, never)[1] == BESIDE_SECONDS + 300


def test_what_limits_is_told():
    jobs = [labels("sst2", "8"), labels("rte", "8"), labels("snli", "8")]
    assert "what limits: the workers; 3 would end" in told(jobs, [100.0, 99.0, 98.0], 1)
    many = told(jobs, [8000.0, 9000.0, 20.0], 8)
    assert "longest job: 2.50 h, dfo_lora on rte" in many
    assert "what limits: the longest job; more than 2 workers make it no faster" in many


@pytest.mark.parametrize(
    ("value", "needed"),
    [
        ("+seconds=abc", "0 or a positive number"),
        ("+seconds=-1", "0 or a positive number"),
        ("workers=0", "a whole number, 1 or more"),
    ],
)
def test_number_that_is_none_is_told_before_the_store_is_asked(ended, value, needed):
    said = value.removeprefix("+")
    assert ended("plan", value, "tracking.uri=folder") == (
        2, "", f"error: {said} must be {needed}.\n"
    )  # fmt: skip


def test_sweep_is_planned_from_what_it_recorded(ended):
    sweep = ("-m", "row=manual_prompt,c_lora", "seed=8,13", "budget=25", "dim=40", "workers=4")
    assert ended("plan", *sweep)[0] == 2
    assert ended("run", *sweep[:-1])[0] == 0
    for other in ((), ("task=mini/rte",)):
        status, out, error = ended("plan", *sweep, *other)
        assert (status, error) == (0, "")
        assert out.startswith("4 jobs on 4 workers: ")
        assert len(out.splitlines()) == 5
