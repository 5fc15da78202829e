"""Runs as the store's frame has them, and a table of them."""

import pandas as pd

from dfolora.report import Measure, Row, TableSpec, build_table

SPEC = TableSpec(
    name="table1",
    title="A table",
    caption="Test score in %.",
    tasks={"sst2": "SST-2", "mrpc": "MRPC"},
    measures=[Measure(metric="test/score", title="{task}", factor=100, averaged=True)],
    rows=[
        Row(label="Manual prompt", where={"method": "manual_prompt"}),
        Row(label="C-LoRA", where={"method": "dfo_lora", "optimizer": "cma"}),
        Row(label="F-LoRA", where={"method": "dfo_lora", "optimizer": "fwa"}),
    ],
    constants={"majority": "Majority class", "constant_yes": "Constant Yes"},
    profile="mini",
    seeds=[8, 13],
    note="The note.",
)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63"
    "f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
COLUMNS = {
    "item": "tags.item.table1.mini",
    "searched": "metrics.params/searched",
    "majority": "metrics.test/majority_score",
    "constant_yes": "metrics.test/constant_yes_score",
    "calls": "params.budget",
    "status": "status",
}


class Archive:
    """One run left a picture."""

    def history(self, run_ids, metric):
        return pd.DataFrame(columns=["run_id", "step", "seconds", "value"])

    def artifact(self, folder, name):
        return PIXEL if (folder, name) == ("mlruns/sst2-cma-8", "fitness.png") else None


def run(task, seed, score, optimizer="cma", **changes):
    """One finished run; ``changes`` by the names of ``COLUMNS``, or of tags."""
    changes = {COLUMNS.get(name, f"tags.{name}"): value for name, value in changes.items()}
    values = {
        "name": f"{task}-{optimizer}-{seed}",
        "status": "FINISHED",
        "experiment_id": "1",
        "tags.item.table1.mini": "20260101",
        "tags.profile": "mini",
        "tags.method": "dfo_lora" if optimizer else "manual_prompt",
        "tags.optimizer": optimizer,
        "tags.task": task,
        "tags.seed": str(seed),
        "tags.settings": optimizer or "none",
        "tags.rows": f"rows of {task}",
        "tags.commit": "abc",
        "tags.model": "mini_roberta",
        "tags.dim": "500",
        "tags.rank": "2",
        "params.data.k": "16",
        "params.budget": "1000",
        "params.subspace.alpha": "1.0",
        "params.optimizer.sigma": "1.0",
        "metrics.test/score": score,
        "metrics.test/majority_score": {"sst2": 0.5092, "mrpc": 0.8122}.get(task),
        "metrics.params/searched": 1500.0 if optimizer else 0.0,
        "metrics.params/stored": 6000.0 if optimizer else 0.0,
        **changes,
    }
    told = [task, optimizer or "none", seed, *changes.values()]
    run_id = "-".join(map(str, told)).replace("/", "_")
    return {"run_id": run_id, "artifact_uri": f"mlruns/{run_id}", **values}


RUNS = [
    run("sst2", "any", 0.75, optimizer=None),
    run("mrpc", "any", 0.50, optimizer=None, constant_yes=0.8122),
    run("sst2", 8, 0.80),
    run("sst2", 13, 0.90),
    run("mrpc", 13, 0.64),
    run("mrpc", 8, 0.60),
    run("sst2", 8, 0.70, optimizer="fwa"),
]


def table(*runs, spec=SPEC):
    return build_table(pd.DataFrame(runs), spec)
