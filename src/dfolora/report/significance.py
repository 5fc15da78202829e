"""Tests whether a row's average differs from another's by more than chance.

The exact sign-flip permutation test on the per-task means of the differences, seed by seed. Runs of
one task share its test set, its difficulty and, seed by seed, their splits, so their differences
are not independent; those of a task therefore flip together, and the tasks are the sample. With
seven tasks the smallest two-sided p is 2 / 2^7 = 0.016; with five or fewer none can reach 0.05, nor
could any one task's five seeds (2 / 2^5 = 0.063), so single cells get no mark. A Wilcoxon test over
all pairs of (task, seed) would take 35 dependent numbers for independent ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

LEVEL = 0.05
BETTER, WORSE = "↑", "↓"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One row beside the one that it is tested against."""

    label: str
    group: str
    difference: float
    """Difference of the averages; NaN if a cell is missing, and then there is no test."""
    p: float
    """Two-sided, Holm-corrected."""

    @property
    def mark(self) -> str:
        """An arrow up for significantly better, down for worse, nothing for neither."""
        return "" if not self.p < LEVEL else BETTER if self.difference > 0 else WORSE

    @property
    def finding(self) -> str:
        """The difference and its p, in words."""
        if isnan(self.difference):
            return "not tested, for cells are missing"
        return f"{self.difference:+.2f}, p = {self.p:.3f}"

    def __str__(self) -> str:
        return f"{', '.join(filter(None, [self.group, self.label]))}: {self.finding}"


def judge(
    rows: Mapping[str, Sequence[float]], against: Sequence[float], *, group: str = ""
) -> Sequence[Verdict]:
    """Test each row against one, correcting for their number alone (Holm 1979).

    Args:
        rows: Each row's mean scores by task; NaN for a missing one.
        against: The mean scores of the row they are tested against, tasks in the same order.
        group: The rows' group.
    """
    differences = {
        label: [score - base for score, base in zip(scores, against, strict=True)]
        for label, scores in rows.items()
    }
    raw = {label: sign_flip_p(d) for label, d in differences.items() if not any(map(isnan, d))}
    corrected = _holm(raw)
    return [
        Verdict(
            label=label,
            group=group,
            difference=sum(given) / len(given) if given else float("nan"),
            p=corrected.get(label, float("nan")),
        )
        for label, given in differences.items()
    ]


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean under all 2^n flips of signs.

    Args:
        differences: One for each task.
    """
    from scipy.stats import permutation_test

    if len(differences) < 2:  # scipy wants two; a sign flips one way or the other
        return 1.0
    # Rounded, for flips that give the same mean must count as ties.
    rounded = [round(difference, 9) for difference in differences]
    found = permutation_test(
        (rounded,), _mean, permutation_type="samples", n_resamples=inf, vectorized=True
    )
    return float(found.pvalue)


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)


def _holm(p_values: Mapping[str, float]) -> Mapping[str, float]:
    """The k-th smallest of m times m - k + 1, never less than the one before."""
    corrected, largest = {}, 0.0
    for rank, label in enumerate(sorted(p_values, key=lambda label: p_values[label])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[label]))
        corrected[label] = largest
    return corrected
