"""Everything under ``conf/`` composes, and what it names can be built."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import pipelines.run  # noqa: F401  registers the resolver ``choices``
from dfolora.architecture import Architecture
from dfolora.engine import Limits
from dfolora.methods import Gap3, InContext, LayerwiseSearch, ManualPrompt
from dfolora.mini.pretrain import Recipe
from dfolora.optim import Cma, Lotfwa, Nevergrad, RandomSearch
from dfolora.problem import ProblemSpec
from dfolora.report import Row
from dfolora.subspace import LoraSubspaceSpec
from dfolora.task import Task

CONF = Path(__file__).parents[1] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [
    (path.relative_to(CONF).parts[0], "/".join(path.relative_to(CONF).with_suffix("").parts[1:]))
    for path in sorted(CONF.rglob("*/*.yaml"))
]
SIGNATURES = {
    ("data", None): ProblemSpec,
    ("engine", None): Limits,
    ("method", "dfo_lora"): LayerwiseSearch,
    ("method", "gap3"): Gap3,
    ("method", "in_context"): InContext,
    ("method", "manual_prompt"): ManualPrompt,
    ("optimizer", "cma"): Cma,
    ("optimizer", "fwa"): Lotfwa,
    ("optimizer", "nevergrad"): Nevergrad,
    ("optimizer", "random"): RandomSearch,
    ("subspace", "paper"): LoraSubspaceSpec,
}
GIVEN_BY_THE_SEARCH = {"dim", "budget", "rng"}


def options(group):
    return [option for owner, option in OPTIONS if owner == group]


def composed(*overrides, config="run", hydra=False):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, list(overrides), return_hydra_config=hydra)


def with_what_is_missing(config):
    """Fill what only the user knows."""
    for key in OmegaConf.missing_keys(config):
        assert key == "model.path"
        OmegaConf.update(config, key, "a/model")
    return config


def built(optimizer, dim=12):
    build = instantiate(optimizer)
    return build(dim=dim, budget=500, rng=np.random.default_rng(0))


def test_every_file_is_an_option_or_an_entry_points():
    roots = {path.stem for path in CONF.glob("*.yaml")}
    assert roots == {"benchmark", "pretrain", "report", "run"}
    assert len(OPTIONS) + len(roots) == len(list(CONF.rglob("*.yaml")))
    assert len(OPTIONS) > 30


@pytest.mark.parametrize(
    ("group", "option"), [given for given in OPTIONS if given[0] not in ("table", "experiment")]
)
def test_run_with_the_option_can_be_built(group, option):
    """All that ``pipelines.execute`` builds before it loads anything."""
    config = with_what_is_missing(composed(f"{group}={option}"))
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    task = Task.from_mapping(OmegaConf.to_container(config.task, resolve=True))
    assert isinstance(instantiate(config.data), ProblemSpec)
    assert isinstance(instantiate(config.subspace), LoraSubspaceSpec)
    method = instantiate(config.method)
    checkpoint = instantiate(config.model, _convert_="all")
    if group == "task":
        assert task.name == option.rpartition("/")[2]
    if checkpoint.architecture is not None:
        shaped = dataclasses.replace(checkpoint, weights="random", tokenizer=None)
        method.check(Architecture.of(shaped.config()))


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizer_asks_for_candidates(option):
    optimizer = built(composed(f"optimizer={option}").optimizer)
    candidates = optimizer.ask()
    assert candidates.shape[1] == 12
    assert 0 < len(candidates) <= optimizer.population
    assert np.isfinite(candidates).all()


@pytest.mark.parametrize("option", options("optimizer"))
def test_method_gets_the_optimizer_and_its_sigma(option):
    config = composed(f"optimizer={option}", "optimizer.sigma=0.5")
    method = instantiate(config.method)
    assert method.optimizer.func is get_class(config.optimizer._target_)
    assert method.optimizer.keywords["sigma"] == 0.5
    assert method.subspace.sigma == 0.5


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("table", options("table"))
def test_table_shows_what_exists(table, profile):
    config = composed(f"table={table}", f"profile={profile}", config="report")
    layout = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    shown = layout["table"]
    assert shown["name"] == table
    for name, title in shown["tasks"].items():
        assert title == Task.from_file(CONF / "task" / f"{name}.yaml").title
    for row in shown["rows"]:
        assert set(Row(**row).where) <= set(GROUPS)
        for group, option in row["where"].items():
            assert option in options(group)
    assert set(shown["constants"]) <= {"majority", "constant_yes"}  # what dfolora.score gives
    assert {task.rpartition("/")[2] for task in layout["sweep"]["tasks"]} == set(shown["tasks"])
    assert all(isinstance(seed, int) for seed in layout["sweep"]["seeds"])
    assert layout["sweep"]["note"]


def swept(experiment, profile):
    """What the experiment's sweep gives every parameter."""
    config = composed(f"experiment={experiment}", f"profile={profile}", hydra=True)
    assert config.hydra.mode.name == "MULTIRUN"
    parameters = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True)
    return {name: str(values).split(",") for name, values in parameters.items()}


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_sweeps_over_what_exists(experiment, profile):
    plain = composed(f"experiment={experiment}", f"profile={profile}")
    for name, values in swept(experiment, profile).items():
        assert len(set(values)) == len(values) > 0
        for value in values:
            assert value in options(name) if name in GROUPS else name in plain
            composed(f"experiment={experiment}", f"profile={profile}", f"{name}={value}")


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize(
    "name", [name for name in options("experiment") if name in options("table")]
)
def test_experiment_fills_every_row_of_its_table(name, profile):
    sweep = swept(name, profile)
    table = composed(f"table={name}", f"profile={profile}", config="report")
    assert [int(seed) for seed in sweep["seed"]] == list(table.sweep.seeds)
    assert {task.rpartition("/")[2] for task in sweep["task"]} == set(table.table.tasks)
    made = []
    for row in sweep["row"]:
        config = composed(f"experiment={name}", f"profile={profile}", f"row={row}", hydra=True)
        made.append(config.hydra.runtime.choices)
    for row in table.table.rows:
        matching = [
            choices
            for choices in made
            if all(choices[group] == option for group, option in row.where.items())
        ]
        assert len(matching) == 1, row.label


