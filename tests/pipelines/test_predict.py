"""What a run fitted, in use: as a classifier, and over files of rows."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

import dfolora
from dfolora.errors import UserError
from dfolora.fewshot import Fitted, Saved
from dfolora.fewshot.card import card
from dfolora.fewshot.problem import TaskRows
from dfolora.model import Checkpoint, Limits
from dfolora.record import Store
from pipelines.command import CommandError, reported
from pipelines.one_run.execute import Run, execute
from pipelines.predict import __main__ as predict
from pipelines.predict import answers
from tests.commands import composed, environment

GOOD = '{"sentence": "the food was good"}\n'
SMALL = ("budget=45", "dim=8", "data.k=4", "dev_interval=20")
SETTINGS = {
    "a search": ("task=mini/sst2",),
    "two fields, another metric": ("task=mini/mrpc",),
    "texts that are cleaned": ("++task.replace.food=meal", "task.strip=true"),
    "words after a space": ("data.prompt=natural",),
    "a causal model": ("model=mini_gpt2",),
    "an answer in the padding": ("model=mini_gpt2", "data.readout=released"),
    "streamed layers": ("engine.stream=true",),
    "half precision": ("precision=bf16",),
    "weights in 8 bits": ("precision=int8",),
    "random weights": ("model.weights=random",),
    "short rows": ("data.max_length=12",),
}


def run(folder, *overrides):
    """A run of the store in a folder: its id, its test rows and its score."""
    config, choices = composed(*SMALL, *overrides)
    config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
    run_id = execute(config, choices, sweep_id="s").run_id
    rows = Run.checked(config, choices, "s").rows
    return run_id, rows, Store(config.tracking.uri).metric(run_id, "test/accuracy")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the usual settings, in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, *run(folder, "search_seed=7")


def texts_of(rows: TaskRows):
    return [dict(text) for text in rows.test.texts]


def names_of(rows: TaskRows):
    return [rows.task.classes[label] for label in rows.test.labels]


# As a classifier.


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_score_of_what_is_loaded_is_the_runs_own(name, in_folder):
    run_id, rows, score = run(in_folder, *SETTINGS[name])
    loaded = dfolora.load(run_id)
    assert loaded.classes_.tolist() == [*rows.task.classes]
    assert loaded.score(texts_of(rows), names_of(rows)) == score
    cleaned = loaded._fitted.task
    assert (cleaned.replace, cleaned.strip) == (rows.task.replace, rows.task.strip)
    assert score > 0.4 or name in ("random weights", "short rows")


def test_run_is_found_in_its_store_and_nowhere_else(made, in_folder, monkeypatch):
    folder, run_id, _, _ = made
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert dfolora.load(run_id, tracking_uri=uri).classes_.tolist() == ["negative", "positive"]
    with pytest.raises(UserError, match=r"There is no tracking store sqlite:///mlflow\.db; work"):
        dfolora.load(run_id)
    assert not list(in_folder.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    dfolora.load(run_id)
    for no_run in ("0123", "a/b", "../folder", "x" * 200):  # MLflow takes but the first for an id
        told = (
            rf"^There is no folder {no_run}\. The tracking store {uri} has no run {no_run}; a run"
        )
        with pytest.raises(UserError, match=told):
            dfolora.load(no_run)


def test_run_that_left_nothing_and_one_of_before_are_told(in_folder):
    run_id, _, _ = run(in_folder, "method=manual_prompt")
    folder = Store.existing().fitted(run_id)
    (folder / "classifier.json").unlink()
    with pytest.raises(UserError, match=r"holds no whole fit: .* a run of this version wrote"):
        dfolora.load(run_id)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=rf"Run {run_id} \(finished\) left nothing that was fitted"):
        dfolora.load(run_id)


def test_artifacts_elsewhere_are_told(made, monkeypatch):
    folder, run_id, _, _ = made
    store = Store(f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setattr(store, "_local", lambda _place: None)
    with pytest.raises(UserError, match=rf"mlflow artifacts download --run-id {run_id}"):
        store.fitted(run_id)


def test_card_is_what_the_hub_reads_and_tells_what_was_done(made, monkeypatch):
    folder, run_id, rows, score = made
    fitted = Store(f"sqlite:///{folder}/mlflow.db").fitted(run_id)
    told_by = ModelCard.load(fitted / "README.md")
    assert told_by.data.to_dict() == {
        "library_name": "peft", "pipeline_tag": "text-classification",
        "tags": ["dfolora", "few-shot"], "language": "en", "metrics": ["accuracy"],
    }  # fmt: skip
    prompt = rows.task.prompt("released", "masked")
    ids = json.loads((fitted / "classifier.json").read_text())["task"]["label_ids"]
    words = zip(rows.task.classes, prompt.label_words, ids, strict=True)
    metric = Store(f"sqlite:///{folder}/mlflow.db").metric
    for told in (
        f"# {rows.task.title} (synthetic, of mini world 0), few-shot, on mini-roberta",
        "LoRA factors of the attention maps (a PEFT adapter).",
        f"```\n{prompt.pattern}\n```",
        "\n".join(f"| {name} | `{word}` | {token} |" for name, word, token in words),
        "Fitted to 8 rows, chosen by 8; seeds 42 (of the split) and 7 (of the fit).",
        f"dev accuracy {metric(run_id, 'dev/selected_score'):.3f} (8 rows); "
        f"test accuracy {score:.3f} (1000 rows).",
        f"It was tested on 1000 rows of {rows.task.title} (synthetic, of mini world 0) alone.",
    ):
        assert told in told_by.text
    assert str(folder) not in told_by.content
    (example,) = re.findall("```python\n(.*?)```", told_by.text, re.DOTALL)
    monkeypatch.chdir(fitted.parent)
    exec(example.replace("FOLDER", "adapter"), {})


HUB: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a model of the hub": (
        {"path": "roberta-large"}, {"dataset": "nyu-mll/glue"},
        {"base_model": "roberta-large", "datasets": ["nyu-mll/glue"]},
    ),
    "a folder": ({"path": "/home/me/roberta"}, {}, {"base_model": None, "datasets": None}),
    "a model without a name": ({"path": ""}, {}, {"base_model": None}),
    "random weights": ({"path": "a/b", "weights": "random"}, {}, {"base_model": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_card_names_what_the_hub_has_and_nothing_else(name, made):
    folder, run_id, _, _ = made
    fitted = Store(f"sqlite:///{folder}/mlflow.db").fitted(run_id)
    record = json.loads((fitted / "classifier.json").read_text())
    model, about, told = HUB[name]
    record |= {"model": record["model"] | model, "about": record["about"] | about}
    data = ModelCard(card(record, in_peft=False)).data.to_dict()
    assert {key: data.get(key) for key in told} == told
    assert data["library_name"] == "dfolora"
    assert "/home/me" not in card(record, in_peft=False)
    record["about"] |= {"test_score": None}
    assert "tested on no rows but those that chose it" in card(record, in_peft=False)
    record["about"] |= {"dev_score": None}
    untested = card(record, in_peft=False)
    assert "Scores: none was measured." in untested
    assert "- Seeds: 42 (of the split) and 7 (of the fit)." in untested
    assert "It was tested on no rows." in untested
    assert "chosen" not in untested


def test_card_names_rows_of_ones_own_and_not_their_folder(made, in_folder):
    _, _, rows, _ = made
    own = in_folder / "own" / "sst2"
    own.mkdir(parents=True)
    for part, of in (("train", rows.train), ("test", rows.test.select(range(20)))):
        labels = ({rows.task.label: label} for label in of.labels)
        lines = ({**text, **label} for text, label in zip(of.texts, labels, strict=True))
        (own / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_id, _, _ = run(in_folder, "method=manual_prompt", f"data.root={own.parent}")
    text = (Store.existing().fitted(run_id) / "README.md").read_text()
    assert f"# {rows.task.title} (rows from test.jsonl), few-shot, on mini-roberta" in text
    assert f"tested on 20 rows of {rows.task.title} (rows from test.jsonl) alone." in text
    assert str(in_folder) not in text
    assert "Fitted to" not in text


# Over files.


@pytest.fixture
def answered(made, tmp_path):
    """Answers rows by the run that was made, as the command does: the text that it prints."""
    folder, run_id, _, _ = made

    def answered(source, target, **changes):
        config, _ = composed(config="predict")
        given = {"run": run_id, "input": str(source), "output": str(target)} | changes
        config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
        for key, value in given.items():
            OmegaConf.update(config, key, value)
        return predict.predict(config)

    return answered


@pytest.fixture(scope="module")
def expected(made):
    """What the classifier says of the test rows: labels and probabilities."""
    folder, run_id, rows, _ = made
    loaded = dfolora.load(run_id, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return loaded.predict(texts_of(rows)), loaded.predict_proba(texts_of(rows))


def written(path, rows):
    """A file of rows in the format of its ending, with a column that nobody asks for."""
    frame = pd.DataFrame([{"number": n, **row} for n, row in enumerate(rows)])
    name = path.name.removesuffix(".gz")
    match name.rpartition(".")[2]:
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(path, row_group_size=300)
    return path


def read(path):
    """An output's labels and probabilities."""
    match path.suffix:
        case ".csv":
            frame = pd.read_csv(path)
        case ".jsonl":
            frame = pd.read_json(path, lines=True, precise_float=True)
        case ".parquet":
            frame = pd.read_parquet(path)
    assert frame.columns.tolist() == ["label", "probability_negative", "probability_positive"]
    return frame["label"].to_numpy(), frame.to_numpy()[:, 1:].astype(float)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz"])
