"""What a run would ask is shown as it would be asked, and nothing is run."""

import csv
import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from dfolora.fewshot import Problem
from dfolora.model import Backbone, Checkpoint
from pipelines.one_run.execute import Run
from pipelines.show import shown
from tests.commands import command, composed
from tests.pipelines.test_conf import options, with_what_is_missing

ROW = re.compile(r"train row (\d) \((\S+)\), answered at token (\d+) of (\d+): (.*)")
PART = re.compile(r"(\w+) (\d+) to (\d+) \(median (\d+), (\d+\.\d)% cut\)")


def forbid_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_backbone(*_arguments: object) -> Backbone:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(Checkpoint, "load_backbone", load_backbone)


def posed(*overrides: str) -> Problem:
    config, choices = composed(*overrides)
    return Run.checked(config, choices, "s").problem()


def tokenizer_of(*overrides: str) -> Any:
    config, _ = composed(*overrides)
    return instantiate(config.model, _convert_="all").load_tokenizer()


def rows_of(lines: list[str]) -> list[tuple[str, ...]]:
    """Number, class, place, length and tokens of each row that is shown."""
    return [found.groups() for line in lines if (found := ROW.fullmatch(line))]


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_rows_are_shown_token_by_token_as_the_prompt_makes_them(ended, tmp_path, monkeypatch, kind):
    """The reference fills the pattern and tokenizes it by hand."""
    forbid_weights(monkeypatch)
    given = ["task=mini/rte", "model=mini_roberta" if kind == "masked" else "model=mini_gpt2"]
    status, out, error = ended("show", *given)
    assert (status, error) == (0, "")
    lines = out.splitlines()
    family = "roberta, masked" if kind == "masked" else "gpt2, causal"
    name = given[1].removeprefix("model=").replace("_", "-")
    assert lines[0] == f"mini/rte-{name}-dfo_lora-cma-r2-seed42"
    assert lines[1] == f"model: {name} ({family}), 3 layers of width 128, at most 256 tokens"
    problem, tokenizer = posed(*given), tokenizer_of(*given)
    prompt = problem.task.prompt("released", kind)
    train = problem.data.train.rows
    shown_rows = rows_of(lines)
    assert [row[0] for row in shown_rows] == ["1", "2", "3"]
    for (_, label, place, length, tokens), text, number in zip(
        shown_rows, train.texts, train.labels, strict=False
    ):
        filled = prompt.pattern.format(**text, mask=tokenizer.mask_token)
        expected = tokenizer.convert_ids_to_tokens(tokenizer(filled)["input_ids"])
        at = expected.index(tokenizer.mask_token) if kind == "masked" else len(expected) - 1
        assert (int(place), int(length)) == (at + 1, len(expected))
        expected[at] = f"[{expected[at]}]"
        assert tokens == " ".join(expected)
        assert label == problem.task.classes[number]
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No")]
    assert f"label words: Yes ({ids[0]}) entailment, No ({ids[1]}) not_entailment" in lines
    assert not list(tmp_path.iterdir())


def test_released_readout_is_shown_where_it_answers_in_the_padding(ended):
    status, out, _ = ended("show", "model=mini_gpt2", "data.readout=released", "row=bbtv2")
    assert status == 0
    for _, _, place, length, tokens in rows_of(out.splitlines()):
        assert int(place) <= int(length)
        assert tokens.count("[") == 1


def test_what_a_run_prints_as_it_begins_is_part_of_it(ended):
    """Of a row what is left where it is abridged; label words and counts to the letter."""
    _, out, _ = ended("show", "data.k=5")
    first, answered, *counts = posed("data.k=5").summary().splitlines()
    lines = out.splitlines()
    assert lines[-2:] == counts
    words = next(line for line in lines if line.startswith("label words: "))
    *_, place, length, tokens = rows_of(lines)[0]
    assert first == f"first train row: {tokens}"
    said = words.removeprefix("label words: ")
    assert answered == f"answered at token {place} of {length} by {said}"


