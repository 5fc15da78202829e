"""Our sweeper, held to Hydra's basic one."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import pipelines.resolvers  # noqa: F401  the resolver ``choices``

CONF = Path(__file__).parents[2] / "conf"
ConfigStore.instance().store(
    "elsewhere", {"_target_": "elsewhere.Launcher"}, group="hydra/launcher"
)
SWEEP = ["rank=2,4", "seed=range(1,4)", "task=mini/sst2", "budget=100"]


@pytest.fixture
def composed(monkeypatch):
    """The overrides of every job that is composed, in order."""
    calls = []
    original = ConfigLoaderImpl.load_sweep_config

    def load_sweep_config(self, master_config, sweep_overrides):
        calls.append(tuple(sweep_overrides))
        return original(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load_sweep_config)
    return calls


def seen(multirun, *overrides):
    """What each job is given."""
    jobs: list[Any] = []

    def task(config):
        hydra = HydraConfig.get()
        jobs.append(
            {
                "config": OmegaConf.to_container(config, resolve=True),
                "choices": OmegaConf.to_container(hydra.runtime.choices),
                "overrides": OmegaConf.to_container(hydra.overrides.task),
                "number": (hydra.job.num, hydra.job.id),
            }
        )

    multirun(task, *overrides)
    without_its_own_name = [job["choices"].pop("hydra/sweeper") for job in jobs]
    assert len(set(without_its_own_name)) == 1
    return jobs


@pytest.mark.parametrize(
    "overrides",
    [SWEEP, ["rank=3"], ["experiment=table1", "seed=8", "row=bbt,c_lora,f_lora"]],
    ids=["product", "one job", "experiment"],
)
def test_jobs_are_those_of_the_basic_sweeper(multirun, overrides):
    ours = seen(multirun, *overrides)
    assert ours == seen(multirun, "hydra/sweeper=basic", *overrides)
    assert len(ours) == {"rank=2,4": 6, "rank=3": 1, "experiment=table1": 21}[overrides[0]]


def test_each_job_is_composed_once(multirun, composed):
    multirun(lambda _config: None, *SWEEP)
    assert len(composed) == len(set(composed)) == 6


def test_each_job_knows_in_what_it_differs_from_others(multirun):
    differs = []

    def task(_config):
        differs.append(list(OmegaConf.select(HydraConfig.get(), "job.swept")))

    multirun(task, "rank=2,4", "optimizer.sigma=0.5", "seed=1,2")
    assert differs == [[f"rank={rank}", f"seed={seed}"] for rank in (2, 4) for seed in (1, 2)]


def test_mistake_in_the_last_job_is_told_before_the_first_runs(multirun):
    ran = []
    with pytest.raises(ConfigCompositionException, match="optimizer/typo"):
        multirun(ran.append, "optimizer=cma,typo")
    assert not ran


def test_what_a_job_raises_is_raised(multirun):
    def task(_config):
        raise RuntimeError("not caught by the job")

    with pytest.raises(RuntimeError, match="not caught by the job"):
        multirun(task, *SWEEP)


def test_other_launchers_are_refused_with_what_to_use(ended):
    status, out, error = ended("run", "-m", "hydra/launcher=elsewhere", "seed=1,2")
    assert (status, out) == (2, "")
    assert error == (
        "error: hydra/launcher=elsewhere starts no jobs here. Leave it out and set workers=N for "
        "processes of this machine, or cluster=ray or cluster=slurm for several machines.\n"
    )


def test_nothing_is_written(multirun, tmp_path):
    multirun(lambda _config: None, *SWEEP)
    assert not list(tmp_path.iterdir())
