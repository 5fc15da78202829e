"""Limits of what goes through a model at once."""

from dataclasses import dataclass

import torch

from dfolora.errors import UserError
from dfolora.validation import flag, positive, share, whole

TOKENS = {"cpu": 2048, "cuda": 14_336}
"""Default tokens per pass, by device: fewer leave it idle, and more are no faster."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per pass; results depend on them by rounding alone.

    Raises:
        UserError: A value is neither None nor positive.
    """

    tokens: int | None = None
    """At most so many tokens, those of all candidates counted, or one longer sequence; None: what
    is fast on the device."""
    memory: float | None = None
    """At most so many 10^6 bytes beside the weights; None: on a GPU ``free_share`` of what is free
    at first, on a CPU no limit but that of the tokens."""
    free_share: float = 0.8
    """Processes that share a GPU divide it among them."""
    stream: bool = False
    """Whether the layers' weights stay in host memory, and the device holds two layers of them."""
    graphs: bool = False
    """Whether passes that recur are recorded as CUDA graphs, whose kernels are launched as one."""

    def __post_init__(self) -> None:
        if self.tokens is not None:
            whole(self.tokens, "engine.tokens", least=1)
        flag(self.stream, "engine.stream")
        flag(self.graphs, "engine.graphs")
        if self.stream and self.graphs:
            raise UserError(
                "engine.graphs=true records where weights lie, and with engine.stream=true they "
                "come and go; set one of them to false."
            )
        memory = self.memory
        if memory is not None and (
            isinstance(memory, bool)
            or not isinstance(memory, int | float)
            or not 0 < memory < float("inf")
        ):
            raise UserError(f"engine.memory={memory} must be a positive number of megabytes.")
        positive(share(self.free_share, "engine.free_share"), "engine.free_share")

    def check(self, device: torch.device) -> None:
        """Raise UserError if a device does not do what they ask for."""
        if self.graphs and device.type != "cuda":
            raise UserError(
                f"engine.graphs=true records CUDA graphs, and the model is on {device}; set "
                f"engine.graphs=false, or device=cuda on a machine with a GPU."
            )