@pytest.fixture
def root(tmp_path_factory):
    """Eight rows a class of train, and three test rows, of which one is long."""
    folder = tmp_path_factory.mktemp("data") / "sst2"
    folder.mkdir()
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        writer.writerows([f"the view was row {n} .", n % 2] for n in range(16))
    texts = ["the room was noisy .", "the soup was great . " * 40, "the band was fine ."]
    rows = [{"sentence": text, "label": int(n > 0)} for n, text in enumerate(texts)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def test_lengths_and_classes_are_those_of_the_folders_rows(ended, root):
    given = ["task=mini/sst2", f"data.root={root}", "data.k=4", "data.max_length=60"]
    status, out, _ = ended("show", *given)
    assert status == 0
    lines = out.splitlines()
    problem = posed(*given)
    (told,) = (line for line in lines if line.startswith("tokens: "))
    parts = {name: rest for name, *rest in PART.findall(told)}
    batches = {"train": problem.data.train, "dev": problem.data.dev, "test": problem.test}
    assert parts.keys() == batches.keys()
    for name, batch in batches.items():
        lengths = sorted(sum(mask) for mask in batch.attention_mask.tolist())
        middle = statistics.median_low(lengths)
        cut = "33.3" if name == "test" else "0.0"
        assert parts[name] == [*map(str, (lengths[0], lengths[-1], middle)), cut]
    assert parts["test"][1] == "60"
    assert Counter(problem.test.labels.tolist()) == {0: 1, 1: 2}
    (rows,) = (line for line in lines if line.startswith("rows: "))
    assert rows == (
        "rows: train 4 of each class (train.csv); dev 4 of each class; "
        "test 1 negative, 2 positive (test.jsonl)"
    )


def test_few_rows_are_all_shown(ended, root):
    _, out, _ = ended("show", f"data.root={root}", "data.k=1")
    assert [row[0] for row in rows_of(out.splitlines())] == ["1", "2"]


def test_soft_prompts_stand_on_their_filler_words(ended):
    _, out, _ = ended("show", "method=bbt", "prompt_tokens=5")
    fillers = tokenizer_of().convert_ids_to_tokens(range(1000, 1005))
    _, plain, _ = ended("show")
    for (*_, place, length, tokens), (*_, at, before, without) in zip(
        rows_of(out.splitlines()), rows_of(plain.splitlines()), strict=True
    ):
        words = tokens.split()
        assert words[1:6] == fillers
        assert int(place) - int(at) == int(length) - int(before) > 0
        assert words[-3:] == without.split()[-3:]
        assert words[int(place) - 1] == "[<mask>]"


def test_label_words_of_several_tokens_are_warned_of(ended):
    status, out, _ = ended("show", "task=mini/agnews", "data.label_words=natural")
    assert status == 0
    lines = out.splitlines()
    tokens = tokenizer_of().tokenize(" Tech")
    assert len(tokens) == 2
    warned = "warning: the label word of Sci/Tech is 2 tokens, "
    assert f"{warned}{' '.join(tokens)}; the first alone stands for it" in lines
    number = tokenizer_of().convert_tokens_to_ids(tokens[0])
    assert f"{tokens[0]} ({number}, of {' '.join(tokens)}) Sci/Tech" in out
    assert "warning" not in ended("show", "task=mini/agnews")[1]


@pytest.mark.parametrize("name", options("method"))
def test_every_method_is_shown(monkeypatch, name):
    config, choices = composed(f"method={name}", "data.k=4", "profile=mini")
    whole = with_what_is_missing(config)
    forbid_weights(monkeypatch)
    text = shown(whole, choices).splitlines()
    assert len(rows_of(text)) == 3
    assert name in text[0]


def test_jobs_of_a_sweep_are_shown_one_after_another(ended):
    status, out, _ = ended("show", "-m", "task=mini/sst2,mini/rte")
    assert status == 0
    one, other = (ended("show", f"task=mini/{task}")[1] for task in ("sst2", "rte"))
    assert out == one + other


def test_profiles_and_prompts_are_those_of_a_run(ended):
    given = ("profile=mini_other", "data.prompt=natural", "seed=7")
    first, _, *counts = posed(*given).summary().splitlines()
    lines = ended("show", *given)[1].splitlines()
    assert first == f"first train row: {rows_of(lines)[0][4]}"
    assert lines[-2:] == counts
    for without in range(3):
        others = ended("show", *given[:without], *given[without + 1 :])[1]
        assert rows_of(others.splitlines()) != rows_of(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=nothing"], r"There is no task=nothing\."),
        (["data.root=nowhere"], r"data\.root=nowhere is not a folder"),
        (["model.path=nowhere/at/all"], r"model\.path=nowhere/at/all"),
        (["data.prompt=gap4"], r"no masked prompt 'gap4'"),
        (["task=mini/agnews", "data.prompt=natural"], r"several tokens"),
        (["data.k=1000000"], r"needs 2000000 rows"),
        (["nothing=1"], r"nothing is no key"),
    ],
)
def test_mistakes_are_told_in_a_line(ended, tmp_path, arguments, message):
    status, out, error = ended("show", *arguments)
    assert (status, out) == (2, "")
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_as_a_command(tmp_path: Path):
    told = command(tmp_path, "show", "task=mini/sst2")
    assert (told.returncode, told.stderr) == (0, "")
    assert len(rows_of(told.stdout.splitlines())) == 3
    refused = command(tmp_path, "show", "rank=0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: rank=0 must be")
    assert not list(tmp_path.iterdir())
