"""The curve of one fit, and its picture."""

from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path

import numpy as np

from dfolora.methods import Progress
from dfolora.search import DevPoint


@dataclass
class Curve:
    """The points of a fit's curve; the steps themselves are large and are not kept."""

    calls: list[int] = field(default_factory=list)
    """Calls spent at each step's end."""
    best: list[float] = field(default_factory=list)
    """The lowest loss of each step."""
    loss: list[float] = field(default_factory=list)
    """Loss of the current solution; NaN if unknown."""
    looks: list[DevPoint] = field(default_factory=list)
    """Dev evaluations, in order."""
    not_finite: int = 0
    """Number of losses that were NaN or infinite."""
    best_at: float = nan
    """Calls up to the first dev evaluation with the highest score; NaN without one."""
    best_s: float = nan
    """Seconds from the fit's start to that evaluation."""

    def add(self, progress: Progress, seconds: float) -> None:
        """Add one step, which ended ``seconds`` after the fit began."""
        self.calls.append(progress.step.calls)
        self.best.append(float(progress.step.losses.min()))
        self.loss.append(progress.step.loss)
        self.not_finite += int(np.count_nonzero(~np.isfinite(progress.step.losses)))
        highest = max((look.score for look in self.looks), default=-inf)
        for look in progress.looks:
            if look.score > highest:
                highest, self.best_at, self.best_s = look.score, look.calls, seconds
        self.looks.extend(progress.looks)


def save_fitness_curve(path: Path, curve: Curve, title: str) -> None:
    """Train losses and dev score against calls, as a PNG.

    Args:
        path: The file to write.
        curve: Of at least one step.
        title: Over the picture.
    """
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot(xlabel="calls", ylabel="train loss")
    axes.set_title(title, parse_math=False)  # a folder's name may have dollar signs
    axes.plot(curve.calls, curve.best, ".", color="tab:blue", alpha=0.4, label="best of the step")
    axes.plot(curve.calls, curve.loss, color="tab:blue", label="current solution")
    scores = axes.twinx()
    scores.set(ylabel="dev score", ylim=(0, 1))
    scores.plot(
        [look.calls for look in curve.looks], [look.score for look in curve.looks],
        color="tab:orange", drawstyle="steps-post", label="dev score",
    )  # fmt: skip
    lines = [*axes.get_lines(), *scores.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize="small")
    figure.savefig(path, dpi=100)
