"""Libraries' errors: a shortage is never put down to what the user gave."""

import ast
import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfolora.data import load_rows
from dfolora.errors import ResourceError, UserError, explained, is_shortage
from dfolora.mini import BUNDLED
from dfolora.model import Checkpoint
from dfolora.record import Store
from dfolora.search.optim import Nevergrad
from tests.fewshot.test_problem import TASK, Task

SRC = Path(__file__).parents[1] / "src" / "dfolora"
FULL = OSError(errno.ENOSPC, "No space left on device")


def wrapped(inner: Exception) -> Exception:
    """As libraries tell of it: an error of their own, from the one that says why."""
    try:
        try:
            raise inner
        except Exception as cause:
            raise ValueError("failed") from cause
    except ValueError as outer:
        return outer


SHORTAGES = {
    "memory": MemoryError(),
    "disk": FULL,
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": torch.AcceleratorError("CUDA error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "numpy": MemoryError("Unable to allocate 8 GiB"),
    "sqlite": RuntimeError("database or disk is full"),
    "wrapped": wrapped(FULL),
}


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_shortage_is_no_mistake_of_the_user(error):
    assert is_shortage(error)
    with pytest.raises(ResourceError, match=r".") as raised, explained(lambda _: "check the file"):
        raise error
    assert "check" not in str(raised.value)


def test_all_else_is_explained():
    with pytest.raises(UserError, match="mend it: 'a'"), explained(lambda e: f"mend it: {e}"):
        raise KeyError("a")
    with pytest.raises(UserError, match="told already"), explained(lambda _: "other"):
        raise UserError("told already")
    with pytest.raises(KeyboardInterrupt), explained(lambda _: "other"):
        raise KeyboardInterrupt


def raising(error):
    def call(*_args, **_options):
        raise error

    return call


@pytest.mark.parametrize("name", ["memory", "disk", "wrapped"])
@pytest.mark.parametrize(
    "place",
    [
        "transformers.AutoConfig.from_pretrained",
        "transformers.AutoTokenizer.from_pretrained",
        "transformers.AutoModelForMaskedLM.from_config",
        "transformers.AutoModelForMaskedLM.from_pretrained",
        "dfolora.model.preflight.safe_open",
    ],
)
def test_shortage_while_a_model_is_loaded(place, name, monkeypatch):
    monkeypatch.setattr(place, raising(SHORTAGES[name]))
    checkpoint = Checkpoint(
        path=str(BUNDLED["mini-roberta"]), revision="main", tokenizer=None, weights="pretrained",
        architecture=None, device="cpu", precision="fp32",
    )  # fmt: skip
    with pytest.raises(ResourceError):
        checkpoint.load_tokenizer(), checkpoint.load_backbone()


@pytest.mark.parametrize("name", ["memory", "disk", "wrapped"])
def test_shortage_while_rows_are_read(name, tmp_path, monkeypatch):
    (tmp_path / "colors").mkdir()
    (tmp_path / "colors" / "train.parquet").write_bytes(b"")
    task = Task.from_mapping(TASK)
    monkeypatch.setattr("pandas.read_parquet", raising(SHORTAGES[name]))
    with pytest.raises(ResourceError):
        load_rows(task, "train", root=tmp_path)
    monkeypatch.setattr("datasets.load_dataset", raising(SHORTAGES[name]))
    with pytest.raises(ResourceError):
        load_rows(task, "train")


def test_shortage_while_the_store_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("dfolora.record.store._prepare_sqlite", raising(FULL))
    with pytest.raises(ResourceError, match="No space left"):
        Store(f"sqlite:///{tmp_path}/mlflow.db")


def test_nobody_else_puts_every_error_down_to_one_cause():
    broad = {
        path.relative_to(SRC).as_posix()
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    }
    # The second hands errors of one thread to another as they are.
    assert broad == {"errors.py", "search/optim/two_stage.py"}


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("datasets", lambda folder: load_rows(Task.from_mapping(TASK), "train")),
        ("pandas", lambda folder: load_rows(Task.from_mapping(TASK), "train", root=folder)),
        ("nevergrad", lambda _: Nevergrad(4, 9, np.random.default_rng(0), name="OnePlusOne")),
    ],
)
def test_what_an_extra_lacks_is_told_with_its_name(package, use, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "colors").mkdir()
    (tmp_path / "colors" / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{package} is not installed, .*'dfolora\[pipelines\]'"):
        use(tmp_path)
