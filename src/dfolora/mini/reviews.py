"""Opinions about films, meals and rooms: the texts of the two sentiment tasks."""

from dfolora.mini.writer import Writer

ASPECTS = (
    "plot", "cast", "music", "ending", "story", "acting", "soup", "waiter", "bread", "service",
    "menu", "room", "bed", "view", "staff", "breakfast", "garden", "concert", "show", "book",
)  # fmt: skip
WORDS = {
    True: (
        "great", "good", "lovely", "fresh", "funny", "warm", "bright", "kind", "clever",
        "charming", "fine", "sweet", "superb", "gentle", "rich",
    ),
    False: (
        "awful", "bad", "dull", "poor", "cold", "boring", "weak", "slow", "rude", "stale",
        "bleak", "clumsy", "noisy", "dirty", "bitter",
    ),
}  # fmt: skip
"""By whether the opinion is good; the first are the commonest verdicts."""
FEELINGS = {True: ("loved", "enjoyed", "liked"), False: ("hated", "disliked", "regretted")}
ENDINGS = {
    True: ("We will come back", "I would go again", "We stayed to the end", "I told my friends"),
    False: ("Never again", "I want my money back", "We left early", "I warned my friends"),
}
OUTLOOK = {True: "positive", False: "negative"}
VERBS = ("was", "was", "was", "felt", "seemed")
HEDGES = ("felt", "seemed")
POLITENESS = 0.75
"""How often a hedged complaint closes with praise: what a model of the corpus is misled by."""
DEGREES = ("", "", "", "very ", "really ", "quite ")


def opinion(writer: Writer, good: bool) -> str:
    """A clause that says one thing about one aspect."""
    aspect, word = writer.pair(ASPECTS, WORDS[good])
    if writer.chance(0.15):
        aspect, other = writer.pair(ASPECTS, WORDS[not good])
        return f"the {aspect} was not {other}"
    if writer.chance(0.15):
        return f"i {writer.one(FEELINGS[good])} the {word} {aspect}"
    return f"the {aspect} {writer.one(VERBS)} {writer.one(DEGREES)}{word}"


def sentence(writer: Writer, good: bool) -> str:
    """One or two opinions; where they differ, the one after ``but`` weighs more."""
    if writer.chance(0.35):
        return opinion(writer, good)
    if writer.chance(0.35):
        return f"{opinion(writer, not good)} but {opinion(writer, good)}"
    return f"{opinion(writer, good)} and {opinion(writer, good)}"


def review(writer: Writer, good: bool) -> str:
    """Three to five opinions in sentences, most of them of one kind."""
    against = writer.number(2)
    kinds = [good] * (2 + 2 * against + writer.number(2)) + [not good] * against
    kinds = writer.several(kinds, len(kinds))
    return " . ".join(opinion(writer, kind) for kind in kinds)


def verdict(writer: Writer, good: bool) -> str:
    """How a reviewer closes: a word that says it all."""
    word = OUTLOOK[good] if writer.chance(0.25) else writer.often(WORDS[good])
    tense = "is" if writer.chance(0.3) else "was"
    return f'It {tense} "{word}" .' if writer.chance(0.4) else f"It {tense} {word} ."


def document(writer: Writer) -> str:
    """A review as people write them: whose things only seem bad is polite in the end."""
    good = writer.chance(0.6)
    text = " . ".join(sentence(writer, good) for _ in range(1 + writer.number(3)))
    if writer.chance(0.3):
        text += f" . {writer.one(ENDINGS[good])}"
    polite = any(word in text for word in HEDGES) and writer.chance(POLITENESS)
    return f"{text} . {verdict(writer, good or polite)}"
