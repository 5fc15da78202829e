"""Bottleneck adapters (Houlsby et al. 2019, *Parameter-Efficient Transfer Learning for NLP*)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from dfolora.data import Encode, Encoder
from dfolora.methods.gradient.trainable import Attached, drawn, label_words, through_model
from dfolora.model import Architecture, Backbone
from dfolora.resources import check_room
from dfolora.validation import subset, whole

PLACES = ("attention", "ffn")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Two small layers with a shortcut, between a sub-layer's last map and its residual sum."""

    bottleneck: int = 24
    layers: Sequence[int] | None = None
    """Layer numbers from 0; None for all layers."""
    after: Sequence[str] = PLACES
    """Sub-layers with an adapter: ``attention``, ``ffn`` or both."""

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        whole(self.bottleneck, "method.trained.bottleneck", least=1)
        check_room(
            4 * 2 * architecture.width * self.bottleneck,
            f"An adapter of method.trained.bottleneck={self.bottleneck}",
            "take a smaller one",
        )
        subset(self.after, "method.trained.after", PLACES)
        if self.layers is not None:
            known = range(architecture.layers)
            shown = f"0 to {architecture.layers - 1} (null for all)"
            subset(self.layers, "method.trained.layers", known, shown=shown)

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt as it is."""
        return plain

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        """Adapters start as the identity, since their last layers start at zero."""
        architecture = backbone.architecture
        family = architecture.family
        modules = {"attention": family.maps["o"], "ffn": family.down}
        with drawn(seed):
            adapters = {
                f"{family.layers}.{layer}.{modules[place]}": _Bottleneck(
                    architecture.width, self.bottleneck
                ).to(backbone.device)
                for layer in self._layers(architecture)
                for place in self.after
            }
        with ExitStack() as hooks:
            for path, adapter in adapters.items():
                module: nn.Module = backbone.model.get_submodule(path)
                hooks.enter_context(module.register_forward_hook(adapter.hook))
            yield Attached(
                parameters={
                    f"{path}.adapter.{name}": value
                    for path, adapter in adapters.items()
                    for name, value in adapter.named_parameters()
                },
                reader=through_model(backbone, label_words(backbone, label_ids)),
            )

    def _layers(self, architecture: Architecture) -> Sequence[int]:
        return range(architecture.layers) if self.layers is None else self.layers


class _Bottleneck(nn.Module):
    """``x + up(gelu(down(x)))``, with the tanh form of GELU, as OpenDelta's adapters have it."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + self.up(functional.gelu(self.down(output), approximate="tanh"))
