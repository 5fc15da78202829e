"""Everything under ``conf/`` composes, and what it names can be built."""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from dfolora.data.task import Task
from dfolora.engine import SolvedReadout
from dfolora.errors import UserError
from dfolora.fewshot.problem import ProblemSpec
from dfolora.methods import (
    CalibratedPrompt,
    Gap3,
    GradientTuning,
    Hybrid,
    InContext,
    LayerwiseSearch,
    ManualPrompt,
    PromptBoosting,
    RandomLora,
    TrainingSpec,
)
from dfolora.methods.gradient import (
    Adapter,
    BitFit,
    FeatureHead,
    Lora,
    ModelTuning,
    PrefixTuning,
    PromptTuning,
)
from dfolora.model import Architecture, Limits
from dfolora.report import TableSpec
from dfolora.report.captions import CONSTANTS
from dfolora.report.figures import KINDS
from dfolora.report.significance import LEVEL
from dfolora.search import Bandit, LastK, Late, Lisa, RoundRobin, Spread, WholeRounds
from dfolora.search.optim import (
    Cma,
    Lotfwa,
    LowRank,
    Nevergrad,
    Point,
    Probing,
    RandomSearch,
    TwoStage,
    ZerothOrder,
)
from dfolora.search.subspace import (
    ComposedSubspaceSpec,
    CoreSubspaceSpec,
    GainSubspaceSpec,
    LoraSubspaceSpec,
    ParameterSubspaceSpec,
    UniLoraSubspaceSpec,
)
from pipelines.jobs.job import SWEPT
from pipelines.jobs.on_ray import OnRay
from pipelines.jobs.on_slurm import OnSlurm
from pipelines.jobs.processes import Processes
from pipelines.one_run.identity import labels_of, name_of
from pipelines.pretrain.training import Recipe
from tests import commands
from tests.adapters import mini_adapters
from tests.commands import PROJECT, whole_config

