"""What a reader who knows the words makes of the mini world's rows: their labels without noise."""

from collections.abc import Callable

from dfolora.mini import articles, events, news, reviews

VALUES = {
    name: (slot, number)
    for slot, values in {"who": events.PEOPLE, **events.SLOTS}.items()
    for number, names in enumerate(values)
    for name in names
}


def clause_is_good(clause: str) -> bool:
    words = clause.split()
    for good, known in reviews.WORDS.items():
        for word in known:
            if word in words:
                return good != ("not" in words)
    raise AssertionError(f"no opinion in {clause!r}")


def sentence(sentence: str) -> int:
    """The last opinion decides, be it after ``but`` or ``and``."""
    return int(clause_is_good(sentence.replace(" but ", " and ").split(" and ")[-1]))


def review(text: str) -> int:
    """The majority of the opinions."""
    opinions = [clause_is_good(clause) for clause in text.split(" . ")]
    assert 2 * sum(opinions) != len(opinions)
    return int(2 * sum(opinions) > len(opinions))


def story(text: str) -> int:
    """The topic with the most words."""
    words = text.split()
    counts = [
        sum(words.count(word) for word in (*agents, *matters))
        for agents, matters in zip(news.AGENTS, news.MATTERS, strict=True)
    ]
    assert counts.count(max(counts)) == 1, text
    return counts.index(max(counts))


def entry(content: str) -> int:
    """The noun after the first ``is a``."""
    noun = content.partition(" is a")[2].removeprefix("n").split()[0]
    return next(number for number, kind in enumerate(articles.TYPES) if noun in kind.nouns)


def facts(sentence: str) -> dict[str, int]:
    """Slot to value, of one sentence."""
    told = sentence.lower()
    found = [VALUES[name] for name in VALUES if f" {name} " in f" {told} "]
    assert len({slot for slot, _ in found}) == len(found), sentence
    return dict(found)


def paraphrase(first: str, second: str) -> int:
    return int(facts(first) == facts(second))


def inference(premise: str, hypothesis: str) -> int:
    known, claimed = facts(premise), facts(hypothesis)
    if not claimed.keys() <= known.keys():
        return 1
    return 0 if claimed.items() <= known.items() else 2


def entailment(first: str, second: str) -> int:
    claimed = facts(second)
    people = [facts(told) for told in first.split(" . ")]
    (about,) = [known for known in people if known["who"] == claimed["who"]]
    return int(not claimed.items() <= about.items())


READERS: dict[str, Callable[..., int]] = {
    "sst2": sentence,
    "yelpp": review,
    "agnews": story,
    "dbpedia": entry,
    "mrpc": paraphrase,
    "snli": inference,
    "rte": entailment,
}
"""By task: the fields in their order to the class."""
