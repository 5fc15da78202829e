"""Tables from a store's data frame: the numbers, the holes, and which runs count."""

import io
from dataclasses import replace

import pandas as pd
import pytest

from dfolora.report import Groups, Row, TableSpec, build_table

SPEC = TableSpec(
    name="table1",
    title="A table",
    tasks={"sst2": "SST-2", "mrpc": "MRPC"},
    accuracy_beside={},
    rows=[
        Row(label="Manual prompt", where={"method": "manual_prompt"}),
        Row(label="C-LoRA", where={"method": "dfo_lora", "optimizer": "cma"}),
        Row(label="F-LoRA", where={"method": "dfo_lora", "optimizer": "fwa"}),
    ],
    constants={"majority": "Majority class", "constant_yes": "Constant Yes"},
    profile="mini",
    seeds=[8, 13],
    note="The note.",
)


def run(task, seed, score, optimizer="cma", **changes):
    """One finished run, with MLflow's column names; ``changes`` in those of Python."""
    column = {
        "item": "tags.item.table1.mini",
        "searched": "metrics.params/searched",
        "majority": "metrics.test/majority_score",
        "constant_yes": "metrics.test/constant_yes_score",
        "calls": "params.budget",
    }
    return {
        "tags.item.table1.mini": "20260101",
        "tags.profile": "mini",
        "tags.method": "dfo_lora" if optimizer else "manual_prompt",
        "tags.optimizer": optimizer,
        "tags.task": task,
        "tags.seed": str(seed),
        "tags.settings": optimizer or "none",
        "tags.rows": f"rows of {task}",
        "tags.commit": "abc",
        "tags.model": "mini_roberta",
        "params.data.k": "16",
        "params.budget": "1000",
        "params.dim": "500",
        "params.rank": "2",
        "params.subspace.alpha": "1.0",
        "params.optimizer.sigma": "1.0",
        "metrics.test/score": score,
        "metrics.test/majority_score": {"sst2": 0.5092, "mrpc": 0.8122}[task],
        "metrics.params/searched": 1500.0 if optimizer else 0.0,
        "metrics.params/stored": 6000.0 if optimizer else 0.0,
        **{column.get(name, f"tags.{name}"): value for name, value in changes.items()},
    }


RUNS = [
    run("sst2", "any", 0.75, optimizer=None),
    run("mrpc", "any", 0.50, optimizer=None, constant_yes=0.8122),
    run("sst2", 8, 0.80),
    run("sst2", 13, 0.90),
    run("mrpc", 13, 0.64),
    run("mrpc", 8, 0.60),
    run("sst2", 8, 0.70, optimizer="fwa"),
]


def table(*runs, spec=SPEC):
    return build_table(pd.DataFrame(runs), spec)


def cells(built, label):
    """What the row shows, without label and number of parameters."""
    shown = next(line for line in built.markdown().splitlines() if line.startswith(f"| {label}"))
    return [cell.strip() for cell in shown.strip("|").split("|")][2:]


def test_markdown_is_as_computed_by_hand():
    # C-LoRA: (80 + 90) / 2 = 85, sqrt(2 * 5^2 / (2 - 1)) = 7.07; 62, sqrt(2 * 2^2) = 2.83;
    # (85 + 62) / 2 = 73.5.
    assert table(*RUNS).markdown() == (
        "# A table\n"
        "\n"
        "| Method         | #Params | SST-2        | MRPC         | Avg.  |\n"
        "| -------------- | ------- | ------------ | ------------ | ----- |\n"
        "| Majority class | 0       | 50.92        | 81.22        | 66.07 |\n"
        "| Constant Yes   | 0       | n/a          | 81.22        | —     |\n"
        "| Manual prompt  | 0       | 75.00        | 50.00        | 62.50 |\n"
        "| C-LoRA         | 1,500   | 85.00 (7.07) | 62.00 (2.83) | 73.50 |\n"
        "| F-LoRA         | 1,500   | — (1/2)      | —            | —     |\n"
        "\n"
        "Test score in %, mean (sample standard deviation) over seeds; — where runs are missing "
        "(finished/wanted), n/a where the predictor does not apply; Avg. is the mean of the tasks. "
        "#Params counts the numbers searched. Majority class always gives the test set's most "
        "frequent class (of equals the first), Constant Yes always the label word Yes. "
        "Profile: mini; Model: mini_roberta; Seeds: 8, 13; Shots per class: 16; Calls: 1000; "
        "d: 500; Rank: 2; Alpha: 1.0; Sigma: 1.0; Commit: abc; Runs: 7. The note.\n"
    )


