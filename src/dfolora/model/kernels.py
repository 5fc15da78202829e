"""Contexts that rule out some of CUDA's kernels; without CUDA they change nothing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def no_cudnn_attention() -> Iterator[None]:
    """A context in which fused attention is never cuDNN's, which plans for every new shape.

    A plan takes longer than a generation, and there are dozens of shapes in a search.
    """
    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)


def exact_cudnn() -> AbstractContextManager[None]:
    """A context in which cuDNN multiplies float32 as it is, not rounded to TF32's 10 bits."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
