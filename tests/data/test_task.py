import copy
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast

from dfolora.data import load_rows
from dfolora.data.task import Prompt, Task, label_word_ids, more_word_ids, tasks
from dfolora.errors import UserError
from tests.shared import real_tokenizer

CONF = Path(__file__).parents[2] / "conf"
REAL = sorted((CONF / "task").glob("*.yaml"))
MINI = sorted((CONF / "task" / "mini").glob("*.yaml"))

GIVEN = {
    "name": "toy",
    "title": "Toy",
    "dataset": {"path": "mini", "train": "train", "test": "test"},
    "fields": ["a", "b"],
    "label": "label",
    "classes": ["no", "yes"],
    "metric": "accuracy",
    "prompts": {"released": {"masked": {"pattern": "{a} {mask} {b}", "label_words": ["N", "Y"]}}},
}


def given(**changes):
    """The toy task with changed values; a dotted name reaches inside, ... removes the key."""
    data = copy.deepcopy(GIVEN)
    for dotted, value in changes.items():
        *outer, last = dotted.split(".")
        inner = data
        for key in outer:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return data


def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[f"+task={name}"]).task, resolve=True)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_shipped_file_is_the_same_task_by_file_and_by_hydra(path):
    task = Task.from_file(path)
    assert task.name == path.stem
    assert task == Task.from_mapping(composed(path.stem))
    own = {"bbt"} if path.stem in ("sst2", "agnews") else set()  # where BBT's prompts are others
    assert {"released", "published", "natural", "gap3"} | own == set(task.prompts)
    for variant in ("released", "gap3"):
        assert {"masked", "causal"} == set(task.prompts[variant])


@pytest.mark.parametrize("path", MINI, ids=lambda path: path.stem)
def test_mini_task_is_the_real_one_on_the_mini_world(path):
    mini, real = composed(f"mini/{path.stem}"), composed(path.stem)
    assert mini.pop("dataset") == {
        "path": "mini",
        "name": None,
        "revision": None,
        "train": "train",
        "test": "test",
    }
    del real["dataset"]
    if path.stem == "dbpedia":  # the filler needs a large vocabulary
        causal = real["prompts"]["released"]["causal"]
        causal["pattern"] = causal["pattern"].removeprefix("{filler} ")
    assert mini == real


def test_every_task_has_a_mini_twin():
    assert [path.name for path in MINI] == [path.name for path in REAL]


