"""The estimator: as scikit-learn's own checks use it, and beside plain transformers."""

import copy
import json
import pickle
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from peft import PeftModel
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

import dfolora
from dfolora import CLora, FewShotClassifier, NotFittedError, UserError
from dfolora.data import sample_few_shot
from dfolora.fewshot import saved as saved_fits
from dfolora.fewshot.saved import WRITTEN
from dfolora.methods import (
    METHODS,
    Gap3,
    GradientTuning,
    Hybrid,
    LayerwiseSearch,
    ManualPrompt,
    method_of,
)
from dfolora.methods.gradient import Lora, TrainingSpec
from dfolora.mini import BUNDLED, world
from dfolora.model import Checkpoint
from dfolora.search import forgetful

README = (Path(__file__).parents[2] / "README.md").read_text()
PROMPT = "{text} It was {mask}."
WORDS = {"bad": "bad", "good": "great"}
SMALL = CLora(budget=45, dim=8, alpha=2.0, dev_interval=20)


@cache
def rows(part="train", count=24):
    """Texts and their classes, bad or good."""
    some = world.rows("sst2", part)
    texts = [text["sentence"] for text in some.texts[:count]]
    return texts, [["bad", "good"][label] for label in some.labels[:count]]


@cache
def mini(name="mini-roberta"):
    """A bundled model, loaded by transformers, and its tokenizer."""
    loader = {
        "mini-roberta": transformers.AutoModelForMaskedLM,
        "mini-gpt2": transformers.AutoModelForCausalLM,
    }[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED[name])
    return loader.from_pretrained(BUNDLED[name], dtype=torch.float32), tokenizer


def classifier(**changes):
    given = {"model": "mini-roberta", "prompt": PROMPT, "words": WORDS, "method": SMALL}
    return FewShotClassifier(**given | changes)


@dataclass(frozen=True, kw_only=True)
class Spy(ManualPrompt):
    """Keeps the data that it gets."""

    seen: list = field(default_factory=list)

    def begin(self, backbone, data, seed, memo=forgetful):
        self.seen.append(data)
        return super().begin(backbone, data, seed, memo)


def split_of(X, y, *, dev=None, **changes):  # noqa: N803
    """Train and dev texts, and their labels."""
    spy = Spy()
    classifier(method=spy, **changes).fit(X, y, dev=dev)
    (data,) = spy.seen
    parts = (data.train.rows, data.dev.rows)
    return [[(text["text"], label) for text, label in zip(part.texts, part.labels, strict=True)]
            for part in parts]  # fmt: skip


# What it computes.


@pytest.mark.parametrize(
    ("name", "prompt", "space"),
    [
        ("mini-roberta", "{text} It was {mask}.", " "),
        ("mini-roberta", "{mask}: {text}", ""),
        ("mini-gpt2", "{text} It was", " "),
    ],
)
def test_probabilities_are_the_softmax_of_transformers_own_logits(name, prompt, space):
    """Of the words as a text has them: after a space, but for the first of a text."""
    texts, labels = rows()
    model, tokenizer = mini(name)
    fitted = classifier(model=name, prompt=prompt, method="manual_prompt").fit(texts, labels)
    ids = [tokenizer.encode(space + word, add_special_tokens=False)[0] for word in WORDS.values()]
    for text, probabilities in zip(texts[:5], fitted.predict_proba(texts[:5]), strict=True):
        filled = tokenizer(prompt.format(text=text, mask=tokenizer.mask_token), return_tensors="pt")
        with torch.no_grad():
            logits = model(**filled).logits[0]
        tokens = filled["input_ids"][0].tolist()
        answer = -1 if name == "mini-gpt2" else tokens.index(tokenizer.mask_token_id)
        expected = logits[answer, ids].double().softmax(-1).numpy()
        assert np.allclose(probabilities, expected, atol=1e-5)


