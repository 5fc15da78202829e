"""Problems: one split for every model, the length rules, and clear errors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfolora.data.task import Task
from dfolora.errors import UserError
from dfolora.fewshot.problem import ProblemSpec, Source, TaskRows
from dfolora.fewshot.score import score_test
from dfolora.methods import ManualPrompt
from tests.conftest import mini_tokenizer
from tests.shared import shared

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
    spec.check(task, kind)
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


def test_part_that_lacks_a_class_is_told_unless_that_is_meant(task, root):
    """Labels of -1 and 1: the negative rows would vanish, and the score be that of the others."""
    path = Path(root) / "colors" / "test.jsonl"
    rows = [{"text": f"row {n}", "label": (-1, 1)[n % 2]} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = r"test rows of colors lack the classes \['cold'\]: .* 0 cold, 12 warm, and 12 without"
    with pytest.raises(UserError, match=message):
        pose(task, root)
    allowed = pose(task, root, missing_classes="allow")
    assert (len(allowed.test.labels), allowed.unlabelled) == (12, {"train": 0, "test": 12})
    with pytest.raises(UserError, match=r"train\.jsonl has 12 labels outside the task's classes"):
        pose(task, root, labels=[-1, 1])
    train = path.with_name("train.jsonl")
    train.write_text(train.read_text().replace('"label": 0', '"label": -1'))
    told = pose(task, root, labels=[-1, 1])
    assert told.test.labels.tolist() == [0, 1] * 12
    assert told.unlabelled == {"train": 0, "test": 0}


def test_labels_that_are_equal_numbers_are_not_the_same(task):
    """To the cache of rows; a column of truth values is not one of 0 and 1."""
    numbers, truths = (ProblemSpec(labels=labels).source for labels in ([0, 1], [False, True]))
    assert numbers != truths


def test_case_of_labels_minus_and_plus_one():
    sst2 = Task.from_file("sst2")
    with pytest.raises(UserError, match=r"lack the classes \['negative'\]: .* 12 positive, and 12"):
        pose(sst2, str(shared("cases/labels_plus_minus_one/data")))


@pytest.fixture
def given(root):
    """Ten rows a class of dev beside two of train."""
    folder = Path(root) / "colors"
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "dev.jsonl").write_text("".join(lines[4:]))
    (folder / "train.jsonl").write_text("".join(lines[:4]))
    return root


@pytest.mark.parametrize("seed", [0, 1])
def test_split_that_is_given_is_used_as_it_is(task, given, seed):
    problem = pose(task, given, split="given", seed=seed)
    assert problem.split.k is None
    assert (problem.split.train, problem.split.dev) == ((0, 1, 2, 3), tuple(range(20)))
    assert [text["text"] for text in problem.data.train.rows.texts][1] == "row 1 of class 1"
    assert problem.data.dev.rows.texts[0]["text"] == "row 4 of class 0"
    assert problem.data.dev.labels.tolist() == [0, 1] * 10
    assert problem.seen_tests == 24
    assert problem.unlabelled == {"train": 0, "dev": 0, "test": 0}


def test_split_that_is_given_is_told_of_where_rows_are_too_few(task, given):
    with pytest.raises(UserError, match=r"4-shot split needs 8 rows .*set data\.split=given"):
        pose(task, given)


def test_dev_rows_are_part_of_what_makes_a_run_the_same(task, given):
    source = Source(root=given, split="given")
    before = TaskRows.load(task, source).fingerprint
    file = Path(given) / "colors" / "dev.jsonl"
    file.write_text(file.read_text().replace("row 5 ", "row five "))
    assert TaskRows.load(task, source).fingerprint != before
    assert TaskRows.load(task, Source(root=given)).fingerprint.count(":") == 1


def test_one_file_is_not_dev_and_test(task, given):
    folder = Path(given) / "colors"
    (folder / "dev.jsonl").rename(folder / "validation.jsonl")
    assert len(pose(task, given, split="given").data.dev.labels) == 20
    both = replace(task, dataset=replace(task.dataset, test="validation"))
    assert len(pose(both, given, split="given").test.labels) == 24
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"validation\.jsonl would be the dev and the test rows"):
        pose(both, given, split="given")


def test_case_of_a_given_split():
    sst2, root = Task.from_file("sst2"), str(shared("cases/given_split/data"))
    problem = pose(sst2, root, split="given")
    assert len(problem.split.train) == len(problem.split.dev) == 32
    assert problem.rows.dev.source.endswith("dev.tsv")
    with pytest.raises(UserError, match=r"data\.split=given"):
        pose(sst2, root, k=16)


def test_what_the_model_is_asked_stands_in_four_lines(task, root):
    path = Path(root) / "colors" / "test.jsonl"
    path.write_text(path.read_text() + '{"label": -1}\n{"text": " ", "label": 1}\n')
    problem = pose(task, root, limit=40)
    asked, answered, rows, left = problem.summary().splitlines()
    assert re.fullmatch(r"first train row: <s> .* \[<mask>\] \S+ </s>", asked)
    length = int(problem.data.train.attention_mask[0].sum())
    words = [f"{word} ({mini_tokenizer('masked').convert_tokens_to_ids(word)})"
             for word in ("No", "Yes")]  # fmt: skip
    assert answered == (
        f"answered at token {length - 2} of {length} by {words[0]} cold, {words[1]} warm"
    )
    assert rows == (
        "rows: train 4 of each class (train.jsonl); dev 4 of each class; "
        "test 12 cold, 13 warm (test.jsonl)"
    )
    assert left == (
        "without a label: train 0, test 1; too long for the test: 0; cut: train 0, dev 0, test 4; "
        "with an empty text: train 0, dev 0, test 1"
    )


def test_long_row_is_shown_by_its_ends_and_its_answer(task, root):
    causal = pose(task, root, "causal", max_words=200, k=6).summary().splitlines()
    assert re.search(r"\[\S+\]$", causal[0])
    problem = pose(task, root)
    many = replace(problem, tokens=(tuple(map(str, range(1, 101))),))
    place = int(many.data.train.answer[0])
    shown = many.summary().splitlines()[0].removeprefix("first train row: ").split()
    assert shown[:10] == [str(n) for n in range(1, 11)]
    assert shown[-10:] == [str(n) for n in range(91, 101)]
    assert shown.count("...") == 1
    assert f"[{place + 1}]" in shown


@pytest.mark.parametrize("style", ["released", "natural"])
def test_words_of_the_paper_are_cut_and_their_tokens_shown(style):
    """In-context learning has them after a space."""
    agnews = Task.from_file("mini/agnews")
    answered = pose(agnews, None, label_words=style).summary().splitlines()[1]
    assert (", of \u0120 World) World" in answered) == (style == "natural")
    with pytest.raises(UserError, match="are several tokens"):
        pose(agnews, None, prompt="natural")


def test_label_words_of_several_tokens_are_told(task, root):
    """But for those of the paper's own prompts."""
    split = {"pattern": "{text} is {mask} .", "label_words": ["Nonono", "Yes"]}
    changed = Task.from_mapping({**TASK, "prompts": {"released": {"masked": split}}})
    with pytest.raises(UserError, match=r"\['Nonono'\] are several tokens for .*mini-roberta"):
        pose(changed, root)


