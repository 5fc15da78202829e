"""Nothing is pickled, no code comes from models or data, nothing is written out of its place."""

import ast
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from dfolora.data import load_rows
from dfolora.data.task import Dataset, Task
from dfolora.errors import UserError
from dfolora.model.checkpoint import Checkpoint
from dfolora.report import Published
from dfolora.report.write import write_item
from dfolora.validation import file_name
from pipelines.one_run.execute import execute
from tests.commands import PROJECT, composed
from tests.conftest import mini_tokenizer, tiny_model
from tests.model.test_checkpoint import checkpoint
from tests.reporting import RUNS, run, table

SOURCES = [
    path for folder in ("src", "pipelines") for path in sorted((PROJECT / folder).rglob("*.py"))
]
CONFIGS = sorted((PROJECT / "conf").rglob("*.yaml"))

PICKLING = {
    "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "multiprocess",
    "pickle", "shelve",
}  # fmt: skip
FORBIDDEN = {
    "__import__", "compile", "eval", "exec", "os.popen", "os.system", "numpy.load", "numpy.save",
    "torch.hub.load", "torch.jit.load", "torch.load", "torch.save",
}  # fmt: skip
METHODS = {"read_pickle", "to_pickle"}
SAFE_YAML = {"yaml.safe_load", "yaml.safe_dump", "yaml.YAMLError"}
ONLY = {  # keyword: the one value that it may have
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "use_safetensors": True,
    "weights_only": True,
}
NEEDED = {"from_pretrained": "trust_remote_code", "from_config": "trust_remote_code"}
"""Methods, and the keyword without which transformers asks whether to run a model's code."""


def full_names(tree):
    """What names of the module stand for: ``import numpy as np`` makes np numpy."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}"
                      for alias in node.names}  # fmt: skip
    return names


def dotted(node, names):
    """``np.load -> numpy.load``; empty for anything but names and attributes of theirs."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def dangers(source):
    """What a module may not do, with its lines."""
    tree = ast.parse(source)
    names = full_names(tree)
    node: Any
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used = {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            used = {dotted(node, names)}
        else:
            used = set()
        for name in used:
            if (
                name.partition(".")[0] in PICKLING
                or name in FORBIDDEN
                or (name.startswith("yaml.") and name not in SAFE_YAML)
            ):  # fmt: skip
                yield node.lineno, name
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node.lineno, node.attr
        if isinstance(node, ast.Call):
            yield from unsafe_options(node)


def unsafe_options(call):
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    for name, safe in ONLY.items():
        if name in given and getattr(given[name], "value", None) is not safe:
            yield call.lineno, name
    needed = NEEDED.get(getattr(call.func, "attr", ""))
    if needed is not None and needed not in given:
        yield call.lineno, f"no {needed}"


def test_source_pickles_nothing_and_runs_no_text():
    found = [
        (path, danger) for path in SOURCES for danger in dangers(path.read_text(encoding="utf-8"))
    ]
    assert not found


DANGEROUS = [
    "import pickle",
    "from pickle import loads",
    "from multiprocess import Pool",
    "import joblib as safe\nsafe.load('x')",
    "import torch\ntorch.load('x', weights_only=True)",
    "from torch import save\nsave({}, 'x')",
    "import torch as t\nread = t.load",
    "import numpy as np\nnp.load('x')",
    "numpy.loadtxt('x', allow_pickle=True)",
    "frame.to_pickle('x')",
    "import yaml\nyaml.load('x', yaml.Loader)",
    "from yaml import unsafe_load",
    "eval('1')",
    "exec(text)",
    "import os\nos.system('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "subprocess.run('ls', shell=flag)",
    "AutoConfig.from_pretrained('x')",
    "AutoConfig.from_pretrained('x', trust_remote_code=True)",
    "loader.from_config(config, dtype=None)",
    "load_dataset('x', trust_remote_code=trusted)",
    "loader.from_pretrained('x', trust_remote_code=False, use_safetensors=None)",
]
HARMLESS = [
    "model.eval()",
    "import yaml\ntry:\n    yaml.safe_load('x')\nexcept yaml.YAMLError:\n    pass",
    "import subprocess\nsubprocess.run(['ls'], check=True)",
    "import re\nre.compile('x')",
    "AutoConfig.from_pretrained('x', trust_remote_code=False)",
]


def test_walk_finds_what_is_dangerous_and_nothing_else():
    assert [source for source in DANGEROUS + HARMLESS if list(dangers(source))] == DANGEROUS


def test_configurations_name_constructors_of_ours_alone():
    for path in CONFIGS:
        waiting = [yaml.safe_load(path.read_text(encoding="utf-8"))]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                assert "trust_remote_code" not in node, path
                ours = str(node.get("_target_", "dfolora.")).startswith(("dfolora.", "pipelines."))
                assert ours, path
                waiting += node.values()
            elif isinstance(node, list):
                waiting += node


IN_MEMORY = {
    "jinja2.bccache": "as it is imported, Python's version, for the head of files it never writes",
    "dill._dill": "for datasets, which names a data set in its cache by a hash of such bytes",
}
"""The modules that pickle at all, and what; all of it in memory."""


def audited(folder, *arguments):
    """The pickles of a Python process that runs in the folder, as ``tests/audit`` tells them."""
    log = folder / "pickles.jsonl"
    log.touch()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(
                [str(PROJECT / "tests" / "audit"), str(PROJECT), str(PROJECT / "src")]
            ),
            "PICKLES": str(log),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        },
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def on_disk(heard):
    """Pickles in files, or by others than those that may."""
    return [one for one in heard if one["file"] or one["by"] not in IN_MEMORY]


