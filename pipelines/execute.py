"""One run, from its configuration to its record in the store."""

import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dfolora.architecture import Architecture
from dfolora.backbone import Backbone
from dfolora.checkpoint import Checkpoint
from dfolora.errors import UserError
from dfolora.figure import Curve, save_fitness_curve
from dfolora.journal import Journal
from dfolora.memory import PeakMemory
from dfolora.methods import Method, Predictor, Progress, Step
from dfolora.plain import whole
from dfolora.problem import Problem, ProblemSpec, TaskRows
from dfolora.record import commit, digest, flat, provenance
from dfolora.score import score_test
from dfolora.task import Task
from dfolora.tracking import RunLog, Store
from pipelines.identity import SEEDS, labels_of, name_of, settings_of, used_keys
from pipelines.progress import RunBar

OUTPUTS = Path("outputs")
MOST_STORED = 100_000_000
"""Numbers of a predictor's that are worth a place in the store: a large model's own are not."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job."""

    run_id: str
    """Of the run in the store."""
    new: bool
    """Whether the run was not there already."""
    line: str
    """What to tell."""


def execute(
    config: DictConfig,
    choices: Mapping[str, str],
    sweep_id: str,
    *,
    show: Callable[[str, int], RunBar] = RunBar,
) -> Outcome:
    """Check everything cheap, then load the weights, fit, test and record.

    The store is asked before anything is tokenized; a run that it has is the outcome.

    Args:
        config: What ``conf/run.yaml`` composes.
        choices: The option chosen for each config group.
        sweep_id: Shared by the runs of one command.
        show: Makes the progress bar, from the run's name and budget.

    Raises:
        UserError: Something given is wrong; but for the weights themselves, this is told before
            they are loaded.
    """
    used = used_keys(config)  # first, for to instantiate a part resolves what it refers to
    task = Task.from_mapping(OmegaConf.to_container(config.task, resolve=True))
    checkpoint: Checkpoint = _built(config, "model", _convert_="all")
    for key in SEEDS:
        whole(config[key], key, least=0)
    method: Method = _built(config, "method")
    spec: ProblemSpec = _built(config, "data")
    architecture = Architecture.of(checkpoint.config(), quantized=checkpoint.quantized)
    method.check(architecture)
    spec.check(task, architecture.family.kind)
    task_rows = _task_rows(task, spec.root)
    plain = OmegaConf.to_container(config, resolve=True)
    settings = settings_of(plain, checkpoint, method)
    rows = {"task": plain["task"], "rows": task_rows.fingerprint}
    seeds = {key: plain[key] for key in SEEDS if method.seeded}
    run_digest = digest({"settings": settings, **rows, **seeds})
    labels = labels_of(plain, choices, checkpoint, method) | {
        "settings": digest(settings),
        "rows": digest(rows),
        "sweep_id": sweep_id,
    }
    if "experiment" in choices:
        labels[f"item.{choices['experiment']}.{choices['profile']}"] = sweep_id
    name = name_of(plain, choices, labels)
    store = _store(config.tracking.uri)
    with store.alone(run_digest):
        if (run_id := store.finished_run(run_digest)) is not None:
            # Asked for by another name it is still this run, and a table looks for the name.
            store.tag(run_id, labels)
            return Outcome(run_id=run_id, new=False, line=f"{name}: in the store already")
        problem = spec.pose(
            task_rows,
            checkpoint.load_tokenizer(),
            method,
            kind=architecture.family.kind,
            max_length=architecture.max_length,
            seed=config.split_seed,
        )
        _free_memory()
        with show(name, method.budget) as bar:
            backbone = checkpoint.load_backbone()
            recorded = {key: plain[key] for key in used}
            log = store.start(
                config.tracking.experiment,
                name,
                tags={"digest": run_digest, "commit": commit(), **labels},
                params={**flat(recorded), **provenance(), **_hardware(backbone)},
            )
            told = _recorded(method, backbone, problem, config.search_seed, recorded, log, bar)
    return Outcome(run_id=log.run_id, new=True, line=f"{name}: {told}, run {log.run_id}")


def _recorded(
    method: Method,
    backbone: Backbone,
    problem: Problem,
    seed: int,
    config: Mapping[str, Any],
    log: RunLog,
    bar: RunBar,
) -> str:
    """Fit and test, all of it to the log; the outcome."""
    OUTPUTS.mkdir(exist_ok=True)
    with log:
        folder = Path(tempfile.mkdtemp(prefix=f"{bar.name.replace('/', '_')}-", dir=OUTPUTS))
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        (folder / "split.json").write_text(problem.split.to_json() + "\n")
        told = _fit(method, backbone, problem, seed, log, folder, bar)
        log.artifacts(folder)
    shutil.rmtree(folder)
    return told


