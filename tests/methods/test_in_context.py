"""In-context learning: which demonstrations, how many, as which text; and what is predicted."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfolora.data import Encoder, Rows, load_rows
from dfolora.data.task import Prompt, Task
from dfolora.errors import UserError
from dfolora.methods import FewShotData, InContext, ManualPrompt
from dfolora.methods.in_context import BEFORE
from dfolora.model import Backbone, Limits
from dfolora.record import Store
from pipelines.one_run.execute import execute
from tests.commands import composed
from tests.conftest import mini_tokenizer, tiny_model
from tests.reference import in_context_texts
from tests.reference.one_candidate import answer_logits
from tests.shared import real_tokenizer

TASKS = Path(__file__).parents[2] / "conf" / "task"


def mini_task(name):
    task = Task.from_file(TASKS / f"{name}.yaml")
    return replace(task, dataset=replace(task.dataset, path="mini"))


def posed(name, kind, *, limit, tokenizer=None, train=24, tests=60):
    """A task's plain encoder, some rows to show, and some to test."""
    task = mini_task(name)
    plain = Encoder(
        prompt=task.prompt("released", kind),
        tokenizer=tokenizer or mini_tokenizer(kind),
        max_length=limit,
    )
    rows = load_rows(task, "test").select(range(tests))
    texts = [dict(row) for row in rows.texts]
    for row in texts[::3]:  # for lengths that differ by more than a few words
        row[task.fields[0]] = f"{row[task.fields[0]]} {row[task.fields[0]]}"
    return (
        plain,
        load_rows(task, "train").select(range(train)),
        replace(rows, texts=tuple(texts)),
    )


def shown_rows(encode, train):
    """The demonstrations in order, as row numbers, read off the text of all of them."""
    places = [encode.texts[-1].find(max(row.values(), key=len)) for row in train.texts]
    return sorted((n for n, place in enumerate(places) if place >= 0), key=places.__getitem__)


@pytest.mark.parametrize("limit", [54, 80, 256])
@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("name", ["sst2", "agnews", "mrpc"])
def test_rows_are_what_string_operations_and_trying_give(name, kind, limit):
    plain, train, tests = posed(name, kind, limit=limit)
    encode: Any = InContext(demonstrations=9).encoder(plain, train, 3)
    batch, counts = encode(tests), []
    order = shown_rows(encode, train)
    demonstrations = [(train.texts[n], train.labels[n]) for n in order]
    for number, row in enumerate(tests.texts):
        ids, count = in_context_texts.tokens(
            plain.prompt, plain.tokenizer, row, demonstrations, limit
        )
        counts.append(count)
        assert batch.input_ids[number][batch.attention_mask[number] == 1].tolist() == ids
        if kind == "masked":
            assert batch.answer[number] == ids.index(plain.tokenizer.mask_token_id)
        else:
            assert batch.answer[number] == len(ids) - 1
    assert encode.counts(batch) == counts
    assert max(counts) == 9 or min(counts) < max(counts)
    assert batch.truncated == 0
    assert batch.labels.tolist() == list(tests.labels)


@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased", "gpt2"])
@pytest.mark.parametrize("limit", [90, 512])
def test_as_many_as_fit_by_real_vocabularies(name, limit):
    tokenizer = real_tokenizer(name)
    kind = "causal" if name == "gpt2" else "masked"
    plain, train, tests = posed("yelpp", kind, limit=limit, tokenizer=tokenizer, tests=40)
    encode: Any = InContext().encoder(plain, train, 0)
    batch = encode(tests)
    counts = encode.counts(batch)
    assert batch.attention_mask.sum(1).max() <= limit
    more = [encode.texts[min(count + 1, len(train))] for count in counts]
    one_more = replace(
        tests,
        texts=tuple({**row, BEFORE: text} for row, text in zip(tests.texts, more, strict=True)),
    )
    for tokens, count in zip(encode.encoder.token_counts(one_more), counts, strict=True):
        assert tokens > limit or count == len(train)


