"""A task drafted from rows: usable at once, and no guess in it without a question."""

import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml

import dfolora
import pipelines.new_task.__main__
from dfolora.data import Dataset, Prompt, label_word_ids, load_rows
from dfolora.mini import BUNDLED, world
from dfolora.record import Store
from pipelines.new_task.draft import Draft, choose_classes, choose_prompt
from tests.shared import real_tokenizer, shared

NAMES = ("negative", "positive")
FOODS = ("soup", "rice", "bread", "tea")
FEW = [(f"the {food} was {word}", label) for food in FOODS
       for word, label in (("bad", "negative"), ("good", "positive"))]  # fmt: skip


def mini(rows: int = 400) -> pd.DataFrame:
    part = world.rows("sst2", "train", 0)
    return pd.DataFrame(
        {
            "review": [text["sentence"] for text in part.texts[:rows]],
            "label": [NAMES[label] for label in part.labels[:rows]],
        }
    )


def written(folder: Path, frame: pd.DataFrame, name: str = "reviews.csv") -> str:
    path = folder / name
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case _:
            frame.to_parquet(path)
    return f"data={path}"


def made_up(folder: Path, rows: list[tuple], columns: tuple[str, ...] = ("text", "label")) -> str:
    return written(folder, pd.DataFrame(rows, columns=[*columns]))


def questions(path: Path) -> list[str]:
    """Those of a file, each in a line."""
    text = re.sub(r"\n#   ", " ", path.read_text(encoding="utf-8"))
    return re.findall(r"^# \? (.*)$", text, re.MULTILINE)


def test_file_is_what_its_rows_show_and_a_run_has_the_score_that_was_told(ended, tmp_path):
    output = tmp_path / "conf" / "task" / "reviews.yaml"
    status, out, error = ended("new_task", written(tmp_path, mini()), f"output={output}")
    assert (status, error) == (0, "")
    task = dfolora.Task.from_file(output)
    prompt = task.prompts["natural"]["masked"]
    assert (task.name, task.fields, task.label) == ("reviews", ("review",), "label")
    assert task.classes == NAMES
    assert (prompt.pattern, prompt.label_words) == ("{review} It was {mask}.", ("bad", "great"))
    assert len(re.findall(r"^train row \d \(\w+\), answered at token", out, re.MULTILINE)) == 3
    told = re.search(r"zero-shot: accuracy (\d\.\d{3}) of (\d+) test rows", out)
    assert told is not None
    assert int(told[2]) == len(load_rows(task, "test"))
    command = shlex.split(out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "pipelines.run"]
    status, out, error = ended("run", *command[3:], "method=manual_prompt")
    assert (status, error) == (0, "")
    run_id = out.split()[-1]
    store = Store.existing(f"sqlite:///{tmp_path}/mlflow.db")
    assert f"{store.metric(run_id, 'test/score'):.3f}" == told[1]
    card = (store.fitted(run_id) / "README.md").read_text()
    assert "rows from reviews.csv" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("name", ["reviews.jsonl", "reviews.parquet"])
def test_every_format_makes_the_same_task(ended, tmp_path, name):
    for file in ("reviews.csv", name):
        given = written(tmp_path, mini(), file)
        output = tmp_path / f"{Path(file).suffix[1:]}.yaml"
        assert ended("new_task", given, f"output={output}", "name=reviews")[0] == 0
        (tmp_path / file).unlink()
    first, second = (yaml.safe_load(path.read_text()) for path in sorted(tmp_path.glob("*.yaml")))
    assert first == second


