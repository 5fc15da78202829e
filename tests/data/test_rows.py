import json
import re
from dataclasses import replace

import datasets
import huggingface_hub
import pandas as pd
import pytest

from dfolora.data import Rows, fingerprint, load_rows
from dfolora.data.task import Dataset, Prompt, Task
from dfolora.errors import UserError
from tests.shared import shared

TASK = Task(
    name="toy",
    title="Toy",
    dataset=Dataset(path="owner/toy", name="en", revision="abc", train="train", test="validation"),
    fields=("first", "second"),
    label="label",
    classes=("no", "yes"),
    metric="accuracy",
    prompts={
        "released": {"causal": Prompt(kind="causal", pattern="{first}", label_words=("n", "y"))}
    },
)
TEXTS = [("NA", 'say "hi", she said'), ("null", "café"), ("7", "nan")]
TABLE = {"first": [a for a, _ in TEXTS], "second": [b for _, b in TEXTS], "label": [1, 0, 1]}
ROWS = Rows(texts=tuple({"first": a, "second": b} for a, b in TEXTS), labels=(1, 0, 1))


def write(folder, name, table):
    """One file of a table in the format that its name says."""
    folder.mkdir(exist_ok=True)
    path, frame = folder / name, pd.DataFrame(table)
    match path.suffix:
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".json":
            frame.to_json(path, orient="records")
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            lines = [frame.columns, *frame.astype(str).to_numpy()]
            path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
        case ".parquet":
            frame.to_parquet(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("part", "stem"), [("train", "train"), ("test", "test"), ("test", "validation")]
)
def test_every_format_gives_the_same_rows(tmp_path, suffix, part, stem):
    write(tmp_path / "toy", f"{stem}.{suffix}", TABLE)
    assert load_rows(TASK, part, root=tmp_path) == ROWS
    assert [path.name for path in (tmp_path / "toy").iterdir()] == [f"{stem}.{suffix}"]


def test_quotes_in_tsv_are_text(tmp_path):
    """As in GLUE's files, where half of a quotation would swallow the lines up to the next."""
    table = {"first": ['"Half', "a"], "second": ["b", '"whole"'], "label": [0, 1]}
    write(tmp_path / "toy", "train.tsv", table)
    rows = load_rows(TASK, "train", root=tmp_path)
    assert [tuple(text.values()) for text in rows.texts] == [('"Half', "b"), ("a", '"whole"')]


def test_hub_split_is_preferred_to_an_unlabelled_test_file(tmp_path):
    write(tmp_path / "toy", "test.jsonl", TABLE | {"label": [-1, -1, -1]})
    write(tmp_path / "toy", "validation.jsonl", TABLE)
    assert load_rows(TASK, "test", root=str(tmp_path)) == ROWS


@pytest.mark.parametrize("labels", [["yes", "no", "yes"], ["1", "0", "1"], [1.0, 0.0, 1.0]])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_labels_as_names_digits_or_floats(tmp_path, suffix, labels):
    write(tmp_path / "toy", f"train.{suffix}", TABLE | {"label": labels})
    assert load_rows(TASK, "train", root=tmp_path) == ROWS


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_without_a_gold_label_are_dropped(tmp_path, suffix):
    write(tmp_path / "toy", f"train.{suffix}", TABLE | {"label": [1, -1, 0]})
    rows = load_rows(TASK, "train", root=tmp_path)
    assert rows == Rows(texts=(ROWS.texts[0], ROWS.texts[2]), labels=(1, 0), unlabelled=1)


def test_texts_are_replaced_and_stripped(tmp_path):
    write(tmp_path / "toy", "train.jsonl", {"first": [" a\\nb "], "second": ["c"], "label": [0]})
    task = Task(**{**vars(TASK), "replace": {"\\n": " "}})
    assert load_rows(task, "train", root=tmp_path).texts[0]["first"] == " a b "
    task = Task(**{**vars(task), "strip": True})
    assert load_rows(task, "train", root=tmp_path).texts[0]["first"] == "a b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label": [1, 2, "x"]},
            r"train\.json has 2 labels outside the task's classes, first in row 2: 2 \(1 rows\), "
            r"'x' \(1 rows\)\. Known: 0 no, 1 yes; -1",
        ),
        ({"label": [0.5, 0, 1]}, r"first in row 1: 0\.5"),
        ({"label": [0, 1, None]}, r"first in row 3: (nan|None)"),
        ({"label": [-1, -1, -1]}, r"has no labelled rows \(3 rows in all\)"),
        ({"first": ["a", 3, "b"]}, r"train\.json, row 2, 'first' is not text: 3"),
        ({"second": ["a", "b", None]}, r"row 3, 'second' is not text: None"),
    ],
)
def test_wrong_values(tmp_path, change, message):
    write(
        tmp_path / "toy",
        "train.json",
        {k: pd.Series(v, dtype=object) for k, v in (TABLE | change).items()},
    )
    with pytest.raises(UserError, match=message):
        load_rows(TASK, "train", root=tmp_path)


