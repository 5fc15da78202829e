"""Who may import whom, read from the source; the tables are those of CONTRIBUTING's import rule."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "dfolora"
FILES = sorted(SRC.rglob("*.py"))
PIPELINES = sorted((ROOT / "pipelines").rglob("*.py"))

LEVELS = (  # a module imports from packages on floors above its own, and from within its package
    ("errors", "seeding"),
    ("resources", "validation"),
    ("mini",),
    ("data",),
    ("model",),
    ("engine",),
    ("search",),
    ("methods",),
    ("fewshot", "record", "report"),
    ("__init__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
CLOSED = {"data", "engine", "fewshot", "methods", "model", "search"}
"""Packages that others import by what their ``__init__`` exports alone."""
OPEN = {"search.optim", "search.subspace"}
"""Packages within these that are entered by their own."""

THIRD_PARTY = {  # the modules and packages that may import it; nobody may import any other
    "cma": {"search.optim.cma"},
    "datasets": {"data.files", "data.rows"},
    "filelock": {"record.store"},
    "huggingface_hub": {"fewshot.publish"},
    "jinja2": {"report.pages"},
    "matplotlib": {"record.curve", "report.figures"},
    "mlflow": {
        "record.direct", "record.failures", "record.runlog", "record.serving", "record.store",
    },
    "nevergrad": {"search.optim.nevergrad"},
    "numpy": {"data.metric", "engine", "fewshot", "methods", "mini", "record", "search", "seeding"},
    "pyarrow": {"data.files"},
    "pandas": {"data.files", "record.serving", "record.store", "report"},
    "peft": {"methods.gradient"},
    "psutil": {"record.memory"},
    "pynvml": {"record.memory"},
    "scipy": {"report.significance", "search.optim.two_stage"},
    "safetensors": {
        "fewshot.kinds", "methods.gradient", "model.peft_export", "model.preflight",
        "search.subspace.prompt",
    },
    "sklearn": {"fewshot.classifier"},
    "sqlalchemy": {"record.failures"},
    "torch": {"data", "engine", "fewshot", "methods", "model", "record.memory", "search"},
    "torchao": {"model.quantize"},
    "tqdm": {"fewshot.classifier"},
    "transformers": {
        "data", "fewshot", "model.attention", "model.backbone", "model.checkpoint",
        "model.preflight", "model.quantize",
    },
    "yaml": {"data.task", "fewshot.card"},
}  # fmt: skip
LAZY = {
    "datasets", "huggingface_hub", "jinja2", "matplotlib", "mlflow", "nevergrad", "peft", "pynvml",
    "scipy", "sklearn", "sqlalchemy", "torchao",
}  # fmt: skip
"""Slow to import or not needed by all: only inside of functions."""


def name_of(path: Path) -> str:
    """``src/dfolora/data/task.py -> data.task``; a package's own file is the package."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


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
    """Whether the module or a package that it is in is among the users."""
    return any(part == user or part.startswith(f"{user}.") for user in users)


def test_every_module_has_a_level():
    assert {name_of(path).partition(".")[0] for path in FILES} == set(LEVEL)
    assert sum(map(len, LEVELS)) == len(LEVEL)


def faults(check) -> list[str]:
    """What a check of one import finds: ``(module, imported name) -> fault or None``."""
    found = (check(name_of(path), name) for path in FILES for name in sorted(imports(path)))
    return [fault for fault in found if fault]


def test_there_are_few_floors():
    assert len(LEVELS) <= 10


def test_imports_point_down():
    def climbs(module, name):
        part, root = module.partition(".")[0], name.partition(".")[0]
        target = name.partition(".")[2].partition(".")[0] or "__init__"
        if root == "dfolora" and target != part and LEVEL[target] >= LEVEL[part]:
            return f"{module} may not import {target}"
        return None

    assert not faults(climbs)


def test_packages_are_entered_by_their_exports():
    def enters(module, name):
        part, target = module.partition(".")[0], name.removeprefix("dfolora.")
        inside = target.partition(".")[0] in CLOSED and target not in (*CLOSED, *OPEN)
        if name.startswith("dfolora.") and target.partition(".")[0] != part and inside:
            return f"{module} imports {name}, which its package does not export"
        return None

    assert not faults(enters)


def test_no_package_goes_round_in_circles():
    modules = {name_of(path): imports(path) for path in FILES}
    graph = {
        module: {name.removeprefix("dfolora.") for name in names if name.startswith("dfolora.")}
        - {module}
        for module, names in modules.items()
    }
    assert list(TopologicalSorter(graph).static_order())


def test_third_party_imports_are_allowed():
    def foreign(module, name):
        root = name.partition(".")[0]
        ours = root == "dfolora" or root in sys.stdlib_module_names
        return (
            None if ours or allowed(module, THIRD_PARTY.get(root, set())) else f"{module}: {root}"
        )

    assert not faults(foreign)


def test_slow_imports_are_inside_of_functions():
    for path in FILES:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        slow = LAZY & {name.partition(".")[0] for name in imported(body)}
        assert not slow, f"{name_of(path)}: {slow}"


def test_tables_name_nothing_that_is_gone():
    used = {
        (name.partition(".")[0], user)
        for path in FILES
        for name in imports(path)
        for user in accumulate(name_of(path).split("."), lambda whole, part: f"{whole}.{part}")
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
        ("record", {"torch", "transformers", "hydra"}),
        ("record.provenance", {"torch", "transformers", "mlflow", "hydra"}),
        ("data.task", {"torch", "transformers", "hydra"}),
        ("search.optim", {"torch", "transformers", "datasets", "pandas"}),
        ("model.factors", {"transformers", "numpy"}),
        ("engine.objective", {"transformers"}),
    ],
)
def test_module_needs_none_of(part, forbidden):
    """Of all it imports; the packages that it is in, which may import more, are no part of this."""
    assert not closure(part) & forbidden


def test_closure_follows_imports():
    assert {"yaml", "numpy"} <= closure("data.task")  # numpy through dfolora.data.metric


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

classifier = dfolora.FewShotClassifier(
    "mini-roberta", prompt="{text} It was {mask}.", words=["bad", "great"],
    method=dfolora.FLora(dim=8, budget=21), verbose=True,
).fit(["it is dull", "it is fine"] * 4, ["no", "yes"] * 4)
classifier.save("classifier")
texts = ["it is fine"]
loaded = dfolora.FewShotClassifier.load("classifier")
assert (loaded.predict(texts) == classifier.predict(texts)).all()
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
    for folder in ("adapter", "classifier"):
        assert (tmp_path / folder / "adapter_model.safetensors").exists()
