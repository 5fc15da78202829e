"""A generated stand-in for the seven datasets: no network, labels that follow from the words.

It has the real tasks' fields and classes and none of their difficulty; it serves tests and trials
until a mini world with a pretrained model takes its place.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dfolora.errors import UserError
from dfolora.seeding import stream

Text = Mapping[str, str]
Draw = Callable[[Sequence[str]], str]

SIZES = {"train": 48, "test": 16}
"""Rows per class, never fewer than `LEAST` rows in all."""
LEAST = {"train": 400, "test": 200}

THINGS = ("film", "plot", "cast", "music", "story", "dinner", "service", "waiter", "room", "soup")
OPINIONS = (
    ("bad", "dull", "awful", "boring", "poor"),
    ("great", "fresh", "lovely", "funny", "warm"),
)

TOPICS = {
    "World": ("minister", "border", "election", "treaty", "embassy"),
    "Sports": ("coach", "season", "goal", "league", "match"),
    "Business": ("profit", "shares", "market", "merger", "bank"),
    "Tech": ("software", "chip", "internet", "satellite", "browser"),
}

ENTITIES = {
    "Company": ("retailer", "manufacturer"),
    "Education": ("school", "university"),
    "Artist": ("painter", "singer"),
    "Athlete": ("swimmer", "footballer"),
    "Office": ("senator", "mayor"),
    "Transportation": ("ship", "locomotive"),
    "Building": ("church", "castle"),
    "Natural": ("river", "mountain"),
    "Village": ("hamlet", "settlement"),
    "Animal": ("beetle", "moth"),
    "Plant": ("orchid", "shrub"),
    "Album": ("record", "compilation"),
    "Film": ("movie", "comedy"),
    "Written": ("novel", "magazine"),
}
PLACES = ("Poland", "Ohio", "Kenya", "Peru", "Iran", "Norway", "Texas", "Japan")

ACTORS = ("woman", "man", "boy", "girl", "dog", "child")
ACTS = ("sleeping", "running", "eating", "singing", "waiting", "swimming")
WHERE = ("in the park", "near the lake", "on the street", "by the house")


def _opinion(field: str) -> Callable[[int, Draw], Text]:
    def text(label: int, draw: Draw) -> Text:
        words = OPINIONS[label]
        return {field: f"the {draw(THINGS)} was {draw(words)} and the {draw(THINGS)} {draw(words)}"}

    return text


def _news(label: int, draw: Draw) -> Text:
    words = tuple(TOPICS.values())[label]
    return {"text": f"{draw(PLACES)} {draw(words)} follows the {draw(words)} and the {draw(words)}"}


def _article(label: int, draw: Draw) -> Text:
    kind = draw(tuple(ENTITIES.values())[label])
    return {"content": f" {draw(PLACES)} {draw(THINGS)} is a {kind} known in {draw(PLACES)} ."}


def _pair(first: str, second: str, outcomes: Sequence[str]) -> Callable[[int, Draw], Text]:
    """Two sentences whose relation is the label's outcome: the same, another, or the opposite."""

    def text(label: int, draw: Draw) -> Text:
        actor, act, where = draw(ACTORS), draw(ACTS), draw(WHERE)
        claim = {
            "same": f"A {actor} is {act}",
            "other": f"A {actor} has a {draw(THINGS)}",
            "opposite": f"A {actor} is not {act}",
        }[outcomes[label]]
        return {first: f"A {actor} is {act} {where} .", second: f"{claim} ."}

    return text


WORDS: Mapping[str, Sequence[str]] = {
    "sst2": ("bad", "great", "negative", "positive"),
    "yelpp": ("bad", "great", "negative", "positive"),
    "agnews": (*TOPICS, *map(str.lower, TOPICS)),
    "dbpedia": (*ENTITIES, *map(str.lower, ENTITIES)),
    "mrpc": ("No", "Yes"),
    "snli": ("Yes", "Maybe", "No"),
    "rte": ("Yes", "No"),
}
"""The label words of each task's prompts."""

_TASKS: Mapping[str, tuple[int, Callable[[int, Draw], Text]]] = {
    "sst2": (2, _opinion("sentence")),
    "yelpp": (2, _opinion("text")),
    "agnews": (4, _news),
    "dbpedia": (14, _article),
    "mrpc": (2, _pair("sentence1", "sentence2", ("other", "same"))),
    "snli": (3, _pair("premise", "hypothesis", ("same", "other", "opposite"))),
    "rte": (2, _pair("sentence1", "sentence2", ("same", "other"))),
}


def rows(task: str, part: str) -> tuple[list[Text], list[int]]:
    """The texts (field to text) and labels of a part, the same on every call.

    Args:
        task: The name of one of the seven tasks.
        part: ``train`` or ``test``.

    Raises:
        UserError: If the mini world has no such task.
    """
    if task not in _TASKS:
        raise UserError(f"The mini world has no task {task!r}; it has {', '.join(_TASKS)}.")
    classes, text = _TASKS[task]
    random = stream(0, f"mini/{task}/{part}")
    count = max(classes * SIZES[part], LEAST[part])
    labels = random.permutation(np.arange(count) % classes).tolist()
    return [text(label, lambda words: str(random.choice(words))) for label in labels], labels


def corpus() -> list[str]:
    """Lines to train a tokenizer on: the train rows' texts and, beside each, a label word."""
    lines = []
    for task, words in WORDS.items():
        for n, text in enumerate(rows(task, "train")[0]):
            word = words[n % len(words)]
            lines += [" ".join(text.values()) + f" . It was {word} .", word]
    return lines
