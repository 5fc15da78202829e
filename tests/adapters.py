"""Small LoRA adapters of a model, for methods that are given some."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dfolora.model import Checkpoint, LayerLora, LoraFactors, save_adapter

_FOLDER = TemporaryDirectory(prefix="adapters")  # until the tests end


def random_adapter(
    folder, backbone, seed, *, rank=2, targets=("q", "k"), layers=(0, 1, 2), std=0.3
):
    """Write an adapter of normal numbers; returns its folder's name."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return std * torch.randn(shape, generator=generator)

    places = backbone.architecture.maps
    factors = [
        {
            name: LoraFactors(
                down=normal(1, places[name].d_in, rank), up=normal(1, rank, places[name].d_out)
            )
            for name in targets
        }
        for _ in layers
    ]
    made = [LayerLora(layer=layer, factors=own) for layer, own in zip(layers, factors, strict=True)]
    save_adapter(folder, backbone, made)
    return str(folder)


@cache
def mini_adapters(model: str) -> list[str]:
    """Two adapters of one of the mini world's models."""
    backbone = Checkpoint(
        path=model, revision="main", tokenizer=None, weights="pretrained",
        architecture=None, device="cpu", precision="fp32",
    ).load_backbone()  # fmt: skip
    return [
        random_adapter(Path(_FOLDER.name) / f"{model}-{seed}", backbone, seed) for seed in (0, 1)
    ]