def test_scores_stand_beside_what_constants_score(task, root):
    problem = pose(task, root)
    always_yes = problem.data.label_ids.new_tensor([[0.0, 1.0]]).expand(24, 2)
    scores = score_test(always_yes.float(), problem)
    assert scores == {
        f"{predictor}{metric}": 0.5
        for predictor in ("", "majority_", "constant_yes_")
        for metric in ("score", "accuracy")
    } | {"not_finite": 0}


def test_rows_without_finite_logits_are_counted_and_told(task, root):
    problem = pose(task, root)
    logits = torch.zeros(24, 2)
    logits[3, 1], logits[7] = torch.nan, torch.inf
    with pytest.warns(RuntimeWarning, match="NaN or infinite for 2 of 24 test rows"):
        assert score_test(logits, problem)["not_finite"] == 2
    with pytest.raises(UserError, match=r"NaN or infinite for every test row\. Check that its"):
        score_test(torch.full((24, 2), torch.nan), problem)


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
        ({"split": "mine"}, "data.split=mine; choose one of drawn, given"),
        ({"split": "given", "root": None}, "data.split=given takes files .*: set data.root"),
        ({"split": "given"}, r"No file for the dev rows of colors: .* for dev or valid"),
        ({"missing_classes": True}, "data.missing_classes=True; choose one of refuse, allow"),
        ({"labels": [1]}, r"data\.labels=\[1\] must be a list of what stands for each of"),
        ({"columns": "text"}, r"data\.columns must be a list of texts, got 'text'"),
        ({"columns": ["text"]}, r"train\.jsonl has names of its own for its columns"),
    ],
)
def test_what_makes_no_sense_is_refused(task, root, options, message):
    with pytest.raises(UserError, match=message):
        pose(task, **{"root": root} | options)
