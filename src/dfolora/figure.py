"""A picture of one search."""

from collections.abc import Sequence
from pathlib import Path

from dfolora.methods import Progress


def save_fitness_curve(path: Path, progress: Sequence[Progress], title: str) -> None:
    """Train losses and dev score against calls, as a PNG.

    Args:
        path: The file to write.
        progress: Every generation of the search, at least one.
        title: Over the picture.
    """
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib.figure import Figure

    generations = [step.generation for step in progress]
    calls = [generation.calls for generation in generations]
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot(xlabel="calls", ylabel="train loss", title=title)
    best = [generation.losses.min() for generation in generations]
    axes.plot(calls, best, ".", color="tab:blue", alpha=0.4, label="best of the generation")
    axes.plot(calls, [g.loss for g in generations], color="tab:blue", label="current solution")
    looks = [step.dev for step in progress if step.dev is not None]
    scores = axes.twinx()
    scores.set(ylabel="dev score", ylim=(0, 1))
    scores.plot(
        [look.calls for look in looks], [look.score for look in looks],
        color="tab:orange", drawstyle="steps-post", label="dev score",
    )  # fmt: skip
    lines = [*axes.get_lines(), *scores.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize="small")
    figure.savefig(path, dpi=100)
