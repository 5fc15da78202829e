"""A fit from its first step to its test scores: watched, measured, written down."""

import time
from collections.abc import Iterable, Mapping

import numpy as np

from dfolora.backbone import Backbone
from dfolora.figure import Curve, save_fitness_curve
from dfolora.journal import Journal
from dfolora.memory import PeakMemory
from dfolora.methods import Fit, Method, Predictor, Progress, Resumable, Step
from dfolora.problem import Problem
from dfolora.score import score_test
from dfolora.tracking import RunLog
from pipelines.attempt import Attempt
from pipelines.progress import RunBar

MOST_STORED = 100_000_000
"""Numbers of a predictor's that are worth a place in the store: a large model's own are not."""


class Clock:
    """Seconds of work on a fit, those of the processes before this one included.

    Args:
        before: Theirs.
    """

    def __init__(self, before: float) -> None:
        self._zero = time.perf_counter() - before

    def __call__(self) -> float:
        """The seconds up to now."""
        return time.perf_counter() - self._zero


def fit_and_test(
    method: Method,
    backbone: Backbone,
    problem: Problem,
    seed: int,
    attempt: Attempt,
    log: RunLog,
    bar: RunBar,
) -> None:
    """Fit a method and test it.

    Curves go to the log as it goes on; journal, picture, what was fitted and, last, all
    measurements to the attempt's folder.

    Args:
        method: What to fit.
        backbone: The model.
        problem: The few-shot problem.
        seed: Of the fit.
        attempt: Begun; what its journal holds is not done again.
        log: Of the run.
        bar: Of the run.

    Raises:
        UserError: The fit shows that something given is wrong.
    """
    memory = PeakMemory(backbone.device)
    with attempt.journal() as journal:
        clock = Clock(journal.seconds)
        fit = _begun(method, backbone, problem, seed, journal)
        curve = follow(fit, journal, clock, memory, log, bar)
    fitted = clock()
    predictor = fit.predictor()
    metrics = dict(score_test(predictor.logits(problem.test), problem))
    told = _told(metrics["score"], predictor, fitted)
    tested = clock()
    metrics = {f"test/{name}": value for name, value in metrics.items()}
    metrics |= _counts(predictor, problem, curve)
    metrics |= {"time/fit_s": fitted, "time/test_s": tested - fitted}
    memory.sample()
    metrics |= {f"memory/{part}_mb": peak for part, peak in _peaks(memory, journal).items()}
    if curve.calls:
        metrics["time/calls_per_s"] = curve.calls[-1] / fitted
        save_fitness_curve(attempt.folder / "fitness.png", curve, bar.name)
    if predictor.stored <= MOST_STORED:
        predictor.save(attempt.folder / "adapter")
    attempt.finish(told=told, seconds=clock(), metrics=metrics)


def follow(
    fit: Iterable[Progress],
    journal: Journal,
    clock: Clock,
    memory: PeakMemory,
    log: RunLog,
    bar: RunBar,
) -> Curve:
    """Let the fit work to its end; journal, curves and progress bar look on."""
    curve, selected_at = Curve(), None
    for progress in fit:
        memory.sample()
        step = progress.step
        seconds = journal.take(progress, clock(), _peaks(memory, journal))
        log.metrics(_train_points(step), step=step.calls, seconds=seconds)
        for look in progress.looks:
            points = {"dev/score": look.score, "dev/loss": look.loss}
            log.metrics(points, step=look.calls, seconds=seconds)
        bar.show(progress)
        curve.add(progress)
        if progress.selected is not None and progress.selected.calls != selected_at:
            selected_at = progress.selected.calls
            curve.selected_s = seconds
    return curve


def _begun(
    method: Method, backbone: Backbone, problem: Problem, seed: int, journal: Journal
) -> Fit:
    if isinstance(method, Resumable):
        return method.resume(backbone, problem.data, seed, journal.past)
    return method.begin(backbone, problem.data, seed)


def _peaks(memory: PeakMemory, journal: Journal) -> Mapping[str, float]:
    """Of this process and of those before it."""
    before = journal.megabytes
    return {part: max(peak, before.get(part, 0.0)) for part, peak in memory.megabytes().items()}


def _train_points(step: Step) -> Mapping[str, float]:
    points = {"train/loss": step.loss, "train/step_size": step.step_size}
    losses = step.losses[np.isfinite(step.losses)]
    if len(losses):
        points["train/best"] = float(losses.min())
        points["train/mean"] = float(losses.mean())
        points["train/spread"] = float(losses.std())
    return points


def _counts(predictor: Predictor, problem: Problem, curve: Curve) -> Mapping[str, float]:
    counts: dict[str, float] = {
        "test/rows": len(problem.test.labels),
        "test/dropped": problem.dropped_tests,
        "test/truncated": problem.test.truncated,
        "train/truncated": problem.data.train.truncated,
        "train/not_finite": curve.not_finite,
        "dev/truncated": problem.data.dev.truncated,
        "params/searched": predictor.searched,
        "params/stored": predictor.stored,
        "calls": curve.calls[-1] if curve.calls else 0,
    }
    counts |= {f"fitted/{name}": value for name, value in predictor.found.items()}
    if predictor.dev is not None:
        counts["dev/selected_score"] = predictor.dev.score
        counts["dev/selected_at"] = predictor.dev.calls
        counts["dev/selected_s"] = curve.selected_s
    return counts


def _told(score: float, predictor: Predictor, seconds: float) -> str:
    told = f"test {score:.3f}"
    if predictor.dev is not None:
        told += f", dev {predictor.dev.score:.3f}"
        if predictor.dev.calls <= 1:
            told += " (nothing beat the start there, so it is kept)"
    return f"{told}, {seconds:.1f} s"