@pytest.mark.parametrize("name", ["agnews", "dbpedia"])
def test_classes_take_turns_in_an_order_of_the_seed(name):
    plain, train, _ = posed(name, "masked", limit=100_000, train=80)
    orders = [shown_rows(InContext(demonstrations=80).encoder(plain, train, s), train)
              for s in (0, 0, 1)]  # fmt: skip
    assert orders[0] == orders[1] != orders[2]
    available = Counter(train.labels)
    for count in range(1, min(available.values()) * len(available)):
        shown = Counter(train.labels[n] for n in orders[0][:count])
        assert max(shown.values()) - min(shown[label] for label in available) <= 1
    first = {train.labels[n] for n in orders[0][: len(available)]}
    assert len(first) == len(available)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_none_is_the_manual_prompt(kind):
    plain, train, tests = posed("rte", kind, limit=26)
    backbone = Backbone(tiny_model(
        {"masked": "roberta", "causal": "gpt2"}[kind], vocab_size=len(plain.tokenizer)
    ))  # fmt: skip
    logits = []
    for method in (InContext(demonstrations=0), ManualPrompt()):
        encode: Any = method.encoder(plain, train, 0)
        batch = encode(tests)
        data = FewShotData(
            train=encode(train), dev=encode(train), label_ids=torch.tensor([5, 6]),
            metric="accuracy", encode=encode,
        )  # fmt: skip
        predictor = method.begin(backbone, data, 0).predictor()
        logits.append(predictor.logits(batch))
        assert batch.truncated > 0
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_prediction_is_the_models_own_and_tells_how_many_were_shown(kind, tmp_path):
    plain, train, tests = posed("sst2", kind, limit=64)
    model = tiny_model({"masked": "roberta", "causal": "gpt2"}[kind], vocab_size=1800)
    method = InContext()
    encode: Any = method.encoder(plain, train, 0)
    label_ids = torch.tensor([5, 6])
    data = FewShotData(
        train=encode(train), dev=encode(train), label_ids=label_ids,
        metric="accuracy", encode=encode,
    )  # fmt: skip
    fit = method.begin(Backbone(model, Limits(tokens=200)), data, 0)
    assert list(fit) == []
    predictor, batch = fit.predictor(), encode(tests)
    expected = answer_logits(model, batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    counts = encode.counts(batch)
    assert predictor.found == {
        "demonstrations_mean": pytest.approx(sum(counts) / len(counts)),
        "demonstrations_min": min(counts),
        "demonstrations_max": max(counts),
    }
    assert 0 < min(counts) < max(counts)
    assert (predictor.dev, predictor.searched, predictor.stored) == (None, 0, 0)
    predictor.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_rows_too_long_by_themselves_have_none_and_are_cut_and_counted():
    plain, train, tests = posed("sst2", "masked", limit=40)
    long = Rows(texts=({"sentence": "the film " * 50}, tests.texts[0]), labels=(0, 1))
    encode: Any = InContext().encoder(plain, train, 0)
    batch = encode(long)
    counts = encode.counts(batch)
    assert counts[0] == 0 < counts[1]
    assert batch.truncated == 1
    alone = plain(long.select([0]))
    assert torch.equal(batch.input_ids[0, : alone.input_ids.shape[1]], alone.input_ids[0])


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_texts_stay_text(kind):
    """Braces and spelled-out special tokens of shown rows and of the row itself."""
    tokenizer = mini_tokenizer(kind)
    special = {"masked": "<mask></s>", "causal": "<|endoftext|>"}[kind]
    pattern = {"masked": "{x} : {mask} .", "causal": "{x} :"}[kind]
    prompt = Prompt(kind=kind, pattern=pattern, label_words=("bad", "great"))
    plain = Encoder(prompt=prompt, tokenizer=tokenizer, max_length=256)
    train = Rows(texts=({"x": f"a {special} {{x}} {{mask}}"}, {"x": "{"}), labels=(0, 1))
    encode: Any = InContext().encoder(plain, train, 0)
    batch = encode(Rows(texts=({"x": f"}} {special}"},), labels=(0,)))
    assert encode.counts(batch) == [2]
    ids = batch.input_ids[0].tolist()
    framing = [i for i in ids if i in tokenizer.all_special_ids]
    assert framing == {"masked": [0, tokenizer.mask_token_id, 2], "causal": []}[kind]
    text = tokenizer.decode(ids)
    assert "{x} {mask}" in text
    assert " great" in text
    assert " bad" in text


def test_filler_words_stand_in_every_demonstration():
    prompt = Prompt(kind="causal", pattern="{filler} {x} is", label_words=("bad", "great"))
    plain = Encoder(prompt=prompt, tokenizer=mini_tokenizer("causal"), max_length=500)
    rows = Rows(texts=({"x": "a"}, {"x": "b"}), labels=(0, 1))
    (row, _) = plain.tokenizer.batch_decode(InContext().encoder(plain, rows, 0)(rows).input_ids)
    assert row.count(plain.filler_words()) == 3


def test_released_readout_pads_groups_together():
    plain, train, tests = posed("sst2", "causal", limit=60)
    encode: Any = InContext().encoder(replace(plain, readout="released"), train, 0)
    batch = encode(tests, 16)
    lengths = batch.attention_mask.sum(1)
    assert batch.answer[:16].tolist() == [int(lengths[:16].max()) - 1] * 16


def test_demonstrations_longer_than_the_model_are_refused():
    plain, train, _ = posed("sst2", "masked", limit=20)
    message = (
        r"The demonstrations are longer than the model: .* are \d+ tokens, the limit is 20\. "
        r"Raise data.max_length .* method.demonstrations=0"
    )
    with pytest.raises(UserError, match=message):
        InContext().encoder(plain, train, 0)
    InContext(demonstrations=0).encoder(plain, train, 0)


@pytest.mark.parametrize("value", [-1, 2.5, True])
def test_number_must_be_a_whole_one(value):
    architecture = Backbone(tiny_model("roberta")).architecture
    with pytest.raises(UserError, match=r"method.demonstrations=.* must be a whole number"):
        InContext(demonstrations=value).check(architecture)


def test_batches_of_another_encoder_are_refused(backbone, batch, label_ids):
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    with pytest.raises(TypeError, match="its own encoder"):
        InContext().begin(backbone, data, 0)


def test_run_records_how_many_were_shown(in_folder):
    for task, model in (("mrpc", "mini_roberta"), ("dbpedia", "mini_gpt2")):
        config, choices = composed(
            "row=in_context", f"task=mini/{task}", f"model={model}", "method.demonstrations=3"
        )
        outcome = execute(config, choices, sweep_id="s")
        assert "test 0." in outcome.line
        client = Store(f"sqlite:///{in_folder}/mlflow.db")._client
        metrics = client.get_run(outcome.run_id).data.metrics
        assert metrics["fitted/demonstrations_mean"] == 3
        assert metrics["calls"] == metrics["params/searched"] == 0
        assert "dev/selected_score" not in metrics
