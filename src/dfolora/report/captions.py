"""Writes the paragraphs below a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dfolora.report.cells import HOLE, MIXED, NOT_APPLICABLE
from dfolora.report.significance import BETTER, WORSE, Verdict
from dfolora.report.spec import TableSpec

FACTS = {
    "Model": "tags.model",
    "Shots per class": "params.data.k",
    "Calls": "params.budget",
    "Patience": "params.patience",
    "d": "tags.dim",
    "Rank": "tags.rank",
    "Alpha": "params.subspace.alpha",
    "Sigma": "params.optimizer.sigma",
    "Objective": "tags.objective",
    "Label words a class": "tags.words",
    "Incumbent": "tags.incumbent",
    "Selection": "tags.selection",
    "Device": "params.used.device",
    "Commit": "tags.commit",
}
"""Facts about the runs in a caption, and the columns that hold them."""
CONSTANTS = {
    "majority": "always gives the test set's most frequent class (of equals the first)",
    "constant_yes": "always gives the label word Yes",
}
"""What constant predictors do."""


def caption(
    runs: pd.DataFrame,
    spec: TableSpec,
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    mixed: bool,
) -> Sequence[str]:
    """Paragraphs: what the numbers are, how to read them, their test, the runs' settings.

    Args:
        runs: All that the table counts.
        spec: What it shows.
        verdicts: The results of its tests, by the row tested against.
        mixed: Whether a cell is marked for runs of different code.
    """
    said: dict[str, Any] = {"Profile": spec.profile, "Seeds": ", ".join(map(str, spec.seeds))}
    said |= {name: _values(runs, column) for name, column in FACTS.items()}
    said["Runs"] = len(runs)
    reading = [
        f"{HOLE} where runs are missing (finished/wanted), {NOT_APPLICABLE} where there can be no "
        f"number. #Params counts the numbers searched or trained.",
        *([f"{MIXED} marks means over runs of different code."] if mixed else []),
        *(f"{label} {CONSTANTS[name]}." for name, label in spec.constants.items()),
    ]
    paragraphs = [spec.caption, " ".join(reading), *_tested(verdicts)]
    facts = "; ".join(f"{name}: {value}" for name, value in said.items() if value != "")
    return [*paragraphs, f"{facts}.", spec.note]


def _tested(verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[str]:
    """A paragraph on the first comparison, whose marks the table shows; one on the others."""
    found = [(against, "; ".join(map(str, family))) for against, family in verdicts.items()]
    for against, findings in found[:1]:
        yield (
            f"{BETTER} marks an average that is better than {against}'s, {WORSE} one that is "
            f"worse, at 5 %: two-sided exact sign-flip permutation test on the tasks' mean "
            f"differences, Holm-corrected over the rows tested. It assumes that under the null "
            f"hypothesis a task's difference is as likely to have either sign, tasks being "
            f"independent; seeds of one task are not taken to be. {findings}."
        )
    if others := found[1:]:
        yield " ".join(
            [
                "Other comparisons by the same test have no marks in the table; each is corrected "
                "within itself alone.",
                *(f"Against {against}: {findings}." for against, findings in others),
            ]
        )


def _values(runs: pd.DataFrame, column: str) -> str:
    values: Any = runs[column].dropna().unique() if column in runs else []
    # Shorter ones first, which puts numbers in order.
    return ", ".join(sorted((str(v) for v in values if v != "None"), key=lambda v: (len(v), v)))