def test_missing_column(tmp_path):
    write(tmp_path / "toy", "train.csv", {"first": ["a"], "text": ["b"], "label": [0]})
    message = (
        r"train\.csv lacks the columns \['second'\]; it has \['first', 'text', 'label'\], task toy"
    )
    with pytest.raises(UserError, match=message):
        load_rows(TASK, "train", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"first": "a"}\n\n{"first"', r"train\.jsonl, line 3 is not JSON"),
        ("train.jsonl", b"[1]\n", r"train\.jsonl, row 1 must be a JSON object, got 1"),
        ("train.jsonl", b"", r"train\.jsonl holds no rows; it needs some"),
        ("train.jsonl", b'{"first": "\xff"}', r"train\.jsonl is not UTF-8"),
        ("train.json", b'{"first": "a"}', r"train\.json lacks the columns \['second', 'label'\]"),
        (
            "train.json",
            b'{\n"first": ["a"]\n}',
            r"line 1 is not JSON: .* Write a row a line",
        ),
        ("train.json", b"[", r"train\.json cannot be read as json"),
        ("train.csv", b"", r"train\.csv is empty; its first line must name"),
        (
            "train.csv",
            b"first,second,label\n",
            r"train\.csv has no labelled rows \(0 rows in all\)",
        ),
        (
            "train.csv",
            b"first,second,label\na,b,0\na,b,c,0\n",
            r"train\.csv, line 3 has 4 cells, the header names 3: \['first', 'second', 'label'\]",
        ),
        ("train.csv", b"first,second,label\n\xff,b,0\n", r"train\.csv is not UTF-8"),
        ("train.parquet", b"no", r"train\.parquet cannot be read as parquet"),
    ],
)
def test_broken_file(tmp_path, name, content, message):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_rows(TASK, "train", root=tmp_path)


def test_missing_file_says_what_is_there(tmp_path):
    write(tmp_path / "toy", "train.csv", TABLE)
    looked = rf"looked in {re.escape(str(tmp_path / 'toy'))} for validation or test or dev "
    with pytest.raises(UserError, match=rf"{looked}.*there: \['train\.csv'\]"):
        load_rows(TASK, "test", root=tmp_path)
    with pytest.raises(UserError, match="there: no such folder"):
        load_rows(TASK, "test", root=tmp_path / "nowhere")


def test_two_files_of_one_part_are_ambiguous(tmp_path):
    write(tmp_path / "toy", "train.csv", TABLE)
    write(tmp_path / "toy", "train.jsonl", TABLE)
    with pytest.raises(UserError, match=r"Several files for the train rows of toy: .*keep one"):
        load_rows(TASK, "train", root=tmp_path)