def test_labels_of_the_test_rows_have_the_runs_score(name, made, answered, expected, tmp_path):
    """In the input's order, whatever its format."""
    _, _, rows, score = made
    source, target = written(tmp_path / name, texts_of(rows)), tmp_path / "out.parquet"
    told = answered(source, target)
    labels, probabilities = read(target)
    assert np.mean(labels == names_of(rows)) == score
    assert labels.tolist() == expected[0].tolist()
    assert (probabilities == expected[1]).all()
    counts = {name: int((labels == name).sum()) for name in rows.task.classes}
    told_counts = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    assert told == f"1,000 rows: {told_counts}; cut: 0; written to {target}"
    assert {path.name for path in tmp_path.iterdir()} == {name, "out.parquet"}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_output_has_the_same_numbers(ending, made, answered, expected, tmp_path):
    source = written(tmp_path / "a.jsonl", texts_of(made[2])[:50])
    answered(source, tmp_path / f"out.{ending}")
    labels, probabilities = read(tmp_path / f"out.{ending}")
    assert labels.tolist() == expected[0][:50].tolist()
    assert np.allclose(probabilities, expected[1][:50], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "characters"), [(1, 10**9), (7, 10**9), (10**9, 200)])
def test_chunks_do_not_matter(rows, characters, made, answered, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", rows)
    monkeypatch.setattr(predict, "CHARACTERS", characters)
    answered(written(tmp_path / "a.csv", texts_of(made[2])[:60]), tmp_path / "out.csv")
    labels, probabilities = read(tmp_path / "out.csv")
    assert labels.tolist() == expected[0][:60].tolist()
    assert np.allclose(probabilities, expected[1][:60], rtol=0, atol=1e-6)


def test_no_more_than_a_chunk_is_read_before_it_is_answered(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 32)
    monkeypatch.setattr(predict, "CHARACTERS", 1000)
    taken = 0

    def rows():
        nonlocal taken
        for number in range(10**6):
            taken += 1
            yield {"text": "x" * (10 if number < 3200 else 400)}

    answered_rows = 0
    for number, chunk in enumerate(predict.chunked(rows(), together=1)):
        answered_rows += len(chunk)
        assert taken == answered_rows
        assert len(chunk) == (32 if number < 100 else 3)
        if number == 150:
            return


def test_rows_that_are_padded_together_stay_together(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 20)
    monkeypatch.setattr(predict, "CHARACTERS", 100)
    chunks = list(predict.chunked(({"text": "x" * n} for n in range(100)), together=16))
    assert [len(chunk) for chunk in chunks] == [16, 16, 16, 16, 16, 16, 4]


def test_what_was_cut_is_counted_as_in_the_test_set(in_folder):
    run_id, rows, _ = run(in_folder, "method=manual_prompt", "data.max_length=12")
    cut = Store.existing().metric(run_id, "test/truncated")
    source = written(in_folder / "a.jsonl", texts_of(rows))
    config, _ = composed(config="predict")
    config.run, config.input, config.output = run_id, str(source), str(in_folder / "out.csv")
    assert f"; cut: {cut:,.0f}; written" in predict.predict(config)
    assert 0 < cut < 1000


# With an id.


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("source", ["a.csv", "a.jsonl", "a.parquet"])
def test_rows_are_joined_by_their_ids(
    source, ending, made, answered, expected, tmp_path, monkeypatch
):
    """The column keeps its name and its values, whatever the chunks and formats."""
    monkeypatch.setattr(predict, "CHUNK", 7)
    texts, shuffled = texts_of(made[2])[:40], np.random.default_rng(0).permutation(40)
    rows = [{"key": f"00{n} \u00e9,", **texts[n]} for n in shuffled]
    target = tmp_path / f"out.{ending}"
    answered(written(tmp_path / source, rows), target, id="key")
    reader = {"csv": pd.read_csv, "jsonl": partial(pd.read_json, lines=True)}
    frame = reader.get(ending, pd.read_parquet)(target)
    assert [*frame] == ["key", "label", "probability_negative", "probability_positive"]
    assert frame["key"].tolist() == [row["key"] for row in rows]
    assert frame["label"].tolist() == expected[0][shuffled].tolist() != expected[0][:40].tolist()


def test_ids_that_are_numbers_stay_numbers(made, answered, tmp_path):
    rows = [{"key": 2**62 + n, **text} for n, text in enumerate(texts_of(made[2])[:5])]
    (tmp_path / "a.jsonl").write_bytes(lines_of(rows))  # pandas would read them as floats
    for ending in ("jsonl", "parquet"):
        answered(tmp_path / "a.jsonl", tmp_path / f"out.{ending}", id="key")
    frame = pd.read_parquet(tmp_path / "out.parquet")
    said = [*map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())]
    assert frame["key"].tolist() == [row["key"] for row in said] == [2**62 + n for n in range(5)]