def test_predicts_the_most_probable_class_and_scores_as_scikit_learn():
    texts, labels = rows()
    new, truth = rows("test", 40)
    fitted = classifier().fit(texts, labels)
    assert fitted.classes_.tolist() == ["bad", "good"]
    probabilities, predicted = fitted.predict_proba(new), fitted.predict(new)
    assert probabilities.shape == (40, 2)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-12)
    assert predicted.tolist() == [["bad", "good"][n] for n in probabilities.argmax(1)]
    assert 0 < np.mean(predicted == "bad") < 1
    assert fitted.score(new, truth) == accuracy_score(truth, predicted)
    weights = np.arange(40)
    weighted = accuracy_score(truth, predicted, sample_weight=weights)
    assert fitted.score(new, truth, sample_weight=weights) == pytest.approx(weighted, abs=1e-12)


def test_is_the_problem_that_fit_solves_with_the_same_rows():
    """The estimator adds no search of its own: the dev look is that of the bare method."""
    texts, labels = rows()
    one = classifier().fit(texts, labels)
    spy = Spy()
    classifier(method=spy).fit(texts, labels)
    backbone = dfolora.Backbone(mini()[0])
    search = SMALL.begin(backbone, spy.seen[0], 42)
    for _ in search:
        pass
    dev = search.predictor().dev
    assert (one.predictor_.dev.calls, one.predictor_.dev.loss) == (dev.calls, dev.loss)


def test_words_go_by_class_or_by_the_sorted_classes():
    texts, labels = rows()
    by_class, by_order, swapped = (
        classifier(words=words, method="manual_prompt").fit(texts, labels).predict_proba(texts)
        for words in (WORDS, ["bad", "great"], {"good": "bad", "bad": "great"})
    )
    assert (by_class == by_order).all()
    assert (by_class == swapped[:, ::-1]).all()


@pytest.mark.parametrize(
    "labels", [[3, 1], [True, False], np.array([7, -7]), ["x", "a"], pd.Series(["x", "a"])]
)
def test_classes_are_sorted_and_of_the_labels_own_kind(labels):
    texts, _ = rows(count=4)
    four = [labels[n % 2] for n in range(4)]
    fitted = classifier(words=["bad", "great"], method="manual_prompt").fit(texts, four)
    assert fitted.classes_.tolist() == sorted(set(four))
    assert {*fitted.predict(texts).tolist()} <= {*four}


@pytest.mark.parametrize("shape", [np.array, pd.Series, tuple, lambda x: np.array(x, dtype=object)])
def test_texts_come_as_any_sequence(shape):
    texts, labels = rows()
    usual = classifier(method="manual_prompt").fit(texts, labels).predict_proba(texts)
    fitted = classifier(method="manual_prompt").fit(shape(texts), shape(labels))
    assert (fitted.predict_proba(shape(texts)) == usual).all()


def test_rows_of_several_fields_come_as_mappings_or_a_frame():
    texts, labels = rows()
    pairs = [{"one": text, "other": texts[n - 1], "n": n} for n, text in enumerate(texts)]
    joined = [f"{pair['one']} {pair['other']}" for pair in pairs]
    changes = {"method": "manual_prompt"}
    usual = classifier(**changes).fit(joined, labels).predict_proba(joined)
    changes["prompt"] = "{one} {other} It was {mask}."
    for given in (pairs, pd.DataFrame(pairs)):
        assert (classifier(**changes).fit(given, labels).predict_proba(given) == usual).all()


def test_example_of_the_readme_runs(tmp_path, monkeypatch):
    """With the model that comes along, and a budget of seconds."""
    example = next(each for each in README.split("```python\n")[1:] if "clf =" in each).split(
        "```"
    )[0]
    for given, small in (("distilroberta-base", "mini-roberta"), ("budget=1000", "budget=21")):
        assert given in example
        example = example.replace(given, small)
    texts, labels = rows()
    names = {"bad": "negative", "good": "positive"}
    variables = {"texts": texts, "labels": [names[label] for label in labels], "new_texts": texts}
    monkeypatch.chdir(tmp_path)
    exec(example, variables)
    assert variables["clf"].classes_.tolist() == ["negative", "positive"]


# Train and dev.


