"""Rows of a task, the few-shot split of them, and their encoding for a model."""

from dfolora.data.encode import Batch, Readout, encode, fits
from dfolora.data.fewshot import FewShotSplit, eligible_rows, sample_few_shot
from dfolora.data.load import Part, Rows, fingerprint, load_rows

__all__ = [
    "Batch",
    "FewShotSplit",
    "Part",
    "Readout",
    "Rows",
    "eligible_rows",
    "encode",
    "fingerprint",
    "fits",
    "load_rows",
    "sample_few_shot",
]