def test_id_may_be_the_text_itself(made, answered, expected, tmp_path):
    texts = texts_of(made[2])[:5]
    answered(written(tmp_path / "a.parquet", texts), tmp_path / "out.csv", id="sentence")
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["sentence"].tolist() == [text["sentence"] for text in texts]
    assert frame["label"].tolist() == expected[0][:5].tolist()


def test_rows_of_standard_input_keep_their_ids(made, answered, monkeypatch, capsysbinary):
    given = lines_of({"key": f"r{n}", **text} for n, text in enumerate(texts_of(made[2])[:5]))
    monkeypatch.setattr(predict.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    answered("-", "-", id="key")
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["key"] for row in rows] == ["r0", "r1", "r2", "r3", "r4"]


def keyed(*keys: str) -> str:
    """Rows with these for an id, in JSON."""
    return "".join(f'{{"sentence": "good", "key": {key}}}\n' for key in keys)


WRONG_IDS = {
    "no such column": (GOOD, "key", r"line 1 lacks the columns \['key'\]; it has"),
    "null": (keyed("null"), "key", r"row 1 has the id None; give each row one"),
    "nothing": (keyed('" "'), "key", r"row 1 has the id ' '"),
    "a fraction": (keyed("1.5"), "key", r"row 1 has the id 1\.5"),
    "a truth value": (keyed("true"), "key", r"row 1 has the id True"),
    "128 bits": (keyed(str(2**64)), "key", r"row 1 has the id 18446744"),
    "half a sign": (keyed(r'"\ud800"'), "key", r"row 1 has the id '\\ud800'"),
    "two kinds": (keyed('"a"', "1"), "key", r"row 2 has the id 1; .* or all whole numbers"),
    "the output's own column": (
        GOOD, "label", r"id=label: the output has \['label', .* rename the id's column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_IDS)
def test_wrong_ids_are_told_before_weights_are_loaded(
    name, answered, tmp_path, monkeypatch, without_weights
):
    content, column, message = WRONG_IDS[name]
    monkeypatch.setattr(predict, "CHUNK", 1)
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        answered(tmp_path / "a.jsonl", tmp_path / "out.parquet", id=column)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


# Within limits.


@pytest.mark.parametrize("limits", [{"tokens": 50}, {"memory": 3}, {"stream": True}], ids=str)
def test_limits_are_the_models_and_change_rounding_alone(
    limits, made, answered, expected, tmp_path, monkeypatch
):
    loaded = []
    load = Saved.load
    monkeypatch.setattr(Saved, "load", lambda self: loaded.append(load(self)) or loaded[0])
    source = written(tmp_path / "a.jsonl", texts_of(made[2])[:60])
    answered(source, tmp_path / "out.csv", **{f"engine.{key}": at for key, at in limits.items()})
    assert asdict(loaded[0].backbone.limits) == asdict(Limits()) | limits
    labels, probabilities = read(tmp_path / "out.csv")
    assert labels.tolist() == expected[0][:60].tolist()
    assert np.allclose(probabilities, expected[1][:60], rtol=0, atol=1e-5)


def test_fit_of_a_gpu_can_be_used_in_half_precision(made, answered, expected, tmp_path):
    source = written(tmp_path / "a.jsonl", texts_of(made[2])[:60])
    answered(source, tmp_path / "out.csv", precision="bf16")
    probabilities = read(tmp_path / "out.csv")[1]
    difference = np.abs(probabilities - expected[1][:60])
    assert 1e-4 < difference.max() < 0.1  # 8 bits of a significand


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.stream": True}, r"was trained with gradients, .* set engine\.stream=false"),
        ({"engine.graphs": True}, r"engine\.graphs=true records CUDA graphs, .* is on cpu"),
    ],
)
def test_limits_that_a_fit_or_device_cannot_have_are_told_before_weights_are_loaded(
    changes, message, made, answered, tmp_path, monkeypatch
):
    monkeypatch.setattr(Checkpoint, "_load_model", lambda *_: pytest.fail("weights were loaded"))
    place = Store(f"sqlite:///{made[0]}/mlflow.db").fitted(made[1])
    folder = shutil.copytree(place, tmp_path / "fit")
    record = json.loads((folder / "classifier.json").read_text())
    record["fitted"] = {"kind": "trained", "trained": "BitFit", "options": {}}
    (folder / "classifier.json").write_text(json.dumps(record))
    (tmp_path / "in.jsonl").write_text(GOOD)
    given = {"run": None, "folder": str(folder), "device": "cpu", **changes}
    with pytest.raises(UserError, match=message):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv", **given)
    assert {path.name for path in tmp_path.iterdir()} == {"fit", "in.jsonl"}


