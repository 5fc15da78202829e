"""The few-shot split: k rows per class for train, and k for dev."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress

from dfolora.data.rows import Rows
from dfolora.errors import UserError
from dfolora.seeding import stream


@dataclass(frozen=True, kw_only=True)
class FewShotSplit:
    """Row numbers of a task's train part, in the order they were drawn.

    Numbers count the labelled rows from 0; of a split that was given, dev's are of its own part.
    """

    k: int | None
    """Rows per class in train and in dev; None where the two were given."""
    seed: int
    train: tuple[int, ...]
    dev: tuple[int, ...]

    def to_json(self) -> str:
        """The split as a JSON object."""
        return json.dumps(asdict(self))


def eligible_rows(rows: Rows, max_words: int = 340) -> tuple[bool, ...]:
    """Which rows are short enough to be drawn, by a rule that depends on no model.

    The released code drops rows above 512 tokens, so its splits differ between models. A limit in
    words gives every model the same split. Longer test rows are truncated.

    Args:
        rows: All rows of the train part, ``(N,)``.
        max_words: The most words, split at white space, in all fields of a row.

    Returns:
        One truth value per row, ``(N,)``.
    """
    return tuple(sum(len(text.split()) for text in row.values()) <= max_words for row in rows.texts)


def sample_few_shot(
    labels: Sequence[int], eligible: Sequence[bool], *, k: int, seed: int, names: Sequence[str]
) -> FewShotSplit:
    """Draw a split: in a random order, the first k rows of a class are train, the next k dev.

    Args:
        labels: The rows' classes, ``(N,)``.
        eligible: Which rows may be drawn, ``(N,)``.
        k: Rows per class and part.
        seed: The split seed.
        names: The class names; their positions are the labels.

    Raises:
        UserError: If k or the seed is out of range, or a class has fewer than 2k eligible rows.
    """
    if k < 1 or seed < 0:
        raise UserError(
            f"Few-shot k must be at least 1 and the seed at least 0, got {k} and {seed}."
        )
    order, drawn = shuffled_by_class(labels, eligible, classes=len(names), seed=seed)
    if min(map(len, drawn)) < 2 * k:
        counts = _eligible_counts(labels, eligible, names)
        raise UserError(
            f"A {k}-shot split needs {2 * k} rows of each class within the length limit, got "
            f"{counts}; give more rows, a smaller k or a higher word limit. To train on all of "
            f"them, and choose by dev rows that lie beside them, set data.split=given."
        )
    train = {row for members in drawn for row in members[:k]}
    dev = {row for members in drawn for row in members[k : 2 * k]}
    return FewShotSplit(
        k=k,
        seed=seed,
        train=tuple(row for row in order if row in train),
        dev=tuple(row for row in order if row in dev),
    )


def shuffled_by_class(
    labels: Sequence[int], eligible: Sequence[bool], *, classes: int, seed: int
) -> tuple[Sequence[int], Sequence[Sequence[int]]]:
    """The eligible rows in a split's random order: all of them, and those of each class.

    Args:
        labels: The rows' classes, ``(N,)``.
        eligible: Which rows may be drawn, ``(N,)``.
        classes: C.
        seed: The split seed.

    Returns:
        Row numbers in order, and C sequences of them.
    """
    drawn = stream(seed, "split").permutation(len(labels)).tolist()
    order = [row for row in drawn if eligible[row]]
    members: list[list[int]] = [[] for _ in range(classes)]
    for row in order:
        members[labels[row]].append(row)
    return order, members


def _eligible_counts(labels: Sequence[int], eligible: Sequence[bool], names: Sequence[str]) -> str:
    counts = Counter(compress(labels, eligible))
    return ", ".join(f"{name}: {counts[label]}" for label, name in enumerate(names))
