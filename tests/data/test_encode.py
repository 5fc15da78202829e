import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dfolora.data import Rows, encode, fits
from dfolora.data.task import Prompt
from dfolora.data.tokenization import appended
from dfolora.errors import UserError

WORDS = ["a", "b", "c", "d", "It", "was", "?", "."]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
MASKED = Prompt(kind="masked", pattern="{x} ? {mask} {y}", label_words=("a", "b"))
CAUSAL = Prompt(kind="causal", pattern="{x} It was", label_words=("a", "b"))


def toy(kind="masked", size=0, **changes):
    """A word-level tokenizer: masked frames rows by <s> and </s>, causal has no pad token."""
    names = [*SPECIAL, *WORDS, *(f"w{n}" for n in range(size))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "</s>"}
    if kind == "masked":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
        special |= {"bos_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, name_or_path="toy", **(special | changes)
    )


def rows(*texts, labels=None):
    return Rows(
        texts=tuple({"x": x, "y": y} for x, y in texts),
        labels=tuple(labels or [0] * len(texts)),
    )


def pieces(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_masked_rows_are_padded_and_answered_at_the_mask():
    tokenizer = toy()
    batch = encode(rows(("a b", "c"), ("a", ""), labels=[1, 0]), MASKED, tokenizer, max_length=9)
    assert pieces(tokenizer, batch.input_ids[0]) == "<s> a b ? <mask> c </s>"
    assert pieces(tokenizer, batch.input_ids[1]) == "<s> a ? <mask> </s> <pad> <pad>"
    assert batch.attention_mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert batch.answer.tolist() == [4, 3]
    assert batch.labels.tolist() == [1, 0]
    assert batch.truncated == 0
    for tensor in (batch.input_ids, batch.attention_mask, batch.answer, batch.labels):
        assert tensor.dtype == torch.long


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers():
    two = rows(("a b", "c"), ("a", ""))
    left, right = (
        encode(two, MASKED, toy(padding_side=side), max_length=9) for side in ("left", "right")
    )
    assert torch.equal(left.input_ids, right.input_ids)
    assert left.attention_mask[1].tolist() == [1] * 5 + [0] * 2


def test_causal_rows_are_answered_at_the_last_token_and_padded_by_0():
    tokenizer = toy("causal")
    assert tokenizer.pad_token_id is None
    batch = encode(rows(("a b", ""), ("c", "")), CAUSAL, tokenizer, max_length=9)
    assert pieces(tokenizer, batch.input_ids[0]) == "a b It was"
    assert batch.answer.tolist() == [3, 2]
    assert batch.input_ids[1, 3] == 0


@pytest.mark.parametrize(
    ("group", "answer"),
    [(None, [4] * 5), (2, [3, 3, 4, 4, 2]), (16, [4] * 5), (1, [3, 2, 2, 4, 2])],
)
def test_released_readout_is_the_groups_last_column(group, answer):
    five = rows(("a b", ""), ("c", ""), ("d", ""), ("a b c", ""), ("a", ""))
    batch = encode(five, CAUSAL, toy("causal"), max_length=9, readout="released", group=group)
    assert batch.answer.tolist() == answer


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("a b c d a", "b", "<s> a b c ? <mask> b </s>"),  # only the longest is cut
        ("b", "a b c d a", "<s> b ? <mask> a b c </s>"),
        ("a b c d a", "b c d a b", "<s> a b ? <mask> b c </s>"),  # both, evenly
        ("a b c", "b", "<s> a b c ? <mask> b </s>"),  # fits exactly
    ],
)
def test_text_is_cut_and_the_prompt_is_not(x, y, expected):
    tokenizer = toy()
    batch = encode(rows((x, y), ("a", "")), MASKED, tokenizer, max_length=8)
    assert pieces(tokenizer, batch.input_ids[0]).removesuffix(" <pad>") == expected
    assert batch.truncated == (1 if len(x) + len(y) > 6 else 0)
    assert batch.answer[0] == expected.split().index("<mask>")


def test_rows_that_fit_are_those_not_cut():
    three = rows(("a b c", "b"), ("a b c d", "b"), ("a", ""))  # 8, 9 and 5 tokens
    assert fits(three, MASKED, toy(), max_length=8) == (True, False, True)
    assert encode(three, MASKED, toy(), max_length=8).truncated == 1


def test_causal_prompt_survives_the_cut():
    tokenizer = toy("causal")
    batch = encode(rows(("a b c d a b c", "")), CAUSAL, tokenizer, max_length=4)
    assert pieces(tokenizer, batch.input_ids[0]) == "a b It was"


def test_prompt_alone_too_long():
    with pytest.raises(UserError, match="The prompt alone is 4 tokens, above the limit of 3"):
        encode(rows(("a", "")), MASKED, toy(), max_length=3)


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_in_texts_stay_text(token):
    tokenizer = toy()
    batch = encode(rows((f"a {token} {token}", token)), MASKED, tokenizer, max_length=30)
    plain = f"{token[0]} {token[1:]}"
    ids = batch.input_ids[0].tolist()
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert ids.count(unknown) == 3 * len(plain.split())  # pieces that no vocabulary word is
    for special in {"<pad>", "<s>", "</s>", "<mask>"}:
        framing = special in {"<s>", "</s>", "<mask>"}
        assert ids.count(tokenizer.convert_tokens_to_ids(special)) == framing


def test_special_tokens_added_later_are_special_too():
    """As chat models have them; what is added as a plain word stays one."""
    tokenizer = toy()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.add_tokens(["great"])
    added, word = tokenizer.convert_tokens_to_ids(["<|user|>", "great"])
    batch = encode(rows(("a <|user|> great", "")), MASKED, tokenizer, max_length=30)
    ids = batch.input_ids[0].tolist()
    assert added not in ids
    assert ids.count(word) == 1
    assert batch.answer.tolist() == [ids.index(tokenizer.mask_token_id)]