CONF = PROJECT / "conf"
ROW_TAGS = ("budget_in", "calibration", "dim", "incumbent", "rank", "targets")
"""By which rows of tables may be told beside options."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [
    (path.relative_to(CONF).parts[0], "/".join(path.relative_to(CONF).with_suffix("").parts[1:]))
    for path in sorted(CONF.rglob("*/*.yaml"))
]
SIGNATURES = {
    ("cluster", "none"): Processes,
    ("cluster", "ray"): OnRay,
    ("cluster", "slurm"): OnSlurm,
    ("data", None): ProblemSpec,
    ("engine", None): Limits,
    ("method", "adapter"): GradientTuning,
    ("method", "bbt"): LayerwiseSearch,
    ("method", "bbtv2"): LayerwiseSearch,
    ("method", "calibrated_prompt"): CalibratedPrompt,
    ("method", "compose"): LayerwiseSearch,
    ("method", "dfo_lora"): LayerwiseSearch,
    ("method", "gains"): LayerwiseSearch,
    ("method", "gap3"): Gap3,
    ("method", "hybrid"): Hybrid,
    ("method", "in_context"): InContext,
    ("method", "manual_prompt"): ManualPrompt,
    ("method", "prompt_boosting"): PromptBoosting,
    ("method", "random_lora"): RandomLora,
    ("method.subspace", "compose"): ComposedSubspaceSpec,
    ("method.subspace", "gains"): GainSubspaceSpec,
    ("method.trained", "adapter"): Adapter,
    ("method.trained", "bitfit"): BitFit,
    ("method.trained", "feature_mlp"): FeatureHead,
    ("method.trained", "hybrid"): Lora,
    ("method.trained", "lora"): Lora,
    ("method.trained", "model_tuning"): ModelTuning,
    ("method.trained", "p_tuning_v2"): PrefixTuning,
    ("method.trained", "prompt_tuning"): PromptTuning,
    ("method.training", "lora"): TrainingSpec,
    ("optimizer", "cma"): Cma,
    ("optimizer", "fwa"): Lotfwa,
    ("optimizer", "mezo_gv"): Probing,
    ("optimizer", "nevergrad"): Nevergrad,
    ("optimizer", "random"): RandomSearch,
    ("optimizer", "two_stage"): TwoStage,
    ("readout", "plain"): SolvedReadout,
    ("schedule", "bandit"): Bandit,
    ("schedule", "last_k"): LastK,
    ("schedule", "late"): Late,
    ("schedule", "lisa"): Lisa,
    ("schedule", "released"): WholeRounds,
    ("schedule", "round_robin"): RoundRobin,
    ("schedule", "spread"): Spread,
    ("subspace", "core"): CoreSubspaceSpec,
    ("optimizer", "zo"): ZerothOrder,
    ("optimizer.law", "lozo"): LowRank,
    ("subspace", "paper"): LoraSubspaceSpec,
    ("subspace", "parameters"): ParameterSubspaceSpec,
    ("subspace", "uni_lora"): UniLoraSubspaceSpec,
}
MISSING: dict[str, Callable[[Any], Any]] = {
    "model.path": lambda _config: "a/model",
    "method.subspace.adapters": lambda config: mini_adapters(config.model.path),
    "method.subspace.adapter": lambda config: mini_adapters(config.model.path)[0],
}
"""What only the user knows."""
OF_TABLE_1 = ("curves", "figure1")
GIVEN_BY_THE_SEARCH = {"dim", "budget", "rng"}


def options(group):
    return [option for owner, option in OPTIONS if owner == group]


def composed(*overrides, config="run", hydra=False):
    made = whole_config(*overrides, config=config)
    if not hydra:
        del made.hydra
    return made


def with_what_is_missing(config):
    """Fill in what only the user knows."""
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, MISSING[key](config))
    return config


def built(optimizer, dim=12):
    build = instantiate(optimizer)
    return build(dim=dim, budget=500, rng=np.random.default_rng(0))


def test_every_file_is_an_option_or_an_entry_points():
    """Or, as engine, what several of these share."""
    roots = {path.stem for path in CONF.glob("*.yaml")}
    assert roots == {
        "benchmark", "engine", "gpu_check", "log_model", "mend_store", "new_task", "predict",
        "pretrain", "report", "run",
    }  # fmt: skip
    assert len(OPTIONS) + len(roots) == len(list(CONF.rglob("*.yaml")))
    assert len(OPTIONS) > 30


@pytest.mark.parametrize(
    ("group", "option"), [given for given in OPTIONS if given[0] not in ("table", "experiment")]
)
def test_run_with_the_option_can_be_built(group, option):
    """All that a run builds before it loads anything."""
    beside = ["subspace=core"] if group == "optimizer" else []  # some need a map that is not even
    config = with_what_is_missing(composed(f"{group}={option}", *beside))
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    task = Task.from_mapping(OmegaConf.to_container(config.task, resolve=True))
    assert isinstance(instantiate(config.data), ProblemSpec)
    method = instantiate(config.method)
    checkpoint = instantiate(config.model, _convert_="all")
    if group == "task":
        assert task.name == option.rpartition("/")[2]
    if checkpoint.architecture is not None:
        shaped = dataclasses.replace(checkpoint, weights="random", tokenizer=None)
        method.check(Architecture.of(shaped.config()))


REFUSED = {
    "pairs on an even map": (["optimizer=mezo"], r"pairs .* would stay there.*subspace=core"),
    "probes on an even map": (["optimizer=mezo_gv", "layers_per_block=all"], "would stay there"),
    "pairs on prompts": (["row=bbtv2", "optimizer=mezo"], None),
    "a last block with fewer": (["layers_per_block=2"], None),
    "a last block too short for its optimizer": (
        [
            "subspace=core",
            "optimizer=zo",
            "optimizer.law=orthogonal",
            "optimizer.directions=9",
            "layers_per_block=2",
        ],
        "in dim=8 at most 8 are orthogonal",
    ),
    "blocks of more than there is": (["layers_per_block=4"], r"more than the 3 vectors .*most 3"),
    "blocks of more than is searched": (["layers=[0,2]", "layers_per_block=3"], "than the 2 vec"),
    "layers that are not there": (["layers=[1,3]"], r"layers=\[1, 3\]; .* subset of 0 to 2"),
    "no layers": (["layers=[]"], r"layers=\[\]; choose a non-empty subset"),
    "a layer twice": (["layers=[1,1]"], "each at most once"),
    "a layer that is no list": (["layers=1"], "layers=1; choose"),
    "layers of one vector": (["subspace=uni_lora", "layers=[1]"], r"1 for the 3 layers together"),
    "layers that share vectors": (
        ["subspace=core", "subspace.vectors=2", "layers=[1]"],
        "2 for the 3 layers together",
    ),
    "a schedule of more blocks than are searched": (
        ["layers=[0,2]", "schedule=lisa", "schedule.active=3"],
        "more than the 2 blocks",
    ),
    "blocks of none": (["layers_per_block=0"], r"layers_per_block=0"),
    "blocks by another word": (["layers_per_block=some"], r"layers_per_block=some"),
    "one block's prompt": (["row=bbt", "layers_per_block=3"], r"more than the 1 vectors"),
    "more last layers than there are": (["schedule=last_k", "schedule.k=4"], r"schedule\.k=4"),
    "a schedule without its losses": (
        ["schedule=bandit", "incumbent=center"],
        r"Bandit is told .* incumbent=improving or mean",
    ),
    "a bandit beside the released rule": (["schedule=bandit", "incumbent=released"], "Bandit"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_parts_that_do_not_go_together_are_refused(overrides, message):
    method = instantiate(composed(*overrides).method)
    architecture = Architecture.of(instantiate(composed().model, _convert_="all").config())
    if message is None:
        method.check(architecture)
    else:
        with pytest.raises(UserError, match=message):
            method.check(architecture)


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizer_asks_for_candidates(option):
    optimizer = built(composed(f"optimizer={option}").optimizer)
    candidates = optimizer.ask(Point(z=np.zeros(12), loss=1.0))  # the unadapted model's is known
    assert candidates.shape[1] == 12
    assert 0 < len(candidates) <= optimizer.population
    assert np.isfinite(candidates).all()


@pytest.mark.parametrize("option", options("optimizer"))
def test_method_gets_the_optimizer_with_its_values(option):
    config = composed(f"optimizer={option}", "optimizer.sigma=0.5")
    method = instantiate(config.method)
    assert method.optimizer.func is get_class(config.optimizer._target_)
    assert method.optimizer.keywords["sigma"] == 0.5


@pytest.mark.parametrize("row", ["bbt", "bbtv2", "c_lora", "f_lora"])
def test_all_searches_have_the_one_alpha_which_no_profile_chooses(row):
    for profile in options("profile"):
        assert composed(f"row={row}", f"profile={profile}").method.subspace.alpha == 1.0
    assert composed(f"row={row}", "alpha=0.3").method.subspace.alpha == 0.3


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("table", options("table"))
def test_table_shows_what_exists(table, profile):
    spec = reported_spec(table, profile)
    assert spec.name == table
    for name, title in spec.tasks.items():
        assert title == Task.from_file(CONF / "task" / f"{name}.yaml").title
    for row in spec.rows:
        for tag, value in row.where.items():
            assert value in options(tag) if tag in GROUPS else tag in ROW_TAGS
    labels = [row.label for row in spec.rows]
    assert len(set(labels)) == len(labels)
    named = [measure.ratio_to for measure in spec.measures if measure.ratio_to]
    for against, tested in spec.compare.items():
        named += [against, *tested]
        # A row better on every task must be marked: its p is 2 / 2^tasks, times the rows by Holm.
        assert against not in tested
        assert len(set(tested)) * 2 / 2 ** len(spec.tasks) < LEVEL
    assert set(named) <= set(labels)
    assert set(spec.constants) <= set(CONSTANTS)
    assert spec.picture is None or spec.picture.kind in KINDS
    assert all(isinstance(seed, int) for seed in spec.seeds)
    assert spec.note


def reported_spec(table, profile):
    config = composed(f"table={table}", f"profile={profile}", config="report")
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    sweep = plain["sweep"]
    return TableSpec.from_mapping(
        plain["table"], profile=profile, seeds=sweep["seeds"], note=sweep["note"],
        suffix=sweep["suffix"],
    )  # fmt: skip


def swept(experiment, profile):
    """What the experiment's sweep gives every parameter."""
    config = composed(f"experiment={experiment}", f"profile={profile}", hydra=True)
    assert config.hydra.mode.name == "MULTIRUN"
    parameters: Any = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True)
    given = [f"{name}={values}" for name, values in parameters.items()]
    return {
        override.key_or_group: list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
        for override in OverridesParser.create().parse_overrides(given)
    }


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_sweeps_over_what_exists(experiment, profile):
    plain = composed(f"experiment={experiment}", f"profile={profile}")
    for name, values in swept(experiment, profile).items():
        assert len(set(values)) == len(values) > 0
        for value in values:
            assert value in options(name) if name in GROUPS else name in plain


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("name", [name for name in options("table") if name not in OF_TABLE_1])
def test_experiment_fills_every_row_of_its_table(name, profile):
    """Each row of a table, or point of a figure, gets runs by one of the experiment's jobs."""
    sweep = swept(name, profile)
    spec = reported_spec(name, profile)
    assert [int(seed) for seed in sweep.pop("seed")] == spec.seeds
    tasks = sweep.pop("task")
    assert {task.rpartition("/")[2] for task in tasks} == set(spec.tasks)
    assert {column.task for column in spec.columns} <= {None, *spec.tasks}
    made = [
        tags_of(f"experiment={name}", f"profile={profile}", f"task={tasks[0]}", *job)
        for job in itertools.product(
            *([f"{key}={value}" for value in values] for key, values in sweep.items())
        )
    ]
    for row in spec.all_rows:
        where = {tag: value for tag, value in row.where.items() if tag != "task"}
        matching = [labels for labels in made if where.items() <= labels.items()]
        assert len(matching) == 1, row


