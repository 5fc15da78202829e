"""Hydra's sweepers that choose values by what a run returns: its dev score."""

import re
from functools import partial

import pytest
import yaml

from dfolora.record import Store
from tests.commands import command

TRIALS = 5
SMALL = ("profile=mini", "budget=41", "dim=40", "dev_interval=20", "data.k=4")


OPTUNA = ("hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1")


@pytest.fixture(params=["optuna", "nevergrad"])
def tune(request, tmp_path):
    """Runs a sweep of a few trials, by one of the sweepers."""
    if request.param == "optuna":
        pytest.importorskip("optuna", reason="the extra optuna is not installed")
    own = OPTUNA if request.param == "optuna" else ()
    return partial(
        command, tmp_path, "run", "-m", f"hydra/sweeper={request.param}", *own,
        f"hydra.sweeper.n_trials={TRIALS}", *SMALL,
    )  # fmt: skip


@pytest.mark.slow
def test_values_are_chosen_by_dev_scores(tune, tmp_path, monkeypatch):
    """Each trial is a run as any other, and the best is the one with the highest dev score."""
    monkeypatch.chdir(tmp_path)
    ended = tune("alpha=interval(0.3,3.0)")
    assert ended.returncode == 0, ended.stderr
    runs = Store(f"sqlite:///{tmp_path}/mlflow.db").runs()
    assert len(runs) == TRIALS
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    scores = runs["metrics.dev/selected_score"]
    assert best["best_value"] == scores.max()
    of_the_best = runs[scores == scores.max()]["params.method.subspace.alpha"].astype(float)
    assert best["best_params"]["alpha"] in of_the_best.tolist()
    told = re.findall(r"^(\S+): test 0\.", ended.stdout, re.M)
    assert len(told) == TRIALS
    alphas = runs["params.method.subspace.alpha"].nunique()
    assert len(set(told)) == alphas > 1  # each line tells which one it is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alpha=interval(0.3,3.0)", "rank=0"], r"^error: rank=0 must .*$"),
        (
            ["row=manual_prompt", "seed=range(1,9)"],
            r"^error: .* looks at no dev rows; sweep over .*$",
        ),
        (["alpha=interval(0.3,3.0)", "hydra/launcher=submitit_local"], r"^error: .*launcher.*$"),
    ],
    ids=["a wrong value", "no dev score", "a launcher"],
)
def test_mistake_ends_it_with_a_line(tune, arguments, message):
    ended = tune(*arguments)
    assert ended.returncode == 2
    assert re.search(message, ended.stderr, re.M)
    assert "Traceback" not in ended.stderr
