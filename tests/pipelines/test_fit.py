"""What is measured of a fit is measured as it ends."""

from types import SimpleNamespace

import numpy as np
import torch

from dfolora.methods.method import NoFit, Predictor
from dfolora.model import Backbone
from dfolora.record.journal import Journal
from pipelines.one_run.fit import fit_and_test
from tests.conftest import tiny_model


def test_memory_is_that_of_the_fit_and_not_of_the_test(tmp_path):
    def logits(batch):
        held = np.ones(40_000_000)  # 320 MB
        return torch.zeros(len(batch.labels), 2) * held[0]

    rows = SimpleNamespace(
        labels=torch.tensor([0, 1]), attention_mask=torch.ones(2, 5, dtype=int), truncated=0
    )
    problem = SimpleNamespace(
        data=SimpleNamespace(train=rows, dev=rows), test=rows,
        task=SimpleNamespace(metric="accuracy", classes=("bad", "good")),
        label_words=("bad", "great"),
        dropped_tests=0, seen_tests=0, repeated=0, paraphrases={},
        unlabelled={"train": 2, "test": 3}, empty={"dev": 1},
    )  # fmt: skip
    method = SimpleNamespace(begin=lambda *_: NoFit(Predictor(logits=logits)), budget=0)
    told = {}
    attempt = SimpleNamespace(
        folder=tmp_path,
        journal=lambda: Journal(tmp_path / "j", "key"),
        finish=lambda **values: told.update(values),
    )
    bar = SimpleNamespace(name="run")
    backbone = Backbone(tiny_model("bert"))
    fit_and_test(method, backbone, problem, 0, attempt, None, bar, lambda *_: None)
    assert 0 < told["metrics"]["memory/process_mb"] < 100
    counted = {"train/unlabelled": 2, "test/unlabelled": 3, "dev/empty": 1}
    assert counted.items() <= told["metrics"].items()