@pytest.mark.parametrize("path", MINI, ids=lambda path: path.stem)
def test_mini_world_has_rows_of_every_class(path):
    task = Task.from_mapping(composed(f"mini/{path.stem}"))
    train, test = (load_rows(task, part) for part in ("train", "test"))
    assert all(train.labels.count(label) >= 40 for label in range(len(task.classes)))
    assert set(test.labels) == set(range(len(task.classes)))
    assert train == load_rows(task, "train")
    assert set(train.texts[0]) == set(task.fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": ...}, r"task lacks \['metric'\]; it needs \['name'"),
        ({"colour": 1}, r"task has unknown keys \['colour'\]; known: \['name'"),
        ({"name": 3}, r"task\.name must be non-empty text, got 3"),
        ({"label": ""}, r"toy\.label must be non-empty text, got ''"),
        ({"fields": "a"}, r"toy\.fields must be a list of texts, got 'a'"),
        ({"fields": []}, r"toy\.fields must be a list of texts, got \[\]"),
        ({"classes": ["x", "x"]}, r"toy\.classes repeats an entry"),
        ({"classes": [False, True]}, r"classes\[0\] must be .*got False \(YAML reads a bare Yes"),
        ({"metric": "f2"}, r"toy has metric 'f2'; choose from accuracy, f1"),
        ({"strip": "yes"}, r"toy\.strip must be true or false, got 'yes'"),
        ({"replace": [1]}, r"toy\.replace must be a mapping with text keys, got \[1\]"),
        ({"replace": {"a": None}}, r"toy\.replace\['a'\] must be text, got None"),
        ({"dataset.test": ...}, r"toy\.dataset lacks \['test'\]"),
        ({"dataset.split": "x"}, r"toy\.dataset has unknown keys \['split'\]"),
        ({"dataset.name": 1}, r"toy\.dataset\.name must be non-empty text, got 1"),
        ({"prompts.released.seq2seq": {}}, r"released has unknown keys \['seq2seq'\].*causal"),
        ({"prompts.released.masked.label_words": ["N"]}, r"1 label words \['N'\] for 2 classes"),
        ({"prompts.released.masked.more_words": "N"}, r"more_words must be a list of words for"),
        ({"prompts.released.masked.more_words": ["N", "Y"]}, r"more_words\[0\] must be a list of"),
        ({"prompts.released.masked.more_words": [["n"]]}, r"more_words has 1 lists for the 2"),
        ({"prompts.released.masked.pattern": "{a} {c} {mask}"}, r"\['c'\] that are not fields"),
        ({"prompts.released.masked.pattern": "It was {mask}"}, r"shows nothing of the row"),
        ({"prompts.released.masked.pattern": "{a}"}, r"has 0 \{mask\}; write it exactly once"),
        ({"prompts.released.masked.pattern": "{a}{mask}{mask}"}, r"has 2 \{mask\}"),
        ({"prompts.released.masked.pattern": "{a {mask}"}, r"cannot be read"),
        ({"prompts.released.masked.pattern": "{a!r} {mask}"}, r"\{a\} .*write the bare name"),
        ({"prompts.released.masked.pattern": "{a:>9} {mask}"}, r"\{a\} .*write the bare name"),
        (
            {"prompts.released.causal": {"pattern": "{a} {mask}", "label_words": ["N", "Y"]}},
            r"Causal pattern '\{a\} \{mask\}' has a \{mask\}; remove it",
        ),
    ],
)
def test_wrong_task_is_named(changes, message):
    Task.from_mapping(GIVEN)
    with pytest.raises(UserError, match=message):
        Task.from_mapping(given(**changes))


def test_f1_is_for_two_classes():
    words = {"masked": {"pattern": "{a} {mask}", "label_words": ["N", "Y", "M"]}}
    data = given(metric="f1", classes=["no", "yes", "maybe"], prompts={"released": words})
    with pytest.raises(UserError, match="toy has 3 classes, but f1 needs 2"):
        Task.from_mapping(data)


def test_bare_yes_in_a_file_is_explained(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(GIVEN).replace("- Y\n", "- Yes\n"), encoding="utf-8")
    with pytest.raises(UserError, match=r"label_words\[1\] .*got True .*quote it"):
        Task.from_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not UTF-8 YAML"), ("- a", "must be a mapping"), (b"\xff", "is not UTF-8 YAML")],
)
def test_file_that_holds_no_task(tmp_path, content, message):
    path = tmp_path / "toy.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        Task.from_file(path)


def test_missing_file():
    with pytest.raises(UserError, match=r"Task file nowhere\.yaml cannot be read: No such file"):
        Task.from_file("nowhere.yaml")


def test_slots_are_some_of_the_places_a_pattern_has():
    words = {"pattern": "{a} {b}", "label_words": ["N", "Y"]}
    task = Task.from_mapping(given(**{"prompts.released.causal": words | {"slots": ["b", "mask"]}}))
    assert task.prompt("released", "causal").slots == ("b", "mask")
    assert task.prompt("released", "masked").slots is None
    wrong = given(**{"prompts.released.causal": words | {"slots": ["c"]}})
    with pytest.raises(UserError, match=r"has no \['c'\], .* choose from \['a', 'b', 'mask'\]"):
        Task.from_mapping(wrong)