PICKLER = """
import collections, io, pickle, _pickle, torch
text = pickle.dumps(collections.OrderedDict())
pickle.loads(text)
_pickle.Pickler(io.BytesIO()).dump(1)
pickle._Pickler(io.BytesIO()).dump(1)
with open("x.dat", "wb") as file:
    pickle.dump(1, file)
torch.save({}, "x.pt")
torch.load("x.pt", weights_only=True)
"""


@pytest.mark.slow
def test_audit_hears_every_way_to_pickle(tmp_path):
    heard = {(one["what"], one["by"], one["file"]) for one in audited(tmp_path, "-c", PICKLER)}
    assert heard >= {
        (what, "__main__", None)
        for what in ("dumps", "loads", "pickle.find_class", "Pickler", "_Pickler")
    }
    assert ("dump", "__main__", "x.dat") in heard
    assert {what for what, by, _ in heard if by.startswith("torch")} >= {"Pickler", "open"}


@pytest.mark.slow
def test_nothing_is_pickled_by_runs_of_each_kind_and_their_report(tmp_path):
    """With one process: several (``workers``) send each other jobs and outcomes, as pickles."""
    rows = "row=c_lora,model_tuning,feature_mlp,lora,gap3"
    few = ["budget=60", "dim=40", "training.epochs=1", "training.dev_every=1", "data.k=4"]
    sweep = ["sweep.tasks=[mini/sst2]", "sweep.seeds=[8]"]
    ran = audited(tmp_path, "-m", "pipelines.run", "experiment=table1", rows, *few, *sweep)
    reported = audited(tmp_path, "-m", "pipelines.report", *sweep)
    assert not on_disk(reported)
    assert ran == reported[: len(ran)]  # one log

    stored = [path for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert {path.name for path in stored} >= {"adapter_model.safetensors", "trained.safetensors"}
    assert {path.suffix for path in stored} <= {
        ".json", ".jsonl", ".md", ".png", ".safetensors", ".txt", ".yaml",
    }  # fmt: skip
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != tmp_path]
    assert len(written) > len(stored)
    for path in written:
        start = path.read_bytes()[:2]
        assert start != b"PK", path  # a zip, as torch's
        assert not (start[:1] == b"\x80" and start[1:] in b"\x02\x03\x04\x05"), path
    assert not blobs(tmp_path / "mlflow.db")