def test_braces_in_texts_are_text():
    batch = encode(rows(("{mask} {x}", "{")), MASKED, toy(), max_length=30)
    assert batch.answer.tolist() == [4]


def test_filler_is_the_vocabulary_from_1000():
    prompt = Prompt(kind="causal", pattern="{filler} {x}", label_words=("a", "b"))
    tokenizer = toy("causal", size=1050)
    batch = encode(rows(("a", "")), prompt, tokenizer, max_length=60)
    assert batch.input_ids[0].tolist() == [*range(1000, 1050), tokenizer.convert_tokens_to_ids("a")]
    cut = encode(rows(("a b c", "")), prompt, tokenizer, max_length=51)
    assert torch.equal(cut.input_ids, batch.input_ids)


def test_filler_needs_a_large_vocabulary():
    prompt = Prompt(kind="causal", pattern="{filler} {x}", label_words=("a", "b"))
    with pytest.raises(UserError, match=r"needs the vocabulary ids 1000 to 1049, but toy has 13"):
        encode(rows(("a", "")), prompt, toy(), max_length=60)


def test_masked_prompt_needs_a_mask_token():
    with pytest.raises(UserError, match="Tokenizer toy has no mask token for the masked pattern"):
        encode(rows(("a", "")), MASKED, toy("causal"), max_length=9)


def test_second_mask_in_the_pattern_is_found():
    prompt = Prompt(kind="masked", pattern="{x} {mask} <mask>", label_words=("a", "b"))
    with pytest.raises(UserError, match=r"Mask lost: row 1 has 2 mask tokens instead of 1 .*toy"):
        encode(rows(("a", "")), prompt, toy(), max_length=9)


@pytest.mark.parametrize(
    ("pattern", "answer"), [("{x} {hole} {mask}", 3), ("{mask} {x} {hole} {hole}", 1)]
)
def test_holes_are_masks_that_do_not_answer(pattern, answer):
    prompt = Prompt(kind="masked", pattern=pattern, label_words=("a", "b"))
    batch = encode(rows(("a", "")), prompt, toy(), max_length=9)
    assert batch.answer.tolist() == [answer]
    masks = batch.input_ids[0] == toy().mask_token_id
    assert masks.sum() == pattern.count("hole") + 1


def test_mask_that_the_tokenizer_drops_is_found():
    glued = Prompt(kind="masked", pattern="{x}{mask}", label_words=("a", "b"))
    with pytest.raises(UserError, match="Mask lost: row 1 has 0 mask tokens"):
        encode(rows(("a", "")), glued, toy(split_special_tokens=True), max_length=9)


def ending(tokenizer, single, pair="<s> $A $B </s>"):
    """The tokenizer, with a template around texts."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", 2), ("</s>", 3), ("d", 8)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "before"),
    [("$A </s>", 0), ("<s> $A </s>", 1), ("<s> $A </s> </s>", 1), ("$A d", 0), ("<s> $A", 1)],
)
def test_causal_answer_is_at_the_prompts_end_whatever_the_tokenizer_appends(template, before):
    """A word like any other may be appended, too."""
    tokenizer, plain = ending(toy("causal"), template), toy("causal")
    some = rows(("a b d", ""), ("c", ""), ("", ""))
    batch = encode(some, CAUSAL, tokenizer, max_length=5 + before)
    expected = encode(some, CAUSAL, plain, max_length=5)
    assert batch.input_ids[:, before:].tolist() == expected.input_ids.tolist()
    assert (batch.answer - before).tolist() == expected.answer.tolist()
    assert batch.truncated == expected.truncated == 0
    assert fits(some, CAUSAL, tokenizer, max_length=4 + before) == (False, True, True)
    cut = encode(some, CAUSAL, tokenizer, max_length=4 + before)
    assert pieces(tokenizer, cut.input_ids[0, before:]) == "a b It was"


def test_end_that_the_prompt_itself_spells_stays():
    prompt = Prompt(kind="causal", pattern="{x} It </s>", label_words=("a", "b"))
    batch = encode(rows(("a", "")), prompt, ending(toy("causal"), "$A </s>"), max_length=9)
    assert batch.input_ids[0].tolist()[-1] == 3
    assert batch.answer.tolist() == [2]


class Hiding:
    """Writes a text otherwise among special tokens than alone."""

    name_or_path = "hiding"

    def encode(self, _text, *, add_special_tokens):
        assert not add_special_tokens
        return [5]

    def __call__(self, *_texts):
        return {"input_ids": [2, 3]}


def test_tokenizer_that_hides_where_its_text_ends_is_told():
    with pytest.raises(UserError, match=r"hiding writes 'a' as \[2, 3\], in which \[5\], "):
        appended(Hiding())


def test_empty_causal_row():
    prompt = Prompt(kind="causal", pattern="{x}", label_words=("a", "b"))
    with pytest.raises(UserError, match="Row 2 has no token after encoding"):
        encode(rows(("a", ""), ("", "")), prompt, toy("causal"), max_length=9)


def test_no_rows():
    with pytest.raises(UserError, match="No rows to encode"):
        encode(rows(), CAUSAL, toy("causal"), max_length=9)


def test_unknown_readout():
    with pytest.raises(
        UserError, match="Readout 'first' is unknown; choose last_token or released"
    ):
        encode(rows(("a", "")), CAUSAL, toy("causal"), max_length=9, readout="first")
