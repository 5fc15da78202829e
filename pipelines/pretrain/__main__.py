"""Pretrains a model on the embedded world's corpus, from random weights.

python -m pipelines.pretrain model=mini_gpt2
"""

import os

# One thread adds in one order, and is fastest for matrices this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import json
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.command import reported, run


@hydra.main(version_base="1.3", config_path="../../conf", config_name="pretrain")
def main(config: DictConfig) -> None:
    """Write ``<folder>``: model in half precision, tokenizer, and the log of the training."""
    with reported():
        print(pretrain(config))


def pretrain(config: DictConfig) -> str:
    """Pretrain, write the model, and return the text to print.

    Args:
        config: What ``conf/pretrain.yaml`` composes.

    Raises:
        UserError: Something given is wrong; told before the training begins.
    """
    # Imported late, so that --help and configuration errors come at once.
    import torch
    from hydra.utils import instantiate

    from dfolora.model import Architecture
    from dfolora.record.provenance import commit, provenance
    from dfolora.resources import check_folder
    from dfolora.validation import file_name, mapping, text, whole
    from pipelines.one_run.identity import check_built
    from pipelines.pretrain.tokenizer import train_tokenizer
    from pipelines.pretrain.training import Pretraining

    torch.set_num_threads(1)
    started = time.perf_counter()
    plain = mapping(OmegaConf.to_container(config, resolve=True), "the configuration")
    for part in ("model", "recipe"):
        check_built(plain.get(part), part)
    for part in Path(text(plain["model"].get("path"), "model.path")).parts:
        file_name(part, "model.path")  # it names the folder that is written
    folder = Path(text(plain.get("folder"), "folder"))
    check_folder(folder, "folder")
    architecture = instantiate(config.model, _convert_="all").config()
    recipe = instantiate(config.recipe)
    recipe.check()
    looks_wanted = whole(plain.get("looks"), "looks", least=1)
    tokenizer = train_tokenizer(Architecture.of(architecture).family.kind)
    training = Pretraining(architecture, tokenizer, recipe)
    looks: list[dict[str, float]] = []
    recent: list[float] = []
    with tqdm(total=training.steps, unit="step", disable=None) as bar:
        for step, loss in enumerate(training, 1):
            recent.append(loss)
            bar.update()
            if step * looks_wanted // training.steps > len(looks):
                loss = training.held_out_loss()
                train = sum(recent) / len(recent)
                looks.append({"step": step, "train": round(train, 4), "held_out": round(loss, 4)})
                recent.clear()
                tqdm.write(f"step {step}: train {train:.4f}, held out {loss:.4f}")
    training.model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    log = {
        "recipe": dataclasses.asdict(recipe),
        "parameters": training.model.num_parameters(),
        "tokens": training.tokens,
        "steps": training.steps,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "losses": looks,
        "commit": commit(),
        **provenance(),
    }
    (folder / "pretraining.json").write_text(json.dumps(log, indent=1) + "\n")
    held_out = looks[-1]["held_out"]
    return f"Written to {folder}: held-out loss {held_out:.4f}, {log['minutes']} min"


if __name__ == "__main__":
    run(main)