REPOSITORY = """
import sys
from dataclasses import replace
from dfolora.data import load_rows
from dfolora.data.task import Dataset, Task
task = Task.from_file(sys.argv[1])
print(len(load_rows(replace(task, dataset=Dataset(path=sys.argv[2])), "train")))
"""


@pytest.mark.slow
def test_data_of_a_repository_is_not_pickled(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"sentence": "a", "label": 0}\n')
    task = PROJECT / "conf" / "task" / "sst2.yaml"
    heard = audited(
        tmp_path, "-c", REPOSITORY, str(task), "data"
    )  # no whole path, so as of the hub
    assert heard
    assert not on_disk(heard)
    files = {path.suffix for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert files == {".arrow", ".json", ".lock"}


def blobs(database):
    """Columns of a store that hold bytes."""
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found = []
        for (name,) in names:
            for _, column, *_ in connection.execute(f"PRAGMA table_info('{name}')").fetchall():
                asked = f'SELECT 1 FROM "{name}" WHERE typeof("{column}") = \'blob\' LIMIT 1'
                found += [f"{name}.{column}"] if connection.execute(asked).fetchone() else []
        return found


@pytest.fixture
def folder(tmp_path):
    """A model's, with its tokenizer."""
    model, tokenizer = tiny_model("roberta"), mini_tokenizer("masked")
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def unpickled(monkeypatch):
    """What torch is asked to unpickle, safely or not."""
    asked, load = [], torch.load

    def watched(file, *arguments, **options):
        asked.append(file)
        return load(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    return asked


def pickled_weights(folder):
    weights = tiny_model("roberta").state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def only_pickles(folder):
    pickled_weights(folder)
    (folder / "model.safetensors").unlink()


def index_of_pickles(folder):
    weights = pickled_weights(folder)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_out_of_the_folder(folder):
    weights = tiny_model("roberta").state_dict()
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_named_by_the_configuration(folder):
    torch.save(tiny_model("roberta").state_dict(), folder / "adapter_model.bin")
    changed(folder / "config.json", transformers_weights="adapter_model.bin")


def pickled_adapter(folder):
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({}, folder / "adapter_model.bin")


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (only_pickles, r"holds no \*\.safetensors but pytorch_model\.bin, and no pickle"),
        (index_of_pickles, r"names weights in \['pytorch_model\.bin'\]; only \*\.safetensors"),
        (index_out_of_the_folder, r"\['\.\./model\.safetensors'\]; only .* beside it are read"),
        (pickle_named_by_the_configuration, r"names the weights adapter_model\.bin; they must"),
        (pickled_adapter, r"holds an adapter \(adapter_config\.json\)"),
    ],
)
def test_weights_in_anything_but_safetensors_are_refused(folder, unpickled, spoilt, message):
    spoilt(folder)
    with pytest.raises(UserError, match=message):
        checkpoint(folder).load_backbone()
    assert unpickled == []


def test_weights_in_several_files_are_read(folder):
    whole = checkpoint(folder).load_backbone().model
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = checkpoint(folder).load_backbone().model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())


OWNED = "from pathlib import Path\nPath({path!r}).touch()\n"


