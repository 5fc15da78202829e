"""Times the engine beside the authors' way on random weights of real shape, and writes a report.

python -m pipelines.benchmark
python -m pipelines.benchmark model=gpt2_xl precisions=[bf16] tasks=[full] authors=false
"""

import os
import platform
import sys
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hydra
from omegaconf import DictConfig

from pipelines.markdown import table


@hydra.main(version_base="1.3", config_path="../../conf", config_name="benchmark")
def main(config: DictConfig) -> None:
    """Write ``config.report``."""
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError

    path = Path(config.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    try:
        for part in _parts(config):
            parts.append(part)
            print(part, flush=True)
            # What was measured stays, whatever happens to the rest.
            path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"\nWritten to {path}")


def _parts(config: DictConfig) -> Iterable[str]:
    import numpy as np

    rng = np.random.default_rng(0)
    _check(config)
    yield _head(config)
    speeds = _Speeds(config, rng)
    yield _first_task(config, speeds)
    yield _outside(config, speeds, rng)
    yield _all_tasks(config, speeds)
    del speeds
    if config.agreement:
        yield _agreement(config)
    if config.scaling:
        yield _scaling(config, rng)


def _check(config: DictConfig) -> None:
    from hydra.utils import instantiate

    from dfolora.errors import UserError
    from dfolora.model import Architecture

    if unknown := [task for task in config.tasks if task not in config.lengths]:
        raise UserError(f"No lengths are known of {unknown}; there are {list(config.lengths)}.")
    limit = Architecture.of(instantiate(config.model, _convert_="all").config()).max_length
    longest = {task: max(config.lengths[task]) for task in config.tasks}
    if long := [task for task, length in longest.items() if length > limit]:
        raise UserError(
            f"The model reads {limit} tokens; {', '.join(long)} have more. Set tasks to others."
        )


def _head(config: DictConfig) -> str:
    import torch
    from hydra.utils import instantiate

    from dfolora.record.provenance import commit

    device = instantiate(config.model, _convert_="all").resolved_device()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return "\n".join(
        [
            "# Benchmark",
            "",
            f"`python -m pipelines.benchmark`, commit {commit()}, torch {torch.__version__}, "
            f"{machine}, {torch.get_num_threads()} threads. Random weights of the shape of "
            f"{config.model.path}, d = {config.dim}, rank {config.rank}, real lengths of the "
            f"16-shot train sets (seed 42). Times are of one run on a machine that may have had "
            f"other work; ratios are of figures taken in turn.",
        ]
    )


class _Speeds:
    """Times both ways; each model is built once."""

    def __init__(self, config: DictConfig, rng: Any) -> None:
        from pipelines.benchmark.speed import load

        self._config = config
        self._rng = rng
        self.model = cache(partial(load, config.model))

    def of(self, task: str, precision: str, population: int, layers: int) -> Any:
        from pipelines.benchmark.speed import compare, evenly, random_subspace

        config, ours = self._config, self.model(precision)
        lengths = evenly(config.lengths[task], config.sequences)
        return compare(
            self.model("fp32") if config.authors else None,
            ours,
            random_subspace(ours, lengths, self._rng, dim=config.dim, rank=config.rank),
            lengths,
            population=population,
            sampled=layers,
            repeats=config.repeats,
            rng=self._rng,
        )


def _first_task(config: DictConfig, speeds: _Speeds) -> str:
    head = (
        "precision", "authors, s", "engine, s", "times faster", "less work", "GFLOP/s",
        "GEMM's GFLOP/s", "share of it", "authors, MB", "engine, MB",
    )  # fmt: skip
    rows, task = [], config.tasks[0]
    for precision in config.precisions:
        speed = speeds.of(task, precision, config.population, config.layers)
        rows.append(
            (
                precision, f"{speed.authors_s:.3g}", f"{speed.engine_s:.3g}", f"{speed.ratio:.1f}",
                f"{speed.less_work:.1f}", f"{speed.rate / 1e9:.0f}", f"{speed.gemm / 1e9:.0f}",
                f"{speed.rate / speed.gemm:.0%}", f"{speed.authors_mb:.0f}",
                f"{speed.engine_mb:.0f}",
            )
        )  # fmt: skip
    return (
        f"## A candidate on {task}\n\nMean over layers ({config.layers} timed), population "
        f"{config.population}, {speed.sequences} sequences of {speed.tokens} tokens, the longest "
        f"{speed.longest}. The authors' way is one padded forward a candidate with the vocabulary "
        f"head at all positions, in fp32 throughout. Less work: the ratio of the formulae. GEMM: "
        f"torch's linear on the layer's shapes, same precision. All three are measured in turn. "
        f"MB: on a GPU the peak of all that is in use; on a CPU the weights, and what each way "
        f"takes beside them.\n\n" + table(head, rows)
    )


