"""Times the engine beside the authors' way on random weights of real shape, and writes a report.

python -m pipelines.benchmark
python -m pipelines.benchmark model=gpt2_xl precisions=[bf16] tasks=[full] scaling=null
"""

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Before torch starts its threads: those that spin while they wait slow others down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hydra
from omegaconf import DictConfig


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
    yield from _speed(config, rng)
    if config.agreement:
        yield _agreement(config)
    if config.scaling:
        yield _scaling(config, rng)


def _check(config: DictConfig) -> None:
    from hydra.utils import instantiate

    from dfolora.architecture import Architecture
    from dfolora.errors import UserError

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

    from dfolora.record import commit

    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    machine = torch.cuda.get_device_name() if on_gpu else _processor()
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


def _speed(config: DictConfig, rng: Any) -> Iterable[str]:
    from dfolora.engine import Limits
    from dfolora.subspace import SubspaceSpec
    from pipelines.benchmark.overhead import share_outside
    from pipelines.benchmark.speed import batch_of, compare, evenly, few_shot

    authors = _backbone(config, "fp32")
    models = {"fp32": authors}
    spec = SubspaceSpec(dim=config.dim, rank=config.rank)

    def compared(task: str, precision: str, population: int, layers: int) -> Any:
        lengths = evenly(config.lengths[task], config.sequences)
        ours = models.setdefault(precision, _backbone(config, precision))
        batch = batch_of(lengths[:2], 1000, rng)
        subspace = spec.build(ours, batch.input_ids, batch.attention_mask, seed=0)
        return compare(
            authors, ours, subspace, lengths,
            population=population, sampled=layers, limits=Limits(), repeats=config.repeats, rng=rng,
        )  # fmt: skip

    first = config.tasks[0]
    head = (
        "precision", "authors, s", "engine, s", "times faster", "less work", "GFLOP/s",
        "GEMM's GFLOP/s", "share of it", "authors, MB", "engine, MB",
    )  # fmt: skip
    rows = []
    for precision in config.precisions:
        speed = compared(first, precision, config.population, config.layers)
        rows.append(
            (
                precision, f"{speed.authors_s:.3g}", f"{speed.engine_s:.3g}", f"{speed.ratio:.1f}",
                f"{speed.less_work:.1f}", f"{speed.rate / 1e9:.0f}", f"{speed.gemm / 1e9:.0f}",
                f"{speed.rate / speed.gemm:.0%}", f"{speed.authors_mb:.0f}",
                f"{speed.engine_mb:.0f}",
            )
        )  # fmt: skip
    yield (
        f"## A candidate on {first}\n\nMean over layers ({config.layers} timed), population "
        f"{config.population}, {speed.sequences} sequences of {speed.tokens} tokens, the longest "
        f"{speed.longest}. The authors' way is one padded forward a candidate with the vocabulary "
        f"head at all positions, in fp32 throughout. Less work: the ratio of the formulae. GEMM: "
        f"torch's linear on the layer's shapes, same precision, measured here.\n\n"
        + _table(head, rows)
    )
    outside = share_outside(
        authors, few_shot(config.lengths[first], 1000, rng), dim=config.dim, generations=2
    )
    yield (
        f"Outside of the engine (asking, projecting, telling, journal, MLflow) a generation of "
        f"C-LoRA on {first} spends {outside:.2%} of its time."
    )
    head = (
        "task",
        "N",
        "tokens",
        "longest",
        "authors, s",
        "engine, s",
        "times faster",
        "less work",
    )
    rows, total = [], [0.0, 0.0]
    for task in config.tasks:
        speed = compared(task, "fp32", config.few.population, config.few.layers)
        whole = len(config.lengths[task]) / speed.sequences
        total[0] += whole * speed.authors_s
        total[1] += whole * speed.engine_s
        rows.append(
            (
                task, speed.sequences, speed.tokens, speed.longest, f"{speed.authors_s:.3g}",
                f"{speed.engine_s:.3g}", f"{speed.ratio:.1f}", f"{speed.less_work:.1f}",
            )
        )  # fmt: skip
    rows.append(
        ("all", "", "", "", f"{total[0]:.3g}", f"{total[1]:.3g}", f"{total[0] / total[1]:.1f}", "")
    )
    yield (
        f"## All tasks\n\nfp32 against fp32, population {config.few.population}, "
        f"{config.few.layers} layers timed, at most {config.sequences} of a task's sequences, "
        f"evenly chosen by length, padded to the task's longest; the sum is scaled up to all.\n\n"
        + _table(head, rows)
    )


def _agreement(config: DictConfig) -> str:
    import numpy as np

    from pipelines.benchmark.agreement import agreements

    wanted, rows = config.agreement, []
    for task in wanted.tasks:
        for one in agreements(task, wanted.precisions, wanted.budget):
            taus = np.array(one.taus)
            rows.append(
                (
                    task, one.precision, f"{taus.mean():.3f}", f"{taus.min():.3f}",
                    f"{max(one.gaps):.4f}",
                )
            )  # fmt: skip
    return (
        f"## Agreement with fp32\n\nKendall's tau of a generation's ranks, over the "
        f"{len(taus)} generations of a C-LoRA search in fp32 by the bundled mini-roberta, whose "
        f"candidates each precision judged too.\n\n"
        + _table(("task", "precision", "mean tau", "lowest tau", "largest gap of losses"), rows)
    )


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
        + _table(("varied", "value", "GFLOP by formula", "seconds", "GFLOP/s"), rows)
    )


def _backbone(config: DictConfig, precision: str) -> Any:
    from hydra.utils import instantiate

    return instantiate(config.model, precision=precision, _convert_="all").load_backbone()


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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