# Broken off.


@contextmanager
def broken_off(after):
    """Within, the command is stopped as it writes the answers to a chunk, half of which stay."""

    class Stopped(answers.Partial):
        def add(self, chunk):
            if self.chunks == after:
                self._file.write(b'{"probabilities": [[0.5, 0')
                raise SystemExit(143)
            super().add(chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "Partial", Stopped)
        with pytest.raises(SystemExit):
            yield


@pytest.fixture
def asked(monkeypatch):
    """How many rows each chunk has that the model is asked about."""
    sizes = []
    batch = Fitted.batch
    monkeypatch.setattr(
        Fitted, "batch", lambda self, rows: sizes.append(len(rows)) or batch(self, rows)
    )
    return sizes


def test_what_was_broken_off_goes_on_to_the_same_bits(made, answered, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 20)
    source = written(tmp_path / "a.csv", texts_of(made[2])[:90])
    answered(source, tmp_path / "whole.csv")
    for after in (2, 4):  # stopped twice
        with broken_off(after):
            answered(source, tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()
    asked.clear()
    told = answered(source, tmp_path / "out.csv")
    assert asked == [10]
    assert told.startswith("90 rows: ")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("changed", ["input", "folder", "chunks"])
def test_what_was_begun_otherwise_is_begun_anew(
    changed, made, answered, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "CHUNK", 20)
    texts = texts_of(made[2])[:60]
    source, target = written(tmp_path / "a.csv", texts), tmp_path / "out.csv"
    with broken_off(2):
        answered(source, target)
    asked.clear()
    changes = {}
    match changed:
        case "input":
            written(source, texts[::-1])
        case "folder":
            folder = shutil.copytree(
                Store(f"sqlite:///{made[0]}/mlflow.db").fitted(made[1]), tmp_path / "copy"
            )
            (folder / "notes.txt").write_text("another fit")
            changes = {"run": None, "folder": str(folder)}
        case "chunks":
            monkeypatch.setattr(predict, "CHUNK", 30)
    answered(source, target, **changes)
    assert sum(asked) == 60
    answered(source, tmp_path / "whole.csv", **changes)
    assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_output_that_cannot_be_written_leaves_the_answers(made, answered, tmp_path, monkeypatch):
    source, target = written(tmp_path / "a.csv", texts_of(made[2])[:20]), tmp_path / "out.csv"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(answers.WRITERS, ".csv", full)
        with pytest.raises(OSError, match="No space"):
            answered(source, target)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "out.csv.partial"}
    monkeypatch.setattr(Fitted, "batch", lambda *_: pytest.fail("asked again"))
    answered(source, target)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "out.csv"}