@pytest.fixture
def coded(folder, monkeypatch):
    """A model whose folder brings code, which leaves a file where it is run."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # were the user asked, he'd say yes
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder.parent / "modules"))
    owned = folder.parent / "owned"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(OWNED.format(path=str(owned)))
    changed(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_evil.Config",
            "AutoModelForMaskedLM": "modeling_evil.Model",
        },
    )
    changed(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Tokenizer", None]},
    )
    yield folder
    assert not owned.exists()


def test_code_in_a_known_models_folder_never_runs(coded):
    known = checkpoint(coded)
    assert type(known.config()).__module__.startswith("transformers.")
    known.load_tokenizer()
    assert type(known.load_backbone().model).__module__.startswith("transformers.")


def test_model_that_needs_its_own_code_is_refused(coded):
    changed(coded / "config.json", model_type="evil")
    with pytest.raises(UserError, match=r"Cannot load model\.path=.* contains custom code"):
        checkpoint(coded).config()


def test_tokenizer_that_needs_its_own_code_is_refused(coded):
    changed(coded / "tokenizer_config.json", tokenizer_class="Evil")
    alone = coded.parent / "tokenizer"
    shutil.copytree(coded, alone, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    with pytest.raises(UserError, match=r"Cannot load the tokenizer .* contains custom code"):
        checkpoint(coded, tokenizer=str(alone)).load_tokenizer()


def test_kernel_that_a_configuration_names_is_not_fetched(folder):
    changed(folder / "config.json", attn_implementation="nobody/kernel")
    model = checkpoint(folder).load_backbone().model
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("place", "message"), [("./data", "could not be loaded"), ("{}/data", "No file for the train")]
)
def test_script_beside_data_never_runs(tmp_path, monkeypatch, place, message):
    owned = tmp_path / "owned"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(OWNED.format(path=str(owned)))
    monkeypatch.chdir(tmp_path)
    task = replace(task_of("sst2"), dataset=Dataset(path=place.format(tmp_path)))
    with pytest.raises(UserError, match=message):
        load_rows(task, "train")
    assert not owned.exists()


def task_of(name):
    return Task.from_file(PROJECT / "conf" / "task" / f"{name}.yaml")


OUTSIDE = ["../../x", "..", ".", "/x", "a/b", "a\\b", ".x", "-x", "a\nb", "a\0b", "a b", "x}{y", ""]
INSIDE = ["sst2", "table1", "My-runs_2.1", "été"]


def test_names_that_lead_elsewhere_are_refused_and_names_of_files_pass():
    for name in OUTSIDE:
        with pytest.raises(UserError, match=r"^here"):
            file_name(name, "here")
    assert [file_name(name, "here") for name in INSIDE] == INSIDE


def test_task_cannot_name_another_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, choices = composed("task.name=../../x", f"data.root={tmp_path}")
    with pytest.raises(UserError, match=r"^task\.name='\.\./\.\./x' becomes the name of a file"):
        execute(config, choices, sweep_id="s")
    assert not list(tmp_path.iterdir())


def test_names_in_a_runs_name_lead_nowhere(tmp_path, monkeypatch):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inner}/mlflow.db")
    config, choices = composed("budget=0", "dim=40")
    execute(config, choices | {"task": "../../x", "optimizer": "../../y"}, sweep_id="s")
    beside = {path.name for path in inner.iterdir() if not path.name.startswith("mlflow.db")}
    assert beside == {"mlruns", "outputs"}
    assert list((tmp_path / "a").iterdir()) == [inner]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_models_root_is_not_left():
    with pytest.raises(UserError, match=r"model\.root=\. has no folder \.\."):
        Checkpoint(
            path="x/..", revision="main", tokenizer=None, weights="pretrained",
            architecture=None, device="cpu", precision="fp32", root=".",
        ).config()  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [("report", "table.name"), ("pretrain", "model.path")])
def test_command_refuses_a_name_that_leads_elsewhere(tmp_path, ended, module, name):
    place = tmp_path / "a"
    quick = ["recipe.documents=1"] if module == "pretrain" else []
    status, _, error = ended(module, f"{name}=../x", f"folder={place}/${{{name}}}", *quick)
    assert status == 2
    assert error.startswith(f"error: {name}='..")
    assert "becomes the name of a file" in error
    assert not list(tmp_path.iterdir())


class NoFiles:
    """An archive of runs that left none."""

    def artifact(self, folder, name):
        return None


def test_runs_ids_that_lead_elsewhere_are_quoted(tmp_path):
    reports = tmp_path / "a" / "reports"
    spoilt = [run("sst2", 8, 0.8) | {"run_id": "../../x"}, run("sst2", 13, 0.9) | {"run_id": ".."}]
    write_item(reports, table(*RUNS[:2], *spoilt), Published(), NoFiles())
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert list((tmp_path / "a").iterdir()) == [reports]
    page = (reports / "table1.html").read_text()
    assert 'href="runs/..%252F..%252Fx.html"' in page  # a link's own quoting once more
    assert (reports / "runs" / "..%2F..%2Fx.html").exists()
    assert (reports / "runs" / "...html").exists()
