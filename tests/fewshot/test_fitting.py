"""The library in one call, as the README shows it."""

import json
import subprocess
import sys

import pytest
from peft import PeftModel

import dfolora
from tests.conftest import mini_tokenizer, tiny_model

PATTERN = {"pattern": "{sentence} . It was {mask} .", "label_words": ["bad", "great"]}
TASK = {
    "name": "sst2",
    "title": "Opinions",
    "dataset": {"path": "mini", "train": "train", "test": "test"},
    "fields": ["sentence"],
    "label": "label",
    "classes": ["negative", "positive"],
    "metric": "accuracy",
    "prompts": {"released": {"masked": PATTERN}},
}


def model():
    resized = tiny_model("roberta")
    resized.resize_token_embeddings(len(mini_tokenizer("masked")))
    return resized


def test_one_call_gives_a_predictor_that_saves_and_loads(tmp_path):
    predictor = dfolora.fit(
        model(),
        mini_tokenizer("masked"),
        dfolora.Task.from_mapping(TASK),
        method=dfolora.LayerwiseSearch(subspace=dfolora.LoraSubspaceSpec(dim=40), budget=45),
        problem=dfolora.ProblemSpec(k=4),
    )
    assert predictor.searched == 3 * 40
    predictor.save(str(tmp_path / "adapter"))
    PeftModel.from_pretrained(model(), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert predictor.stored == 3 * 2 * (2 * 32 + 2 * 32)  # layers, q and k, A and B of rank 2
    assert config["r"] == 2


def test_fit_needs_no_test_rows(tmp_path):
    """None lie beside the train rows; with some, that nobody can read, it fits the same."""
    folder = tmp_path / TASK["name"]
    folder.mkdir()
    rows = [{"sentence": f"row {n}", "label": n % 2} for n in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    shared = model()

    def fitted(**options):
        predictor = dfolora.fit(
            shared,
            mini_tokenizer("masked"),
            dfolora.Task.from_mapping(TASK),
            method=dfolora.LayerwiseSearch(subspace=dfolora.LoraSubspaceSpec(dim=40), budget=21),
            problem=dfolora.ProblemSpec(k=2, root=str(tmp_path), **options),
        )
        return predictor.dev.score, predictor.dev.loss

    alone = fitted()
    assert fitted(overlong="released") == alone
    (folder / "test.jsonl").write_text("no rows")
    assert fitted() == alone


def test_wrong_seed_is_told_before_anything_else():
    with pytest.raises(dfolora.UserError, match="seed=-1 must be a whole number, 0 or more"):
        dfolora.fit(None, None, dfolora.Task.from_mapping(TASK), seed=-1)


def test_a_script_that_imports_the_library_prints_what_it_prints_and_no_more(tmp_path):
    script = "import dfolora, transformers, peft; print(len(dfolora.tasks()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (str(len(dfolora.tasks())), "")