def test_two_commands_do_not_write_the_same_output(made, answered, tmp_path):
    source = written(tmp_path / "a.csv", texts_of(made[2])[:5])
    with answers.Partial(tmp_path / "out.csv.partial", {"other": 1}) as other:
        with pytest.raises(UserError, match=r"out\.csv\.partial is being written by another comm"):
            answered(source, tmp_path / "out.csv")
        assert other.path.exists()
    answered(source, tmp_path / "out.csv")


def test_the_lock_is_held_until_the_output_is_written(made, answered, tmp_path, monkeypatch):
    """Whoever comes in between is refused, and the first one's answers are all there."""
    source, target = written(tmp_path / "a.csv", texts_of(made[2])[:20]), tmp_path / "out.csv"
    write = answers.WRITERS[".csv"]

    def writes(*given):
        with pytest.raises(UserError, match="is being written by another command; let it end"):
            answers.Partial(tmp_path / "out.csv.partial", {"other": 1})
        write(*given)

    monkeypatch.setitem(answers.WRITERS, ".csv", writes)
    answered(source, target)
    assert len(read(target)[0]) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "out.csv"}


def test_a_file_that_was_removed_as_it_was_locked_is_opened_again(tmp_path, monkeypatch):
    path, lock, removed = tmp_path / "out.csv.partial", answers.flock, []

    def late(file, how):
        lock(file, how)
        if not removed:  # as the command that had it does when it ends
            removed.append(path.unlink())

    monkeypatch.setattr(answers, "flock", late)
    with answers.Partial(path, {"a": 1}) as partial:
        partial.add(answers.Answers(probabilities=[[0.5, 0.5]], cut=0, ids=[()]))
        assert removed
        assert [each.probabilities for each in partial] == [[[0.5, 0.5]]]