def test_k_rows_a_class_train_and_k_choose_as_in_the_paper():
    texts, labels = rows(count=40)
    numbers = [int(label == "good") for label in labels]
    split = sample_few_shot(numbers, [True] * 40, k=3, seed=7, names=["bad", "good"])
    train, dev = split_of(texts, labels, k=3, random_state=7)
    assert train == [(texts[n], numbers[n]) for n in split.train]
    assert dev == [(texts[n], numbers[n]) for n in split.dev]
    assert split_of(texts, labels, k=3, random_state=8) != [train, dev]


def test_without_k_half_of_each_class_trains():
    texts = [f"text {n}" for n in range(9)]
    labels = ["bad"] * 5 + ["good"] * 4
    train, dev = split_of(texts, labels)
    assert sorted(label for _, label in train) == [0, 0, 0, 1, 1]
    assert sorted(label for _, label in dev) == [0, 0, 1, 1]
    assert sorted(text for text, _ in train + dev) == texts


def test_with_dev_rows_of_its_own_all_others_train():
    texts, labels = rows(count=10)
    train, dev = split_of(texts, labels, dev=(["one", "two"], ["good", "bad"]))
    assert train == [
        (text, int(label == "good")) for text, label in zip(texts, labels, strict=True)
    ]
    assert dev == [("one", 1), ("two", 0)]


# With scikit-learn.


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_tags_renamed,
    ],
)
def test_passes_scikit_learns_checks_that_need_no_numbers_as_x(check):
    check("FewShotClassifier", classifier())


def test_model_selection_and_pipelines_take_it():
    texts, labels = rows(count=40)
    assert is_classifier(classifier())
    assert cross_val_score(classifier(), texts, labels, cv=2, error_score="raise").shape == (2,)
    grid = GridSearchCV(
        classifier(),
        {"method": ["manual_prompt", SMALL], "k": [2, None]},
        cv=2,
        scoring="neg_log_loss",
        error_score="raise",
    ).fit(np.array(texts), labels)
    assert grid.best_estimator_.classes_.tolist() == ["bad", "good"]
    upper = make_pipeline(
        FunctionTransformer(lambda given: [text.lower() for text in given]), classifier()
    )
    assert upper.fit(texts, labels).predict(texts[:3]).shape == (3,)


def test_folds_are_stratified_as_a_classifiers_are():
    """With rows in the order of classes, folds that are not would lack a class."""
    texts, labels = rows(count=12)
    order = np.argsort(labels, kind="stable")
    ordered = np.array(texts)[order], np.array(labels)[order]
    cross_val_score(classifier(method="manual_prompt"), *ordered, cv=2, error_score="raise")


def test_clones_share_a_loaded_model():
    model, tokenizer = mini()
    one = classifier(model=model, tokenizer=tokenizer).fit(*rows())
    other = clone(one)
    assert other.model is model
    assert not other.__sklearn_is_fitted__()
    assert (other.fit(*rows()).predict_proba(rows()[0]) == one.predict_proba(rows()[0])).all()


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(classifier(method="bbt", k=4)) == (
        f"FewShotClassifier(model='mini-roberta', prompt={PROMPT!r}, words={WORDS!r}, "
        f"method='bbt', k=4)"
    )
    model, tokenizer = mini()
    shown = repr(classifier(model=model, tokenizer=tokenizer))
    assert "model=<RobertaForMaskedLM>" in shown
    assert len(shown) < 1000


def test_parameters_are_set_by_name():
    assert classifier().set_params(k=2, verbose=True).get_params()["k"] == 2
    with pytest.raises(UserError, match=r"no parameters \['shots'\]; it has model, prompt, words"):
        classifier().set_params(shots=2)


# Fitting again, looking on, breaking off.


def test_a_second_fit_starts_anew_and_leaves_the_weights():
    model, tokenizer = mini()
    before = copy.deepcopy(model.state_dict())
    texts, labels = rows()
    twice = classifier(model=model, tokenizer=tokenizer)
    twice.fit(texts[:8], labels[:8])
    first = twice.predict_proba(texts)
    twice.fit(texts, labels)
    once = classifier(model=model, tokenizer=tokenizer).fit(texts, labels)
    assert (twice.predict_proba(texts) == once.predict_proba(texts)).all()
    assert (twice.predict_proba(texts) != first).any()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_fit_that_is_refused_leaves_the_earlier_one():
    fitted = classifier(method="manual_prompt").fit(*rows())
    before = fitted.predict_proba(["one"])
    with pytest.raises(UserError):
        fitted.fit(["one", "two"], ["good", "bad"])
    assert np.array_equal(fitted.predict_proba(["one"]), before)