def _fit(
    method: Method,
    backbone: Backbone,
    problem: Problem,
    seed: int,
    log: RunLog,
    folder: Path,
    bar: RunBar,
) -> str:
    """Fit and test, with curves and scores to the log and files to the folder; the outcome."""
    memory = PeakMemory(backbone.device)
    started = time.perf_counter()
    fit = method.begin(backbone, problem.data, seed)
    curve = follow(fit, log, memory, folder / "journal.jsonl", bar)
    fitted = time.perf_counter()
    predictor = fit.predictor()
    scores = score_test(predictor.logits(problem.test), problem)
    tested = time.perf_counter()
    memory.sample()
    log.metrics(_summary(predictor, problem, scores, curve))
    log.metrics({f"memory/{part}_mb": peak for part, peak in memory.megabytes().items()})
    log.metrics({"time/fit_s": fitted - started, "time/test_s": tested - fitted})
    if curve.calls:
        log.metrics({"time/calls_per_s": curve.calls[-1] / (fitted - started)})
        save_fitness_curve(folder / "fitness.png", curve, bar.name)
    if predictor.stored <= MOST_STORED:
        predictor.save(folder / "adapter")
    told = f"test {scores['score']:.3f}"
    if predictor.dev is not None:
        told += f", dev {predictor.dev.score:.3f}"
        if predictor.dev.calls <= 1:
            told += " (nothing beat the start there, so it is kept)"
    return f"{told}, {fitted - started:.1f} s"


def _built(config: DictConfig, key: str, **options: Any) -> Any:
    """What a node of the configuration names, or what is wrong with it in one line."""
    try:
        return instantiate(config[key], **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = " ".join(str(error).split())
        raise UserError(f"{key} cannot be built: {reason}. See conf/{key}/.") from error


@lru_cache
def _store(uri: str) -> Store:
    """One a process: to open a store takes longer than to use it."""
    return Store(uri)


@lru_cache(maxsize=1)
def _task_rows(task: Task, root: str | None) -> TaskRows:
    """Read once for the jobs that share them; of the last task only, for some are large."""
    return TaskRows.load(task, root)


def _free_memory() -> None:
    """Nothing of an earlier run of this process may count towards the next one's peak."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def follow(
    fit: Iterable[Progress], log: RunLog, memory: PeakMemory, journal_path: Path, bar: RunBar
) -> Curve:
    """Let the fit work to its end; journal, curves and progress bar look on."""
    curve, started, selected_at = Curve(), time.perf_counter(), None
    with Journal(journal_path) as journal:
        for progress in fit:
            journal.append(progress.step)
            log.metrics(_train_points(progress.step), step=progress.step.calls)
            for look in progress.looks:
                log.metrics({"dev/score": look.score, "dev/loss": look.loss}, step=look.calls)
            memory.sample()
            bar.show(progress)
            curve.add(progress)
            if progress.selected is not None and progress.selected.calls != selected_at:
                selected_at = progress.selected.calls
                curve.selected_s = time.perf_counter() - started
    return curve


def _train_points(step: Step) -> Mapping[str, float]:
    points = {"train/loss": step.loss, "train/step_size": step.step_size}
    losses = step.losses[np.isfinite(step.losses)]
    if len(losses):
        points["train/best"] = float(losses.min())
        points["train/mean"] = float(losses.mean())
        points["train/spread"] = float(losses.std())
    return points


def _summary(
    predictor: Predictor, problem: Problem, scores: Mapping[str, float], curve: Curve
) -> Mapping[str, float]:
    summary = {f"test/{name}": value for name, value in scores.items()}
    summary |= {
        "test/rows": len(problem.test.labels),
        "test/dropped": problem.dropped_tests,
        "test/truncated": problem.test.truncated,
        "train/truncated": problem.data.train.truncated,
        "dev/truncated": problem.data.dev.truncated,
        "params/searched": predictor.searched,
        "params/stored": predictor.stored,
        "calls": curve.calls[-1] if curve.calls else 0,
    }
    summary |= {f"fitted/{name}": value for name, value in predictor.found.items()}
    if predictor.dev is not None:
        summary["dev/selected_score"] = predictor.dev.score
        summary["dev/selected_at"] = predictor.dev.calls
        summary["dev/selected_s"] = curve.selected_s
    return summary


def _hardware(backbone: Backbone) -> Mapping[str, str]:
    on_gpu = backbone.device.type == "cuda"
    return {
        "used.device": torch.cuda.get_devicename_of(backbone.device) if on_gpu else "cpu",
        "used.dtype": str(backbone.model.dtype),
        "used.threads": str(torch.get_num_threads()),
    }
