"""The user's commands, from configuration to store and table; and what they say to mistakes."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.data import load_rows
from dfolora.errors import UserError
from dfolora.fewshot import problem
from dfolora.model.checkpoint import Checkpoint
from dfolora.record import Store
from pipelines.one_run import execute as pipeline
from pipelines.one_run.execute import execute
from pipelines.progress import Jobs
from tests.commands import PROJECT, command, composed


@pytest.mark.slow
def test_sweep_command_runs_each_job_once_and_repeats_none(tmp_path):
    arguments = ["-m", "optimizer=cma,fwa", "rank=2,4", "budget=45", "dim=40"]
    first = command(tmp_path, "run", *arguments)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # quiet: not a terminal
    runs = Store(f"sqlite:///{tmp_path}/mlflow.db").runs()
    settings = set(zip(runs["tags.optimizer"], runs["tags.rank"], strict=True))
    assert settings == {("cma", "2"), ("cma", "4"), ("fwa", "2"), ("fwa", "4")}
    assert runs["tags.sweep_id"].nunique() == 1
    assert (runs["metrics.calls"] == 45).all()
    *lines, summary = first.stdout.splitlines()
    assert [line[:5] for line in lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert summary == "4 runs: 4 done"
    again = command(tmp_path, "run", *arguments)
    assert again.stdout.count(": in the store already") == 4
    assert again.stdout.endswith("4 runs: 4 in the store already\n")
    assert len(Store(f"sqlite:///{tmp_path}/mlflow.db").runs()) == 4


def test_experiment_then_report_fill_the_table(tmp_path, ended):
    sweep = ["sweep.seeds=[8,13]", "profile=mini"]
    small = ["sweep.tasks=[mini/sst2,mini/rte]", "row=manual_prompt,c_lora,f_lora"]
    status, out, error = ended("run", "experiment=table1", *sweep, *small, "budget=25", "dim=40")
    assert status == 0, error
    assert out.count(": test 0.") == 10  # 2 tasks x (manual prompt + 2 methods x 2 seeds)
    assert "12 runs: 10 done, 2 in the store already" in out  # the prompt knows no seed
    known = re.findall(r"manual_prompt: (?:in the store already, )?(test 0.\d+),? .*run (\w+)", out)
    assert len(known) == 4
    assert len(set(known)) == 2
    status, _, error = ended("report", *sweep, f"folder={tmp_path}")
    assert status == 0, error
    table = (tmp_path / "table1.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert rows["Manual prompt"].count("—") == 7  # of the six other columns, and of the average
    assert rows["C-LoRA"].count("(") == 2  # two tasks have a mean and a spread, the rest are holes
    assert "Seeds: 8, 13" in table
    assert (tmp_path / "table1.csv").read_text().count("\n") == 1 + 24 * 9
    assert {path.name for path in tmp_path.glob("*1.*")} == {
        f"table1.{suffix}" for suffix in ("csv", "html", "md", "tex")
    }
    assert len(list((tmp_path / "runs").glob("*.html"))) == 10
    assert "## Beside the paper" not in table  # other tasks, another model


def test_record_holds_curves_artifacts_and_an_adapter_that_peft_loads(in_folder, capsys):
    config, choices = composed("budget=120", "dim=40", "task=mini/mrpc", "optimizer=fwa")
    run_id = execute(config, choices, sweep_id="s", show=Jobs().run).run_id
    told = capsys.readouterr().out
    store = Store(f"sqlite:///{in_folder}/mlflow.db")
    client = store._client
    history = {
        name: client.get_metric_history(run_id, name)
        for name in ("train/best", "train/mean", "train/spread", "train/step_size", "train/loss")
    }
    assert [point.step for point in history["train/loss"]] == [1, *range(6, 121, 5), 120]
    losses = [point.value for point in history["train/loss"]]
    assert losses[-1] < losses[0]
    assert len(history["train/step_size"]) == 24  # the base model has none
    assert [p.step for p in client.get_metric_history(run_id, "dev/score")] == [1, 51, 101, 120]
    metrics = client.get_run(run_id).data.metrics
    assert 0 < metrics["dev/best_s"] <= metrics["time/fit_s"]
    assert 0 < metrics["dev/best_at"] <= metrics["dev/selected_at"]
    tags = client.get_run(run_id).data.tags
    assert {"dim": "40", "rank": "2", "targets": "qk", "subspace": "paper"}.items() <= tags.items()
    assert {"time/fit_s", "time/calls_per_s", "memory/process_mb", "test/majority_score",
            "test/accuracy", "params/searched", "params/stored"} <= set(metrics)  # fmt: skip
    assert metrics["params/searched"] == 3 * 40
    assert client.get_run(run_id).data.params["optimizer.sparks"] == "4"

    folder = Path(client.download_artifacts(run_id, ""))
    assert {p.name for p in folder.iterdir()} == {
        "adapter", "asked.txt", "config.yaml", "fitness.png", "journal.jsonl", "run.json",
        "split.json", "summary.json",
    }  # fmt: skip
    assert told == (folder / "asked.txt").read_text()
    asked = told.splitlines()
    assert len(asked) == 4
    assert asked[2].startswith("rows: train 16 of each class (mini world, mrpc train); dev 16 of")
    assert (folder / "journal.jsonl").read_text().count("points") == 25
    assert not list((in_folder / "outputs").iterdir())  # moved into the store
    checkpoint = Checkpoint(
        path="mini-roberta", revision="main", tokenizer=None, weights="pretrained",
        architecture=None, device="cpu", precision="fp32",
    )  # fmt: skip
    ids = torch.arange(5, 25)[None]
    plain = checkpoint.load_backbone().model(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(checkpoint.load_backbone().model, folder / "adapter")
    assert (adapted(input_ids=ids).logits - plain).abs().max() > 1e-4


def test_experiment_that_would_lie_elsewhere_is_refused_before_anything_is_loaded(
    in_folder, monkeypatch
):
    monkeypatch.setattr(Checkpoint, "load_tokenizer", None)
    config, choices = composed("tracking.experiment=../elsewhere")
    with pytest.raises(UserError, match=r"tracking\.experiment='../elsewhere'"):
        execute(config, choices, sweep_id="s")
    assert not (in_folder / "outputs").exists()


def test_same_seed_gives_the_same_run_and_neither_chunks_nor_streaming_matter(in_folder):
    curves = []
    for engine in ("engine.tokens=2048", "engine.tokens=300", "engine.stream=true"):
        config, choices = composed("budget=45", "dim=40", engine)
        config.tracking.uri = f"sqlite:///{in_folder}/{engine}.db"
        run_id = execute(config, choices, sweep_id="s").run_id
        client = Store(config.tracking.uri)._client
        curves.append([p.value for p in client.get_metric_history(run_id, "train/loss")])
    first, second, streamed = curves
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)  # float32, other padding
    assert streamed == first
    config, choices = composed("budget=45", "dim=40")  # what the store has is that run
    config.tracking.uri = f"sqlite:///{in_folder}/engine.stream=true.db"
    assert not execute(config, choices, sweep_id="s").new


def test_budget_0_is_the_manual_prompt(in_folder):
    scores = []
    for overrides in (
        ["budget=0"],
        ["budget=0", "optimizer=nevergrad"],
        ["method=manual_prompt"],
    ):
        config, choices = composed("task=mini/agnews", "dim=40", *overrides)
        run_id = execute(config, choices, sweep_id="s").run_id
        client = Store(f"sqlite:///{in_folder}/mlflow.db")._client
        scores.append(client.get_run(run_id).data.metrics["test/score"])
    assert scores[0] == scores[1] == scores[2]


MISTAKES = {
    "a class with fewer than 2k rows": (["data.k=700"], r"700-shot split needs 1400 rows"),
    "a missing folder": (["task=sst2", "data.root=/no"], r"data.root=/no is not a folder"),
    "a missing file": (["task=sst2", "data.root=."], r"sst2"),
    "a label word of several tokens": (
        ["task.prompts.released.masked.label_words=[great,greatgreat]"],
        r"greatgreat.*are several tokens"),
    "a prompt without its mask": (
        ["task.prompts.released.masked.pattern='{sentence} .'"], r"0 \{mask\}; write it exactly"),
    "no prompt of that kind": (["model=mini_gpt2", "data.prompt=published"], r"published"),
    "an indivisible d": (["dim=502"], r"nearest legal dim is 500 or 504"),
    "an unknown map": (["targets=[q,w]"], r"targets=\['q', 'w'\]; choose .* q, k, v, o"),
    "a budget below one generation": (
        ["budget=20"], r"budget=20 is smaller than one generation, which needs 21 calls"),
    "a released schedule below one round": (
        ["budget=59", "schedule=released"], r"one round of all layers, which needs 61 calls"),
    "a budget that is no whole number": (["budget=1e2"], r"budget=100.0 must be a whole number"),
    "a dim that is a word": (["dim=abc"], r"dim=abc must be a whole number, 1 or more"),
    "a rank between two": (["rank=2.5"], r"rank=2.5 must be a whole number"),
    "a negative seed": (["search_seed=-1"], r"search_seed=-1 must be a whole number, 0 or more"),
    "no targets": (["targets=null"], r"targets=None must be a list"),
    "half a candidate": (["optimizer.population=20.5"], r"population=20.5 must be a whole number"),
    "no interval": (["dev_interval=null"], r"dev_interval=None must be a whole number"),
    "patience that ends before a look": (["patience=30"], r"patience=30 must be .* 50 or more"),
    "an unknown law": (["subspace.statistics=real"], r"statistics=real; choose one of real_tokens"),
    "a scaling that is no number": (["scaling=nan"], r"scaling=nan must be a positive number"),
    "an unknown incumbent": (["incumbent=best"], r"Unknown incumbent=best; choose one of"),
    "an unknown objective": (["objective=mse"], r"Unknown objective 'mse'"),
    "an unknown optimizer of nevergrad's": (
        ["optimizer=nevergrad", "optimizer.name=TBSPA"], r"TBSPA.*TBPSA"),
    "a negative step size": (["optimizer.sigma=-1"], r"sigma.*-1"),
    "an unreachable hub": (["task=sst2"], r"data.root"),
    "an unreachable model": (["model=roberta_large"], r"set model.path to a local folder"),
    "no model at all": (["model.path=/no/model"], r"model.path=/no/model is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_any_weight_is_loaded(name, in_folder, monkeypatch):
    overrides, message = MISTAKES[name]

    def refuse(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Checkpoint, "load_backbone", refuse)
    config, choices = composed(*overrides)
    with pytest.raises(UserError, match=message):
        execute(config, choices, sweep_id="s")
    assert not (in_folder / "outputs").exists()


def test_masked_prompt_needs_a_tokenizer_with_a_mask(in_folder, monkeypatch):
    from tests.conftest import mini_tokenizer

    monkeypatch.setattr(Checkpoint, "load_tokenizer", lambda _self: mini_tokenizer("causal"))
    config, choices = composed()
    with pytest.raises(UserError, match="has no mask token"):
        execute(config, choices, sweep_id="s")


@pytest.mark.slow
def test_mistake_ends_in_one_line_and_status_2_and_the_sweep_goes_on(tmp_path):
    ended = command(tmp_path, "run", "-m", "dim=42,40", "budget=25")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.stderr.startswith("[1/2] error: dim=42 does not divide")
    assert ended.stdout.count("test 0.") == 1
    assert ended.stdout.endswith("2 runs: 1 done, 1 failed\n")


def test_make_reproduces_a_table_by_running_and_reporting():
    planned = subprocess.run(
        ["make", "-n", "reproduce-table1", "PROFILE=paper", "MODELS=M", "DATA=D"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    run = "pipelines.run experiment=table1 profile=paper workers=1 model.root=M data.root=D"
    assert planned.index(run) < planned.index("pipelines.report table=table1 profile=paper")


def test_run_asked_for_by_another_name_is_found_under_it(in_folder):
    """The same search, once as a variant of another optimizer's file and then as a table's row."""
    diagonal = ["optimizer=cma_diagonal", "optimizer.covariance=full"]
    for overrides in (diagonal, ["row=c_lora", "experiment=table1"]):
        config, choices = composed("budget=25", "dim=40", *overrides)
        run_id = execute(config, choices, sweep_id="s").run_id
    runs = Store(f"sqlite:///{in_folder}/mlflow.db").runs()
    assert list(runs["run_id"]) == [run_id]
    assert list(runs["tags.optimizer"]) == ["cma"]
    assert list(runs["tags.item.table1.mini"]) == ["s"]


def test_run_in_the_store_is_found_before_anything_is_tokenized(in_folder, monkeypatch):
    config, choices = composed("budget=25", "dim=40")
    first = execute(config, choices, sweep_id="s")

    def refuse(*_):
        raise AssertionError("a tokenizer was loaded")

    monkeypatch.setattr(Checkpoint, "load_tokenizer", refuse)
    second = execute(config, choices, sweep_id="s")
    assert second.run_id == first.run_id
    assert (first.new, second.new) == (True, False)
    with pytest.raises(AssertionError, match="a tokenizer was loaded"):
        execute(*composed("budget=25", "dim=40", "seed=1"), sweep_id="s")


def test_rows_are_read_once_for_jobs_that_share_them_and_kept_of_one_task(in_folder, monkeypatch):
    monkeypatch.setattr(Checkpoint, "load_backbone", lambda *_: 1 / 0)
    pipeline._task_rows.cache_clear()
    read = []

    def counted(task, part, **options):
        read.append((task.name, part))
        return load_rows(task, part, **options)

    monkeypatch.setattr(problem, "load_rows", counted)
    for task, row, seed in itertools.product(("sst2", "rte"), ("c_lora", "f_lora"), (1, 2)):
        with pytest.raises(ZeroDivisionError):
            execute(*composed(f"task=mini/{task}", f"row={row}", f"seed={seed}"), sweep_id="s")
    assert read == [(task, part) for task in ("sst2", "rte") for part in ("train", "test")]
    assert pipeline._task_rows.cache_info().currsize == 1


def test_how_rows_are_read_is_no_part_of_a_run_but_the_rows_are(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()

    def digest(*overrides):
        config, choices = composed("task=sst2", f"data.root={tmp_path}", *overrides)
        return pipeline.Run.checked(config, choices, "s").digest

    rows = [(f"row {n}", n % 2) for n in range(6)]
    told = ("data.columns=[label,sentence]", "data.labels=[1,2]")
    for part in ("train", "validation"):
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    first = digest()
    assert digest("data.missing_classes=allow") == first
    for part in ("train", "validation"):
        (folder / f"{part}.jsonl").unlink()
        lines = [f"{label + 1},{text}" for text, label in rows]
        (folder / f"{part}.csv").write_text("\n".join(lines))
    assert digest(*told) == first
    (folder / "dev.csv").write_text("1,a\n2,b\n")
    given = digest("data.split=given", *told)
    assert given != first
    (folder / "dev.csv").write_text("2,a\n1,b\n")
    pipeline._task_rows.cache_clear()
    assert digest("data.split=given", *told) != given


def test_one_number_spelled_twice_is_one_run_and_another_class_another(in_folder):
    for overrides in ([], ["optimizer.sigma=1"], ["optimizer=random"]):
        config, choices = composed("budget=25", "dim=40", *overrides)
        execute(config, choices, sweep_id="s")
    assert len(Store(f"sqlite:///{in_folder}/mlflow.db").runs()) == 2


@pytest.mark.parametrize(
    ("method", "recorded", "unrecorded"),
    [
        ("dfo_lora", {"dim", "rank", "optimizer.population"}, {"prompt_tokens"}),
        ("bbt", {"prompt_tokens", "optimizer.population", "alpha"}, {"rank"}),
        ("manual_prompt", set(), {"dim", "rank", "budget", "optimizer.population"}),
    ],
)
def test_values_that_the_method_does_not_use_are_not_recorded(
    in_folder, method, recorded, unrecorded
):
    config, choices = composed(f"method={method}", "budget=0", "dim=40")
    run_id = execute(config, choices, sweep_id="s").run_id
    run = Store(f"sqlite:///{in_folder}/mlflow.db")._client.get_run(run_id)
    always = {"task.name", "model.path", "split_seed", "search_seed", "data.k", "precision"}
    assert set(run.data.params) >= recorded | always
    assert not set(run.data.params) & (unrecorded | {"tracking.uri", "sweep.seeds"})
    assert ("rank" in run.data.tags) == (method == "dfo_lora")
    assert ("optimizer" in run.data.tags) == (method != "manual_prompt")


def test_nothing_secret_is_recorded(in_folder):
    config, choices = composed("budget=0", "dim=40")
    config.tracking.uri += "?timeout=4711"  # where other stores have a password
    run_id = execute(config, choices, sweep_id="s").run_id
    client = Store(f"sqlite:///{in_folder}/mlflow.db")._client
    run = client.get_run(run_id)
    files = Path(client.download_artifacts(run_id, "")).rglob("*.yaml")
    assert "4711" not in f"{run.data.params} {run.data.tags} {[f.read_text() for f in files]}"
