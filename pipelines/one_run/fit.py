"""Runs a fit and its test, and records steps, memory and time."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from dfolora.errors import ResourceError
from dfolora.fewshot import Problem, foreseen, score_paraphrases, score_test
from dfolora.methods import Method, Predictor, Progress
from dfolora.model import Backbone
from dfolora.record import ADAPTER, RunLog
from dfolora.record.curve import Curve, save_fitness_curve
from dfolora.record.journal import Journal, Line
from dfolora.record.memory import PeakMemory
from pipelines.one_run.attempt import Attempt
from pipelines.progress import RunBar

MOST_STORED = 100_000_000
"""The largest predictor, in numbers, that is stored; a large model's weights are not."""


def fit_and_test(
    method: Method,
    backbone: Backbone,
    problem: Problem,
    seed: int,
    attempt: Attempt,
    log: RunLog,
    bar: RunBar,
    save: Callable[[Predictor, float, Path], None],
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
        save: Writes what was fitted, with its test score, to a folder.

    Raises:
        UserError: The fit shows that something given is wrong.
    """
    work = foreseen(method, backbone.architecture, problem)
    memory = PeakMemory(backbone.device, weights=backbone.nbytes)
    with attempt.journal() as journal:
        fit = method.begin(backbone, problem.data, seed, journal)
        curve = follow(fit, journal, memory, log, bar)
        # Measured as the fit ends: the test has no part in what a fit takes.
        fitted = journal.seconds
        memory.sample()
        peaks = _peaks(memory, journal)
        predictor = fit.predictor()
    logits = predictor.logits(problem.test)
    scores = score_test(logits, problem)
    tested = journal.seconds - fitted
    paraphrased = score_paraphrases(predictor.logits, problem, logits)
    metrics = {f"test/{name}": value for name, value in {**scores, **paraphrased}.items()}
    metrics |= _counts(predictor, problem, curve)
    metrics |= {"time/fit_s": fitted, "time/test_s": tested}
    metrics |= {"work/fit_tflop": work.fit / 1e12, "work/test_tflop": work.test / 1e12}
    metrics |= {f"memory/{part}_mb": peak for part, peak in peaks.items()}
    if curve.calls:
        metrics["time/calls_per_s"] = curve.calls[-1] / fitted
        save_fitness_curve(attempt.folder / "fitness.png", curve, bar.name)
    if predictor.stored <= MOST_STORED:
        try:
            save(predictor, scores["score"], attempt.folder / ADAPTER)
        except SafetensorError as error:  # what a full disk is to that library
            raise ResourceError(f"{attempt.folder / ADAPTER}: {error}") from error
    told = _told(scores["score"], predictor, fitted + tested)
    attempt.finish(told=told, seconds=journal.seconds, metrics=metrics)


def follow(
    fit: Iterable[Progress], journal: Journal, memory: PeakMemory, log: RunLog, bar: RunBar
) -> Curve:
    """Run the fit to its end, updating journal, curves and progress bar."""
    curve = Curve()
    for progress in fit:
        memory.sample()
        question = {"points": _points(progress)}
        line = journal(question, lambda: {"memory_mb": _peaks(memory, journal)})
        log_step(line, log)
        bar.show(progress)
        curve.add(progress, line["seconds"])
    return curve


def log_step(line: Line, log: RunLog) -> None:
    """Put on the curves what a journal's line holds for them: the lines that end steps do."""
    for calls, values in line.get("points", ()):
        log.metrics(values, step=calls, seconds=line["seconds"])


def _points(progress: Progress) -> list[tuple[int, Mapping[str, float]]]:
    """Calls and values of a step and of its looks at dev; no value where it is not finite."""
    step, losses = progress.step, progress.step.losses
    values = {"train/loss": step.loss, "train/step_size": step.step_size}
    if len(losses := losses[np.isfinite(losses)]):
        values["train/best"] = float(np.min(losses))
        values["train/mean"] = float(np.mean(losses))
        values["train/spread"] = float(np.std(losses))
    points = [(step.calls, values)]
    points += [
        (at.calls, {"dev/score": at.score, "dev/loss": at.loss, "dev/back_loss": at.back})
        for at in progress.looks
    ]
    return [
        (calls, {name: value for name, value in values.items() if np.isfinite(value)})
        for calls, values in points
    ]


def _peaks(memory: PeakMemory, journal: Journal) -> Mapping[str, float]:
    """Of this process and of those before it."""
    known = (line["memory_mb"] for line in reversed(journal.lines) if "memory_mb" in line)
    before: Mapping[str, float] = next(known, {})
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
    counts |= {f"{part}/unlabelled": count for part, count in problem.unlabelled.items()}
    counts |= {f"{part}/empty": count for part, count in problem.empty.items()}
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
            told += " (of the first call, which nothing later beat there)"
    return f"{told}, {seconds:.1f} s"
