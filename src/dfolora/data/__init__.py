"""Data: a task as values, its rows, the few-shot split of them, and batches of tokens.

Rows come from the hub, local files or the mini world; a prompt and a tokenizer make them a Batch.
Nothing here knows a model.
"""

from dfolora.data.batching import part, pieces
from dfolora.data.encode import (
    FIRST_FILLER,
    Batch,
    Encode,
    Encoder,
    Readout,
    encode,
    filler_ids,
    fits,
)
from dfolora.data.files import stream_lines, stream_rows
from dfolora.data.labels import check_labels
from dfolora.data.metric import METRICS, accuracy, constant_score, majority_score
from dfolora.data.rows import Part, Rows, fingerprint, load_rows, rows_of
from dfolora.data.split import FewShotSplit, eligible_rows, sample_few_shot, shuffled_by_class
from dfolora.data.task import (
    FILLER,
    HOLE,
    MASK,
    Dataset,
    Kind,
    LabelWordStyle,
    Prompt,
    Task,
    label_word_ids,
    label_word_tokens,
    more_word_ids,
    tasks,
)
from dfolora.data.text import TextEncoder

__all__ = [
    "FILLER",
    "FIRST_FILLER",
    "HOLE",
    "MASK",
    "METRICS",
    "Batch",
    "Dataset",
    "Encode",
    "Encoder",
    "FewShotSplit",
    "Kind",
    "LabelWordStyle",
    "Part",
    "Prompt",
    "Readout",
    "Rows",
    "Task",
    "TextEncoder",
    "accuracy",
    "check_labels",
    "constant_score",
    "eligible_rows",
    "encode",
    "filler_ids",
    "fingerprint",
    "fits",
    "label_word_ids",
    "label_word_tokens",
    "load_rows",
    "majority_score",
    "more_word_ids",
    "part",
    "pieces",
    "rows_of",
    "sample_few_shot",
    "shuffled_by_class",
    "stream_lines",
    "stream_rows",
    "tasks",
]
