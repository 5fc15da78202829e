"""Who may import whom, read from the source; the tables are those of CONTRIBUTING's import rule."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "dfolora"
FILES = sorted(SRC.rglob("*.py"))

LEVELS = (  # a module imports only from lines above its own, and from within its package
    ("cost", "errors", "lora", "memory", "metric", "packing", "record", "seeding"),
    ("plain", "room"),
    ("intervention", "objective", "optim", "report", "tracking"),
    ("task",),
    ("architecture",),
    ("layer", "mini"),
    ("backbone", "data", "quantize", "shapes"),
    ("adapter", "checkpoint", "engine"),
    ("subspace", "trainable"),
    ("evaluate",),
    ("tune",),
    ("select",),
    ("methods",),
    ("figure", "journal", "problem"),
    ("fitting", "score"),
    ("__init__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}

THIRD_PARTY = {  # the modules and packages that may import it; nobody may import any other
    "cma": {"optim.cma"},
    "datasets": {"data.load"},
    "filelock": {"tracking"},
    "jinja2": {"report.pages"},
    "matplotlib": {"figure", "report.figures"},
    "mlflow": {"tracking"},
    "nevergrad": {"optim.nevergrad"},
    "numpy": {
        "evaluate", "figure", "journal", "methods", "metric", "mini", "objective", "optim",
        "seeding", "select", "subspace", "tune",
    },
    "pandas": {"data.load", "report", "tracking"},
    "peft": {"trainable"},
    "psutil": {"memory"},
    "pynvml": {"memory"},
    "scipy": {"report.significance"},
    "safetensors": {"adapter", "shapes", "subspace", "trainable"},
    "sqlalchemy": {"tracking.failures"},
    "tokenizers": {"mini.tokenizer"},
    "torch": {
        "adapter", "architecture", "backbone", "checkpoint", "data", "engine", "evaluate",
        "intervention", "layer", "lora", "memory", "methods", "mini.pretrain", "objective",
        "packing", "problem", "quantize", "score", "shapes", "subspace", "trainable",
    },
    "torchao": {"quantize"},
    "transformers": {
        "checkpoint", "data", "mini.pretrain", "mini.tokenizer", "problem", "quantize", "shapes",
    },
    "yaml": {"task"},
}  # fmt: skip
LAZY = {
    "datasets", "jinja2", "matplotlib", "mlflow", "nevergrad", "peft", "pynvml", "scipy",
    "sqlalchemy", "torchao",
}  # fmt: skip
"""Slow to import or not needed by all: only inside of functions."""


def name_of(path: Path) -> str:
    """``src/dfolora/optim/cma.py -> optim.cma``."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every name imported anywhere in the file; ``from a import b`` counts as ``a``."""
    return imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported(nodes) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the full name of what is imported"
            found.add(node.module)
    return found


def allowed(part: str, users: set[str]) -> bool:
    """Whether the module or the package that it is in is among the users."""
    return part in users or part.partition(".")[0] in users


def test_every_module_has_a_level():
    assert {name_of(path).partition(".")[0] for path in FILES} == set(LEVEL)
    assert sum(map(len, LEVELS)) == len(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    part = name_of(path).partition(".")[0]
    for name in imports(path):
        root, _, rest = name.partition(".")
        target = rest.partition(".")[0] or "__init__"
        if root == "dfolora" and target != part:
            assert LEVEL[target] < LEVEL[part], f"{part} may not import {target}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_party_imports_are_allowed(path):
    for name in imports(path):
        root = name.partition(".")[0]
        if root != "dfolora" and root not in sys.stdlib_module_names:
            assert allowed(name_of(path), THIRD_PARTY.get(root, set())), f"no {root} here"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_slow_imports_are_inside_of_functions(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert not LAZY & {name.partition(".")[0] for name in imported(body)}


def test_tables_name_nothing_that_is_gone():
    used = {
        (name.partition(".")[0], user)
        for path in FILES
        for name in imports(path)
        for user in (name_of(path), name_of(path).partition(".")[0])
    }
    listed = {(root, user) for root, users in THIRD_PARTY.items() for user in users}
    assert listed <= used
    assert {root for root, _ in used} >= LAZY


def closure(part: str) -> set[str]:
    """All that a module imports, directly or through modules of ours."""
    names, waiting = set(), [part]
    while waiting:
        module = SRC.joinpath(*waiting.pop().split("."))
        path = module.with_suffix(".py") if not module.is_dir() else module / "__init__.py"
        new = imports(path) - names
        names |= new
        waiting += [name.removeprefix("dfolora.") for name in new if name.startswith("dfolora.")]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("report", {"torch", "transformers", "mlflow", "numpy", "hydra"}),
        ("record", {"torch", "transformers", "mlflow", "hydra"}),
        ("tracking", {"torch", "transformers", "hydra"}),
        ("task", {"torch", "transformers", "hydra"}),
        ("optim", {"torch", "transformers", "datasets", "pandas"}),
        ("lora", {"transformers", "numpy"}),
        ("objective", {"transformers"}),
    ],
)
def test_module_needs_none_of(part, forbidden):
    """Of all it imports; the package's ``__init__``, which is no part of this, imports torch."""
    assert not closure(part) & forbidden


def test_closure_follows_imports():
    assert {"yaml", "numpy"} <= closure("task")  # numpy through dfolora.metric


# In place of what is not needed: None, which makes an import of it fail.
BARE = """
import sys
for name in ("mlflow", "sqlalchemy", "hydra", "omegaconf", "datasets", "pyarrow", "nevergrad",
             "pandas", "matplotlib", "sklearn", "scipy", "peft", "psutil", "pynvml"):
    sys.modules[name] = None

import dataclasses, pathlib, torch, transformers
import dfolora
from dfolora.mini import BUNDLED

task = dfolora.Task.from_file(sys.argv[1])
task = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, path="mini"))
tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED["mini-roberta"])
model = transformers.AutoModelForMaskedLM.from_config(
    transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=130, pad_token_id=1,
    )
)
predictor = dfolora.fit(
    model, tokenizer, task,
    method=dfolora.LayerwiseSearch(subspace=dfolora.LoraSubspaceSpec(dim=8), budget=21),
    problem=dfolora.ProblemSpec(k=2),
)
predictor.save(pathlib.Path("adapter"))
print(predictor.searched, predictor.dev.calls <= 21)
"""


def test_core_works_with_torch_transformers_numpy_and_cma_alone(tmp_path):
    """A whole fit, for what is imported inside of functions counts as well."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(ROOT / "conf" / "task" / "sst2.yaml")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "True"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
