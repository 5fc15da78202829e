"""One run, from its configuration to its record in the store."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dfolora.data import Task, tasks
from dfolora.fewshot import About, Fitted, Problem, ProblemSpec, Source, TaskRows, fitted_of
from dfolora.methods import Method, Predictor, written
from dfolora.model import Architecture, Backbone, Checkpoint, Limits
from dfolora.record import BusyError, Store
from dfolora.record.provenance import commit, digest, flat, provenance
from dfolora.resources import check_folder
from dfolora.validation import whole
from pipelines.built import built
from pipelines.one_run.attempt import OUTPUTS, Attempt
from pipelines.one_run.fit import fit_and_test, log_step
from pipelines.one_run.identity import (
    SEEDS,
    code,
    labels_of,
    name_of,
    settings_of,
    source,
    untasked,
    used_keys,
)
from pipelines.progress import RunBar, telling_warnings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    run_id: str
    """The run's id in the store."""
    new: bool
    """Whether this job added the run."""
    line: str
    """The line to print."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run whose configuration has been checked, before anything is loaded."""

    name: str
    checkpoint: Checkpoint
    architecture: Architecture
    limits: Limits
    method: Method
    spec: ProblemSpec
    rows: TaskRows
    split_seed: int
    search_seed: int
    paraphrases: tuple[str, ...]
    config: Mapping[str, Any]
    """All values that matter to the run."""
    digest: str
    labels: Mapping[str, str]
    """The run's tags."""

    @classmethod
    def checked(cls, config: DictConfig, choices: Mapping[str, str], sweep_id: str) -> "Run":
        """Check a configuration.

        Raises:
            UserError: Something given is wrong.
        """
        used = used_keys(config)  # first, for to instantiate a part resolves what it refers to
        plain: Any = OmegaConf.to_container(config, resolve=True)
        task = Task.from_mapping(plain["task"])
        checkpoint: Checkpoint = built(config, "model", _convert_="all")
        for key in SEEDS:
            whole(config[key], key, least=0)
        method: Method = built(config, "method")
        spec: ProblemSpec = built(config, "data")
        limits: Limits = built(config, "engine")
        architecture = Architecture.of(
            checkpoint.config(), quantized=checkpoint.quantized, streamed=limits.stream
        )
        method.check(architecture)
        spec.check(task, architecture.family.kind)
        others = spec.check_paraphrases(
            plain["paraphrases"], task, architecture.family.kind, method
        )
        task_rows = _task_rows(task, spec.source)
        settings = settings_of(untasked(plain, config), checkpoint, method)
        rows = {"task": plain["task"], "rows": task_rows.fingerprint}
        seeds = {key: plain[key] for key in SEEDS if method.seeded}
        # Named only where there are some, for a run without any is what it was before there were.
        tested = {"paraphrases": sorted(others)} if others else {}
        labels = labels_of(plain, choices, checkpoint, method) | {
            "settings": digest(settings),
            "rows": digest(rows),
            "sweep_id": sweep_id,
        }
        if "experiment" in choices:
            labels[f"item.{choices['experiment']}.{choices['profile']}"] = sweep_id
        return cls(
            name=name_of(plain, choices, labels),
            checkpoint=checkpoint,
            architecture=architecture,
            limits=limits,
            method=method,
            spec=spec,
            rows=task_rows,
            split_seed=config.split_seed,
            search_seed=config.search_seed,
            paraphrases=others,
            config={key: plain[key] for key in used} | tested,
            digest=digest({"settings": settings, **rows, **seeds, **tested}),
            labels=labels,
        )

    def problem(self) -> Problem:
        """The few-shot problem, which takes the tokenizer; errors as of ``ProblemSpec.pose``."""
        return self.spec.pose(
            self.rows,
            self.checkpoint.load_tokenizer(),
            self.method,
            kind=self.architecture.family.kind,
            max_length=self.architecture.max_length,
            seed=self.split_seed,
            paraphrases=self.paraphrases,
        )