def test_a_fit_that_is_broken_off_leaves_nothing_fitted():
    def stop(_progress):
        raise KeyboardInterrupt

    fitted = classifier().fit(*rows())
    fitted.callback = stop
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(*rows())
    with pytest.raises(NotFittedError):
        fitted.predict(["one"])
    assert not hasattr(fitted, "classes_")


def test_callback_and_bar_follow_the_search(capsys):
    steps = []
    classifier(callback=steps.append, verbose=True).fit(*rows())
    calls = [progress.step.calls for progress in steps]
    assert calls == sorted(calls)
    assert calls[-1] == 45
    assert "45/45" in capsys.readouterr().err
    classifier().fit(*rows())
    assert capsys.readouterr().err == ""


def test_a_fit_that_is_broken_off_leaves_the_model_as_it_was():
    """An adapter sits on the model while it is trained."""
    model, tokenizer = mini()
    texts, labels = rows()
    given = {"model": model, "tokenizer": tokenizer}
    before = classifier(method="manual_prompt", **given).fit(texts, labels).predict_proba(texts)

    def stop(_progress):
        raise KeyboardInterrupt

    method = GradientTuning(
        trained=Lora(), training=TrainingSpec(learning_rates=[0.5], epochs=2, dev_every=1)
    )
    with pytest.raises(KeyboardInterrupt) as raised:
        classifier(method=method, callback=stop, **given).fit(texts, labels)
    after = classifier(method="manual_prompt", **given).fit(texts, labels).predict_proba(texts)
    assert (before == after).all()
    assert raised.tb is not None  # whose frames hold the fit


# Saving and loading.


def shrunk(name, model):
    """A method at a size for this test."""
    method = method_of(name)
    if isinstance(method, LayerwiseSearch):
        subspace: Any = method.subspace
        subspace = replace(subspace, dim=8, alpha=2.0)
        if hasattr(subspace, "positions"):
            subspace = replace(subspace, positions=5)
        return replace(method, budget=45, subspace=subspace)
    if isinstance(method, GradientTuning):
        training = replace(method.training, epochs=2, dev_every=1, learning_rates=[0.01])
        trained: Any = method.trained
        if hasattr(trained, "tokens"):
            trained = replace(trained, tokens=5)
        if model == "mini-gpt2" and isinstance(trained, Lora):
            trained = Lora(targets=("q", "k", "v"))
        return replace(method, training=training, trained=trained)
    if isinstance(method, Gap3):
        return replace(method, population=4, budget=30, room=10)
    return method