def test_output_that_another_command_wrote_meanwhile_is_kept(answered, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text(GOOD)
    load = Saved.load
    monkeypatch.setattr(
        Saved, "load", lambda self: (tmp_path / "out.csv").write_text("theirs") and load(self)
    )
    with pytest.raises(UserError, match=r"out\.csv exists; give another, or set overwrite=true"):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.csv"}


@pytest.mark.parametrize("content", ["mine", None])
def test_file_of_the_users_own_beside_the_output_is_kept(
    content, answered, tmp_path, without_weights
):
    (tmp_path / "in.jsonl").write_text(GOOD)
    own = tmp_path / "out.csv.partial"
    own.mkdir() if content is None else own.write_text(content)
    with pytest.raises(UserError, match=r"out\.csv\.partial is where .*; move it, or give another"):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert own.is_dir() if content is None else own.read_text() == "mine"
    if content is not None:
        with pytest.raises(UserError, match="move it"):
            answers.Partial(own, {"a": 1})
        assert own.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_process_that_is_stopped_goes_on(number, status, made, answered, tmp_path):
    folder, run_id, rows, _ = made
    written(tmp_path / "a.jsonl", texts_of(rows) * 30)
    arguments = [f"run={run_id}", "input=a.jsonl", "output=out.csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.predict", *arguments], cwd=tmp_path,
        env=environment(folder), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    partial = tmp_path / "out.csv.partial"
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == status
    told = "stopped: out.csv.partial keeps what was done; call again to go on\n"
    assert said == (told if status == 143 else "")
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "out.csv.partial"}
    answered(tmp_path / "a.jsonl", tmp_path / "out.csv")
    answered(tmp_path / "a.jsonl", tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


# Standard input and output.


def lines_of(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_rows_of_standard_input_are_answered_on_standard_output(
    made, answered, expected, monkeypatch, capsysbinary
):
    monkeypatch.setattr(predict, "CHUNK", 16)
    given = io.BytesIO(lines_of(texts_of(made[2])[:40]))
    monkeypatch.setattr(predict.sys, "stdin", SimpleNamespace(buffer=given))
    told = answered("-", "-")
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == expected[0][:40].tolist()
    shares = [[row["probability_negative"], row["probability_positive"]] for row in rows]
    assert np.allclose(shares, expected[1][:40], rtol=0, atol=1e-6)
    assert told.startswith("40 rows: ")


def test_reader_that_has_had_enough_ends_it_quietly(answered, tmp_path, monkeypatch):
    """As ``| head`` does: no message, and none as Python writes what is left."""
    (tmp_path / "in.jsonl").write_text(GOOD)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(predict.sys, "stdout", output)
        with pytest.raises(CommandError) as ended, reported():
            answered(tmp_path / "in.jsonl", "-")
    assert ended.value.code == 141


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", r"standard input holds no rows; it needs some, with \['sentence'\]"),
        (lines_of([{"sentence": "good"}] * 40) + b"nonsense\n", r"standard input, line 41 is not"),
        (
            lines_of([{"sentence": "good"}] * 40) + b'{"sentence": "\xe9"}',
            r"UTF-8, first in line 41",
        ),
        (lines_of([{"sentence": "good"}] * 40 + [{}]), r"standard input, line 41 lacks the col"),
        (lines_of([{"sentence": "good"}] * 40 + [{"sentence": " "}]), r"input, row 41 has no text"),
    ],
)
def test_wrong_rows_of_standard_input_leave_no_file(
    given, message, answered, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "CHUNK", 16)
    monkeypatch.setattr(predict.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    with pytest.raises(UserError, match=message):
        answered("-", tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


def test_standard_input_is_never_gone_on_with(made, answered, tmp_path, monkeypatch):
    """Stopped, it leaves nothing; killed, its answers are for rows that are gone."""
    monkeypatch.setattr(predict, "CHUNK", 10)
    texts = texts_of(made[2])[:30]

    def give(rows):
        given = SimpleNamespace(buffer=io.BytesIO(lines_of(rows)))
        monkeypatch.setattr(predict.sys, "stdin", given)

    give(texts)
    with broken_off(2):
        answered("-", tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())
    give(texts)
    with broken_off(2), monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        answered("-", tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv.partial"]
    give(texts[::-1])
    answered("-", tmp_path / "out.csv")
    give(texts[::-1])
    answered("-", tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


# What is refused.

WRONG: dict[str, tuple[str, Any, str]] = {
    "no file": ("a.csv", None, r"There is no file .*a\.csv; give one"),
    "an empty file": ("a.csv", b"", r"a\.csv is empty; its first line must name the columns"),
    "a header alone": ("a.csv", b"sentence\n", r"holds no rows; it needs some, with"),
    "an empty JSON Lines": ("a.jsonl", b"", r"holds no rows"),
    "another column": ("a.csv", b"text\ngood\n", r"lacks the columns \['sentence'\]"),
    "a column that a row lacks": ("a.jsonl", GOOD + '{"text": "x"}', r"line 2 lacks the colum"),
    "a short row": ("a.csv", b"id,sentence\n1,good\n2\n", r"line 3 has 1 cells, the header"),
    "an empty text": ("a.csv", b"id,sentence\n1,good\n2,\n", r"row 2 has no text; leave it out"),
    "a null": ("a.jsonl", GOOD * 1500 + '{"sentence": null}', r"row 1501, 'sentence' is not"),
    "a number": ("a.jsonl", GOOD + '{"sentence": 5}', r"row 2, 'sentence' is not text: 5"),
    "bytes of another encoding": ("a.csv", b"sentence\ngood\n\xef\n", r"UTF-8, first in line 3"),
    "no JSON": ("a.jsonl", GOOD + "nonsense", r"line 2 is not JSON"),
    "a JSON list": ("a.jsonl", '[{"sentence": "good"}]', r"line 1 must be a JSON object, got \["),
    "no Parquet": ("a.parquet", b"PAR1", r"a\.parquet cannot be read as parquet"),
    "an unknown ending": ("a.txt", b"good\n", r"a\.txt has no known ending; write \.jsonl, \.csv"),
    "no ending": ("gz", b"good\n", r"gz has no known ending"),
    "two kinds of TSV": ("a.tsv", b'sentence\n"a ""good"" one"\nsaid "no"\n', r"two kinds of"),
}  # fmt: skip


@pytest.fixture
def without_weights(monkeypatch):
    monkeypatch.setattr(Checkpoint, "load_backbone", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_before_weights_are_loaded(name, answered, tmp_path, without_weights):
    file, content, message = WRONG[name]
    if content is not None:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=message):
        answered(tmp_path / file, tmp_path / "new" / "out.csv")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"input": None}, r"input must be non-empty text, got None"),
    "no output": ({"output": None}, r"output must be non-empty text, got None"),
    "an output of another kind": ({"output": "out.txt"}, r"output=out\.txt has no known end"),
    "an output that exists": ({"output": "{here}/a.csv"}, r"a\.csv exists; give another, or"),
    "the input": ({"output": "{here}/in.jsonl", "overwrite": True}, r"in\.jsonl is the input"),
    "the input by a way round": (
        {"output": "{here}/x.csv/../in.jsonl", "overwrite": True}, r"in\.jsonl is the input"
    ),
    "the input by a link": ({"output": "{here}/l.jsonl", "overwrite": True}, r"is the input"),
    "a folder as output": ({"output": "{here}/x.csv", "overwrite": True}, r"x\.csv is a folder"),
    "a file as the folder": ({"output": "{here}/a.csv/out.csv"}, r"output's folder=.* not a"),
    "no fit": ({"run": None}, r"Got run=None and folder=None; give one of them"),
    "two fits": ({"folder": "x"}, r"Got run=\w+ and folder=x; give one of them"),
    "an unknown run": ({"run": "0123"}, r"^The tracking store .* has no run 0123; a run"),
    "an id that no run can have": ({"run": "a/b"}, r"^The tracking store .* has no run a/b;"),
    "a folder without a fit": ({"run": None, "folder": "{here}"}, r"holds no whole fit"),
    "another store": ({"tracking.uri": "sqlite:///no.db"}, r"no tracking store sqlite:///no\.db"),
    "another model": ({"model.path": "mini-gpt2"}, r"model=, on the command line model\.path="),
    "no model": ({"model.path": "/no/such"}, r"model\.path=/no/such is not a folder"),
    "no precision": ({"precision": "fp8"}, r"precision=fp8: .* was fitted in precision=auto; "),
    "another precision": ({"precision": "int8"}, r"precision=int8: .* stand for each other"),
    "no tokens": ({"engine.tokens": 0}, r"engine\.tokens=0 must be a whole number, 1"),
    "no memory": ({"engine.memory": "all"}, r"engine\.memory=all must be a positive number"),
    "no engine": ({"engine": None}, r"engine=None must name its class"),
    "two ways": (
        {"engine.stream": True, "engine.graphs": True}, r"engine\.graphs=true .* set one of them"
    ),
    "no device": ({"device": "tpu"}, r"device=tpu; choose auto, cpu"),
    "words for a flag": ({"overwrite": "yes"}, r"overwrite must be true or false, got 'yes'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_told_before_weights_are_loaded(
    name, answered, tmp_path, without_weights
):
    changes, message = REFUSED[name]
    (tmp_path / "in.jsonl").write_text(GOOD)
    (tmp_path / "a.csv").write_text("precious")
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "l.jsonl").symlink_to("in.jsonl")
    given = {
        key: value.format(here=tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv", **given)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "a.csv", "x.csv", "l.jsonl"}
    assert (tmp_path / "a.csv").read_text() == "precious"
    assert (tmp_path / "in.jsonl").read_text() == GOOD


def test_output_that_exists_is_replaced_where_that_is_said(answered, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD)
    (tmp_path / "out.csv").write_text("old")
    answered(tmp_path / "in.jsonl", tmp_path / "out.csv", overwrite=True)
    assert len(read(tmp_path / "out.csv")[0]) == 1


def test_fit_that_is_of_all_rows_at_once_is_refused(in_folder):
    run_id, _, _ = run(in_folder, "method=calibrated_prompt", "method.calibration=batch_test")
    (in_folder / "in.jsonl").write_text(GOOD)
    config, _ = composed(config="predict")
    config.run, config.input, config.output = run_id, "in.jsonl", "out.csv"
    with pytest.raises(UserError, match=r"with calibration=batch_test, .* in parts; use calibra"):
        predict.predict(config)


def test_rows_without_finite_logits_have_no_label(answered, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 2)
    (tmp_path / "in.jsonl").write_text(GOOD * 6)
    batch = Fitted.batch
    asked = []

    def poisoned(self, rows):
        found = batch(self, rows)
        asked.append(len(rows))
        logits = self.predictor.logits

        def some(given):
            made = logits(given).clone()
            made[: len(asked) - 1] = torch.nan  # none of the first chunk, then one, then two
            return made

        object.__setattr__(self, "predictor", replace(self.predictor, logits=some))
        return found

    monkeypatch.setattr(Fitted, "batch", poisoned)
    told = answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert told.startswith("6 rows: 0 negative, 3 positive; cut: 0; without a label, for the model")
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == ["positive"] * 2 + ["", "positive", "", ""]
    assert lines[2] == ",,"


@pytest.fixture
def nothing_finite(monkeypatch):
    """A function after which fits give NaN for every row."""
    load = Saved.load

    def loaded(self):
        fitted = load(self)
        logits = fitted.predictor.logits
        nothing = replace(fitted.predictor, logits=lambda given: logits(given) * torch.nan)
        return replace(fitted, predictor=nothing)

    return lambda: monkeypatch.setattr(Saved, "load", loaded)


def test_first_rows_without_finite_logits_end_it_and_leave_nothing(
    answered, tmp_path, nothing_finite
):
    (tmp_path / "in.jsonl").write_text(GOOD * 3)
    nothing_finite()
    with pytest.raises(UserError, match="NaN or infinite for every row"):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}


def test_rows_without_finite_logits_do_not_end_what_goes_on(
    answered, tmp_path, monkeypatch, nothing_finite
):
    """As they do not end what goes through."""
    monkeypatch.setattr(predict, "CHUNK", 2)
    (tmp_path / "in.jsonl").write_text(GOOD * 6)
    with broken_off(2):
        answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    nothing_finite()
    told = answered(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert told.startswith("6 rows: 0 negative, 4 positive; cut: 0; without a label, for the model")


@pytest.mark.parametrize("command", ["predict", "log_model"])
def test_sweep_of_one_leaves_no_folder_of_hydras(command, tmp_path, ended):
    status, _, error = ended(command, "-m", "run=0123,4567")
    assert (status, len(error.splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["input=in.jsonl", "output=out.csv"], 0, r"^1 rows: \d negative, \d positive; cut: 0; wr"),
        (["input=no.jsonl", "output=out.csv"], 2, r"^error: There is no file no\.jsonl; "),
        (["input=in.jsonl", "output=out.csv", "foo=1"], 2, r"^error: foo is no key"),
    ],
)
def test_command_tells_in_one_line_and_by_its_status(
    arguments, status, message, made, tmp_path, ended
):
    folder = Store(f"sqlite:///{made[0]}/mlflow.db").fitted(made[1])
    (tmp_path / "in.jsonl").write_text(GOOD)
    ends, out, error = ended("predict", f"folder={folder}", *arguments)
    assert ends == status
    assert (error == "") == (status == 0)
    assert re.search(message, out + error)
    assert len((out + error).splitlines()) == 1
    left = {"in.jsonl", "out.csv"} if status == 0 else {"in.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == left
