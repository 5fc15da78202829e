"""LoRA (Hu et al. 2022), by PEFT."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfolora.data import Encode, Encoder
from dfolora.errors import UserError
from dfolora.methods.gradient.trainable import Attached, drawn, label_words, through_model
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors
from dfolora.validation import whole


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank updates ``(alpha / rank) B A`` of attention maps in every layer."""

    rank: int = 8
    alpha: int = 16
    targets: Sequence[str] = ("q", "v")
    """A subset of q, k, v, o."""

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        whole(self.rank, "method.trained.rank", least=1)
        if self.rank > architecture.width:
            raise UserError(
                f"method.trained.rank={self.rank} must lie between 1 and {architecture.width}, "
                f"the model's width."
            )
        whole(self.alpha, "method.trained.alpha", least=1)
        architecture.check_targets(self.targets, "method.trained.targets")
        architecture.whole_modules(self.targets)

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt as it is."""
        return plain

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        """B starts at zero, so that the start is the model itself."""
        from peft import LoraConfig, get_peft_model

        family = backbone.architecture.family
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=[
                f"{family.layers}.{layer}.{module}"
                for layer in range(backbone.architecture.layers)
                for module in backbone.architecture.whole_modules(self.targets)
            ],
            fan_in_fan_out=family.input_first,
        )
        with drawn(seed):
            adapted = get_peft_model(backbone.model, config)
        try:
            yield Attached(
                parameters={n: p for n, p in adapted.named_parameters() if p.requires_grad},
                reader=through_model(backbone, label_words(backbone, label_ids)),
                write=lambda folder: adapted.save_pretrained(str(folder)),
            )
        finally:
            adapted.unload()
            vars(backbone.model).pop("peft_config", None)  # PEFT before 0.21 leaves it

    def factors(
        self, backbone: Backbone, layer: int, parameters: Mapping[str, Tensor]
    ) -> LayerLora:
        """One layer's factors, for the engine.

        Args:
            backbone: The model.
            layer: Its number.
            parameters: Of ``attached``, or copies, by their names there.
        """
        factors = {}
        for name in self.targets:
            linear = backbone.layers[layer].maps[name]
            a, b = (
                parameters[f"base_model.model.{linear.path}.lora_{side}.default.weight"]
                .detach()
                .to(backbone.device)
                for side in "AB"
            )
            up = self.alpha / self.rank * b[linear.columns]
            factors[name] = LoraFactors(down=a.T[None], up=up.T[None])
        return LayerLora(layer=layer, factors=factors)