@pytest.mark.parametrize("name", OF_TABLE_1)
def test_items_of_table_1_have_its_rows(name):
    theirs, ours = swept("table1", "paper"), swept(name, "paper")
    assert {**theirs, "task": None} == {**ours, "task": None}
    assert set(ours["task"]) <= set(theirs["task"])
    assert reported_spec(name, "paper").rows == reported_spec("table1", "paper").rows


SHARED = {  # what an item asks for, and the job of Table 2 that it is
    "table4": (["row=c_lora"], "c_lora"),
    "table6": (["row=c_lora", "targets=[q,k]"], "c_lora"),
    "figure3": (["row=f_lora", "dim=${sweep.dim}"], "f_lora"),
    "figure3 ": (["row=bbtv2_dim", "dim=500"], "bbtv2"),
    "figure4": (["row=f_lora", "rank=2"], "f_lora"),
}


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("item", SHARED)
def test_items_share_their_runs_with_table_2(item, profile):
    job, row = SHARED[item]
    asked = composed(f"experiment={item.strip()}", f"profile={profile}", *job)
    known = composed("experiment=table2", f"profile={profile}", f"row={row}")
    check_same_run(asked, known)


@pytest.mark.parametrize("profile", options("profile"))
def test_systems_share_their_runs_with_table_1(profile):
    ours, theirs = swept("systems", profile), swept("table1", profile)
    shared = set(ours.pop("row")) & set(theirs.pop("row"))
    calibrated = {"calibrated_bias", "calibrated_probe"}
    assert shared == {"manual_prompt", "bbtv2", "c_lora", "f_lora"} | calibrated
    assert ours == theirs
    for row in shared:
        asked, known = (
            composed(f"experiment={item}", f"profile={profile}", f"row={row}")
            for item in ("systems", "table1")
        )
        check_same_run(asked, known)


