"""LoRA factors of random search vectors: the baseline of a search."""

from dataclasses import dataclass, field
from typing import ClassVar

from dfolora.data import Encode, Encoder, Rows
from dfolora.methods.adapted import adapted
from dfolora.methods.method import FewShotData, NoFit
from dfolora.model import Architecture, Backbone
from dfolora.search import Memo, forgetful
from dfolora.search.subspace import LoraSubspaceSpec, SubspaceSpec
from dfolora.seeding import stream


@dataclass(frozen=True, kw_only=True)
class RandomLora:
    """Draws one vector per layer and keeps it: RI and RIL of the paper's Table 4.

    They are drawn from N(0, I), as CMA-ES's first candidates are, for z = 0 is the zero-shot
    prompt.
    """

    subspace: SubspaceSpec = field(default_factory=LoraSubspaceSpec)

    seeded: ClassVar[bool] = True
    budget: ClassVar[int] = 0
    resumable: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        """Check the subspace."""
        self.subspace.check(architecture)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """The subspace's."""
        return self.subspace.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> NoFit:
        """Draw the vectors."""
        self.check(backbone.architecture)
        spec = self.subspace
        subspace = spec.build(backbone, data.train.input_ids, data.train.attention_mask, seed)
        shape = subspace.blocks, spec.size(backbone.architecture)
        solution = stream(seed, "random_lora").standard_normal(shape)
        return NoFit(adapted(backbone, data.label_ids, subspace, solution))
