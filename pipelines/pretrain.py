"""Pretrains a model on the embedded world's corpus, from random weights.

python -m pipelines.pretrain model=mini_gpt2
"""

import os

# One thread adds in one order, and is fastest for matrices this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import json
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tqdm import tqdm


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(config: DictConfig) -> None:
    """Write ``<folder>``: model in half precision, tokenizer, and the log of the training."""
    # Imported late, so that --help and configuration errors come at once.
    import torch
    from hydra.utils import instantiate

    from dfolora.architecture import Architecture
    from dfolora.errors import UserError
    from dfolora.mini.pretrain import Pretraining
    from dfolora.mini.tokenizer import train_tokenizer
    from dfolora.plain import file_name, whole
    from dfolora.record import commit, provenance

    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        for part in Path(config.model.path).parts:  # it names the folder that is written
            file_name(part, "model.path")
        architecture = instantiate(config.model, _convert_="all").config()
        recipe = instantiate(config.recipe)
        recipe.check()
        looks_wanted = whole(config.looks, "looks", least=1)
        tokenizer = train_tokenizer(Architecture.of(architecture).family.kind)
        training = Pretraining(architecture, tokenizer, recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    looks: list[dict[str, float]] = []
    recent: list[float] = []
    with tqdm(total=training.steps, unit="step", disable=None) as bar:
        for step, loss in enumerate(training, 1):
            recent.append(loss)
            bar.update()
            if step * looks_wanted // training.steps > len(looks):
                held_out = training.held_out_loss()
                train = sum(recent) / len(recent)
                looks.append(
                    {"step": step, "train": round(train, 4), "held_out": round(held_out, 4)}
                )
                recent.clear()
                tqdm.write(f"step {step}: train {train:.4f}, held out {held_out:.4f}")
    folder = Path(config.folder)
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
    print(f"Written to {folder}: held-out loss {looks[-1]['held_out']:.4f}, {log['minutes']} min")


if __name__ == "__main__":
    main()