def _outside(config: DictConfig, speeds: _Speeds, rng: Any) -> str:
    from pipelines.benchmark.overhead import share_outside
    from pipelines.benchmark.speed import few_shot

    task, model = config.tasks[0], speeds.model(config.precisions[0])
    data = few_shot(config.lengths[task], model.model.config.vocab_size, rng)
    share = share_outside(model, data, dim=config.dim, generations=2)
    return (
        f"Outside of the engine (asking, projecting, telling, journal, MLflow) a generation of "
        f"C-LoRA on {task} spends {share:.2%} of its time ({config.precisions[0]}, the first two "
        f"layers' generations)."
    )


def _all_tasks(config: DictConfig, speeds: _Speeds) -> str:
    head = (
        "task", "N", "tokens", "longest", "authors, s", "engine, s", "times faster", "less work",
    )  # fmt: skip
    precision = config.precisions[0]
    rows, theirs, ours = [], 0.0, 0.0
    for task in config.tasks:
        speed = speeds.of(task, precision, config.few.population, config.few.layers)
        share = speed.sequences / len(config.lengths[task])
        theirs += speed.authors_s / share
        ours += speed.engine_s / share
        rows.append(
            (
                task, speed.sequences, speed.tokens, speed.longest, f"{speed.authors_s:.3g}",
                f"{speed.engine_s:.3g}", f"{speed.ratio:.1f}", f"{speed.less_work:.1f}",
            )
        )  # fmt: skip
    total = ("all", "", "", "", f"{theirs:.3g}", f"{ours:.3g}", f"{theirs / ours:.1f}", "")
    return (
        f"## All tasks\n\n{precision} against fp32, population {config.few.population}, "
        f"{config.few.layers} layers timed, at most {config.sequences} of a task's sequences, "
        f"evenly chosen by length, padded to the task's longest; the sum is scaled up to all.\n\n"
        + table(head, [*rows, total])
    )


def _agreement(config: DictConfig) -> str:
    from statistics import mean

    from pipelines.benchmark.agreement import agreements

    wanted, rows = config.agreement, []
    precisions, left_out = _installed(wanted.precisions)
    layers = list[int]()
    for task in wanted.tasks:
        for one in agreements(task, precisions, wanted.budget, config.device):
            layers = sorted(one.taus)
            taus = [f"{mean(one.taus[layer]):.2f}" for layer in layers]
            rows.append((task, one.precision, *taus, f"{max(one.gaps):.4f}"))
    head = ("task", "precision", *(f"layer {layer}" for layer in layers), "largest gap of losses")
    return (
        f"## Agreement with fp32\n\nKendall's tau of a generation's ranks, its mean by searched "
        f"layer, in a C-LoRA search of {wanted.budget} calls in fp32 by the bundled mini-roberta, "
        f"whose candidates each precision judged too. Candidates of layer 0, whose projections are "
        f"scaled by the embeddings, hardly differ, so what is rounded decides.{left_out}\n\n"
        + table(head, rows)
    )


def _installed(precisions: Iterable[str]) -> tuple[list[str], str]:
    """The precisions that can be had, and a sentence about the one that cannot."""
    from dfolora.errors import UserError
    from dfolora.model import check_torchao

    try:
        check_torchao()
    except UserError:
        return [name for name in precisions if name != "int8"], " int8 lacks torchao here."
    return list(precisions), ""


def _scaling(config: DictConfig, rng: Any) -> str:
    from pipelines.benchmark.scaling import points

    rows = [
        (
            point.varied, point.value, f"{point.flops / 1e9:.0f}", f"{point.seconds:.3f}",
            f"{point.flops / point.seconds / 1e9:.0f}",
        )
        for point in points(config.scaling, config.device, rng)
    ]  # fmt: skip
    base = ", ".join(f"{name} {value}" for name, value in config.scaling.base.items())
    return (
        f"## How cost grows\n\nA generation of the engine, mean over layers, fp32, width "
        f"{config.scaling.width}; each varied from {base}. By the formulae cost is linear in "
        f"population and examples, but for what they share; linear in layers, of which half are "
        f"behind the searched one on average; and linear in length, with a quadratic part of "
        f"length over six widths.\n\n"
        + table(("varied", "value", "GFLOP by formula", "seconds", "GFLOP/s"), rows)
    )


def _processor() -> str:
    """Linux names it in a file; elsewhere Python may know."""
    cpus = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpus.read_text().splitlines() if cpus.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