def execute(
    config: DictConfig,
    choices: Mapping[str, str],
    sweep_id: str,
    *,
    show: Callable[[str, int], RunBar] = RunBar,
    patience: float | None = None,
) -> Outcome:
    """Check everything cheap, then load the weights, fit, test and record.

    The store is asked before anything is tokenized; a run that it has is the outcome. One that was
    broken off goes on where it stopped; one that only could not be recorded is recorded.

    Args:
        config: What ``conf/run.yaml`` composes.
        choices: The option chosen for each config group.
        sweep_id: Shared by the runs of one command.
        show: Makes the progress bar, from the run's name and budget.
        patience: Seconds to wait for another process that works on the run in this folder; None
            for as long as it takes. With 0 the run is left to other folders and machines as well.

    Raises:
        BusyError: Another process is at work on it.
        UserError: Something given is wrong; but for the weights themselves, this is told before
            they are loaded.
        ResourceError: The store took the run's beginning, and does not take its end.
    """
    run = Run.checked(config, choices, sweep_id)
    store = store_of(config.tracking.uri)
    store.check_experiment(config.tracking.experiment)
    check_folder(OUTPUTS, "the working folder")
    with telling_warnings(run.name), store.alone(run.digest, OUTPUTS, patience):
        identity = {
            "digest": run.digest,
            "code": code(),
            "commit": commit(),
            "source": source(),
            "device": _named(run.checkpoint.resolved_device()),
            **provenance(),
        }
        attempt = Attempt(run.name, identity)
        if (run_id := store.finished_run(run.digest)) is not None:
            if attempt.folder.exists():  # left by a kill, or by who found the run done elsewhere
                run_id = store.settle(attempt.tags)
                attempt.discard()
            return _known(run_id, run, store)
        if patience == 0 and store.runs_elsewhere(attempt.tags):
            raise BusyError
        if attempt.folder.exists() and not (run.method.resumable or attempt.finished):
            store.forget(attempt.tags)
            attempt.discard()
        work = None if attempt.finished else _ready(run, attempt)
        log = store.start(
            config.tracking.experiment,
            run.name,
            tags={**attempt.tags, **run.labels},
            params=attempt.params,
            began=attempt.began,
        )
        with log:
            if work is None:  # the log has not seen it
                for line in attempt.journal().lines:
                    log_step(line, log)
            else:
                backbone, problem = work
                with show(run.name, run.method.budget) as bar:
                    bar.tell(problem.summary())
                    save = saver(run, backbone, problem)
                    fit_and_test(
                        run.method, backbone, problem, run.search_seed, attempt, log, bar, save
                    )
            told = attempt.record(log)
        run_id = store.settle(attempt.tags)  # a slow server may have made one twice
        attempt.discard()
        if run_id != log.run_id:
            return _known(run_id, run, store)
    return Outcome(run_id=run_id, new=True, line=f"{run.name}: {told}, run {run_id}")


def _known(run_id: str, run: Run, store: Store) -> Outcome:
    """The outcome of a job whose run was made by another one."""
    # Asked for by another name it is still this run, and a table looks for the name.
    store.tag(run_id, run.labels)
    score = store.metric(run_id, "test/score")
    kept = f"in the store already, test {score:.3f}, run {run_id}"
    return Outcome(run_id=run_id, new=False, line=f"{run.name}: {kept}")


def saver(
    run: Run, backbone: Backbone, problem: Problem
) -> Callable[[Predictor, float, Path], None]:
    """Writes what was fitted to a folder, with its test score and all that it needs to be used.

    Raises:
        UserError: No fit of this method could be used again.
    """
    encode = problem.data.encode
    assert encode is not None
    described = fitted_of(run.method, encode)  # here, for a fit may take a day

    task = problem.task
    published = run.spec.root is None and not task.dataset.is_folder  # no rows of the user's own
    source, _, world = task.dataset.path.partition(":")
    of_hub = published and source != "mini"
    if of_hub:
        given = None
    elif published:
        given = f"synthetic, of mini world {world or 0}"
    else:
        given = f"rows from {Path(problem.rows.test.source).name}"  # a card tells nobody's folders

    def save(predictor: Predictor, score: float, folder: Path) -> None:
        Fitted(
            predictor=predictor,
            backbone=backbone,
            origin=run.checkpoint.origin(),
            task=task,
            classes=task.classes,
            plain=problem.plain,
            encode=encode,
            label_ids=problem.data.label_ids,
            describe=lambda: described,
            method=written(run.method),
            seed=run.search_seed,
            about=About(
                title=task.title,
                train=len(problem.data.train.labels),
                dev=len(problem.data.dev.labels),
                split_seed=run.split_seed,
                metric=task.metric,
                dev_score=None if predictor.dev is None else predictor.dev.score,
                test_score=score,
                test=len(problem.test.labels),
                dataset=task.dataset.path if of_hub else None,
                language="en" if published and task.name in tasks() else None,
                rows=given,
            ),
        ).save(folder)

    return save


def _ready(run: Run, attempt: Attempt) -> tuple[Backbone, Problem]:
    """Load model and problem, and begin the attempt unless it was begun before."""
    attempt.check()
    problem = run.problem()
    # Nothing of an earlier run of this process may count towards the next one's peak.
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    backbone = run.checkpoint.load_backbone(run.limits)
    attempt.begin(
        params={**flat(run.config), **provenance(), **_hardware(backbone)},
        files={
            "config.yaml": OmegaConf.to_yaml(OmegaConf.create(dict(run.config))),
            "split.json": problem.split.to_json() + "\n",
            "asked.txt": problem.summary() + "\n",
        },
    )
    return backbone, problem


@lru_cache
def store_of(uri: str) -> Store:
    """One store per process, since opening it is slow."""
    return Store(uri)


@lru_cache(maxsize=1)
def _task_rows(task: Task, source: Source) -> TaskRows:
    """Rows, cached for the jobs of one task; only the last task's are kept, as some are large."""
    return TaskRows.load(task, source)


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _hardware(backbone: Backbone) -> Mapping[str, str]:
    return {
        "used.device": _named(backbone.device),
        "used.dtype": str(backbone.model.dtype),
        "used.threads": str(torch.get_num_threads()),
    }