def test_hybrid_predicts_the_same_when_loaded(tmp_path):
    texts, labels = rows(count=16)
    method = Hybrid(budget=60, learning_rate=0.01, dev_interval=30)
    saved = classifier(method=method).fit(texts, labels)
    saved.save(tmp_path / "folder")
    loaded = FewShotClassifier.load(tmp_path / "folder")
    new, _ = rows("test", 30)
    assert np.allclose(loaded.predict_proba(new), saved.predict_proba(new), atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("model", ["mini-roberta", "mini-gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_predicts_the_same_when_loaded(name, model, tmp_path):
    texts, labels = rows(count=16)
    prompt = PROMPT if model == "mini-roberta" else "{text} It was"
    method = shrunk(name, model)
    saved = classifier(model=model, prompt=prompt, method=method).fit(texts, labels)
    saved.save(tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} <= {*WRITTEN}
    loaded = FewShotClassifier.load(tmp_path / "folder")
    new, truth = rows("test", 30)
    # LoRA that was trained with gradients goes on in the engine, with other roundings.
    assert np.allclose(loaded.predict_proba(new), saved.predict_proba(new), atol=1e-5)
    assert loaded.classes_.tolist() == saved.classes_.tolist()
    assert loaded.score(new, truth) == saved.score(new, truth)
    if name not in ("manual_prompt", "in_context"):  # so that something was there to load
        plain = classifier(model=model, prompt=prompt, method="manual_prompt").fit(texts, labels)
        assert np.abs(plain.predict_proba(new) - saved.predict_proba(new)).max() > 1e-4


def saved(tmp_path, **changes):
    fitted = classifier(**changes).fit(*rows())
    fitted.save(tmp_path / "folder")
    return fitted, tmp_path / "folder"


def test_folder_is_a_peft_adapter_too(tmp_path):
    _, folder = saved(tmp_path)
    PeftModel.from_pretrained(copy.deepcopy(mini()[0]), folder)
    record = json.loads((folder / "classifier.json").read_text())
    assert record["task"]["classes"] == ["bad", "good"]
    assert record["task"]["words"] == ["bad", "great"]
    assert record["versions"]["torch"] == metadata.version("torch")


def test_what_is_saved_is_what_was_fitted_whatever_is_set_since(tmp_path):
    fitted = classifier().fit(*rows())
    fitted.set_params(prompt="Is it {mask}? {text}", words=["great", "bad"], max_length=40)
    fitted.save(tmp_path)
    loaded, (texts, _) = FewShotClassifier.load(tmp_path), rows()
    assert np.allclose(loaded.predict_proba(texts), fitted.predict_proba(texts), atol=1e-5)
    assert loaded.get_params()["prompt"] == PROMPT


def test_a_loaded_one_is_saved_again(tmp_path):
    fitted, folder = saved(tmp_path)
    loaded = FewShotClassifier.load(folder)
    loaded.save(folder)
    loaded.save(tmp_path / "copy")
    again = FewShotClassifier.load(tmp_path / "copy")
    texts, _ = rows()
    assert np.allclose(again.predict_proba(texts), fitted.predict_proba(texts), atol=1e-5)


def test_a_folder_of_artifacts_is_told_where_its_fit_is(tmp_path):
    saved(tmp_path)
    (tmp_path / "folder").rename(tmp_path / "adapter")
    with pytest.raises(UserError, match=rf"no whole fit: .* Give {tmp_path}/adapter\.$"):
        FewShotClassifier.load(tmp_path)


def test_a_loaded_one_is_not_saved_from_a_folder_that_holds_another_fit(tmp_path):
    fitted, folder = saved(tmp_path)
    loaded = FewShotClassifier.load(folder)
    texts, labels = rows()
    classifier(random_state=7).fit(texts, labels).save(folder)
    with pytest.raises(UserError, match="no longer holds the fit that was loaded from it"):
        loaded.save(tmp_path / "copy")
    assert not (tmp_path / "copy" / "classifier.json").exists()
    assert np.allclose(loaded.predict_proba(texts), fitted.predict_proba(texts), atol=1e-5)


def test_a_loaded_one_is_fitted_again_by_a_method_that_is_given(tmp_path):
    _, folder = saved(tmp_path)
    loaded, (texts, labels) = FewShotClassifier.load(folder, model="mini-roberta"), rows()
    loaded.set_params(method=repr(dfolora.CLora()))  # as of one that was fitted by an object
    with pytest.raises(UserError, match=r"set_params\(method=\.\.\.\) with the object itself"):
        loaded.fit(texts, labels)
    loaded.set_params(method="manual_prompt").fit(texts, labels)
    assert np.isfinite(loaded.predict_proba(texts)).all()


@pytest.mark.parametrize(
    ("names", "library"),
    [
        (("feature_mlp", "p_tuning_v2"), "peft"),
        (("prompt_tuning", "bitfit"), "dfolora"),
        (("c_lora", "manual_prompt"), "dfolora"),
        (("manual_prompt", "c_lora"), "peft"),
    ],
)
def test_what_is_saved_over_another_fit_is_what_is_loaded(names, library, tmp_path):
    """And alone, but for what the user has put beside it."""
    texts, labels = rows(count=16)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.json").write_text("mine")
    for name in names:
        made = classifier(method=shrunk(name, "mini-roberta")).fit(texts, labels)
        made.save(folder)
    loaded = FewShotClassifier.load(folder)
    assert np.allclose(loaded.predict_proba(texts), made.predict_proba(texts), atol=1e-5)
    made.save(tmp_path / "alone")
    alone = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in folder.iterdir()} == alone | {"notes.json"}
    assert f"\nlibrary_name: {library}\n" in (folder / "README.md").read_text()
    FewShotClassifier.load(tmp_path / "alone").save(folder)
    assert {path.name for path in folder.iterdir()} == alone | {"notes.json"}
    assert (folder / "notes.json").read_text() == "mine"


def test_fit_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    made, folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(saved_fits, "card", full_disk)
    with pytest.raises(OSError, match="No space left"):
        made.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_fit_is_written_to_another_file_system_too(tmp_path):
    """By a link, as to a volume."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir():
        pytest.skip("there is no /dev/shm, a file system of its own")
    with tempfile.TemporaryDirectory(dir=elsewhere) as place:
        (tmp_path / "link").symlink_to(place)
        made, _folder = saved(tmp_path)
        made.save(tmp_path / "link")
        again = FewShotClassifier.load(tmp_path / "link")
        assert again.classes_.tolist() == made.classes_.tolist()


def test_save_that_is_stopped_leaves_no_mixture(tmp_path, monkeypatch):
    made, folder = saved(tmp_path)
    replaced, replace = [], Path.replace

    def stopped(self, target):
        replaced.append(target.name)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        made.save(folder)
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds no whole fit"):
        FewShotClassifier.load(folder)


def full_disk(*_given, **_named):
    raise OSError(28, "No space left on device")


def test_another_base_model_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    model, tokenizer = mini()
    FewShotClassifier.load(folder, model=model, tokenizer=tokenizer)
    FewShotClassifier.load(folder, model=copy.deepcopy(model).bfloat16(), tokenizer=tokenizer)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    told = (
        r"to mini-roberta, and the weights of .* are others; give .* \(model=, on .* model\.path=\)"
    )
    with pytest.raises(UserError, match=told):
        FewShotClassifier.load(folder, model=tmp_path / "other")


def test_another_tokenizer_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    _, folder = saved(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED["mini-roberta"])
    tokenizer.add_tokens(["food"])
    monkeypatch.setattr(Checkpoint, "load_backbone", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=r"with the tokenizer of mini-roberta, .* cuts texts other"):
        FewShotClassifier.load(folder, tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"with the tokenizer of mini-roberta"):
        FewShotClassifier.load(folder, model="mini-gpt2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pattern", "{text} All in all {mask}."),
        ("words", ["bad", "good"]),
        ("label_ids", [5, 6]),
        ("classes", ["good", "bad"]),
        ("fields", ["text", "title"]),
        ("strip", True),
        ("max_length", 20),
    ],
)
def test_a_changed_task_is_refused(key, value, tmp_path):
    saved(tmp_path, method="manual_prompt")
    path = tmp_path / "folder" / "classifier.json"
    record = json.loads(path.read_text())
    record["task"][key] = value
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"The task of .*classifier\.json was changed since it was"):
        dfolora.load(tmp_path / "folder")


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no whole fit: .*Give a folder that save or a run"):
        FewShotClassifier.load(tmp_path)
    _, folder = saved(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="holds no whole classifier"):
        FewShotClassifier.load(folder)
    record = folder / "classifier.json"
    record.write_text(record.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(UserError, match=r"has format 2, this version of dfolora reads 3: fit"):
        FewShotClassifier.load(folder)


DAMAGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no model": ("model", {}, r"model lacks \['path', .*\]; it needs"),
    "a key too many": ("model", {"device": "cpu"}, r"model has unknown keys \['device'\]"),
    "a number for a model": ("model", {"path": 5}, r"model\.path must be text, got 5"),
    "a flag for a tokenizer": ("model", {"tokenizer": True}, r"model\.tokenizer must be non-em"),
    "nothing about it": ("about", {}, r"about lacks \['title', .*\]; it needs"),
    "an unknown key": ("about", {"author": "me"}, r"about has unknown keys \['author'\]"),
    "words for rows": ("about", {"train": "all"}, r"about\.train=all must be a whole number"),
    "words for a score": ("about", {"dev_score": "good"}, r"about\.dev_score=good must be a prob"),
    "a list of versions": ("versions", {}, r"versions must be a mapping with text keys, got \[\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_was_damaged_by_hand_is_told(name, tmp_path):
    _, folder = saved(tmp_path, method="manual_prompt")
    record = json.loads((folder / "classifier.json").read_text())
    key, changes, message = DAMAGED[name]
    record[key] = record[key] | changes if changes else [] if key == "versions" else {}
    (folder / "classifier.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"classifier\.json, {message}"):
        FewShotClassifier.load(folder)


def test_a_fitted_one_is_not_pickled_but_a_new_one_is():
    fresh = classifier(method="f_lora")
    assert repr(pickle.loads(pickle.dumps(fresh))) == repr(fresh)
    with pytest.raises(TypeError, match=r"use save\(folder\) and FewShotClassifier\.load"):
        pickle.dumps(classifier(method="manual_prompt").fit(*rows()))


# What is refused.


@pytest.mark.parametrize("ask", ["predict", "predict_proba", "score", "save"])
def test_not_fitted_is_told(ask, tmp_path):
    given = {"score": (["x"], ["bad"]), "save": (tmp_path / "folder",)}.get(ask, (["x"],))
    with pytest.raises(NotFittedError, match=r"not fitted yet; call fit\(X, y\), or use"):
        getattr(classifier(), ask)(*given)
    assert not hasattr(classifier(), "classes_")
    with pytest.raises(SklearnNotFittedError):
        check_is_fitted(classifier())


TEXTS, LABELS = ["one", "two", "three", "four"], ["bad", "good", "bad", "good"]
REFUSED = {
    "one_text": ("one", LABELS, {}, "X is 'one'; give a list of texts"),
    "columns": ({"text": TEXTS}, LABELS, {}, r"X is \{'text': .*; give a list of texts"),
    "no_rows": ([], [], {}, "y is empty"),
    "none": (None, LABELS, {}, "X is None; give a list of texts"),
    "none_text": ([*TEXTS[:3], None], LABELS, {}, "X, row 4, 'text' is not text: None"),
    "nan_text": ([*TEXTS[:3], np.nan], LABELS, {}, "X, row 4, 'text' is not text: nan"),
    "blank_text": ([*TEXTS[:3], " "], LABELS, {}, "X, row 4 has no text; leave it out"),
    "numbers": ([1, 2, 3, 4], LABELS, {}, "X, row 1, 'text' is not text: 1"),
    "table": (np.array([TEXTS] * 4), LABELS, {}, "X, row 1, 'text' is not text: array"),
    "mixed_rows": (["one", {"text": "two"}], LABELS[:2], {}, "X mixes texts and mappings"),
    "fields": ([{"word": "one"}] * 4, LABELS, {}, r"row 1 lacks the fields \['text'\] of"),
    "two_fields": (TEXTS, LABELS, {"prompt": "{a} {b} {mask}"}, "X holds texts, but the prompt"),
    "lengths": (TEXTS, LABELS[:3] + LABELS, {}, "X has 4 rows, y 7; give one label a row"),
    "one_class": (TEXTS, ["bad"] * 4, {"words": ["bad"]}, "has one class, 'bad'; give two or"),
    "none_label": (TEXTS, [*LABELS[:3], None], {}, "y, row 4 is None; a label is a whole number"),
    "nan_label": (TEXTS, [0, 1, 0, np.nan], {}, "y, row 4 is nan; a label is"),
    "float_label": (TEXTS, [0.5, 1.5] * 2, {}, "y, row 1 is 0.5; a label is"),
    "mixed_labels": (TEXTS, ["bad", 1] * 2, {}, "y mixes texts and whole numbers"),
    "mixed_truth": (TEXTS, [True, 2] * 2, {}, "y mixes truth values and whole numbers"),
    "lonely": (TEXTS[:3], LABELS[:3], {}, "Got rows of bad: 2, good: 1; k=None needs 2 or more"),
    "k_large": (TEXTS, LABELS, {"k": 2}, "Got rows of bad: 2, good: 2; k=2 needs 4 or more"),
    "k_zero": (TEXTS, LABELS, {"k": 0}, "k=0 must be a whole number, 1 or more"),
    "seed": (TEXTS, LABELS, {"random_state": None}, "random_state=None must be a whole number"),
    "method": (TEXTS, LABELS, {"method": "cma"}, "Unknown method=cma; choose one of c_lora, "),
    "method_class": (TEXTS, LABELS, {"method": ManualPrompt}, "is no method; give one of c_lora"),
    "words_missing": (TEXTS, LABELS, {"words": {"bad": "bad"}}, "classes of y are .*'good'"),
    "words_more": (TEXTS, LABELS, {"words": ["a", "b", "c"]}, "Got 3 words .* for 2 classes"),
    "words_text": (TEXTS, LABELS, {"words": "bad"}, "words='bad' must be a mapping from class"),
    "words_set": (TEXTS, LABELS, {"words": {"bad", "great"}}, "must be a mapping from class"),
    "words_order": (TEXTS, LABELS, {"words": ["good", "bad"]}, "are the classes in another order"),
    "words_none": (TEXTS, LABELS, {"words": ["bad", None]}, "words hold None, which is no word"),
    "words_same": (TEXTS, LABELS, {"words": ["bad", "bad"]}, "start with the same token"),
    "no_mask": (TEXTS, LABELS, {"prompt": "{text}"}, r"has 0 \{mask\}; write it exactly once"),
    "no_text": (TEXTS, LABELS, {"prompt": "It was {mask}"}, "shows nothing of the row"),
    "no_model": (TEXTS, LABELS, {"model": 3}, "model=3 is no model; give a hub name, a folder"),
    "no_folder": (TEXTS, LABELS, {"model": "/no/such"}, "model.path=/no/such is not a folder"),
    "length": (TEXTS, LABELS, {"max_length": 3}, "prompt alone is .* tokens, above the limit of 3"),
    "budget": (TEXTS, LABELS, {"method": CLora(budget=5)}, "budget=5 is smaller than one generat"),
}  # fmt: skip


@pytest.mark.parametrize(("X", "y", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_told_before_weights_are_loaded(X, y, changes, message, monkeypatch):  # noqa: N803
    monkeypatch.setattr(Checkpoint, "load_backbone", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=message):
        classifier(**changes).fit(X, y)


def test_a_loaded_model_needs_its_tokenizer_and_has_its_own_device():
    model, tokenizer = mini()
    with pytest.raises(UserError, match="needs tokenizer=, its loaded tokenizer"):
        classifier(model=model).fit(TEXTS, LABELS)
    with pytest.raises(UserError, match="device=cpu and precision=auto are for models given by"):
        classifier(model=model, tokenizer=tokenizer, device="cpu").fit(TEXTS, LABELS)


def test_dev_rows_that_do_not_fit_are_told():
    for dev, changes, message in (
        ((["x"], ["good"]), {"k": 1}, "Got k=1 and dev: all of X trains then"),
        ((["x"], ["fine"]), {}, r"dev's y has classes that y lacks: \['fine'\]"),
        ((["x"], [1]), {}, "dev's y holds whole numbers, but the classes are texts"),
        ((["x", "y"], ["good"]), {}, "dev's X has 2 rows, y 1"),
    ):
        with pytest.raises(UserError, match=message):
            classifier(method="manual_prompt", **changes).fit(TEXTS, LABELS, dev=dev)


def test_labels_of_another_kind_do_not_score_zero():
    fitted = classifier(words=["bad", "great"], method="manual_prompt").fit(TEXTS, [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"y holds texts, but the classes are whole numbers"):
        fitted.score(TEXTS, ["0", "1", "0", "1"])
    with pytest.raises(UserError, match="X is empty"):
        fitted.predict([])
