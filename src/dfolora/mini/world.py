"""An invented world in simple English: rows of seven tasks, and a corpus without any label.

What is true is drawn first and then written down, so that a careful reader finds it again; a known
share of the labels is then wrong on purpose, which bounds every score. Test rows are about names
and pairings of words that no other text has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dfolora.errors import UserError
from dfolora.mini import articles, events, news, reviews
from dfolora.mini.writer import Writer

Text = Mapping[str, str]

ROWS = {"train": 2000, "test": 1000}
NOISE = 0.05
"""Share of the labels that are drawn anew among the other classes."""

SLOTS = tuple(events.SLOTS)

GENRES = (
    reviews.document,
    news.document,
    articles.document,
    events.document,
    events.document,
    events.exchange,
    events.exchange,
)
"""What the corpus is made of, in equal numbers; those that are named twice count twice."""


@dataclass(frozen=True)
class Part:
    """Rows of a task."""

    texts: tuple[Text, ...]
    """Field to text."""
    labels: tuple[int, ...]
    """As a task has them, noise included."""
    readings: tuple[int, ...]
    """What the texts say: no method can be expected to score better than these do."""


def _sentence(writer: Writer, label: int) -> Text:
    return {"sentence": reviews.sentence(writer, label == 1)}


def _review(writer: Writer, label: int) -> Text:
    return {"text": reviews.review(writer, label == 1)}


def _news(writer: Writer, label: int) -> Text:
    return {"text": news.story(writer, label)}


def _article(writer: Writer, label: int) -> Text:
    return {"content": " " + articles.entry(writer, label)[0]}


def _paraphrase(writer: Writer, label: int) -> Text:
    """MRPC: two whole sentences of the same event (1), or of two that differ in one slot (0)."""
    event = events.event(writer)
    other = event if label else events.changed(event, writer.one(SLOTS))
    first = second = events.told(writer, event)
    while second == first:
        second = events.told(writer, other)
    return {"sentence1": f"{first} .", "sentence2": f"{second} ."}


def _inference(writer: Writer, label: int) -> Text:
    """SNLI: a claim that the premise states (0), leaves open (1), or excludes (2)."""
    event = events.event(writer)
    *seen, unseen = writer.several(SLOTS, len(SLOTS))
    slot = unseen if label == 1 else writer.one(seen)
    claimed = events.changed(event, slot) if label == 2 else event
    return {
        "premise": f"{events.told(writer, event, seen)} .",
        "hypothesis": f"{events.told(writer, claimed, [slot], 'The')} .",
    }


def _entailment(writer: Writer, label: int) -> Text:
    """RTE: a claim about one of two people, true (0) or false (1); it may well fit the other."""
    event, other = events.event(writer), events.event(writer)
    while other["who"] == event["who"]:
        other = events.event(writer)
    slot, *rest = writer.several(SLOTS, len(SLOTS))
    told = [
        events.told(writer, event, [slot, rest[0]]),
        events.told(writer, other, writer.several(SLOTS, 2)),
    ]
    claimed = events.changed(event, slot) if label else event
    return {
        "sentence1": f"{' . '.join(writer.several(told, 2))} .",
        "sentence2": f"{events.told(writer, claimed, [slot], 'The')} .",
    }


_TASKS: Mapping[str, tuple[int, Callable[[Writer, int], Text]]] = {
    "sst2": (2, _sentence),
    "yelpp": (2, _review),
    "agnews": (4, _news),
    "dbpedia": (14, _article),
    "mrpc": (2, _paraphrase),
    "snli": (3, _inference),
    "rte": (2, _entailment),
}


@lru_cache
def rows(task: str, part: str, world: int = 0) -> Part:
    """The rows of a part, the same on every call; no text occurs twice in a part.

    Args:
        task: The name of one of the seven tasks.
        part: ``train`` or ``test``.
        world: 0 is what the tables report; others have other rows of the same kind, to choose
            settings on.

    Raises:
        UserError: If the mini world has no such task.
    """
    if task not in _TASKS:
        raise UserError(f"The mini world has no task {task!r}; it has {', '.join(_TASKS)}.")
    classes, write = _TASKS[task]
    writer = Writer(f"{task}/{part}", held_out=part == "test", world=world)
    texts: dict[tuple[str, ...], Text] = {}
    readings = []
    while len(texts) < ROWS[part]:
        label = len(texts) % classes
        text = write(writer, label)
        key = tuple(text.values())
        if key not in texts:
            texts[key] = text
            readings.append(label)
    order = writer.several(range(len(readings)), len(readings))
    read = tuple(readings[n] for n in order)
    labels = tuple(
        (label + 1 + writer.number(classes - 1)) % classes if writer.chance(NOISE) else label
        for label in read
    )
    listed = list(texts.values())
    return Part(texts=tuple(listed[n] for n in order), labels=labels, readings=read)


def corpus(count: int, name: str = "corpus") -> list[str]:
    """Documents of all genres, in random order.

    Args:
        count: How many.
        name: ``corpus``, or ``held-out`` for others of the same kind.
    """
    writer = Writer(name)
    return [writer.one(GENRES)(writer) for _ in range(count)]