@pytest.mark.parametrize("task", ["sst2", "yelpp", "agnews", "dbpedia", "mrpc", "snli", "rte"])
def test_real_rows_make_a_task_that_reads_them(ended, tmp_path, task):
    """The reference is this package's own task of the same rows."""
    data = shared(f"data/{task}")
    output = tmp_path / "task" / "mine.yaml"
    status, out, error = ended(
        "new_task", f"data={data}/train.jsonl", f"test={data}/test.jsonl", "name=mine",
        f"output={output}", "scored=20",
    )  # fmt: skip
    assert (status, error) == (0, "")
    ours, made = dfolora.Task.named(task), dfolora.Task.from_file(output)
    assert {*ours.fields} <= {*made.fields, "title"}
    assert made.label == ours.label
    assert len(made.classes) == len(ours.classes)
    for part in ("train", "test"):
        theirs = load_rows(ours, part, root=shared("data"))
        assert load_rows(made, part).labels == theirs.labels
    assert "zero-shot: accuracy" in out
    assert [asked for asked in questions(output) if "labels are numbers" in asked]


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize(
    "classes",
    [
        ("negative", "positive"), ("not_equivalent", "equivalent"), ("Sci/Tech", "Weltnachrichten"),
        ("EducationalInstitution", "MeanOfTransportation"), ("0", "1", "2"),
        ("1.5 km", "Überfluss"), ("day", "a day"), ("Bad", "bad"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["roberta-base", "gpt2", "bert-base-uncased"])
def test_label_words_are_single_tokens_of_real_tokenizers(name, classes, kind):
    tokenizer, draft = real_tokenizer(name), Draft()
    column = {"label": [*classes] * 3, "text": ["a", "b", "c"] * len(classes)}
    ordered, known = choose_classes(draft, column, "label", None, "here")
    made = choose_prompt(draft, ("text",), ordered, known, None, kind, tokenizer)
    (prompt,) = made["natural"].values()
    words = Prompt(kind=kind, **prompt)
    assert len({*label_word_ids(words, tokenizer, "natural")}) == len(classes)


COLUMNS_3 = ("text", "about", "label")
ASKED = {
    "which column is the label": (
        [(text, "food", label) for text, label in FEW[:4]]
        + [(text, "drink", label) for text, label in FEW[4:]],
        COLUMNS_3, r"Is 'label' the column of labels\? Other columns could be: 'about'",
    ),
    "which is the text": (
        [(text, f"note {n}", label) for n, (text, label) in enumerate(FEW)],
        COLUMNS_3, r"Do the columns \['about'\] belong",
    ),
    "a pair of texts": (
        [(text, f"so it is said {n}", label) for n, (text, label) in enumerate(FEW)],
        COLUMNS_3, "two texts that are compared, or parts of one",
    ),
    "a label in long words is no text": (
        [(text, f"this is a {label} one", label) for text, label in FEW],
        COLUMNS_3, r"Other columns could be: 'about' \('this is a negative one', ",
    ),
    "order of classes": ([(text, label[:3]) for text, label in FEW], None, "sorted.*another order"),
    "order of a task of ours": (FEW, None, "order is that of task sst2"),
    "numbers": ([(text, int(label == "positive")) for text, label in FEW], None,
                "labels are numbers.*in this order; and"),
    "numbers from 1": ([(text, 1 + (label == "positive")) for text, label in FEW], None,
                       r"data.labels=\[1,2\] to every run"),
    "more label words": (FEW, None, "More words a class.*'negative': negative"),
    "too few rows": (FEW, None, "data.k=1"),
    "no single token": ([(text, f"Zyx{label}") for text, label in FEW], None,
                        "No word in the names of .*'Zyxnegative'.* letters"),
    "a part of the name": ([(text, f"Zy_{label}") for text, label in FEW], None,
                           "'negative' for 'Zy_negative'"),
    "repeated rows": ([*FEW, FEW[0], (FEW[1][0], "negative")], None,
                      "Rows repeat the text of another: 2, 1 of them with another label"),
    "rows without a label": ([*FEW, ("the end", "-1")], None,
                             "Rows without a label .* left out: 1"),
    "one class in two spellings": (
        [*FEW, *((text, label.upper()) for text, label in FEW if label == "positive")], None,
        r"Are \['POSITIVE', 'positive'\] one class",
    ),
    "a larger class": ([*FEW, *((f"so {text}", "positive") for text, _ in FEW)], None,
                       "75% of the rows are of one class. Is f1 of 'positive'"),
    "test rows": (FEW, None, "A fifth of the texts of each class is the test"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_what_the_rows_leave_open_is_asked(ended, tmp_path, case):
    rows, columns, expected = ASKED[case]
    output = tmp_path / "task" / "reviews.yaml"
    given = made_up(tmp_path, rows, columns or ("text", "label"))
    status, out, error = ended("new_task", given, f"output={output}")
    assert (status, error) == (0, "")
    asked = questions(output)
    assert [question for question in asked if re.search(expected, question)], asked
    assert f"with {len(asked)} questions" in out
    assert "text" in dfolora.Task.from_file(output).fields


@pytest.mark.parametrize("first", [0, 1])
def test_names_in_place_of_numbers_are_read_as_the_question_says(ended, tmp_path, first):
    output = tmp_path / "reviews.yaml"
    rows = [(text, first + (label == "positive")) for text, label in FEW]
    assert ended("new_task", made_up(tmp_path, rows), f"output={output}")[0] == 0
    numbered = load_rows(dfolora.Task.from_file(output), "train")
    text = output.read_text()
    given = re.search(r"data\.labels=\[([\d,]+)\]", text)
    assert (given is None) == (first == 0)
    text = text.replace(f"classes: ['{first}', '{first + 1}']", "classes: [negative, positive]")
    output.write_text(text)
    task = dfolora.Task.from_file(output)
    assert task.classes == NAMES
    assert load_rows(task, "train", labels=given and given[1].split(",")) == numbered


def test_what_is_given_is_not_asked(ended, tmp_path):
    output = tmp_path / "task" / "mine.yaml"
    rows = [(text, f"so it is said {n}", label) for n, (text, label) in enumerate(FEW)]
    status, _, error = ended(
        "new_task", made_up(tmp_path, rows, COLUMNS_3), f"output={output}", "name=mine",
        "label=label", "fields=[about]", "classes=[positive,negative]", "words=[good,bad]",
    )  # fmt: skip
    assert (status, error) == (0, "")
    task = dfolora.Task.from_file(output)
    assert (task.fields, task.classes) == (("about",), ("positive", "negative"))
    assert task.prompts["natural"]["masked"].label_words == ("good", "bad")
    assert not [
        asked for asked in questions(output) if re.search("column|order|sorted|label words", asked)
    ]


def test_test_file_that_lies_beside_is_asked_about_and_taken_if_it_is_given(ended, tmp_path):
    (folder := tmp_path / "mine").mkdir()
    for part in ("train", "test"):
        written(folder, mini(80), f"{part}.jsonl")
    given = [f"data={folder}/train.jsonl", f"output={tmp_path}/mine.yaml"]
    assert ended("new_task", *given)[0] == 0
    assert [asked for asked in questions(tmp_path / "mine.yaml") if "test.jsonl" in asked]
    given += [f"test={folder}/test.jsonl", "overwrite=true"]
    assert ended("new_task", *given)[0] == 0
    task = dfolora.Task.from_file(tmp_path / "mine.yaml")
    assert (task.name, task.dataset.train, task.dataset.test) == ("mine", "train", "test")
    assert len(load_rows(task, "test")) == 80


def test_file_that_is_there_is_kept_unless_it_is_to_be_replaced(ended, tmp_path, monkeypatch):
    output, given = tmp_path / "mine.yaml", written(tmp_path, mini(80))
    output.write_text("mine")
    arguments = (given, f"output={output}")
    # Told before anything is read: this model is nowhere.
    status, out, error = ended("new_task", *arguments, "model.path=no/where/at/all")
    assert (status, out) == (2, "")
    assert re.fullmatch(
        r"error: output=\S+ exists; give another, or set overwrite=true to replace it\.\n", error
    )
    assert output.read_text() == "mine"

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert ended("new_task", *arguments, "overwrite=true")[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "reviews.csv"]
    assert output.read_text() == "mine"
    assert ended("new_task", *arguments, "overwrite=true")[0] == 0
    assert dfolora.Task.from_file(output).name == "reviews"


def test_task_of_ours_is_no_name_for_another(ended, tmp_path):
    given = written(tmp_path, mini(80), "sst2.csv")
    status, _, error = ended(
        "new_task", given, f"output={tmp_path}/task/sst2.yaml", "overwrite=true"
    )
    assert status == 2
    assert "There is a task sst2 already" in error
    assert not (tmp_path / "task").exists()


def test_task_is_a_users_own_unless_a_place_is_given(ended, tmp_path, monkeypatch):
    """The folder is one that Hydra finds beside ours."""
    given, own = written(tmp_path, mini()), tmp_path / "conf" / "task" / "own"
    monkeypatch.setattr(pipelines.new_task.__main__, "OWN", own)
    status, out, _ = ended("new_task", given, "model=mini_gpt2")
    assert (status, [path.name for path in own.iterdir()]) == (0, ["reviews.yaml"])
    command = shlex.split(out.splitlines()[-1])
    assert command[3:] == ["task=own/reviews", "data.prompt=natural", "model=mini_gpt2"]
    status, out, _ = ended("show", f"--config-dir={tmp_path}/conf", *command[3:])
    assert (status, out.partition("-")[0]) == (0, "own/reviews")


# Of the hub, in whose place a folder stands.

NAMED = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
)


def repository(folder: Path, splits: dict[str, list[int]], features: Any = NAMED) -> None:
    """A dataset's configuration, with so many rows as there are labels in each split."""
    folder.mkdir(parents=True)
    for split, labels in splits.items():
        texts = [f"the {FOODS[n % len(FOODS)]} was {split} {n}" for n in range(len(labels))]
        rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    files = "".join(f"\n  - {{split: {split}, path: {split}.parquet}}" for split in splits)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub as a folder: what the library asks it for is looked up there."""
    folder, asked = tmp_path / "hub", list[tuple[str, ...]]()
    for name in ("load_dataset", "get_dataset_config_names"):

        def local(whole, path, *given, revision, **options):
            asked.append((path, revision))
            return whole(str(folder / path), *given, **options)

        monkeypatch.setattr(datasets, name, partial(local, getattr(datasets, name)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield folder, asked
    datasets.enable_progress_bars()


LABELS = [0, 1, 1, 0] * 5
"""Of rows, not sorted; the names' alphabet has them the other way round."""


def test_dataset_of_the_hub_is_a_task_that_reads_it(ended, tmp_path, hub):
    folder, asked = hub
    repository(folder / "owner/toy", {"train": LABELS, "test": [-1] * 8, "validation": LABELS[1:]})
    output = tmp_path / "conf" / "task" / "owner_toy.yaml"
    given = ["data=owner/toy", "revision=abc", f"output={output}"]
    status, out, error = ended("new_task", *given)
    assert (status, error) == (0, "")
    task = dfolora.Task.from_file(output)
    assert (task.name, task.fields, task.label) == ("owner_toy", ("text",), "label")
    assert task.classes == ("positive", "negative")
    assert task.dataset == Dataset(
        path="owner/toy", revision="abc", train="train", test="validation"
    )
    assert [question for question in questions(output) if "split" in question] == [
        "The split validation is the test. Is there a better one? There are ['test', "
        "'validation'], of which ['test'] have no labels."
    ]
    assert not [question for question in questions(output) if "numbers" in question]
    assert load_rows(task, "train").labels == tuple(LABELS)
    assert load_rows(task, "test").labels == tuple(LABELS[1:])
    assert {*asked} == {("owner/toy", "abc")}
    command = shlex.split(out.splitlines()[-1])[3:]
    assert ended("run", *command, "method=manual_prompt")[0] == 0


def test_dataset_with_one_split_has_a_fifth_as_its_test(ended, tmp_path, hub):
    text = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int8")})
    repository(hub[0] / "toy", {"whole": LABELS}, text)
    output = tmp_path / "toy.yaml"
    status, _, error = ended("new_task", "data=toy", "split=whole", f"output={output}")
    assert (status, error) == (0, "")
    task = dfolora.Task.from_file(output)
    assert (task.dataset.train, task.dataset.test) == ("whole", "whole")
    assert len(load_rows(task, "test")) == 4
    asked = questions(output)
    assert [
        question for question in asked if "A fifth of the texts of each class of whole" in question
    ]
    assert [question for question in asked if "labels are numbers" in question]  # without names


def test_hub_is_not_asked_before_all_else_is_right(ended, tmp_path, hub):
    (tmp_path / "mine.yaml").touch()
    assert ended("new_task", "data=owner/toy", f"output={tmp_path}/mine.yaml")[0] == 2
    assert not hub[1]


BAD_OF_HUB = {
    "several configurations": ([], r"several .* choose one with config=NAME, of \['de', 'en'\]"),
    "no such configuration": (["config=fr"], r"'fr' not found\. Available: \['de', 'en'\]"),
    "no such split": (["config=en", "split=all"], r"split=all: .* splits \['train', 'test'\]; ch"),
    "no such test": (["config=en", "test=dev"], r"test=dev: .* has the splits \['train', 'test'\]"),
    "no rows of a class": (["config=de"], r"\(de, train\) has no rows of \['mixed'\]; take"),
    "a test without labels": (["config=en", "test=test"], r"has no labelled rows \(3 rows in"),
    "no such dataset": (["data=owner/none"], r"data=owner/none is no file here, and could not"),
    "classes of one's own": (
        ["config=en", "classes=[negative,positive]"], r"names them .*; leave classes out",
    ),
    "a file's configuration": (["data=x.csv", "config=en"], r"is no dataset of the hub, which"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OF_HUB)
def test_what_a_dataset_leaves_open_is_told_with_the_choices(ended, tmp_path, hub, case):
    arguments, expected = BAD_OF_HUB[case]
    folder = hub[0] / "owner" / "toy"
    repository(folder / "en", {"train": LABELS, "test": [-1] * 3})
    three = datasets.ClassLabel(names=[*NAMES, "mixed"])
    repository(folder / "de", {"train": LABELS}, datasets.Features({**NAMED, "label": three}))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files: de/train.parquet\n- config_name: en\n"
        "  data_files:\n  - {split: train, path: en/train.parquet}\n"
        "  - {split: test, path: en/test.parquet}\n---\n"
    )
    given = ["data=owner/toy"] * (not arguments or not arguments[0].startswith("data="))
    status, out, error = ended("new_task", *given, *arguments, "output=task/toy.yaml")
    assert (status, out) == (2, ""), error
    assert re.fullmatch(rf"error: .*{expected}.*\n", error), error
    assert not (tmp_path / "task").exists()


def test_without_network_a_line_says_what_to_give(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    status, out, error = ended("new_task", "data=stanfordnlp/sst2")
    assert (status, out) == (2, "")
    expected = (
        r"error: data=stanfordnlp/sst2 is .* Couldn't reach .* folder that save_to_disk wrote"
    )
    assert re.match(expected, error)
    assert error.count("\n") == 1


TEXT = "text,label\n" + "".join(f"{text},{label}\n" for text, label in FEW)
BAD: dict[str, tuple[str | bytes | None, list[str], str]] = {
    "no file": (None, [], "there is no such file"),
    "a folder": (None, ["data=."], "is no file of rows"),
    "another file": (None, ["data=x.pdf"], "is no file of rows"),
    "empty": ("", [], "is empty"),
    "a header alone": ("text,label\n", [], "holds no rows"),
    "no header": ("so good it is I never saw,positive\n" * 3, [], "first line seems to be a row"),
    "one column": ("text\na b c\nd e f\n", [], "has one column"),
    "semicolons": (TEXT.replace(",", ";"), [], "has one column, .* which commas separate"),
    "one class": ("text,label\na b,x\nc d,x\ne f,x\n", [], "has one class, 'x'"),
    "one class beside -1": (
        "text,label\na b,1\nc d,1\ne f,-1\n", [], "one class, '1' beside -1 or -, which mean",
    ),
    "every row a class": ("text,label\na b,x\nc d,y\ne f,z\n", [], "3 values in 3 rows, as texts"),
    "no labels at all": ("one,two\na,b c\nd,e f\ng,h i\n", [], "no column of labels"),
    "no texts": ("n,label\n1,x\n2,y\n3,x\n4,y\n", [], "no column of texts"),
    "a class of two": (TEXT + "so it is,other\nso so,other\n", [], "2 texts of class 'other'"),
    "an empty label": (TEXT + "so it is,\n", [], "row 9 has nothing in 'label'"),
    "too long": (TEXT + f"{'a ' * 600_000},positive\n", [], "a text may have 1,000,000"),
    "not UTF-8": (TEXT.encode() + b"caf\xe9,positive\n", [], "is not UTF-8, first in line 10"),
    "a long row": (TEXT + "a,b,c\n", [], "line 10 has 3 cells"),
    "no model": (TEXT, ["model.path=no/where/at/all"], "no/where/at/all is not a folder"),
    "no such label": (TEXT, ["label=other"], "label names 'other'"),
    "no such text": (TEXT, ["fields=[other]"], "fields names 'other'"),
    "other classes": (TEXT, ["classes=[good,bad]"], r"classes=\['good', 'bad'\]: column 'label'"),
    "classes in a text": (TEXT, ["classes=negative"], "classes must be a list"),
    "words for others": (TEXT, ["words=[good]"], "1 for the 2 classes"),
    "words of several tokens": (TEXT, ["words=[incomprehensible,bad]"], "several tokens"),
    "one word twice": (TEXT, ["words=[bad,bad]"], "repeats an entry"),
    "no YAML": (TEXT, ["output=task.txt"], r"must be a file that ends in \.yaml"),
    "a name of a place": (TEXT, ["name=../mine"], "becomes the name of a file"),
    "a mask": (TEXT.replace("text,", "mask,"), [], "cannot stand in braces in a pattern"),
    "a reference": (TEXT.replace("positive", "${oc.env:HOME}"), [], "configurations read"),
    "another test": (TEXT, ["test=../x.csv"], "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_line_and_nothing_is_written(ended, tmp_path, case):
    contents, arguments, expected = BAD[case]
    (tmp_path / "x.pdf").touch()
    if contents is not None:
        data = contents if isinstance(contents, bytes) else contents.encode()
        (tmp_path / "reviews.csv").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    given = ["data=reviews.csv", "output=task/reviews.yaml"]
    given = [text for text in given if text.partition("=")[0] not in " ".join(arguments)]
    status, out, error = ended("new_task", *given, *arguments)
    assert (status, out) == (2, ""), error
    assert re.fullmatch(rf"error: .*{expected}.*\n", error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_model_without_weights_is_told_before_anything_is_written(ended, tmp_path):
    shutil.copytree(BUNDLED["mini-roberta"], model := tmp_path / "model")
    (model / "model.safetensors").unlink()
    given = written(tmp_path, mini(80)), f"output={tmp_path}/mine.yaml", f"model.path={model}"
    status, _, error = ended("new_task", *given)
    assert (status, error.count("\n")) == (2, 1), error
    assert not (tmp_path / "mine.yaml").exists()


def test_values_that_look_like_yaml_stay_text(ended, tmp_path):
    rows = [
        (text, {"negative": "no", "positive": "yes: #1\nname: x"}[label]) for text, label in FEW
    ]
    output = tmp_path / "mine.yaml"
    assert ended("new_task", made_up(tmp_path, rows), f"output={output}")[0] == 0
    assert dfolora.Task.from_file(output).classes == ("no", "yes: #1\nname: x")
