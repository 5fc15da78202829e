"""The sweeper ``nevergrad``, on functions whose best values are known."""

from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

TUNED = ("alpha=interval(0.3,3)", "optimizer.sigma=tag(log,interval(0.1,10))", "rank=2,4,8")


def score(config) -> float:
    """Highest, 0, at alpha 0.7, sigma 1 and rank 4."""
    off = (config.alpha - 0.7) ** 2 + (config.optimizer.sigma - 1) ** 2
    return -float(off) - (config.rank != 4)


FEW_VALUES = """
defaults:
  - _self_
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
hydra: {sweep: {dir: not/there}}
alpha: 1.0
optimizer: {sigma: 0.5}
rank: 2
budget: 500
"""
"""A configuration of one file, for it is composed a hundred times."""


def test_best_values_are_found_and_written(tmp_path, monkeypatch):
    seen = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "run.yaml").write_text(FEW_VALUES)

    def task(config):
        seen.append((score(config), config.alpha, HydraConfig.get().job.num, config.budget))
        return seen[-1][0]

    arguments = (*TUNED, "budget=100", "hydra/sweeper=nevergrad", "hydra.sweeper.n_trials=100")
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        hydra.multirun("run", task, list(arguments))
    assert [number for _, _, number, _ in seen] == [*range(100)]
    assert {budget for *_, budget in seen} == {100}
    assert all(0.3 <= alpha <= 3 for _, alpha, _, _ in seen)
    found = yaml.safe_load((tmp_path / "not/there/optimization_results.yaml").read_text())
    assert found["best_value"] == max(seen)[0] > -0.1  # a try at random has -3 on average
    assert found["best_params"]["alpha"] == max(seen)[1]
    assert found["best_params"]["rank"] == "4"


def test_seed_gives_the_same_values_and_whole_ones_stay_whole(multirun):
    def seen(seed):
        ranks = []
        multirun(
            lambda config: ranks.append(config.rank) or 0.0, "rank=int(interval(1,64))",
            "hydra/sweeper=nevergrad", "hydra.sweeper.n_trials=6", f"hydra.sweeper.seed={seed}",
        )  # fmt: skip
        return ranks

    ranks = seen(1)
    assert all(isinstance(rank, int) and 1 <= rank <= 64 for rank in ranks)
    assert ranks == seen(1) != seen(2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "has 0 values to tune"),
        ((*TUNED, "hydra.sweeper.n_trials=0"), "n_trials=0"),
        ((*TUNED, "hydra.sweeper.optimizer=None"), "optimizer=None; give .* in nevergrad's reg"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_the_first_job(multirun, arguments, told):
    with pytest.raises(HydraException, match=told):
        multirun(lambda _: pytest.fail("ran"), "hydra/sweeper=nevergrad", *arguments)


def test_job_that_fails_ends_the_search_and_writes_nothing(multirun, tmp_path):
    def task(_config):
        raise ZeroDivisionError("this job")

    with pytest.raises(ZeroDivisionError, match="this job"):
        multirun(task, *TUNED, "hydra/sweeper=nevergrad")
    assert not (tmp_path / "optimization_results.yaml").exists()