def check_same_run(asked, known):
    """What a run is made of, but for its seeds, is the same, so it is run once."""
    for group in ("data", "method"):
        ours, theirs = (
            OmegaConf.to_container(config[group], resolve=True) for config in (asked, known)
        )
        assert ours == theirs


RELEASED = [
    *[f"{key}=released" for key in ("subspace", "incumbent", "schedule", "selection")],
    *["data.readout=released", "data.overlong=released"],
    *["rank=4", "dev_interval=100", "subspace.alpha=1.0"],
]


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize(
    ("row", "optimizer"), [("c_lora_released", "cma"), ("f_lora_released", "fwa")]
)
def test_released_row_is_the_authors_setting(row, optimizer, profile):
    asked = composed(f"row={row}", f"profile={profile}")
    spelled = composed("method=dfo_lora", f"optimizer={optimizer}", f"profile={profile}", *RELEASED)
    for group in ("data", "method", "optimizer"):
        ours, theirs = (
            OmegaConf.to_container(config[group], resolve=True) for config in (asked, spelled)
        )
        assert ours == theirs
    assert composed(f"row={row}", "rank=2").method.subspace.rank == 2  # what is asked for wins


def tags_of(*overrides):
    """The tags of the run."""
    config = composed(*overrides, hydra=True)
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if v is not None}
    checkpoint = instantiate(config.model, _convert_="all")
    method = instantiate(config.method)
    del config.hydra
    return labels_of(OmegaConf.to_container(config, resolve=True), choices, checkpoint, method)


def test_names_tell_what_differs_in_a_sweep():
    overrides = ("optimizer.sigma=0.5", "dim=40")
    plain, choices = commands.composed(*overrides)
    labels = tags_of(*overrides)

    def name(swept):
        return name_of(plain, choices | {SWEPT: swept}, labels)

    assert name("") == name("seed=42 rank=2 row=null") == name_of(plain, choices, labels)
    assert name("optimizer.sigma=0.5 ++dim=40") == f"{name('')}-sigma0.5-dim40"
    assert name("readout=plain words=1") == name("")  # others are told without a sweep


