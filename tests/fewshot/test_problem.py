"""Problems: one split for every model, the length rules, and clear errors."""

import json
from pathlib import Path

import pytest

from dfolora.data.task import Task
from dfolora.errors import UserError
from dfolora.fewshot.problem import ProblemSpec, Source, TaskRows
from dfolora.fewshot.score import score_test
from dfolora.methods import ManualPrompt
from tests.conftest import mini_tokenizer

TASK = {
    "name": "colors",
    "title": "Colors",
    "dataset": {"path": "nobody/colors", "train": "train", "test": "test"},
    "fields": ["text"],
    "label": "label",
    "classes": ["cold", "warm"],
    "metric": "accuracy",
    "prompts": {
        "released": {
            "masked": {"pattern": "{text} is {mask} .", "label_words": ["No", "Yes"]},
            "causal": {"pattern": "{text} is", "label_words": ["No", "Yes"]},
        }
    },
}


@pytest.fixture
def task():
    return Task.from_mapping(TASK)


@pytest.fixture
def root(tmp_path):
    """Twelve rows a class; the last two of each are longer than any limit below."""
    folder = tmp_path / "data" / "colors"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        rows = [
            {"text": f"row {n} of class {n % 2}" + " and so on" * (30 if n >= 20 else 0),
             "label": n % 2}
            for n in range(24)
        ]  # fmt: skip
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "data")


def pose(task, root, kind="masked", *, seed=0, limit=512, **options):
    spec = ProblemSpec(**{"k": 4, "root": root, "max_words": 20} | options)
    rows = TaskRows.load(task, spec.source)
    return spec.pose(
        rows, mini_tokenizer(kind), ManualPrompt(), kind=kind, max_length=limit, seed=seed
    )


def test_rows_that_stand_twice_are_no_mistake_but_counted(task, root):
    """As in the real datasets: one text twice among train and dev rows, thrice among tests."""
    path = Path(root) / "colors"
    rows = [{"text": f"row {n}", "label": n % 2} for n in range(8)]
    rows[4]["text"] = rows[2]["text"]
    tests = [*rows, {"text": rows[2]["text"], "label": 0}, {"text": "new", "label": 1}]
    for part, some in (("train", rows), ("test", tests)):
        (path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    problem = pose(task, root, k=2)
    assert problem.repeated == 2
    assert problem.seen_tests == 9
    fewer = pose(task, root, k=1)
    drawn = {rows[n]["text"] for n in (*fewer.split.train, *fewer.split.dev)}
    assert fewer.seen_tests == sum(row["text"] in drawn for row in tests) < 9
    assert fewer.repeated == 2 * (4 - len(drawn))


def test_split_is_the_same_for_every_kind_of_model_and_length(task, root):
    splits = {
        pose(task, root, kind, limit=length).split
        for kind in ("masked", "causal")
        for length in (40, 512)
    }
    assert len(splits) == 1
    assert pose(task, root, seed=1).split not in splits


def test_long_rows_are_never_drawn_and_tests_are_cut_and_counted(task, root):
    problem = pose(task, root, limit=40)
    assert max(*problem.split.train, *problem.split.dev) < 20
    assert problem.data.train.truncated == problem.data.dev.truncated == 0
    assert problem.test.truncated == 4
    assert len(problem.test.labels) == 24
    assert problem.dropped_tests == 0
    assert problem.test.input_ids.shape[1] == 40


def test_released_length_rule_drops_tests_too(task, root):
    problem = pose(task, root, overlong="released", limit=40)
    assert len(problem.test.labels) == 20
    assert problem.dropped_tests == 4
    assert problem.test.truncated == 0


def test_fingerprint_changes_with_any_row(task, root, tmp_path):
    before = TaskRows.load(task, Source(root=root)).fingerprint
    assert TaskRows.load(task, Source(root=root)).fingerprint == before
    file = tmp_path / "data" / "colors" / "test.jsonl"
    file.write_text(file.read_text().replace("row 3 ", "row three "))
    assert TaskRows.load(task, Source(root=root)).fingerprint != before


def test_scores_stand_beside_what_constants_score(task, root):
    problem = pose(task, root)
    always_yes = problem.data.label_ids.new_tensor([[0.0, 1.0]]).expand(24, 2)
    scores = score_test(always_yes.float(), problem)
    assert scores == {
        f"{predictor}{metric}": 0.5
        for predictor in ("", "majority_", "constant_yes_")
        for metric in ("score", "accuracy")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, r"6-shot split needs 12 rows of each class .* cold: 10, warm: 10"),
        ({"overlong": "drop"}, "data.overlong=drop; choose one of truncate, released"),
        ({"readout": "first"}, "data.readout=first; choose one of last_token, released"),
        ({"label_words": "x"}, "data.label_words=x; choose one of released, natural"),
        ({"max_words": 0}, "data.max_words=0 must be a whole number, 1 or more"),
        ({"max_length": -1}, "data.max_length=-1 must be a whole number, 1 or more"),
        ({"root": "/no/such"}, "data.root=/no/such is not a folder; .* sst2/train.jsonl"),
        ({"prompt": "mine"}, "mine"),
        ({"max_length": 4}, "The prompt alone is"),
    ],
)
def test_what_makes_no_sense_is_refused(task, root, options, message):
    with pytest.raises(UserError, match=message):
        pose(task, **{"root": root} | options)
