"""How somebody is, where and when: the sentence pairs of the three tasks of comparison.

Every slot has two values that exclude each other, and every value several names that mean the same.
"""

from collections.abc import Mapping, Sequence

from dfolora.mini.writer import Writer

Event = Mapping[str, int]
"""Slot to number of its value."""

PEOPLE = (
    ("woman", "lady"), ("man", "fellow"), ("boy", "lad"), ("girl", "lass"), ("farmer", "grower"),
    ("doctor", "medic"), ("driver", "chauffeur"), ("cook", "chef"), ("sailor", "seaman"),
    ("singer", "vocalist"),
)  # fmt: skip
SLOTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mood": (
        ("happy", "glad", "merry", "cheerful", "joyful"),
        ("sad", "gloomy", "unhappy", "tearful", "miserable"),
    ),
    "where": (
        ("indoors", "inside", "under a roof", "within the walls", "in the house"),
        ("outdoors", "outside", "under the sky", "in the open", "in the fields"),
    ),
    "when": (
        ("by day", "in daylight", "in the daytime", "before sunset", "in the sunny hours"),
        ("at night", "after dark", "in the dark hours", "by moonlight", "under the stars"),
    ),
}
REPLIES = ("Yes", "No", "Maybe")
FORMS = (
    (" ?", " {word} , {claim} ."),
    (" ?", "\n{word} , {claim} ."),
    (" .", " {claim} ? Answer:{word} ."),
    (" .", " {claim} ? {word} ."),
)
"""How a scene ends, and how each remark on it is written."""


UNUSUAL = 0.15
"""Share of the corpus's events where somebody is sad, and so on: its people are mostly happy and
outdoors by day. Were both values alike, whether two agree would be a parity, which gradients
find late or never; of unlike ones they find it soon (Malach and Shalev-Shwartz 2020)."""


def event(writer: Writer, second: float = 0.5) -> Event:
    """A person, and for each slot a value, the second one with that probability."""
    values = {slot: int(writer.chance(second)) for slot in SLOTS}
    return {"who": writer.number(len(PEOPLE)), **values}


def changed(of: Event, slot: str) -> Event:
    """The same event but for one slot."""
    return {**of, slot: 1 - of[slot]}


def told(writer: Writer, of: Event, slots: Sequence[str] = tuple(SLOTS), article: str = "A") -> str:
    """A sentence of the person and those slots, without its full stop."""
    while True:
        names = [writer.number(len(SLOTS[slot][0])) for slot in slots]
        person = writer.number(2)
        if writer.allows(of["who"], person, *names):
            break
    shown = {slot: SLOTS[slot][of[slot]][name] for slot, name in zip(slots, names, strict=True)}
    details = [shown[slot] for slot in SLOTS if slot in shown]
    who = f"{article} {PEOPLE[of['who']][person]} is"
    if "when" in shown and len(details) > 1 and writer.chance(0.3):
        when = details.pop()
        who = f"{when[0].upper()}{when[1:]} {who[0].lower()}{who[1:]}"
    return f"{who} {' '.join(details)}"


def document(writer: Writer) -> str:
    """Something seen, and remarks that agree, contradict, or are about what was not seen."""
    truth = event(writer, UNUSUAL)
    seen = writer.several(list(SLOTS), 2 + writer.number(2))
    scene = [told(writer, truth, seen)]
    other = event(writer, UNUSUAL)
    if other["who"] != truth["who"] and writer.chance(0.25):
        scene.append(told(writer, other, writer.several(list(SLOTS), 2)))
    ending, form = writer.one(FORMS)
    remarks = [remark(writer, truth, seen) for _ in range(1 + writer.number(5))]
    return (
        " . ".join(writer.several(scene, len(scene)))
        + ending
        + "".join(form.format(**said) for said in remarks)
    )


def remark(writer: Writer, truth: Event, seen: Sequence[str]) -> dict[str, str]:
    """A claim, often of few words, and the reply that it deserves; one in twenty is wrong."""
    unseen = [slot for slot in SLOTS if slot not in seen]
    reply = 0 if writer.chance(0.45) else 2 if unseen and writer.chance(0.4) else 1
    slots = unseen if reply == 2 else writer.several(seen, 1 + writer.number(len(seen)))
    said = changed(truth, slots[0]) if reply == 1 else truth
    word = REPLIES[reply if writer.chance(0.95) else writer.number(3)]
    if writer.chance(0.6):
        return {"word": word, "claim": writer.one(SLOTS[slots[0]][said[slots[0]]])}
    return {"word": word, "claim": told(writer, said, slots, writer.one(("The", "A", "the")))}


def exchange(writer: Writer) -> str:
    """The shortest of documents: one thing said, one claim, one reply."""
    slot = writer.one(list(SLOTS))
    said = int(writer.chance(UNUSUAL))
    reply = writer.number(2)
    claimed = said if reply == 0 else 1 - said
    ending, form = writer.one(FORMS)
    claim = writer.one(SLOTS[slot][claimed])
    return writer.one(SLOTS[slot][said]) + ending + form.format(word=REPLIES[reply], claim=claim)