def test_prompt_of_a_variant_and_kind():
    task = Task.from_file(CONF / "task" / "sst2.yaml")
    assert task.prompt("released", "causal").label_words == ("negative", "positive")
    offered = "it has released: masked, causal; published: masked"
    with pytest.raises(UserError, match=f"sst2 has no causal prompt 'published'; {offered}"):
        task.prompt("published", "causal")
    with pytest.raises(UserError, match=f"no masked prompt 'mine'; {offered}"):
        task.prompt("mine", "masked")


UPPER = string.ascii_uppercase


class Letters:
    """One token per letter, and one for a few words after a space; capitals are unknown."""

    name_or_path = "letters"
    unk_token_id = 0

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        if text[1:] in (" yes", " no"):
            return [ord(text[0]), 1000 + len(text)]
        return [0 if c in UPPER else ord(c) for c in text]

    def convert_ids_to_tokens(self, ids):
        return [chr(i) for i in ids]


def prompt_with(*words):
    return Prompt(kind="causal", pattern="{a}", label_words=words)


def test_label_words_are_their_tokens():
    assert label_word_ids(prompt_with("n", "y"), Letters()) == (ord("n"), ord("y"))
    assert label_word_ids(prompt_with("no", "yes"), Letters(), "natural") == (1004, 1005)


def test_label_words_of_the_paper_are_their_first_tokens():
    assert label_word_ids(prompt_with("no", "yes"), Letters(), cut=True) == (ord("n"), ord("y"))


@pytest.mark.parametrize(
    ("words", "cut", "message"),
    [
        (("yes", "no", "yep"), True, r"\['yes', 'yep'\] start with the same token for letters"),
        (("yes", "yep"), True, r"pieces \[\['y', 'e', 's'\].*data.label_words=natural, or give"),
        (("y", "y"), False, r"\['y', 'y'\] start with the same token"),
        (("yes", "No"), True, r"'No' is not in the vocabulary of letters"),
        (("yes", ""), True, r"'' is not in the vocabulary of letters \(ids \[\]\)"),
        (
            ("y", "no"),
            False,
            r"\['no'\] are several tokens for letters \(pieces \[\['n', 'o'\]\]\), and a model "
            r"answers by one; give the task words of one token",
        ),
        (
            ("yes", "no"),
            False,
            r"set data\.label_words=natural \(after a space each is one",
        ),
        (("\u0120yes", "\u0120no"), False, r"without the tokenizer's sign for a space, and data\."),
    ],
)
def test_label_words_that_cannot_answer(words, cut, message):
    with pytest.raises(UserError, match=message):
        label_word_ids(prompt_with(*words), Letters(), cut=cut)


def test_more_words_are_a_tuple_a_class():
    prompt = replace(prompt_with("n", "y"), more_words=(("a", "b"), ("c",)))
    assert more_word_ids(prompt, Letters(), (110, 121)) == ((ord("a"), ord("b")), (ord("c"),))
    assert more_word_ids(prompt_with("n", "y"), Letters(), (110, 121)) == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((("a",), ("n",)), r"more_words \['n'\] are tokens of label words already for letters"),
        ((("a",), ("a",)), r"\['a', 'a'\] start with the same token"),
        ((("a",), ("no",)), r"\['no'\] are several tokens"),
        ((("a",), ("N",)), r"'N' is not in the vocabulary"),
    ],
)
def test_more_words_that_cannot_answer(more, message):
    with pytest.raises(UserError, match=message):
        more_word_ids(replace(prompt_with("n", "y"), more_words=more), Letters(), (110, 121))


def test_unknown_style_of_label_words():
    with pytest.raises(UserError, match=r"style 'bare' is unknown; choose released or natural"):
        label_word_ids(prompt_with("y", "n"), Letters(), "bare")


