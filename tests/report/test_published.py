"""The paper's numbers: what is committed, and how ours are put beside them."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dfolora.report import Published, comparison
from dfolora.report.published import Number, beside
from tests.reporting import RUNS, run, table

FOLDER = Path(__file__).parents[2] / "reports" / "paper"
FILES = sorted(FOLDER.glob("*.csv"))
SCORE = "test/score"


def published(**numbers):
    """By task, of C-LoRA."""
    return Published(numbers={("", "C-LoRA", task, SCORE): n for task, n in numbers.items()})


def verdicts(built, given):
    return {each.title: each for each in beside(built, given) if each.line.label == "C-LoRA"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_whole_and_says_where_each_number_is_from(path):
    frame = pd.read_csv(path, keep_default_na=False)
    assert (frame["table"] == path.stem).all()
    assert frame["source"].str.startswith(f"Table {path.stem[-1]}, ").all()
    assert (frame["mean"].astype(float) > 0).all()
    assert not frame[["group", "method", "task", "metric"]].duplicated().any()
    assert len(Published.read(FOLDER, path.stem).numbers) == len(frame)


def test_files_hold_all_numbers_of_the_paper():
    sizes = {path.stem: len(pd.read_csv(path)) for path in FILES}
    assert sizes == {"table1": 120, "table2": 64, "table3": 27, "table4": 8, "table6": 14}


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_averages_follow_from_the_cells_but_where_they_are_corrected(name):
    frame = pd.read_csv(FOLDER / f"{name}.csv", dtype={"group": str})
    frame["group"] = frame["group"].fillna("")
    frame["right"] = frame["corrected"].fillna(frame["mean"])
    for (group, method), rows in frame.groupby(["group", "method"]):
        average = rows[rows["task"] == "Avg."].iloc[0]
        cells = rows[rows["task"] != "Avg."]
        assert len(cells) == 7
        assert average["right"] == pytest.approx(cells["right"].mean(), abs=0.0051), (group, method)
    wrong = frame[(frame["task"] == "Avg.") & frame["corrected"].notna()]
    assert dict(zip(wrong["group"] + wrong["method"], wrong["corrected"], strict=True)) == (
        {"GAP3": 74.37}
        if name == "table1"
        else {"gpt2-largeC-LoRA": 73.57, "gpt2-largeF-LoRA": 73.99}
    )


def test_difference_within_two_standard_errors_agrees():
    # Ours on SST-2: 85 (7.07) of 2 runs, so s^2 / n = 25; the paper's 3 gives 9 / 3 = 3:
    # 2 sqrt(28) = 10.58.
    built = table(*RUNS)
    for mean, agrees in ((95.5, True), (95.6, False), (74.5, True), (74.4, False)):
        found = verdicts(built, published(sst2=Number(mean=mean, std=3.0)))["SST-2"]
        assert found.agrees is agrees
        assert found.difference == pytest.approx(85 - mean)


def test_no_verdict_without_a_spread_or_a_number():
    built = table(*RUNS)
    assert verdicts(built, published(sst2=Number(mean=85.0)))["SST-2"].agrees is None
    holed = table(*RUNS[:3], *RUNS[4:])
    hole = verdicts(holed, published(sst2=Number(mean=85.0, std=1.0)))["SST-2"]
    assert (hole.agrees, hole.verdict) == (None, "")
    assert math.isnan(hole.difference)


def test_constant_that_does_as_well_is_named():
    given = published(sst2=Number(mean=85.0, std=1.0), mrpc=Number(mean=80.0, std=1.0))
    found = verdicts(table(*RUNS), given)
    assert found["SST-2"].verdict == "agrees"  # the majority has 50.92
    assert found["MRPC"].verdict == "differs; constant 81.22"


def test_constant_without_a_number_does_not_hide_another():
    other = run("mrpc", 8, 0.7, optimizer="fwa", majority=0.6)  # tested on other rows
    given = published(mrpc=Number(mean=80.0, std=1.0))
    assert verdicts(table(*RUNS, other), given)["MRPC"].verdict == "differs; constant 81.22"


def test_corrected_number_is_what_counts_and_notes_are_numbered():
    given = Published(
        numbers={
            ("", "C-LoRA", "sst2", SCORE): Number(mean=85.0, std=1.0, note="Copied"),
            ("", "C-LoRA", "mrpc", SCORE): Number(mean=62.0, std=1.0, note="Copied"),
            ("", "C-LoRA", "Avg.", ""): Number(mean=70.0, corrected=73.0, note="A slip"),
            ("", "F-LoRA", "sst2", SCORE): Number(mean=70.0, std=1.0),
        }
    )
    grid = comparison(table(*RUNS), given)
    assert [list(row) for row in grid.rows] == [
        ["C-LoRA", "SST-2", "85.00 (7.07)", "85.00 (1.00)", "+0.00", "agrees", "[1]"],
        ["C-LoRA", "MRPC", "62.00 (2.83)", "62.00 (1.00)", "+0.00",
         "agrees; constant 81.22", "[1]"],
        ["C-LoRA", "Avg.", "73.50", "70.00 [73.00]", "+0.50", "", "[2]"],
        ["F-LoRA", "SST-2", "—", "70.00 (1.00)", "", "", ""],
    ]  # fmt: skip
    assert list(grid.caption[1:]) == ["[1] Copied.", "[2] A slip."]


def test_table_that_the_paper_does_not_have_has_no_comparison():
    assert comparison(table(*RUNS), Published.read(FOLDER, "figure3")) is None


def test_every_published_number_finds_its_cell():
    """Names in the files are those of our tables: none is left over."""
    from tests.pipelines.test_conf import reported_spec

    for path in FILES:
        spec = reported_spec(path.stem, "paper")
        shown = [replace(measure, optional=False) for measure in spec.measures]
        built = table(run("sst2", 8, 0.5), spec=replace(spec, measures=shown))
        numbers = Published.read(FOLDER, path.stem)
        found = [each for each in beside(built, numbers) if "ratio" not in each.title]
        assert len(found) == len(numbers.numbers), path.stem


def test_ratios_are_those_of_the_papers_rows():
    from tests.pipelines.test_conf import reported_spec

    spec = reported_spec("table3", "paper")
    numbers = Published.read(FOLDER, "table3")
    built = table(run("sst2", 8, 0.5), spec=spec)
    times = {
        (each.line.group, each.line.label): each.published.mean
        for each in beside(built, numbers)
        if each.title == "Time ratio"
    }
    assert times["sst2", "BBTv2"] == 1
    assert times["sst2", "F-LoRA"] == pytest.approx(12.1 / 20.8)
    assert len(times) == 9