def test_hub_is_asked_for_the_pinned_split(monkeypatch):
    asked = []

    def load_dataset(path, name, **options):
        asked.append((path, name, options))
        return datasets.Dataset.from_dict(TABLE | {"idx": [0, 1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows(TASK, "test") == ROWS
    assert asked == [("owner/toy", "en", {"revision": "abc", "split": "validation"})]


def test_unreachable_hub_names_the_local_way(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = r"owner/toy \(en, train\) could not .*\n.*data\.root=DIR with DIR/toy/train\.jsonl"
    with pytest.raises(UserError, match=message):
        load_rows(TASK, "train")


def test_mini_world_has_others_by_number():
    def of(path):
        dataset = Dataset(path=path)
        task = {"name": "sst2", "fields": ("sentence",), "prompts": {}, "dataset": dataset}
        return load_rows(Task(**{**vars(TASK), **task}), "train")

    assert of("mini:0") == of("mini") != of("mini:1")
    with pytest.raises(UserError, match=r"mini:other must name a mini world by its number"):
        of("mini:other")


def test_mini_world_knows_its_tasks():
    task = Task(**{**vars(TASK), "dataset": Dataset(path="mini")})
    with pytest.raises(UserError, match=r"mini world has no task 'toy'; it has sst2, yelpp"):
        load_rows(task, "train")


def test_select_keeps_the_order_asked_for():
    assert ROWS.select([2, 0]) == Rows(texts=(ROWS.texts[2], ROWS.texts[0]), labels=(1, 1))
    assert len(ROWS.select([2, 0])) == 2


def rows_of(*texts, label=0):
    return Rows(
        texts=tuple({"a": first, "b": second} for first, second in texts),
        labels=(label,) * len(texts),
    )


def test_fingerprint_frames_texts():
    different = [
        rows_of(("x", "yz")),
        rows_of(("xy", "z")),
        rows_of(("x", "yz"), label=1),
        rows_of(("x", "y"), ("z", "")),
        rows_of(("x", "y\n"), ("z", "")),
        rows_of(('x", "y', "z")),
    ]
    assert len({fingerprint(rows) for rows in different}) == len(different)
    assert fingerprint(rows_of(("x", "yz"))) == fingerprint(different[0])


def test_fingerprint_never_changes():
    """Stored value: another framing would make every finished run look unfinished."""
    assert fingerprint(rows_of(("a", "b"))) == (
        "84512726071b4cbb78119d32fca71d43e9787e2efd4a6a3231a0920dab5b021d"
    )


@pytest.mark.parametrize("task", ["sst2", "yelpp", "agnews", "dbpedia", "mrpc", "snli", "rte"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_files_load_line_for_line(task, part, request):
    root = shared("data")
    task = Task.from_file(request.config.rootpath / "conf" / "task" / f"{task}.yaml")
    lines = (root / task.name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = load_rows(task, part, root=root)
    assert list(rows.labels) == [json.loads(line)["label"] for line in lines]
    assert set(rows.labels) == set(range(len(task.classes)))
    assert not any("\\n" in text for row in rows.texts for text in row.values() if task.replace)


def local(folder, name="all", test=None):
    dataset = Dataset(path=str(folder), train=name, test=test or name)
    return replace(TASK, dataset=dataset)


def many(rows=60):
    """Rows of two classes, one text in three twice."""
    texts = [(f"text {n // 3 * 2 + n % 3 // 2}", "same") for n in range(rows)]
    return {"first": [a for a, _ in texts], "second": [b for _, b in texts],
            "label": [n // 3 % 2 for n in range(rows)]}  # fmt: skip


def test_split_that_is_train_and_test_is_divided_by_its_texts_alone(tmp_path):
    write(tmp_path, "all.csv", many())
    train, test = (load_rows(local(tmp_path), part) for part in ("train", "test"))
    assert len(train) + len(test) == 60
    assert not {*map(str, train.texts)} & {*map(str, test.texts)}
    for label in (0, 1):  # 20 texts a class, a third of them twice
        of_class = {str(t) for t, n in zip(test.texts, test.labels, strict=True) if n == label}
        assert len(of_class) == 4
    backwards = {name: values[::-1] for name, values in many().items()}
    write(tmp_path / "other", "all.jsonl", backwards)
    again = load_rows(local(tmp_path / "other"), "test")
    assert again.texts == test.texts[::-1]


def test_text_of_two_classes_is_on_one_side(tmp_path):
    table = many(30)
    write(tmp_path, "all.csv", {
        name: values * 2 if name != "label" else values + [1 - value for value in values]
        for name, values in table.items()
    })  # fmt: skip
    train, test = (load_rows(local(tmp_path), part) for part in ("train", "test"))
    assert not {*map(str, train.texts)} & {*map(str, test.texts)}
    assert len(train) + len(test) == 60


def test_parts_of_a_folder_have_files_of_their_own(tmp_path):
    write(tmp_path, "mine.csv", TABLE)
    write(tmp_path, "rest.jsonl", TABLE)
    task = local(tmp_path, "mine", "rest")
    for part, name in (("train", "mine.csv"), ("test", "rest.jsonl")):
        rows = load_rows(task, part)
        assert (rows, rows.source) == (ROWS, str(tmp_path / name))
    with pytest.raises(UserError, match=r"No file for the train rows.*gone.*no such folder"):
        load_rows(local(tmp_path / "gone"), "train")


def test_files_of_a_root_are_not_divided(tmp_path):
    for name in ("train.csv", "test.csv"):
        write(tmp_path / "toy", name, TABLE)
    task = local(tmp_path / "gone")
    for part in ("train", "test"):
        assert load_rows(task, part, root=tmp_path) == ROWS
