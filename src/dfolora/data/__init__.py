"""Rows of a task, the few-shot split of them, and their encoding for a model."""

from dfolora.data.encode import Batch, Encode, Encoder, Readout, encode, filler_ids, fits
from dfolora.data.fewshot import FewShotSplit, eligible_rows, sample_few_shot
from dfolora.data.load import Part, Rows, fingerprint, load_rows
from dfolora.data.parts import part, pieces
from dfolora.data.text import TextEncoder

__all__ = [
    "Batch",
    "Encode",
    "Encoder",
    "FewShotSplit",
    "Part",
    "Readout",
    "Rows",
    "TextEncoder",
    "eligible_rows",
    "encode",
    "filler_ids",
    "fingerprint",
    "fits",
    "load_rows",
    "part",
    "pieces",
    "sample_few_shot",
]
