"""The mini world: labels that follow from the texts, pairs that need both, nothing copied."""

import re
from hashlib import sha256

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from dfolora.mini.world import NOISE, ROWS, corpus, rows
from dfolora.mini.writer import ENDS, STARTS, Writer
from tests.reference.careful_reader import READERS, story

PAIRS = ("mrpc", "snli", "rte")
CORPUS = 60_000
DIGEST = "9d756caf9aded4e1"
"""Of all rows of world 0."""


@pytest.fixture(scope="module")
def documents():
    return corpus(CORPUS)


def sentences(text):
    return {part.strip().lower() for part in re.split(r" [.?,:]|\n|News:", text) if part.strip()}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("task", READERS)
def test_a_careful_reader_finds_every_label_but_the_noise(task, part):
    found = rows(task, part)
    read = tuple(READERS[task](*text.values()) for text in found.texts)
    assert read == found.readings
    agreement = np.mean(np.equal(found.labels, found.readings))
    spread = (NOISE * (1 - NOISE) / ROWS[part]) ** 0.5
    assert abs(agreement - (1 - NOISE)) < 4 * spread


def test_the_tables_rows_stay_what_they_are():
    found = [rows(task, part) for task in READERS for part in ("train", "test")]
    told = [([*map(dict, part.texts)], part.labels, part.readings) for part in found]
    assert sha256(repr(told).encode()).hexdigest()[:16] == DIGEST


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("task", READERS)
def test_another_world_has_other_rows_of_the_same_kind(task, part):
    other, here = rows(task, part, world=1), rows(task, part)
    assert tuple(READERS[task](*text.values()) for text in other.texts) == other.readings
    theirs, ours = ({tuple(text.values()) for text in each.texts} for each in (other, here))
    assert len(theirs) == ROWS[part]
    # SST-2 has sentences of four words, of which 85 test rows have the same.
    assert len(theirs & ours) < len(theirs) / 10


def test_the_reader_can_fail():
    text = rows("sst2", "train").texts[0]["sentence"]
    with pytest.raises(AssertionError, match=text):
        story(text)


@pytest.mark.parametrize("task", READERS)
def test_classes_are_balanced_and_no_row_comes_twice(task):
    seen = set()
    for part in ("train", "test"):
        found = rows(task, part)
        counts = np.bincount(found.readings)
        assert counts.max() - counts.min() <= 1
        texts = {tuple(text.values()) for text in found.texts}
        assert len(texts) == len(found.texts) == ROWS[part]
        assert not texts & seen
        seen |= texts


def one_sentence_accuracy(task: str, field: str) -> float:
    """Of words and word pairs of one field, five-fold over the train rows."""
    found = rows(task, "train")
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(C=0.1))
    texts = [text[field] for text in found.texts]
    return cross_val_score(model, texts, found.labels, cv=5).mean()


@pytest.mark.parametrize("task", PAIRS)
def test_one_sentence_of_a_pair_tells_nothing(task):
    classes = max(rows(task, "train").labels) + 1
    spread = (1 / classes * (1 - 1 / classes) / ROWS["train"]) ** 0.5
    for field in rows(task, "train").texts[0]:
        assert one_sentence_accuracy(task, field) < 1 / classes + 4 * spread, field


def test_one_sentence_tells_where_it_should():
    assert one_sentence_accuracy("sst2", "sentence") > 0.75


@pytest.fixture(scope="module")
def known(documents):
    return set().union(*map(sentences, documents))


@pytest.mark.parametrize("task", READERS)
def test_no_test_row_stands_in_the_corpus(task, known):
    """Nor is one put together of sentences that do."""
    for text in rows(task, "test").texts:
        assert not sentences(" . ".join(text.values())) <= known, text


def test_the_corpus_is_known_well_enough_to_tell(known):
    documents = corpus(50, "held-out")
    assert sum(bool(sentences(text) & known) for text in documents) > 30


def test_names_of_test_rows_are_new(documents):
    def names(texts):
        return {
            start + end for start in STARTS for end in ENDS if any(start + end in t for t in texts)
        }

    known = names(documents[:5000]) | names(t["content"] for t in rows("dbpedia", "train").texts)
    new = names([t["content"] for t in rows("dbpedia", "test").texts])
    assert len(known) > 200
    assert len(new) > 100
    assert not known & new


def test_pairings_are_parted():
    free, kept = Writer("a"), Writer("a", held_out=True)
    firsts, seconds = "abcdefghij", "ABCDEFGHIJ"
    open_to_all = {free.pair(firsts, seconds) for _ in range(3000)}
    held_out = {kept.pair(firsts, seconds) for _ in range(500)}
    assert not open_to_all & held_out
    assert len(open_to_all) == 80
    assert len(held_out) == 20


def test_writer_draws_what_it_says():
    writer = Writer("test")
    often = np.bincount([writer.often(range(4)) for _ in range(8000)], minlength=4) / 8000
    assert often == pytest.approx(np.array([12, 6, 4, 3]) / 25, abs=0.03)
    assert sorted(writer.several("abcd", 4)) == list("abcd")
    assert np.mean([writer.chance(0.3) for _ in range(8000)]) == pytest.approx(0.3, abs=0.03)
    assert [Writer("same").number(1000) for _ in range(3)] == [Writer("same").number(1000)] * 3


def test_corpus_is_the_same_on_every_call_and_longer_ones_only_go_on():
    assert corpus(200)[:50] == corpus(50)
    assert corpus(50) != corpus(50, "held-out")
