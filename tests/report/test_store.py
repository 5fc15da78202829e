"""From a fixed store with every kind of hole to all files of an item."""

from dataclasses import replace

import pandas as pd
import pytest

from dfolora.record import Store
from dfolora.report import Picture, Published, build_table
from dfolora.report.figures import draw
from dfolora.report.write import write_item
from tests.pipelines.test_conf import options, reported_spec
from tests.reporting import SPEC

CURVES = replace(SPEC, constants={}, rows=SPEC.rows[1:], picture=Picture(kind="curves"))


def record(store, task, seed, score, optimizer="cma", *, breaks=None, **tags):
    """A run of one table's item, as the pipeline records it."""
    given = {
        "method": "dfo_lora", "optimizer": optimizer, "task": task, "seed": str(seed),
        "settings": optimizer, "rows": task, "commit": "abc", SPEC.item: "20260102",
    } | tags  # fmt: skip
    log = store.start("table1", f"{task}-{optimizer}-{seed}", tags=given, params={"budget": 25})
    if breaks is KeyError:
        log.__enter__()
        return  # it runs for ever
    try:
        with log:
            for step in (1, 21):
                log.metrics({"train/loss": 0.7 - 0.01 * step, "dev/score": 0.5}, step=step)
            if breaks is not None:
                raise breaks
            log.metrics({"test/score": score, "params/searched": 40, "params/stored": 160})
    except RuntimeError:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    for seed, score in ((8, 0.8), (13, 0.9)):
        record(store, "sst2", seed, score)
    record(store, "sst2", 8, 0.1, **{SPEC.item: "20260101"})  # asked for before
    record(store, "mrpc", 8, 0.6)
    record(store, "mrpc", 13, 0.7, commit="def")
    record(store, "sst2", 8, 0.5, "fwa")
    record(store, "sst2", 13, None, "fwa", breaks=RuntimeError)
    record(store, "mrpc", 8, None, "fwa", breaks=KeyError)
    record(store, "mrpc", 13, 0.9, "fwa", settings="others", **{SPEC.item: "20260101"})
    record(store, "sst2", 42, 0.9, "fwa")  # a seed that nobody asks for
    return store


def test_every_kind_of_hole_is_shown_with_its_reason(store, tmp_path):
    text = write_item(tmp_path, build_table(store.tagged(SPEC.item), CURVES), Published(), store)
    ids = {
        (run["tags.task"], run["tags.optimizer"], run["tags.seed"]): run["run_id"][:8]
        for run in store.tagged(SPEC.item).to_dict("records")
    }
    assert text.startswith(
        "# A table\n"
        "\n"
        "| Method | #Params | SST-2        | MRPC          | Avg.   |\n"
        "| ------ | ------- | ------------ | ------------- | ------ |\n"
        "| C-LoRA | 40      | 85.00 (7.07) | 65.00 (7.07)† | 75.00† |\n"
        "| F-LoRA | 40      | — (1/2)      | —             | —      |\n"
    )
    assert text.endswith(
        "## What is missing\n"
        "\n"
        f"- F-LoRA, SST-2: seed 13: run {ids['sst2', 'fwa', '13']} failed\n"
        f"- F-LoRA, MRPC: seed 8: run {ids['mrpc', 'fwa', '8']} is not finished; "
        f"seed 13: run {ids['mrpc', 'fwa', '13']} is of another configuration or other data\n"
    )
    assert (tmp_path / "table1.svg").stat().st_size > 10_000
    assert len(list((tmp_path / "runs").glob("*.html"))) == 8  # not the older one, not seed 42


def test_curves_are_read_for_finished_runs_only(store):
    runs = store.tagged(SPEC.item)
    finished = runs[runs["status"] == "FINISHED"]["run_id"].tolist()
    curves = {"train/loss": store.history(finished, "train/loss")}
    panels = draw(build_table(runs, CURVES), curves).axes
    (line,) = panels[0].get_lines()
    assert line.get_xdata().tolist() == [1, 21]
    assert line.get_ydata() == pytest.approx([0.69, 0.49])


@pytest.mark.parametrize("profile", options("profile"))
@pytest.mark.parametrize("name", options("table"))
def test_item_without_any_run_is_written_as_holes(name, profile, tmp_path):
    class Nothing:
        def history(self, run_ids, metric):
            return pd.DataFrame(columns=["run_id", "step", "seconds", "value"])

    table = build_table(pd.DataFrame(), reported_spec(name, profile))
    text = write_item(tmp_path, table, Published(), Nothing())
    assert text.count("—") > len(table.lines)
    assert (tmp_path / f"{table.spec.stem}.png").exists() == (table.spec.picture is not None)
    assert "0 of" in (tmp_path / "index.html").read_text()
