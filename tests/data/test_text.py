"""Rows as plain text: what is read, where, and what is cut."""

import copy
from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing

from dfolora.data import Encoder, Rows, TextEncoder
from dfolora.data.task import Prompt
from dfolora.errors import UserError
from tests.conftest import mini_tokenizer
from tests.shared import real_tokenizer

ONE = Rows(texts=({"text": "a good film ."}, {"text": "bad"}), labels=(1, 0))
TWO = Rows(texts=({"first": "a good film .", "second": "it is bad"},), labels=(0,))


def encoder(kind, limit=128):
    return TextEncoder(tokenizer=mini_tokenizer(kind), kind=kind, max_length=limit)


def pieces_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_masked_text_is_between_special_tokens_and_read_at_the_first():
    tokenizer = mini_tokenizer("masked")
    batch = encoder("masked")(ONE)
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    for row, text in enumerate(("a good film .", "bad")):
        expected = [first, *pieces_of(tokenizer, text), last]
        assert batch.input_ids[row, : len(expected)].tolist() == expected
        assert batch.attention_mask[row].sum() == len(expected)
    assert batch.answer.tolist() == [0, 0]
    assert batch.labels.tolist() == [1, 0]
    assert batch.truncated == 0


def test_causal_text_has_nothing_around_it_and_is_read_at_the_last():
    tokenizer = mini_tokenizer("causal")
    batch = encoder("causal")(ONE)
    expected = [pieces_of(tokenizer, text) for text in ("a good film .", "bad")]
    assert batch.input_ids[0].tolist() == expected[0]
    assert batch.answer.tolist() == [len(row) - 1 for row in expected]


@pytest.mark.parametrize("rows", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("limit", [128, 6])
def test_causal_text_is_read_at_its_last_token_whatever_is_appended(rows, limit):
    tokenizer = copy.deepcopy(mini_tokenizer("causal"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|> <|endoftext|>",
        special_tokens=[("<|endoftext|>", 0)],
    )  # fmt: skip
    batch = TextEncoder(tokenizer=tokenizer, kind="causal", max_length=limit)(rows)
    expected = encoder("causal", limit)(rows)
    assert batch.input_ids.tolist() == expected.input_ids.tolist()
    assert batch.answer.tolist() == expected.answer.tolist()
    assert batch.truncated == expected.truncated == (limit == 6 and rows is TWO)


@pytest.mark.parametrize("name", ["mini", "roberta-base", "bert-base-uncased"])
def test_pair_is_joined_as_the_tokenizers_do(name):
    tokenizer = mini_tokenizer("masked") if name == "mini" else real_tokenizer(name)
    batch = TextEncoder(tokenizer=tokenizer, kind="masked", max_length=64)(TWO)
    first, second = (pieces_of(tokenizer, text) for text in TWO.texts[0].values())
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    between = [end] if name == "bert-base-uncased" else [end, end]
    assert batch.input_ids[0].tolist() == [begin, *first, *between, *second, end]


def test_pair_of_a_causal_model_is_one_text_after_the_other():
    tokenizer = mini_tokenizer("causal")
    first, second = (pieces_of(tokenizer, text) for text in TWO.texts[0].values())
    assert encoder("causal")(TWO).input_ids[0].tolist() == [*first, *second]


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_long_texts_lose_their_ends_and_are_counted(kind):
    long, short = " ".join(["film"] * 40), "bad"
    rows = Rows(texts=({"a": long, "b": short}, {"a": short, "b": short}), labels=(0, 1))
    whole, cut = encoder(kind)(rows), encoder(kind, 20)(rows)
    assert (whole.truncated, cut.truncated) == (0, 1)
    assert cut.attention_mask.sum(-1).tolist() == [20, int(whole.attention_mask[1].sum())]
    tail = pieces_of(mini_tokenizer(kind), short)  # the longest text is cut, the other is not
    ids = [
        token
        for token in cut.input_ids[0].tolist()
        if token not in mini_tokenizer(kind).all_special_ids
    ]
    assert ids[-len(tail) :] == tail
    assert encoder(kind, 20)(rows).input_ids.equal(cut.input_ids)


def test_special_token_in_a_text_stays_text():
    tokenizer = mini_tokenizer("masked")
    batch = encoder("masked")(Rows(texts=({"text": "so </s> bad <mask>"},), labels=(0,)))
    ids = batch.input_ids[0].tolist()
    special = [token for token in ids if token in (tokenizer.eos_token_id, tokenizer.mask_token_id)]
    assert special == [tokenizer.eos_token_id]


def test_tokenizer_and_limit_are_those_of_the_prompts_encoder():
    prompt = Prompt(kind="causal", pattern="{text} is", label_words=("a", "b"))
    plain = Encoder(prompt=prompt, tokenizer=mini_tokenizer("causal"), max_length=31)
    assert TextEncoder.of(plain) == encoder("causal", 31)


def test_rows_that_cannot_be_read_are_told():
    empty = Rows(texts=({"text": "film"}, {"text": ""}), labels=(0, 1))
    with pytest.raises(UserError, match="Row 2 has no token after encoding"):
        encoder("causal")(empty)
    assert encoder("masked")(empty).attention_mask[1].sum() == 2  # a first token is there to read
    with pytest.raises(UserError, match="No rows to encode"):
        encoder("masked")(Rows(texts=(), labels=()))
    with pytest.raises(UserError, match="A limit of 4 tokens leaves no room for text beside 4"):
        replace(encoder("masked"), max_length=4)(ONE)