def test_csv_keeps_every_score_and_leaves_holes_empty():
    csv = table(*RUNS).frame().to_csv(index=False)
    assert csv.splitlines() == [
        "table,profile,group,method,n_params,n_stored,task,metric,mean,std,runs,missing_seeds,scores",
        "table1,mini,,Majority class,0,0,SST-2,score,50.92,,1,,any:50.9200",
        "table1,mini,,Majority class,0,0,MRPC,score,81.22,,1,,any:81.2200",
        "table1,mini,,Constant Yes,0,0,SST-2,score,,,0,any,",
        "table1,mini,,Constant Yes,0,0,MRPC,score,81.22,,1,,any:81.2200",
        "table1,mini,,Manual prompt,0,0,SST-2,score,75.0,,1,,any:75.0000",
        "table1,mini,,Manual prompt,0,0,MRPC,score,50.0,,1,,any:50.0000",
        "table1,mini,,C-LoRA,1500,6000,SST-2,score,85.0,7.0710678118654755,2,,8:80.0000 13:90.0000",
        "table1,mini,,C-LoRA,1500,6000,MRPC,score,62.0,2.8284271247461903,2,,8:60.0000 13:64.0000",
        "table1,mini,,F-LoRA,1500,6000,SST-2,score,,,1,13,8:70.0000",
        "table1,mini,,F-LoRA,1500,6000,MRPC,score,,,0,8 13,",
    ]
    read = pd.read_csv(io.StringIO(csv))
    assert read["mean"].isna().sum() == 3


def test_missing_seed_is_shown_and_never_averaged():
    holed = table(*(given for given in RUNS if given["metrics.test/score"] != 0.90))
    assert cells(holed, "C-LoRA") == ["— (1/2)", "62.00 (2.83)", "—"]


def test_missing_task_leaves_no_average():
    holed = table(*(given for given in RUNS if given["tags.task"] != "mrpc"))
    assert cells(holed, "C-LoRA") == ["85.00 (7.07)", "—", "—"]
    assert cells(holed, "Majority") == ["50.92", "—", "—"]


@pytest.mark.parametrize(
    "runs",
    [
        pd.DataFrame(),
        pd.DataFrame(columns=["run_id", "status", "start_time"]),  # MLflow's, without any run
        pd.DataFrame(RUNS).drop(columns="tags.item.table1.mini"),  # runs, none made for a table
        pd.DataFrame(RUNS).assign(**{"tags.item.table1.mini": None}),  # all made for another table
    ],
    ids=["no frame", "no runs", "no item", "other item"],
)
def test_store_without_runs_of_the_table_gives_a_table_of_holes(runs):
    empty = build_table(runs, SPEC)
    for line in empty.lines:
        assert cells(empty, line.label) == ["—", "—", "—"]
    assert "Runs: 0." in empty.caption
    assert "Commit: —" in empty.caption
    assert empty.frame()["mean"].isna().all()


def test_other_profiles_do_not_count():
    built = table(
        *RUNS, {**run("sst2", 8, 0.1, settings="other", item=None), "tags.item.table1.paper": "2"}
    )
    assert cells(built, "C-LoRA") == ["85.00 (7.07)", "62.00 (2.83)", "73.50"]
    paper = table(*RUNS, spec=replace(SPEC, profile="paper"))
    assert cells(paper, "C-LoRA") == ["—", "—", "—"]


def test_runs_of_different_settings_never_share_a_row():
    newer = run("sst2", 13, 0.95, item="20260102", settings="cma of rank 4")
    assert cells(table(*RUNS, newer), "C-LoRA") == ["— (1/2)", "—", "—"]
    assert cells(table(newer, *RUNS), "C-LoRA") == ["— (1/2)", "—", "—"]
    older = {**newer, "tags.item.table1.mini": "20251231"}
    assert cells(table(*RUNS, older), "C-LoRA") == ["85.00 (7.07)", "62.00 (2.83)", "73.50"]