@pytest.mark.parametrize("table", sorted({*options("table")} - {"worth", "selections"}))
@pytest.mark.parametrize("row", ["c_lora_bias", "bbtv2_bias", "zo_bias"])
def test_run_of_another_system_fills_no_row(table, row):
    """Also if it was asked for with the table's experiment."""
    labels = tags_of(f"row={row}")
    rows = reported_spec(table, "mini").rows
    assert not [each.label for each in rows if each.where.items() <= labels.items()]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["row=c_lora"], "dfo_lora-cma-r2"),
        (["row=c_lora", "readout.form=bias"], "dfo_lora-cma-bias-r2"),
        (["row=c_lora", "words=5", "objective=hinge"], "dfo_lora-cma-hinge-5words-r2"),
        (["row=c_lora_core"], "dfo_lora-cma-core-r2"),
        (["row=c_lora_last", "readout=bias"], "dfo_lora-cma-core-last_k-bias-r2"),
        (["row=calibrated_knn"], "calibrated_prompt-knn"),
        (["row=bbtv2", "readout=linear"], "bbtv2-cma-linear"),
    ],
)
def test_names_tell_rows_apart(overrides, told):
    plain, choices = commands.composed(*overrides)
    assert f"-{told}-seed" in name_of(plain, choices, tags_of(*overrides))


def test_every_item_of_the_makefile_is_an_experiment_and_a_table():
    makefile = (CONF.parent / "Makefile").read_text()
    items = re.findall(r"^(?:ITEMS|APART) := (.+)$", makefile, re.MULTILINE)
    assert sorted(" ".join(items).split()) == options("experiment") == options("table")


@pytest.mark.parametrize("profile", options("profile"))
def test_profiles_set_the_same_things(profile):
    """So that none of them silently keeps a value that another one sets for its tables."""
    keys = [set(composed(f"profile={name}").sweep) for name in options("profile")]
    assert set(composed(f"profile={profile}").sweep) == set.union(*keys)


def test_profiles_write_reports_of_different_names():
    suffixes = {name: composed(f"profile={name}").sweep.suffix for name in options("profile")}
    assert len(set(suffixes.values())) == len(suffixes)
    assert suffixes["mini"] == ""


def node(group, option):
    """The resolved node of an option as ``run.yaml`` alone has it: profiles change budgets.

    ``method.trained`` is that part of an option of ``method``.
    """
    chosen = [] if option is None else [f"{group.partition('.')[0]}={option}"]
    config = composed("~profile", *chosen)
    return OmegaConf.to_container(OmegaConf.select(config, group), resolve=True)


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
    assert len(defaults) >= len(values) - 4  # the rest are nested or have no default
    assert {name: values[name] for name in defaults} == defaults
    # 1 and 1.0 are equal, but a count is no factor.
    assert all(type(values[name]) is type(defaults[name]) for name in defaults)


def _nested(value):
    return isinstance(value, dict) and "_target_" in value


def test_nested_defaults_are_the_default_options():
    given: Any = node("method", "dfo_lora")
    default: Any = LayerwiseSearch()
    assert get_class(given["optimizer"]["_target_"]) is default.optimizer
    assert get_class(given["subspace"]["_target_"]) is type(default.subspace)
    assert given["subspace"] == node("subspace", "paper")
    assert given["optimizer"] == node("optimizer", "cma")
    assert given["readout"] == node("readout", "plain")
    assert vars(default.readout) == {"form": "plain", "ridge": 0.0}


def test_every_constructor_with_options_is_compared():
    for group in ("cluster", "method", "optimizer", "readout", "schedule", "subspace"):
        kinds = {get_class(node(group, option)["_target_"]) for option in options(group)}
        assert kinds == {kind for (owner, _), kind in SIGNATURES.items() if owner == group}
    trained = [node("method", option).get("trained") for option in options("method")]
    kinds = {get_class(given["_target_"]) for given in trained if given}
    assert kinds == {kind for (owner, _), kind in SIGNATURES.items() if owner == "method.trained"}


@pytest.mark.parametrize("option", options("model"))
def test_model_names_every_parameter(option):
    given = with_what_is_missing(composed(f"model={option}")).model
    fields = {field.name for field in dataclasses.fields(get_class(given._target_))}
    assert {name for name in given if not name.startswith("_")} == fields


def test_pretraining_has_the_recipes_own_values():
    recipe = instantiate(composed(config="pretrain").recipe)
    assert recipe == Recipe(documents=recipe.documents)