def test_words_that_are_cut_are_the_papers_alone():
    """Not another's with the same task name, nor ours, nor a user's variant."""
    task = Task.from_mapping(composed("dbpedia"))
    assert task.has_released_words("released", "masked")
    assert task.has_released_words("gap3", "causal")
    assert not task.has_released_words("natural", "masked")
    assert Task.from_mapping(composed("mini/dbpedia")).has_released_words("released", "masked")
    changed = composed("sst2")
    changed["prompts"]["released"]["masked"]["label_words"] = ["terrible", "great"]
    changed["prompts"]["mine"] = changed["prompts"]["released"]
    task = Task.from_mapping(changed)
    assert not task.has_released_words("released", "masked")
    assert task.has_released_words("released", "causal")
    assert not task.has_released_words("mine", "causal")
    assert not Task.from_mapping(GIVEN).has_released_words("released", "masked")


def test_label_words_that_a_real_tokenizer_splits_are_told():
    """LM-BFF's words of SST-2: bare, the first is three pieces of RoBERTa's vocabulary."""
    tokenizer = real_tokenizer("roberta-base")
    words = Prompt(kind="masked", pattern="{a} {mask}", label_words=("terrible", "great"))
    with pytest.raises(UserError, match=r"\['terrible'\] are .*\['ter', .*label_words=natural"):
        label_word_ids(words, tokenizer)
    ids = label_word_ids(words, tokenizer, "natural")
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["\u0120terrible", "\u0120great"]


@pytest.mark.parametrize("file", REAL + MINI, ids=lambda file: file.stem)
def test_own_tasks_are_known_by_name_and_are_what_hydra_composes(file):
    name = file.relative_to(CONF / "task").with_suffix("").as_posix()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("run", [f"task={name}"]).task
    expected = Task.from_mapping(OmegaConf.to_container(composed, resolve=True))
    assert Task.from_file(file) == Task.from_file(name) == expected


def test_defaults_that_only_hydra_follows_are_told(tmp_path):
    file = tmp_path / "mine.yaml"
    for default in ("/task/mine@_here_", "/task/none@_here_", "other", {"override /task": "sst2"}):
        file.write_text(f"defaults: {json.dumps([default, '_self_'])}\n")
        with pytest.raises(UserError, match=r"mine\.yaml has the default .*may have /task/NAME@"):
            Task.from_file(file)
    with pytest.raises(
        UserError, match=r"No such file or directory; give a file, or one of agnews"
    ):
        Task.from_file("sst3")


def sentencepiece(words):
    """A tokenizer whose words begin with a mark for the space before them, as Llama 2's."""
    scores = {"<unk>": -9.0, "\u2581": -5.0, **dict.fromkeys(words, -5.0)}
    vocabulary = [*scores.items(), *((f"\u2581{word}", -1.0) for word in ("a", *words))]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0))
    made.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("\u2581"),
        tokenizers.normalizers.Replace(" ", "\u2581"),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("style", ["released", "natural"])
def test_label_words_of_sentencepiece_have_its_mark(style):
    """A space before the word would be a mark of its own, the same for all words."""
    tokenizer = sentencepiece(["bad", "great"])
    assert tokenizer.tokenize(" bad") == ["\u2581", "\u2581bad"]
    words = Prompt(pattern="{a} is", kind="causal", label_words=("bad", "great"))
    ids = label_word_ids(words, tokenizer, style)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["\u2581bad", "\u2581great"]


def test_tasks_of_the_package_go_by_their_names():
    files = (CONF / "task").rglob("*.yaml")
    assert {CONF / "task" / f"{name}.yaml" for name in tasks()} == {*files}
    assert tasks()[:2] == ("agnews", "dbpedia")  # the paper's first
    for name in tasks():
        assert Task.named(name) == Task.from_file(CONF / "task" / f"{name}.yaml")


@pytest.mark.parametrize("name", ["sst3", "../task/sst2", "sst2.yaml", "", None])
def test_a_name_that_is_none_of_the_packages_is_told(name):
    with pytest.raises(UserError, match=rf"Unknown task={name}; choose one of agnews, .*mini/y"):
        Task.named(name)