def test_of_two_runs_for_a_cell_the_one_asked_for_last_counts():
    newer = run("sst2", 13, 0.80, item="20260102", commit="def")
    for runs in ([*RUNS, newer], [newer, *RUNS]):
        built = table(*runs)
        assert cells(built, "C-LoRA")[0] == "80.00 (0.00)"
        assert "Runs: 7." in built.caption


def test_old_run_asked_for_again_is_the_newest_request():
    old = [
        run("sst2", seed, 0.30, item="20260105", settings="the first settings") for seed in (8, 13)
    ]
    assert cells(table(*old, *RUNS), "C-LoRA") == ["30.00 (0.00)", "—", "—"]


def test_seeds_that_are_not_wanted_are_left_out():
    built = table(*RUNS, run("sst2", 42, 0.10))
    assert cells(built, "C-LoRA")[0] == "85.00 (7.07)"


def test_one_seed_has_no_spread():
    assert cells(table(*RUNS, spec=replace(SPEC, seeds=[8])), "C-LoRA")[0] == "80.00"


def test_caption_names_every_commit_and_budget_used():
    built = table(*RUNS, run("mrpc", 8, 0.7, optimizer="fwa", commit="def-dirty", calls="6000"))
    assert "Commit: abc, def-dirty;" in built.caption
    assert "Calls: 1000, 6000;" in built.caption
    assert "Seeds: 8, 13;" in built.caption


def test_every_number_of_searched_parameters_is_named():
    other = table(*RUNS, run("mrpc", 8, 0.7, optimizer="fwa", searched=12000.0))
    shown = {line.label: line.searched for line in other.lines}
    assert shown["F-LoRA"] == "1,500 / 12,000"
    assert shown["C-LoRA"] == "1,500"


def test_rows_of_different_data_never_share_a_mean():
    elsewhere = run("sst2", 13, 0.95, rows="other rows", item="20260102")
    built = table(*RUNS, elsewhere)
    assert cells(built, "C-LoRA") == ["— (1/2)", "62.00 (2.83)", "—"]


def test_accuracy_stands_beside_another_metric_and_is_not_averaged():
    spec = replace(SPEC, accuracy_beside={"mrpc": "MRPC acc."})
    runs = [
        given | {"metrics.test/accuracy": 0.4, "metrics.test/majority_accuracy": 0.6838}
        for given in RUNS
    ]
    built = table(*runs, spec=spec)
    assert "| SST-2        | MRPC         | MRPC acc.    | Avg.  |" in built.markdown()
    assert cells(built, "C-LoRA") == ["85.00 (7.07)", "62.00 (2.83)", "40.00 (0.00)", "73.50"]
    assert cells(built, "Majority") == ["50.92", "81.22", "68.38", "66.07"]


def test_caption_counts_only_what_the_table_shows():
    extra = [
        run("sst2", 99, 0.1, commit="def"),
        run("sst2", 8, 0.1, commit="def") | {"tags.task": "other"},
    ]
    assert table(*RUNS, *extra).caption == table(*RUNS).caption


def test_groups_repeat_the_rows_for_each_value_of_a_tag():
    spec = replace(SPEC, groups=Groups(tag="model", title="Model", values=["small", "large"]))
    built = table(
        *(given | {"tags.model": "small"} for given in RUNS),
        run("sst2", 8, 0.6, model="large"),
        run("sst2", 13, 0.6, model="large"),
        spec=spec,
    )
    lines = [line.split("|")[1:5] for line in built.markdown().splitlines() if "|" in line]
    shown = [[cell.strip() for cell in line] for line in lines]
    assert shown[0] == ["Model", "Method", "#Params", "SST-2"]
    assert shown[2:] == [
        ["", "Majority class", "0", "50.92"],
        ["", "Constant Yes", "0", "n/a"],
        ["small", "Manual prompt", "0", "75.00"],
        ["small", "C-LoRA", "1,500", "85.00 (7.07)"],
        ["small", "F-LoRA", "1,500", "— (1/2)"],
        ["large", "Manual prompt", "—", "—"],
        ["large", "C-LoRA", "1,500", "60.00 (0.00)"],
        ["large", "F-LoRA", "—", "—"],
    ]
    assert list(built.frame()["group"].unique()) == ["", "small", "large"]
