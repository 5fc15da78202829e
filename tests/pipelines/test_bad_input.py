"""What cannot be right is told: what was got, what is needed, what to do; and nothing is written.

Four tables of mistakes (values, data files, model folders, reports), the commands themselves, and
arbitrary values and bytes, which are told or taken, but never end in anything else.
"""

import gzip
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from dfolora import record
from dfolora.data import load_rows
from dfolora.data.task import Task
from dfolora.errors import UserError
from dfolora.mini import BUNDLED
from pipelines.one_run import execute as pipeline
from pipelines.report import report
from tests.commands import PROJECT, command, composed

CONF = PROJECT / "conf"
SST2 = Task.from_file(CONF / "task" / "sst2.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, beside the working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    pipeline._task_rows.cache_clear()
    return tmp_path


def ready(config, choices):
    """All that a run does before it loads weights; it writes nothing."""
    try:
        pipeline.Run.checked(config, choices, "s").problem()
    finally:
        assert not list(Path.cwd().iterdir())


def told(overrides, **changes):
    """What the user is told of a run that cannot start, its configuration changed afterwards."""
    config, choices = composed(*overrides)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(UserError) as caught:
        ready(config, choices)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ values

WHOLE, POSITIVE = "must be a whole number", "must be a positive number"
VALUES = {
    "a seed below 0": (["seed=-1"], r"split_seed=-1 must be a whole number, 0 or more"),
    "a seed that no library holds": (["seed=1180591620717411303424"], r"whole number below 2\^63"),
    "a seed that is a list": (["seed=[8,13]"], rf"split_seed=\[8, 13\] {WHOLE}"),
    "a seed that is a word": (["search_seed=first"], rf"search_seed=first {WHOLE}"),
    "no seed": (["split_seed=null"], rf"split_seed=None {WHOLE}"),
    "a truth value for a count": (["rank=true"], rf"rank=True {WHOLE}"),
    "more shots than rows": (["data.k=1000000000"], r"needs 2000000000 rows of each class"),
    "no shots": (["data.k=0"], rf"data\.k=0 {WHOLE}, 1 or more"),
    "a dim for another machine": (
        ["dim=1000000000"], r"dim=1000000000 .*take [\d,]+ GB, .*smaller"),
    "a covariance for another machine": (
        ["dim=1000000", "rank=1"], r"covariance of dim=1000000 .* GB, .*cma_diagonal"),
    "a rank above the width": (["rank=1000000"], r"rank=1000000 must lie between 1 and 128"),
    "a population for another machine": (
        ["optimizer.population=1000000000000", "budget=1000000000000000"],
        r"1000000000000 candidates .* GB"),
    "a population for another machine, fireworks": (
        ["optimizer=fwa", "optimizer.sparks=1000000000000", "budget=1000000000000000"],
        r"candidates .* GB"),
    "a budget below 0": (["budget=-1"], rf"budget=-1 {WHOLE}, 0 or more"),
    "a budget that no store holds": (["budget=1" + 30 * "0"], r"whole number below 2\^63"),
    "a limit of no token": (["data.max_length=0"], rf"data\.max_length=0 {WHOLE}"),
    "a limit below the prompt": (["data.max_length=3"], r"prompt alone is \d+ tokens, above .* 3"),
    "an infinite step": (["optimizer.sigma=inf"], rf"sigma=inf {POSITIVE}"),
    "a step that is no number": (["optimizer.sigma=nan"], rf"sigma=nan {POSITIVE}"),
    "a step below float32": (["optimizer.sigma=1e-300"], rf"sigma=1e-300 {POSITIVE} between"),
    "a scale that is a word": (["subspace.alpha=large"], rf"subspace\.alpha=large {POSITIVE}"),
    "a scale that is a list": (["scaling=[1]"], rf"scaling=\[1\] {POSITIVE}"),
    "targets in a word": (["targets=qk"], r"targets=qk must be a list, such as \[q,k\]"),
    "targets in a word, core": (
        ["subspace=core", "targets=qk"], r"targets=qk must be a list"),
    "no targets, core": (["subspace=core", "targets=null"], r"targets=None must be a list"),
    "no targets, parameters": (
        ["subspace=parameters", "targets=null", "optimizer=random"], r"targets=None must be"),
    "a rank in words, core": (["subspace=core", "rank=two"], r"rank=two must be"),
    "a rank of 0, core": (["row=zo", "rank=0"], r"rank=0 must be"),
    "more numbers than R has": (
        ["subspace=tiny_lora", "subspace.numbers=99"], r"subspace\.numbers=99 is more than"),
    "label words of none": (["words=0"], r"words=0 must be"),
    "label words that are one to say": (
        ["words=2", "objective=exact"], r"objective=exact asks .* words=2 .* set words=1"),
    "templates in a word": (
        ["method=prompt_boosting", "method.templates=natural"], r"templates must be a list"),
    "a template of no field": (
        ["method=prompt_boosting", "method.templates=['{title} {mask}']"],
        r"placeholders \['title'\], and a row has \['sentence'\]; change method\.templates"),
    "no learner": (["method=prompt_boosting", "method.learners=0"], r"method\.learners=0 must be"),
    "more than the budget": (["optimizer=two_stage", "optimizer.first=2"], r"first=2 must be"),
    "a target twice": (["targets=[q,q]"], r"targets=\['q', 'q'\]; choose .* at most once"),
    "an unknown objective": (["objective=mse"], r"objective.*mse.*choose one of ce, hinge, "),
    "an objective that is a list": (["objective=[ce]"], r"choose one of ce, hinge, ce_vocab"),
    "an unknown incumbent": (["incumbent=best"], r"incumbent=best; choose one of"),
    "an unknown selection": (["selection={a: 1}"], r"selection=.*; choose one of"),
    "an unknown precision": (["precision=fp8"], r"precision=fp8; choose one of auto, fp32, bf16"),
    "a precision that is a list": (["precision=[fp32]"], r"precision=\['fp32'\]; choose one of"),
    "an unknown device": (["device=tpu"], r"device=tpu; choose auto, cpu, cuda or cuda:N"),
    "a device that is a number": (["device=0"], r"device must be non-empty text, got 0"),
    "a device that is not there": (["device=cuda:77"], r"sees \d+ CUDA devices; use device=cpu"),
    "an unknown step-size rule": (
        ["optimizer.step_size_rule=[csa]"], r"step_size_rule=\['csa'\]; choose one of csa, tpa"),
    "options of pycma's that are a word": (
        ["optimizer.options=CMA_active"], r"options must be a mapping"),
    "an unknown option of pycma's": (
        ["+optimizer.options.CMA_activ=1"], r"'CMA_activ', which pycma .* did you mean CMA_active"),
    "a value that pycma does not take": (
        ["+optimizer.options.CMA_mu=many"], r"pycma does not take options=\{'CMA_mu': 'many'\}"),
    "an unknown optimizer of nevergrad's": (
        ["optimizer=nevergrad", "optimizer.name=OnePlusTwo"], r"no optimizer 'OnePlusTwo'; did"),
    "an optimizer of nevergrad's without its library": (
        ["optimizer=nevergrad", "optimizer.name=NLOPT_GN_ESCH", "optimizer.population=1"],
        r"NLOPT_GN_ESCH fails .*No module named .nlopt.\); install what it lacks"),
    "no optimizer of nevergrad's": (
        ["optimizer=nevergrad", "optimizer.name=null"], r"name must be non-empty text, got None"),
    "an amplification that is a word": (
        ["optimizer=fwa", "optimizer.amplification=a"], rf"amplification=a {POSITIVE}"),
    "an alpha that is a word": (["optimizer=fwa", "optimizer.alpha=a"], r"alpha=a must be 0 or"),
    "one bound": (
        ["optimizer=fwa", "optimizer.bounds=3"], r"bounds=3; give the lower and the upper"),
    "bounds in words": (["optimizer=fwa", "optimizer.bounds=[a,b]"], r"bounds=\['a', 'b'\]; give"),
    "bounds without end": (
        ["optimizer=fwa", "optimizer.bounds=[-inf,inf]"], r"bounds=\[-inf, inf\]; give"),
    "memory that is a word": (
        ["engine.memory=all"], r"engine\.memory=all must be a positive number"),
    "no engine": (["engine=null"], r"engine=None must name its class .* files in conf/"),
    "no optimizer": (["method.optimizer=null"], r"method\.optimizer=None must name its class"),
    "no subspace": (["method.subspace=null"], r"method\.subspace=None must name its class"),
    "a number for the data": (["data=5"], r"data=5 must name its class"),
    "training that is no mapping": (
        ["method=adapter", "method.training=5"], r"method\.training=5 must name its class"),
    "learning rates in a number": (
        ["method=lora", "method.training.learning_rates=0.1"], r"rates=0\.1 must be a list"),
    "a learning rate that is infinite": (
        ["method=lora", "method.training.learning_rates=[inf]"], rf"learning_rate=inf {POSITIVE}"),
    "a trained rank above the width": (
        ["method=lora", "method.trained.rank=1000000"], r"rank=1000000 must lie between 1 and 128"),
    "a bottleneck for another machine": (
        ["method=adapter", "method.trained.bottleneck=1000000000000"], r"bottleneck=10{12} .* GB"),
    "more prompt vectors than the model reads": (
        ["method=bbt", "prompt_tokens=1000"], r"1000 prompt vectors leave no room"),
    "a probability above 1": (["method=gap3", "method.mutation=2"], r"mutation=2 must be a prob"),
    "a reference to nothing": (["dim=${width}"], r"^(sub)?[\w.]*dim has no value: .*'width' not f"),
    "a model without a path": (["model=checkpoint"], r"model\.path has no value: Missing"),
    "a store that is a number": (
        ["tracking.uri=5"], r"tracking\.uri must be non-empty text, got 5"),
    "no name for the experiment": (["tracking.experiment=null"], r"tracking\.experiment must be"),
    "a prompt that is a list": (["data.prompt=[released]"], r"data\.prompt must be non-empty text"),
    "an unknown prompt": (
        ["data.prompt=mine"], r"no masked prompt 'mine'; it has released: masked"),
    "an unknown readout": (["data.readout=[]"], r"data\.readout=\[\]; choose one of last_token"),
    "a task of one class": (["task.classes=[all]"], r"has one class, 'all'; give two or more"),
    "a field that is a placeholder": (
        ["task.fields=[mask]"], r"fields \['mask'\], which mean .* else"),
    "a field that the mini world lacks": (
        ["task.fields=[sentence,text]"],
        r"mini world, sst2 train lacks the columns \['text'\]; it has \['sentence', 'label'\]"),
    "a pattern that cannot be filled": (
        ["task.fields=[sentence,'0']", "task.prompts.released.masked.pattern='{0} {mask}'"],
        r"pattern '\{0\} \{mask\}' cannot be filled"),
    "a prefix with a field of nobody's": (
        ["+task.prompts.released.masked.prefix='{who} '"], r"placeholders \['who'\] that are not"),
    "label words that are one": (
        ["task.prompts.released.masked.label_words=[great,great]"], r"repeats an entry"),
    "a label word too few": (
        ["task.prompts.released.masked.label_words=[great]"], r"1 label words .* for 2 classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_wrong_value_is_told(name, folder):
    overrides, message = VALUES[name]
    assert re.search(message, told(overrides))


@pytest.mark.parametrize("part", ["task", "model", "method", "data", "tracking"])
@pytest.mark.parametrize("value", [None, 5, "a", [1], {}])
def test_part_that_is_none_is_told(part, value, folder):
    assert re.search(rf"^{part}.* must (be a mapping|name its class|be non-empty text|lacks)|lacks",
                     told([], **{part: value}))  # fmt: skip


# -------------------------------------------------------------------------------------- data files


def lines(count=8, *, label=lambda n: n % 2, text=lambda n: f"a film {n}"):
    rows = ({"sentence": text(n), "label": label(n)} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(suffix, count=8):
    frame = pd.DataFrame({"sentence": [f"a film {n}" for n in range(count)], "label": [0, 1] * 4})
    if suffix == "parquet":
        return frame.to_parquet()
    return frame.to_csv(index=False, sep="\t" if suffix == "tsv" else ",").encode()


GOOD = lines()
LONG = b'{"sentence": "' + 50_000_000 * b"a" + b'", "label": 0}\n'
DATA = {
    "an empty file": ("jsonl", b"", r"train\.jsonl holds no rows; .* \['sentence', 'label'\]"),
    "a file of empty lines": ("jsonl", b"\n\n \n", r"train\.jsonl holds no rows"),
    "an empty table": ("csv", b"", r"train\.csv is empty; its first line must name"),
    "an empty Parquet file": ("parquet", b"", r"train\.parquet cannot be read as parquet"),
    "an empty JSON file": ("json", b"", r"train\.json holds no rows; it needs some"),
    "a file of zeros": ("jsonl", bytes(1000), r"train\.jsonl, line 1 is not JSON"),
    "a file of other bytes": (
        "jsonl", bytes(range(128, 256)), r"not UTF-8, first in line 1: .*save"),
    "a picture": ("csv", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", r"not UTF-8, first in line 1"),
    "a line of Latin 1": (
        "jsonl", GOOD + '{"sentence": "café", "label": 1}\n'.encode("latin-1"),
        r"train\.jsonl is not UTF-8, first in line 9: .*; save the file as UTF-8"),
    "a cell of Latin 1": ("csv", table("csv") + "café,1\n".encode("latin-1"), r"first in line 10"),
    "UTF-16": ("jsonl", GOOD.decode().encode("utf-16"), r"not UTF-8, first in line 1"),
    "half a pair of UTF-16": (
        "jsonl", b'{"sentence": "\\ud800", "label": 0}\n', r"'sentence' is no valid Unicode"),
    "a column too few": ("csv", b"sentence\na\n", r"lacks the columns \['label'\]; it has"),
    "a column of another name": ("jsonl", b'{"text": "a", "label": 0}\n', r"lacks .*'sentence'"),
    "a text that is null": (
        "jsonl", GOOD + b'{"sentence": null, "label": 0}\n', r"row 9, .* is not text: None"),
    "a text that is missing": ("jsonl", GOOD + b'{"label": 0}\n', r"row 9, 'sentence' is not text"),
    "a text that is a list": (
        "jsonl", GOOD + b'{"sentence": ["a"], "label": 0}\n', r"row 9, .* is not text: \['a'\]"),
    "a label that is null": ("jsonl", GOOD + b'{"sentence": "a"}\n', r"first in row 9: None \(1"),
    "a label that is a word": (
        "jsonl", lines(label=lambda n: "good"), r"8 labels outside .* row 1: 'good' \(8 rows\)"),
    "a label beyond the classes": (
        "jsonl", lines(label=lambda n: n), r"first in row 3: 2 \(1 rows\)"),
    "a label between two": ("jsonl", lines(label=lambda n: 0.5), r"0\.5 \(8 rows\)\. Known: 0 neg"),
    "a label that is infinite": ("jsonl", lines(label=lambda n: float("inf")), r"inf \(8 rows\)"),
    "a label of 400 digits": ("jsonl", lines(label=lambda n: 10**400), r"8 labels outside"),
    "a label that is a mapping": ("jsonl", lines(label=lambda n: {"a": 1}), r"8 labels outside"),
    "a class without rows": (
        "jsonl", lines(label=lambda n: 0), r"lack the classes \['positive'\]: they are 8 neg"),
    "fewer rows than shots": ("jsonl", lines(6), r"2-shot split needs 4 rows of each class"),
    "texts above the word limit": (
        "jsonl", lines(text=lambda n: 400 * "a "), r"negative: 0, positive: 0; give more rows"),
    "a line of 50 MB": ("jsonl", GOOD + LONG, r"train\.jsonl, line 9 is longer than 20,000,000 b"),
    "a cell of 2 MB": (
        "csv", table("csv") + 2_000_000 * b"a" + b",0\n", r"row 9, .* has 2,000,000 characters"),
    "a header of 2 MB": ("csv", 2_000_000 * b"a", r"lacks the columns .*; it has \['a+\.\.\.a+'\]"),
    "nested without end": ("jsonl", 100_000 * b"[", r"train\.jsonl cannot be read as jsonl"),
    "nested without end, in one": ("json", 100_000 * b"[", r"cannot be read as json"),
    "lines that are lists": ("jsonl", b"[1]\n", r"train\.jsonl, row 1 must be a JSON object, got"),
    "a JSON file that is no list": (
        "json", b'{"a": 1}', r"train\.json lacks the columns .*; it has \['a'\]"),
    "a truncated line": ("jsonl", GOOD[:-9], r"train\.jsonl, line 8 is not JSON"),
    "a truncated JSON file": ("json", b'[{"sentence": "a"', r"cannot be read as json"),
    "a truncated table": ("csv", table("csv")[:-2] + b'"', r"cannot be read as csv|label"),
    "a truncated Parquet file": ("parquet", table("parquet")[:-20], r"cannot be read as parquet"),
    "a quote that does not end": (
        "csv", table("csv") + b'"a,1\n' * 3, r"cannot be read as csv: .*, in line 11"),
    "unquoted commas in some rows": (
        "csv", table("csv") + b"a, b,1\n", r"line 10 has 3 cells, the header names 2"),
    "unquoted commas in all rows": (
        "csv", b"sentence,label\na, b,1\nc, d,0\n", r"line 2 has 3 cells"),
    "a compressed file": ("jsonl", gzip.compress(GOOD), r"not UTF-8, first in line 1"),
    "half a compressed file": ("csv", gzip.compress(GOOD)[:40], r"not UTF-8"),
}  # fmt: skip


ON_FILES = ("task=sst2", "data.k=2", "dim=40")


def with_files(folder, **files):
    """A folder of SST-2's files, by their names' first parts and their suffixes."""
    (folder / "data" / "sst2").mkdir(parents=True)
    for name, content in files.items():
        (folder / "data" / "sst2" / name.replace("_", ".")).write_bytes(content)
    return {"data.root": str(folder / "data")}


@pytest.mark.parametrize("name", DATA)
def test_wrong_file_is_told(name, folder):
    suffix, content, message = DATA[name]
    files = with_files(folder, **{f"train_{suffix}": content, "validation_jsonl": GOOD})
    error = told(ON_FILES, **files)
    assert re.search(message, error)
    assert len(error) < 1000


def test_wrong_test_file_is_told(folder):
    error = told(ON_FILES, **with_files(folder, train_jsonl=GOOD, validation_jsonl=b""))
    assert re.search(r"validation\.jsonl holds no rows", error)


def test_folder_in_the_place_of_a_file_is_told(folder):
    (folder / "data" / "sst2" / "train.jsonl").mkdir(parents=True)
    error = told(ON_FILES, **{"data.root": str(folder / "data")})
    assert re.search(r"No file for the train rows .* there: \['train.jsonl/'\]", error)


def test_file_in_the_place_of_a_folder_is_told(folder):
    (folder / "file").write_text("no folder")
    error = told(ON_FILES, **{"data.root": str(folder / "file")})
    assert re.search(r"data\.root=.*file is not a folder", error)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_good_file_is_taken(suffix, folder):
    files = with_files(folder, **{f"train_{suffix}": good(suffix), "validation_jsonl": GOOD})
    config, choices = composed(*ON_FILES)
    OmegaConf.update(config, "data.root", files["data.root"])
    ready(config, choices)


def good(suffix):
    """Rows of two classes."""
    match suffix:
        case "jsonl":
            return GOOD
        case "json":
            return b"[%s]" % b",".join(GOOD.splitlines())
    return table(suffix)


# ------------------------------------------------------------------------------------------ models


def config_of(changes):
    def make(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def weights_of(change):
    def make(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file(change(tensors), path, metadata={"format": "pt"})

    return make


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(*patterns):
    def make(folder):
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return make


def pickled_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def of_the_causal_model(folder):
    for path in BUNDLED["mini-gpt2"].glob("tokenizer*"):
        shutil.copy(path, folder)


def with_ids_beyond(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] |= {"beyond": 5000}
    path.write_text(json.dumps(tokenizer))


def folders_for_files(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


NAME = "roberta.encoder.layer.0.attention.self.query.weight"
MODELS = {
    "an empty folder": (without("*"), r"Cannot load model\.path=.*config\.json"),
    "no configuration": (without("config.json"), r"Cannot load model\.path=.*config\.json"),
    "a configuration that is no JSON": (written("config.json", b"{"), r"Cannot load model\.path"),
    "a configuration that is a list": (written("config.json", b"[]"), r"Cannot load model\.path"),
    "a configuration that is a folder": (folders_for_files, r"Cannot load model\.path"),
    "an unknown architecture": (
        config_of({"model_type": "perceptron"}), r"Cannot load .*perceptron"),
    "another architecture": (
        config_of({"model_type": "mamba"}), r"'mamba'; supported are"),
    "heads that do not divide": (
        config_of({"num_attention_heads": 5}), r"into .*heads=5 parts|head"),
    "a width that is a word": (config_of({"hidden_size": "wide"}), r"hidden_size"),
    "a width below 0": (
        config_of({"hidden_size": -128}), r"hidden_size=-128 must be a whole number"),
    "no layers": (
        config_of({"num_hidden_layers": 0}), r"num_hidden_layers=0 must be a whole number"),
    "no padding token": (config_of({"pad_token_id": None}), r"pad_token_id=None must be"),
    "an unknown activation": (config_of({"hidden_act": "bend"}), r"No model can be made of .*bend"),
    "a width for another machine": (
        config_of({"hidden_size": 4 * 10**6}), r"The model of .* GB, this machine has"),
    "truncated weights": (truncated, r"model\.safetensors cannot be read: .*; copy it again"),
    "weights that are none": (written("model.safetensors", b"no"), r"safetensors cannot be read"),
    "weights of another width": (
        weights_of(lambda tensors: tensors | {NAME: tensors[NAME][:64].clone()}),
        r"query\.weight of shape \(64, 128\), the model of config\.json has \(128, 128\)"),
    "a configuration of another size": (
        config_of({"intermediate_size": 256}), r"the model of config\.json has .*two models"),
    "no weights": (without("*.safetensors"), r"holds no \*\.safetensors; load the model"),
    "pickled weights": (pickled_only, r"no \*\.safetensors but pytorch_model\.bin, and no pickle"),
    "no tokenizer": (without("tokenizer*"), r"holds no tokenizer|Cannot load the tokenizer"),
    "a tokenizer that is no JSON": (written("tokenizer.json", b"{"), r"Cannot load the tokenizer"),
    "a tokenizer without a mask": (
        of_the_causal_model, r"has no mask token for the masked pattern"),
    "a tokenizer of a larger model": (
        with_ids_beyond, r"holds 5001 tokens, the model embeds 1800: it is another model's"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_wrong_model_is_told(name, folder):
    make, message = MODELS[name]
    model = folder / "model"
    shutil.copytree(BUNDLED["mini-roberta"], model)
    make(model)
    assert re.search(message, told(["dim=40"], **{"model.path": str(model)}))


ARCHITECTURES: dict[str, tuple[dict[str, Any], str]] = {
    "of no type": ({"model_type": None}, r"model\.architecture describes no model"),
    "of an unknown type": ({"model_type": "perceptron"}, r"describes no model: .*perceptron"),
    "without a width": ({"hidden_size": None}, r"hidden_size"),
    "of another world's layers": ({"num_hidden_layers": 10**12}, r"model\.architecture .* GB"),
    "of a negative vocabulary": ({"vocab_size": -5}, r"vocab_size=-5 must be a whole number"),
    "with an unknown argument's type": ({"layer_norm_eps": "x"}, r"model\.architecture"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_wrong_architecture_is_told(name, folder):
    changes, message = ARCHITECTURES[name]
    changed = {f"model.architecture.{key}": value for key, value in changes.items()}
    assert re.search(message, told(["dim=40", "model.weights=random"], **changed))


# ----------------------------------------------------------------------------------------- reports


class NoRuns:
    """A store, opened in no time."""

    def __init__(self, _uri):
        pass

    def tagged(self, _name):
        return pd.DataFrame()


REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "no run": ({}, r"holds no run of table1 with profile=mini; make some: python -m pipelines.run"),
    "a file for a folder": ({"folder": "{file}"}, r"folder=.*file cannot be used: .* not a folder"),
    "a folder in a file": ({"folder": "{file}/reports"}, r"folder=.*reports cannot be used"),
    "no folder": ({"folder": None}, r"folder must be non-empty text, got None"),
    "seeds in a number": ({"sweep.seeds": 5}, r"sweep\.seeds must be a list"),
    "seeds in words": ({"sweep.seeds": ["a"]}, r"seed=a must be a whole number"),
    "rows without labels": ({"table.rows": [{"where": {}}]}, r"table\.rows\[0\] lacks \['label'\]"),
    "rows in a word": ({"table.rows": "all"}, r"table\.rows must be a list"),
    "a comparison with no row of the table": (
        {"table.compare": {"BBTv2": ["C-LoRa"]}},
        r"Unknown row in table\.compare=C-LoRa; choose one of Model tuning, "),
    "a comparison of no list": (
        {"table.compare": {"BBT": "C-LoRA"}},
        r"table\.compare\['BBT'\] must be a list .* got 'C-LoRA'"),
    "comparisons in a list": ({"table.compare": ["BBT"]}, r"table\.compare must be a mapping"),
    "an unknown key": ({"table.colour": "red"}, r"table has unknown keys \['colour'\]"),
    "no table": ({"table": None}, r"table must be a mapping"),
    "a store that is a number": (
        {"tracking.uri": 7}, r"tracking\.uri must be non-empty text, got 7"),
    "an unknown picture": (
        {"table.picture": {"kind": "pie"}}, r"kind=pie; choose one of bars, lines"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_wrong_report_is_told(name, tmp_path, monkeypatch):
    changes, message = REPORTS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    config, _ = composed(config="report")
    monkeypatch.setattr(record, "Store", NoRuns)
    for key, value in changes.items():
        given = value.format(file=tmp_path / "file") if isinstance(value, str) else value
        OmegaConf.update(config, key, given, merge=False, force_add=True)
    with pytest.raises(UserError, match=message):
        report(config, "mini")
    assert not (tmp_path / "reports").exists()


# ---------------------------------------------------------------------------------------- commands

COMMANDS = {
    "a value": ("run", ["optimizer=fwa", "optimizer.bounds=3"], r"error: bounds=3; give the lower"),
    "a split": ("run", ["data.k=700"], r"error: A 700-shot split needs 1400 rows"),
    "a sweep without -m": ("run", ["rank=2,4"], r"error: Ambiguous value for argument 'rank=2,4'"),
    "no workers": ("run", ["workers=0"], r"error: workers=0 must be a whole number"),
    "a key": (
        "run",
        ["ranks=2"],
        r"error: ranks is no key \(did you mean rank\?\) of the parts that are chosen",
    ),
    "a row": ("run", ["row=nonsense"], r"error: There is no row=nonsense\. There are .* f_lora,"),
    "a task": (
        "run",
        ["task=mini/sts2"],
        r"error: There is no task=mini/sts2 \(did you mean task=mini/sst2\?\)\. .* mini/yelpp\.",
    ),
    "a key within": ("run", ["data.rooot=x"], r"no key \(did you mean data\.root\?\)"),
    "a group": (
        "run",
        ["-m", "optimiser=cma"],
        r"error: optimiser is no key \(did you mean optimizer\?\)",
    ),
    "a key of a swept part": (
        "run",
        ["-m", "method=lora,prompt_tuning", "method.training.epochs=6"],
        r"error: method\.training\.epochs is no key .* \+\+method\.training\.epochs=VALUE",
    ),
    "a table": (
        "report",
        ["table=nonsense"],
        r"error: There is no table=nonsense\. There are curves, .* table1,",
    ),
    "an empty store": ("report", ["table=table3"], r"error: .* holds no run of table3"),
    "a pretraining": (
        "pretrain",
        [f"folder={PROJECT}/README.md"],
        r"error: .*README\.md is not a folder",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_tells_a_mistake_with_status_2_and_leaves_nothing(name, tmp_path, ended):
    module, arguments, message = COMMANDS[name]
    status, out, error = ended(module, *arguments)
    assert (status, out) == (2, "")
    assert re.search(message, error)
    assert len(error.splitlines()) == 1
    left = [path for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert not left


@pytest.mark.slow
def test_traceback_is_shown_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = command(tmp_path, "report", f"folder={PROJECT}/README.md")
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert "is not a folder" in ended.stderr


# ------------------------------------------------------------------------------ arbitrary input

EXAMPLES = int(os.environ.get("DFOLORA_EXAMPLES", "0"))
"""Asked for more, they are others each time; 0: the same few."""
ODD = st.sampled_from([float("nan"), float("inf"), -1, 0, 2**70, 10**400, 1e300, 1e-320, "", "a/b"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | ODD
TEXT = st.text(st.characters(blacklist_characters="$", blacklist_categories=("Cs",)), max_size=20)
JSON = st.recursive(
    PLAIN | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
BASES = (
    (), ("optimizer=fwa",), ("optimizer=nevergrad",), ("optimizer=random",), ("method=bbt",),
    ("method=gap3",), ("method=in_context",), ("method=adapter",), ("method=lora",),
    ("method=bitfit",), ("method=p_tuning_v2",), ("model.weights=random",),
)  # fmt: skip
UNREAD = {"hydra", "profile", "row", "sweep", "experiment", "workers"}
"""Not read by a run."""


def places(node, prefix=""):
    """Every key of plain data, but for the names of classes."""
    for key, value in node.items():
        if not key.startswith("_"):
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from places(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory):
    """Files of MRPC with few rows."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mrpc").mkdir()
    rows = [{"sentence1": f"A {n} .", "sentence2": "B .", "label": n % 2} for n in range(8)]
    for part in ("train", "test"):
        (folder / "mrpc" / f"{part}.json").write_text(json.dumps(rows))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES, ids=" ".join)
@settings(
    deadline=None, max_examples=EXAMPLES or 20, derandomize=not EXAMPLES, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_value_is_told_or_taken(base, folder, few_rows, data):
    config, choices = composed("task=mrpc", "data.k=2", "dim=40", *base)
    config.data.root = few_rows
    keys = sorted(places(OmegaConf.to_container(config)))
    keys = [key for key in keys if key.partition(".")[0] not in UNREAD]
    key, value = data.draw(st.sampled_from(keys), "key"), data.draw(JSON, "value")
    OmegaConf.update(config, key, value, merge=False)
    with suppress(UserError):
        ready(config, choices)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
@settings(
    deadline=None, max_examples=EXAMPLES or 40, derandomize=not EXAMPLES, phases=[Phase.generate]
)
@given(data=st.data())
def test_any_bytes_are_told_or_taken(suffix, tmp_path_factory, data):
    """Bytes of all kinds, and good files with some bytes replaced and the end cut off."""
    whole = good(suffix)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    some = data.draw(st.binary(max_size=30) | TEXT.map(str.encode))
    content = data.draw(st.sampled_from([some, whole[:start] + some + whole[stop:], whole[:start]]))
    folder = tmp_path_factory.mktemp("data") / "sst2"
    folder.mkdir()
    (folder / f"train.{suffix}").write_bytes(content)
    try:
        rows = load_rows(SST2, "train", root=folder.parent)
    except UserError:
        return
    assert len(rows) > 0