@pytest.mark.parametrize("profile", options("profile"))
def test_profiles_set_the_same_things(profile):
    """So that none of them silently keeps a value that another one sets for its tables."""
    keys = [set(composed(f"profile={name}").sweep) for name in options("profile")]
    assert set(composed(f"profile={profile}").sweep) == set.union(*keys)


def node(group, option):
    """The resolved node of an option as ``run.yaml`` alone has it: profiles change budgets."""
    chosen = [] if option is None else [f"{group}={option}"]
    config = composed("~profile", *chosen)
    return OmegaConf.to_container(config[group], resolve=True)


@pytest.mark.parametrize(("group", "option"), SIGNATURES)
def test_option_names_every_parameter_and_agrees_with_its_default(group, option):
    constructor, given = SIGNATURES[group, option], node(group, option)
    assert get_class(given["_target_"]) is constructor
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
        if group != "optimizer" or name not in GIVEN_BY_THE_SEARCH
    }
    values = {name: value for name, value in given.items() if not name.startswith("_")}
    assert set(values) == set(parameters)
    defaults = {
        name: list(default) if isinstance(default, tuple) else default
        for name, default in parameters.items()
        if default is not inspect.Parameter.empty and not _nested(values[name])
    }
    assert len(defaults) >= len(values) - 3  # the rest are nested or have no default
    assert {name: values[name] for name in defaults} == defaults
    # 1 and 1.0 are equal, but a count is no factor.
    assert all(type(values[name]) is type(defaults[name]) for name in defaults)


def _nested(value):
    return isinstance(value, dict) and "_target_" in value


def test_nested_defaults_are_the_default_options():
    given = node("method", "dfo_lora")
    assert get_class(given["optimizer"]["_target_"]) is LayerwiseSearch().optimizer
    assert get_class(given["subspace"]["_target_"]) is type(LayerwiseSearch().subspace)
    assert given["subspace"] == node("subspace", "paper")
    assert given["optimizer"] == node("optimizer", "cma")


def test_every_constructor_with_options_is_compared():
    for group in ("method", "optimizer", "subspace"):
        kinds = {get_class(node(group, option)["_target_"]) for option in options(group)}
        assert kinds == {kind for (owner, _), kind in SIGNATURES.items() if owner == group}


@pytest.mark.parametrize("option", options("model"))
def test_model_names_every_parameter(option):
    given = with_what_is_missing(composed(f"model={option}")).model
    fields = {field.name for field in dataclasses.fields(get_class(given._target_))}
    assert {name for name in given if not name.startswith("_")} == fields


def test_pretraining_has_the_recipes_own_values():
    recipe = instantiate(composed(config="pretrain").recipe)
    assert recipe == Recipe(documents=recipe.documents)
