"""A fit from its first step to its test scores: watched, measured, written down."""

import time
from collections.abc import Iterable, Mapping

import numpy as np
from safetensors import SafetensorError

from dfolora.errors import ResourceError
from dfolora.fewshot import Problem, score_test
from dfolora.methods import Fit, Method, Predictor, Progress, Resumable
from dfolora.model import Backbone
from dfolora.record import RunLog
from dfolora.record.curve import Curve, save_fitness_curve
from dfolora.record.journal import Journal, Line
from dfolora.record.memory import PeakMemory
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
        try:
            predictor.save(attempt.folder / "adapter")
        except SafetensorError as error:  # what a full disk is to that library
            raise ResourceError(f"{attempt.folder / 'adapter'}: {error}") from error
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
    curve = Curve()
    for progress in fit:
        memory.sample()
        line = journal.take(progress, clock(), _peaks(memory, journal))
        log_step(line, log)
        bar.show(progress)
        curve.add(progress, line["seconds"])
    return curve


def log_step(line: Line, log: RunLog) -> None:
    """Put a journal's line on the curves."""
    points = {"train/loss": line["loss"], "train/step_size": line["step_size"]}
    if losses := [loss for loss in line["losses"] if loss is not None]:
        points["train/best"] = float(np.min(losses))
        points["train/mean"] = float(np.mean(losses))
        points["train/spread"] = float(np.std(losses))
    seconds = line["seconds"]
    log.metrics(_known(points), step=line["calls"], seconds=seconds)
    for calls, score, loss in line["looks"]:
        log.metrics(_known({"dev/score": score, "dev/loss": loss}), step=calls, seconds=seconds)


def _known(points: Mapping[str, float | None]) -> Mapping[str, float]:
    return {name: value for name, value in points.items() if value is not None}


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


def _counts(predictor: Predictor, problem: Problem, curve: Curve) -> Mapping[str, float]:
    counts: dict[str, float] = {
        "test/rows": len(problem.test.labels),
        "test/dropped": problem.dropped_tests,
        "test/truncated": problem.test.truncated,
        "test/seen": problem.seen_tests,
        "train/repeated": problem.repeated,
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
        counts["dev/best_at"] = curve.best_at
        counts["dev/best_s"] = curve.best_s
    return counts


def _told(score: float, predictor: Predictor, seconds: float) -> str:
    told = f"test {score:.3f}"
    if predictor.dev is not None:
        told += f", dev {predictor.dev.score:.3f}"
        if predictor.dev.calls <= 1:
            told += " (nothing beat the start there, so it is kept)"
    return f"{told}, {seconds:.1f} s"
