"""Every shipped prompt on the real vocabularies: where it is answered, and by which pieces."""

from pathlib import Path

import pytest

from dfolora.data import Rows, eligible_rows, encode, load_rows
from dfolora.data.task import Task, label_word_ids
from tests.shared import real_tokenizer, shared

TASKS = {
    path.stem: Task.from_file(path)
    for path in sorted((Path(__file__).parents[2] / "conf" / "task").glob("*.yaml"))
}
TOKENIZERS = {"masked": ("roberta-base", "bert-base-uncased"), "causal": ("gpt2",)}
CASES = [
    pytest.param(task, variant, prompt, name, id=f"{task.name}-{variant}-{prompt.kind}-{name}")
    for task in TASKS.values()
    for variant, by_kind in task.prompts.items()
    for prompt in by_kind.values()
    for name in TOKENIZERS[prompt.kind]
]

SAMPLE = ("A Red fox, running .", "It's 3 ducks")
"""Texts for a task's one or two fields."""

FILLED = {
    ("sst2", "released", "masked"): "A Red fox, running . . It was<mask> .",
    ("sst2", "published", "masked"): "A Red fox, running . . It was<mask> .",
    ("sst2", "released", "causal"): "A Red fox, running . . It was",
    ("sst2", "bbt", "causal"): "A Red fox, running . . The sentiment is",
    ("yelpp", "released", "masked"): "A Red fox, running . . It was<mask> .",
    ("yelpp", "published", "masked"): "A Red fox, running . . It was<mask> .",
    ("yelpp", "released", "causal"): "A Red fox, running . . It is",
    ("agnews", "released", "masked"): "<mask> News: A Red fox, running .",
    ("agnews", "published", "masked"): "<mask> News A Red fox, running . .",
    ("agnews", "released", "causal"): "A Red fox, running . News:",
    ("agnews", "bbt", "causal"): "A Red fox, running . The news above is about",
    ("dbpedia", "released", "masked"): "[ Category:<mask> ] A Red fox, running .",
    ("dbpedia", "published", "masked"): "Category:<mask> A Red fox, running .",
    ("dbpedia", "released", "causal"): "A Red fox, running . The text above is about",
    ("mrpc", "released", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("mrpc", "published", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("mrpc", "released", "causal"): "A Red fox, running . the It's 3 ducks ? Answer:",
    ("snli", "released", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("snli", "published", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("snli", "released", "causal"): "A Red fox, running . the It's 3 ducks ? Answer:",
    ("rte", "released", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("rte", "published", "masked"): "A Red fox, running . ?<mask> , It's 3 ducks",
    ("rte", "released", "causal"): "A Red fox, running . It's 3 ducks Answer:",
    ("sst2", "gap3", "masked"): "A Red fox, running .<mask>",
    ("sst2", "gap3", "causal"): "A Red fox, running .",
    ("yelpp", "gap3", "masked"): "A Red fox, running .<mask>",
    ("yelpp", "gap3", "causal"): "A Red fox, running .",
    ("agnews", "gap3", "masked"): "A Red fox, running .<mask>",
    ("agnews", "gap3", "causal"): "A Red fox, running .",
    ("dbpedia", "gap3", "masked"): "<mask> A Red fox, running .",
    ("dbpedia", "gap3", "causal"): "A Red fox, running .",
    ("mrpc", "gap3", "masked"): "A Red fox, running .<mask> It's 3 ducks",
    ("mrpc", "gap3", "causal"): "A Red fox, running . It's 3 ducks",
    ("snli", "gap3", "masked"): "A Red fox, running .<mask> It's 3 ducks",
    ("snli", "gap3", "causal"): "A Red fox, running . It's 3 ducks",
    ("rte", "gap3", "masked"): "A Red fox, running .<mask> It's 3 ducks",
    ("rte", "gap3", "causal"): "A Red fox, running . It's 3 ducks",
    ("sst2", "natural", "masked"): "A Red fox, running . It was<mask>.",
    ("sst2", "natural", "causal"): "A Red fox, running . It was",
    ("yelpp", "natural", "masked"): "A Red fox, running . It was<mask>.",
    ("yelpp", "natural", "causal"): "A Red fox, running . It was",
    ("agnews", "natural", "masked"): "<mask> News: A Red fox, running .",
    ("agnews", "natural", "causal"): "A Red fox, running . This news is about",
    ("dbpedia", "natural", "masked"): "Category:<mask>. A Red fox, running .",
    ("dbpedia", "natural", "causal"): "A Red fox, running . This text is about the category",
    ("mrpc", "natural", "masked"): "A Red fox, running .<mask>, It's 3 ducks",
    (
        "mrpc",
        "natural",
        "causal",
    ): "A Red fox, running . It's 3 ducks Do they mean the same? Answer:",
    ("snli", "natural", "masked"): "A Red fox, running .<mask>, It's 3 ducks",
    ("snli", "natural", "causal"): "A Red fox, running . Is it true that: It's 3 ducks Answer:",
    ("rte", "natural", "masked"): "A Red fox, running .<mask>, It's 3 ducks",
    ("rte", "natural", "causal"): "A Red fox, running . Is it true that: It's 3 ducks Answer:",
}
"""The sample in each prompt as the tokens spell it (RoBERTa's mask swallows the space before it),
written out by hand from the released loaders and GAP3's fields; a new prompt needs a line here."""

LABEL_WORDS = {
    ("sst2", "masked"): "bad great",
    ("sst2", "causal"): "negative positive",
    ("yelpp", "masked"): "bad great",
    ("yelpp", "causal"): "negative positive",
    ("agnews", "masked"): "World Sports Business Tech",
    ("agnews", "causal"): "world sports business tech",
    ("dbpedia", "masked"): "Company Education Artist Athlete Office Transportation Building "
    "Natural Village Animal Plant Album Film Written",
    ("dbpedia", "causal"): "company education artist athlete office transportation building "
    "natural village animal plant album film written",
    ("mrpc", "masked"): "No Yes",
    ("mrpc", "causal"): "No Yes",
    ("snli", "masked"): "Yes Maybe No",
    ("snli", "causal"): "Yes Maybe No",
    ("rte", "masked"): "Yes No",
    ("rte", "causal"): "Yes No",
}
"""The words in the order of the hub's labels, the same in both variants of the paper."""
GAP3_WORDS = {
    "sst2": ("bad good",) * 2,
    "yelpp": ("bad good",) * 2,
    "agnews": ("world sports business technology",) * 2,
    "dbpedia": (
        "company education artist athlete office transportation building "
        "nature village animal plant album film literature",
    )
    * 2,
    "mrpc": ("No Yes", "no yes"),
    "snli": ("Yes Maybe No", "always sometimes never"),
    "rte": ("Yes No", "true false"),
}
"""Those of GAP3, masked and causal."""
NATURAL_WORDS = {
    "sst2": "bad great",
    "yelpp": "bad great",
    "agnews": "World Sports Business Technology",
    "dbpedia": "company school artist athlete politician transportation building "
    "nature village animal plant album film book",
    "mrpc": "No Yes",
    "snli": "Yes Maybe No",
    "rte": "Yes No",
}
"""Those of the natural prompts, masked and causal alike."""

FIRST_PIECE = {
    ("roberta-base", "released"): {
        "Athlete": "A",
        "Transportation": "Trans",
        "Village": "Vill",
        "Plant": "Pl",
        "Album": "Al",
        "athlete": "ath",
        "transportation": "trans",
        "village": "vill",
        "literature": "liter",
        "politician": "polit",
    },
    ("roberta-base", "natural"): {"Athlete": "ĠAth"},
    ("gpt2", "released"): {
        "athlete": "ath",
        "transportation": "trans",
        "village": "vill",
        "literature": "liter",
        "politician": "polit",
    },
    ("gpt2", "natural"): {},
    ("bert-base-uncased", "released"): {},
    ("bert-base-uncased", "natural"): {},
}
"""Label words that are not one piece, and the piece that stands for them."""


def squeezed(text):
    """Without case and white space, which BERT's vocabulary does not keep."""
    return "".join(text.lower().split())


@pytest.mark.parametrize(("task", "variant", "prompt", "name"), CASES)
def test_answer_is_where_the_prompt_asks(task, variant, prompt, name):
    tokenizer = real_tokenizer(name)
    rows = Rows(texts=(dict(zip(task.fields, SAMPLE, strict=False)),), labels=(0,))
    batch = encode(rows, prompt, tokenizer, max_length=512)
    ids, answer = batch.input_ids[0].tolist(), int(batch.answer[0])
    expected = FILLED[task.name, variant, prompt.kind]
    if "{filler}" in prompt.pattern:
        # The released code decodes the 50 ids and encodes the words anew: 49 tokens for GPT-2.
        expected = f"{tokenizer.decode(list(range(1000, 1050)))} {expected}"
    if prompt.kind == "causal":
        assert tokenizer.decode(ids) == expected
        assert answer == len(ids) - 1
    else:
        before, after = expected.split("<mask>")
        same = squeezed if name == "bert-base-uncased" else str
        assert same(tokenizer.decode(ids[1:answer])) == same(before)
        assert same(tokenizer.decode(ids[answer + 1 : -1])) == same(after)
        assert ids[answer] == tokenizer.mask_token_id
        assert [ids[0], ids[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


@pytest.mark.parametrize("style", ["released", "natural"])
@pytest.mark.parametrize(("task", "variant", "prompt", "name"), CASES)
def test_label_words_are_these_pieces(task, variant, prompt, name, style):
    tokenizer = real_tokenizer(name)
    words = LABEL_WORDS[task.name, prompt.kind]
    if variant == "gap3":
        words = GAP3_WORDS[task.name][prompt.kind == "causal"]
    if variant == "natural":
        words = NATURAL_WORDS[task.name]
    assert " ".join(prompt.label_words) == words
    ids = label_word_ids(prompt, tokenizer, style, cut=True)
    assert len(set(ids)) == len(task.classes)
    space = "Ġ" if style == "natural" and name != "bert-base-uncased" else ""
    odd = FIRST_PIECE[name, style]
    spelled = [word.lower() if name == "bert-base-uncased" else word for word in prompt.label_words]
    expected = [odd.get(word, space + word) for word in spelled]
    assert tokenizer.convert_ids_to_tokens(list(ids)) == expected


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased", "gpt2"])
@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_real_rows_have_one_answer_each(task, name, part):
    tokenizer = real_tokenizer(name)
    rows = load_rows(task, part, root=shared("data"))
    rows = rows.select(range(0, len(rows), 10))
    kind = "causal" if name == "gpt2" else "masked"
    batch = encode(rows, task.prompt("released", kind), tokenizer, max_length=512)
    assert batch.input_ids.shape[1] <= 512
    if kind == "causal":
        assert batch.answer.tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    else:
        masks = batch.input_ids == tokenizer.mask_token_id
        assert masks.sum(1).tolist() == [1] * len(rows)
        assert masks.int().argmax(1).tolist() == batch.answer.tolist()
    assert batch.truncated == 0 or task.name == "yelpp"


@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased", "gpt2"])
def test_length_rule_keeps_train_rows_whole(name):
    """The default limit in words needs no truncation on Yelp, the one task with long texts."""
    rows = load_rows(TASKS["yelpp"], "train", root=shared("data"))
    eligible = eligible_rows(rows)
    assert 0.95 < sum(eligible) / len(rows) < 1
    kept = rows.select(number for number, short in enumerate(eligible) if short)
    prompt = TASKS["yelpp"].prompt("released", "causal" if name == "gpt2" else "masked")
    assert encode(kept, prompt, real_tokenizer(name), max_length=512).truncated == 0
    assert encode(rows, prompt, real_tokenizer(name), max_length=512).truncated > 0


@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased"])
@pytest.mark.parametrize("spelled", ["<mask>", "</s>", "[MASK]", "[SEP]", "<|endoftext|>"])
def test_real_special_tokens_in_a_text_stay_text(name, spelled):
    tokenizer = real_tokenizer(name)
    task = TASKS["sst2"]
    texts = ({"sentence": f"so {spelled}{spelled} bad"}, {"sentence": "so bad"})
    batch = encode(
        Rows(texts=texts, labels=(0, 0)),
        task.prompt("released", "masked"),
        tokenizer,
        max_length=512,
    )
    attacked, plain = (
        [i for i in row if i in tokenizer.all_special_ids and i != tokenizer.pad_token_id]
        for row in batch.input_ids.tolist()
    )
    assert attacked == plain
