"""One run, from its configuration to its record in the store."""

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dfolora.architecture import Architecture
from dfolora.checkpoint import Checkpoint
from dfolora.figure import save_fitness_curve
from dfolora.journal import Journal
from dfolora.memory import PeakMemory
from dfolora.methods import Fit, Method, Predictor, Progress
from dfolora.problem import Problem, ProblemSpec
from dfolora.record import commit, digest, flat, provenance
from dfolora.score import score_test
from dfolora.task import Task
from dfolora.tracking import RunLog, Store
from pipelines.progress import ProgressBar

OUTPUTS = Path("outputs")


def execute(config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> str:
    """Check everything cheap, then load the weights, fit, test and record.

    Args:
        config: What ``conf/run.yaml`` composes.
        choices: The option chosen for each config group.
        sweep_id: Shared by the runs of one command.

    Returns:
        The id of the run in the store, which may have been there already.

    Raises:
        UserError: Something given is wrong; but for the weights themselves, this is told before
            they are loaded.
    """
    task = Task.from_mapping(OmegaConf.to_container(config.task, resolve=True))
    checkpoint: Checkpoint = instantiate(config.model, _convert_="all")
    method: Method = instantiate(config.method)
    spec: ProblemSpec = instantiate(config.data)
    architecture = Architecture.of(checkpoint.config())
    method.check(architecture)
    problem = spec.pose(
        task,
        checkpoint.load_tokenizer(),
        kind=architecture.family.kind,
        max_length=architecture.max_length,
        seed=config.split_seed,
    )
    plain = OmegaConf.to_container(config, resolve=True)
    settings = _settings(plain, checkpoint)
    run_digest = digest({"settings": settings, **_circumstances(plain, problem, method)})
    store = _store(config.tracking.uri)
    requested = {}
    if "experiment" in choices:
        requested[f"item.{choices['experiment']}.{choices['profile']}"] = sweep_id
    model = checkpoint.label or choices["model"]
    name = _name(plain, choices, method, model)
    if (run_id := store.finished_run(run_digest)) is not None:
        store.tag(run_id, requested)
        print(f"{name}: in the store already")
        return run_id
    backbone = checkpoint.load_backbone()
    tags = {
        "digest": run_digest,
        "settings": digest(settings),
        "sweep_id": sweep_id,
        "commit": commit(),
        "task": task.name,
        "seed": _seed(plain, method),
        "rank": str(config.rank),
        "model": model,
        **{group: choices[group] for group in ("profile", "method")},
        **({"optimizer": choices["optimizer"]} if "optimizer" in plain["method"] else {}),
        **requested,
    }
    params = {**flat(plain), **provenance(), "device": str(backbone.device)}
    folder = OUTPUTS / run_digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with store.start(config.tracking.experiment, name, tags=tags, params=params) as log:
        memory = PeakMemory()
        started = time.perf_counter()
        fit = method.begin(backbone, problem.data, config.search_seed)
        steps = _follow(fit, log, memory, folder / "journal.jsonl", name, config.budget)
        fitted = time.perf_counter()
        predictor = fit.predictor()
        scores = score_test(predictor.logits(problem.test), problem)
        memory.sample()
        log.metrics(_summary(predictor, problem, scores, steps, memory))
        log.metrics({"time/fit_s": fitted - started, "time/test_s": time.perf_counter() - fitted})
        if steps:
            calls = steps[-1].generation.calls
            log.metrics({"time/calls_per_s": calls / (fitted - started)})
            save_fitness_curve(folder / "fitness.png", steps, name)
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
        (folder / "split.json").write_text(problem.split.to_json() + "\n")
        predictor.save(folder / "adapter")
        log.artifacts(folder)
    shutil.rmtree(folder)
    dev = "" if predictor.dev is None else f", dev {predictor.dev.score:.3f}"
    print(f"{name}: test {scores['score']:.3f}{dev}, {fitted - started:.1f} s")
    return log.run_id


@lru_cache
def _store(uri: str) -> Store:
    """One a process: to open a store takes longer than to use it."""
    return Store(uri)


def _follow(
    fit: Fit, log: RunLog, memory: PeakMemory, journal_path: Path, name: str, budget: int
) -> Sequence[Progress]:
    """Let the fit work to its end; journal, curves and progress bar look on."""
    steps = []
    with Journal(journal_path) as journal, ProgressBar(name, budget) as bar:
        for step in fit:
            journal.append(step.generation)
            log.metrics(_curve_points(step), step=step.generation.calls)
            memory.sample()
            bar.show(step)
            steps.append(step)
    return steps


def _curve_points(step: Progress) -> Mapping[str, float]:
    losses = step.generation.losses[np.isfinite(step.generation.losses)]
    points = {"train/loss": step.generation.loss, "train/step_size": step.generation.step_size}
    if len(losses):
        points |= {
            "train/best": losses.min(),
            "train/mean": losses.mean(),
            "train/spread": losses.std(),
        }
    if step.dev is not None:
        points |= {"dev/score": step.dev.score, "dev/loss": step.dev.loss}
    return points


def _summary(
    predictor: Predictor,
    problem: Problem,
    scores: Mapping[str, float],
    steps: Sequence[Progress],
    memory: PeakMemory,
) -> Mapping[str, float]:
    summary = {f"test/{name}": value for name, value in scores.items()}
    summary |= {
        "test/rows": len(problem.test.labels),
        "test/truncated": problem.test.truncated,
        "test/dropped": problem.dropped_tests,
        "params/searched": predictor.searched,
        "params/stored": predictor.stored,
        "calls": steps[-1].generation.calls if steps else 0,
    }
    if predictor.dev is not None:
        summary |= {
            "dev/selected_score": predictor.dev.score,
            "dev/selected_at": predictor.dev.calls,
        }
    return summary | {f"memory/{name}_mb": peak for name, peak in memory.megabytes().items()}


def _settings(plain: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The method and the model; not where files lie, nor how work is cut into pieces."""
    return {
        "data": {key: value for key, value in plain["data"].items() if key != "root"},
        "model": checkpoint.identity(),
        "method": {key: value for key, value in plain["method"].items() if key != "tokens"},
    }


def _circumstances(plain: Any, problem: Problem, method: Method) -> Mapping[str, Any]:
    """What varies within one row of a table: task, rows and, where they matter, seeds."""
    seeds = {key: plain[key] for key in ("split_seed", "search_seed") if method.seeded}
    return {"task": plain["task"], "rows": problem.fingerprint, **seeds}


def _seed(plain: Any, method: Method) -> str:
    """``any`` where no seed matters; both of them where they were set apart."""
    split, search = plain["split_seed"], plain["search_seed"]
    if not method.seeded:
        return "any"
    return str(split) if split == search else f"{split}/{search}"


def _name(plain: Any, choices: Mapping[str, str], method: Method, model: str) -> str:
    parts = [plain["task"]["name"], model, choices["method"]]
    if method.seeded:
        parts += [choices["optimizer"], f"r{plain['rank']}", f"seed{_seed(plain, method)}"]
    return "-".join(parts)
