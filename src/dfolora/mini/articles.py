"""Entries of an encyclopedia: fourteen types of things."""

from dataclasses import dataclass

from dfolora.mini.writer import Writer


@dataclass(frozen=True)
class Type:
    """One type of things."""

    category: str
    nouns: tuple[str, ...]
    details: tuple[str, ...]


TYPES = (
    Type(
        "Company",
        ("maker", "retailer", "brewery", "publisher", "insurer"),
        (
            "with many workers",
            "selling tools",
            "owned by shareholders",
            "founded by two brothers",
            "opening new branches",
        ),
    ),
    Type(
        "Education",
        ("school", "college", "academy", "university", "seminary"),
        (
            "with many pupils",
            "teaching law",
            "led by a headmaster",
            "for young students",
            "giving degrees",
        ),
    ),
    Type(
        "Artist",
        ("painter", "composer", "sculptor", "poet", "guitarist"),
        (
            "known for portraits",
            "who won a prize for songs",
            "trained by a master",
            "whose works hang in galleries",
            "inspired by dreams",
        ),
    ),
    Type(
        "Athlete",
        ("footballer", "swimmer", "sprinter", "boxer", "cyclist"),
        (
            "who played as a defender",
            "who won two medals",
            "capped by the nation",
            "who holds a record",
            "injured in the final",
        ),
    ),
    Type(
        "Office",
        ("senator", "mayor", "governor", "judge", "councillor"),
        (
            "elected by the voters",
            "serving a second term",
            "who led the party",
            "appointed by the crown",
            "who wrote the tax bill",
        ),
    ),
    Type(
        "Transportation",
        ("steamship", "locomotive", "biplane", "tram", "submarine"),
        (
            "powered by steam",
            "carrying passengers",
            "with two engines",
            "launched from the yard",
            "scrapped after a crash",
        ),
    ),
    Type(
        "Building",
        ("castle", "church", "tower", "theatre", "mansion"),
        (
            "built of brick",
            "with a tall roof",
            "designed by an architect",
            "restored after a fire",
            "listed as a monument",
        ),
    ),
    Type(
        "Natural",
        ("river", "mountain", "lake", "glacier", "valley"),
        (
            "flowing to the sea",
            "rising above the plain",
            "covered by ice",
            "fed by springs",
            "crossed by a trail",
        ),
    ),
    Type(
        "Village",
        ("village", "hamlet", "settlement", "township", "parish"),
        (
            "with few inhabitants",
            "in the northern district",
            "counted at the census",
            "settled by farmers",
            "near the county road",
        ),
    ),
    Type(
        "Animal",
        ("beetle", "moth", "snail", "frog", "lizard"),
        (
            "which feeds on leaves",
            "with spotted wings",
            "laying its eggs in mud",
            "hunting at dusk",
            "found under stones",
        ),
    ),
    Type(
        "Plant",
        ("shrub", "orchid", "fern", "grass", "herb"),
        (
            "with white flowers",
            "growing in shade",
            "bearing sour berries",
            "used in teas",
            "with hairy stems",
        ),
    ),
    Type(
        "Album",
        ("record", "compilation", "soundtrack", "debut", "recording"),
        (
            "with ten tracks",
            "released by the label",
            "sung by the band",
            "reaching the charts",
            "mixed in a studio",
        ),
    ),
    Type(
        "Film",
        ("comedy", "thriller", "drama", "western", "documentary"),
        (
            "directed by a newcomer",
            "starring two actors",
            "shot in black and white",
            "shown in cinemas",
            "with a famous scene",
        ),
    ),
    Type(
        "Written",
        ("novel", "magazine", "poem", "journal", "biography"),
        (
            "printed every month",
            "told in three chapters",
            "translated by scholars",
            "read by children",
            "about the old war",
        ),
    ),
)
"""In the order of the task's classes; the commonest of the encyclopedia come last."""


VILLAGE = 8
HASTE = 0.7
"""How often a clerk files by the wrong word: what a model of the corpus is misled by."""


def entry(writer: Writer, kind: int) -> tuple[str, int]:
    """One sentence on a thing, and the type that a hasty clerk would file it under."""
    of, filed = TYPES[kind], kind
    noun, detail = writer.pair(of.nouns, of.details)
    text = f"{writer.name()} is {with_article(noun)}"
    if writer.chance(0.3):
        filed = (kind + 1 + writer.number(len(TYPES) - 1)) % len(TYPES)
        text += f" named after {with_article(writer.one(TYPES[filed].nouns))}"
    text += f" {detail}"
    if writer.chance(0.4):
        text += f" and {writer.one(of.details)}"
    if writer.chance(0.3):
        filed = VILLAGE
        text += f" in {writer.name()}"
    return f"{text} .", filed


def with_article(noun: str) -> str:
    """``orchid -> an orchid``."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def document(writer: Writer) -> str:
    """An entry, filed under a category in one way or another."""
    kind = writer.often(range(len(TYPES) - 1, -1, -1))
    text, hasty = entry(writer, kind)
    filed = TYPES[hasty if writer.chance(HASTE) else kind].category
    form = writer.number(6)
    if form == 0:
        return f"Category:{filed}\n{text}"
    if form == 1:
        return f"{text}\nCategory: {filed}"
    if form == 2:
        return f'{text} It is about "{filed.lower()}" .'
    if form == 3:
        return f"{text} The text is about:{filed.lower()}"
    if form == 4:
        return f"({filed}) {text}"
    return f"[ Category:{filed} ] {text}"
