"""LoRA factors of random search vectors: what a search adds is what it gains over this."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dfolora.data import Encode, Encoder, Rows
from dfolora.engine import Limits
from dfolora.methods.layerwise import Searched
from dfolora.methods.method import FewShotData, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search.subspace import LoraSubspaceSpec
from dfolora.seeding import stream


@dataclass(frozen=True, kw_only=True)
class RandomLora:
    """A method that draws one vector a layer and keeps it: RI and RIL of the paper's Table 4.

    They are drawn from N(0, I), as CMA-ES's first candidates are, for z = 0 is the zero-shot
    prompt.
    """

    subspace: LoraSubspaceSpec = field(default_factory=LoraSubspaceSpec)
    limits: Limits = field(default_factory=Limits)
    """How much goes through the model at once."""

    @property
    def seeded(self) -> bool:
        """See ``Method``."""
        return True

    @property
    def budget(self) -> int:
        """See ``Method``."""
        return 0

    def check(self, architecture: Architecture) -> None:
        """See ``Method``."""
        self.limits.check()
        self.subspace.check(architecture)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """See ``Method``."""
        return self.subspace.encoder(plain)

    def begin(self, backbone: Backbone, data: FewShotData, seed: int) -> "Drawn":
        """See ``Method``."""
        self.check(backbone.architecture)
        return Drawn(self, backbone, data, seed)


class Drawn:
    """The fit, which takes no step."""

    def __init__(
        self, method: RandomLora, backbone: Backbone, data: FewShotData, seed: int
    ) -> None:
        spec = method.subspace
        subspace = spec.build(backbone, data.train.input_ids, data.train.attention_mask, seed)
        shape = subspace.blocks, spec.dim
        solution = stream(seed, "random_lora").standard_normal(shape)
        self._predictor = Searched(backbone, subspace, solution, data.label_ids, method.limits)

    def __iter__(self) -> Iterator[Progress]:
        """See ``Fit``."""
        return iter(())

    def predictor(self) -> Searched:
        """See ``Fit``."""
        return self._predictor
