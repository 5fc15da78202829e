"""Prepares a task for one model and seed: split, batches, label words; needs no weights."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfolora.data import (
    Batch,
    Encoder,
    FewShotSplit,
    Kind,
    LabelWordStyle,
    Readout,
    Rows,
    Task,
    eligible_rows,
    fingerprint,
    fits,
    label_word_ids,
    load_rows,
    sample_few_shot,
)
from dfolora.errors import UserError
from dfolora.methods import FewShotData, Method
from dfolora.validation import choice, text, text_or_none, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RELEASED_TEST_BATCH = 16
"""The released code pads test examples in batches of this size."""


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """A task with all its rows."""

    task: Task
    train: Rows
    """The rows that few-shot train and dev rows are drawn from."""
    test: Rows

    @classmethod
    def load(cls, task: Task, root: str | None = None) -> "TaskRows":
        """Read and clean a task's rows.

        Args:
            task: Whose rows.
            root: A folder of local files; None for the task's own source.

        Raises:
            UserError: They could not be loaded or do not fit the task.
        """
        if root is not None and not Path(root).is_dir():
            raise UserError(
                f"data.root={root} is not a folder; it needs one folder a task, such as "
                f"sst2/train.jsonl and sst2/test.jsonl."
            )
        train, test = load_rows(task, "train", root=root), load_rows(task, "test", root=root)
        return cls(task=task, train=train, test=test)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every text and label."""
        return f"{fingerprint(self.train)}:{fingerprint(self.test)}"


@dataclass(frozen=True, kw_only=True)
class ProblemSpec:
    """How few-shot problems are drawn from tasks and encoded for models."""

    k: int = 16
    """Rows per class in train, and as many in dev."""
    root: str | None = None
    """A folder of local files; None for the task's own source."""
    prompt: str = "released"
    """The prompt's variant: ``released``, ``published``, ``natural`` (ours, in plain English), or,
    where a task has them, ``bbt`` (BBT's, causal) and ``gap3`` (GAP3's fields and label words)."""
    label_words: LabelWordStyle = "released"
    """``released`` (the bare word) or ``natural`` (with a space before it), which those of the
    natural prompts always are."""
    readout: Readout = "last_token"
    """Where a causal model answers: ``last_token`` or ``released`` (the last padded column)."""
    overlong: str = "truncate"
    """``truncate``: a word limit for train and dev, tests cut inside their text; ``released``:
    what exceeds ``max_length`` tokens is dropped everywhere, so splits differ between models."""
    max_words: int = 340
    """Word limit of train and dev rows."""
    max_length: int = 512
    """Token limit of every input; a model's own limit may be lower."""

    def check(self, task: Task, kind: Kind) -> None:
        """Raise UserError if a value makes no sense, or the task has no such prompt."""
        for name, value, choices in (
            ("readout", self.readout, ("last_token", "released")),
            ("overlong", self.overlong, ("truncate", "released")),
            ("label_words", self.label_words, ("released", "natural")),
        ):
            choice(value, f"data.{name}", choices)
        text_or_none(self.root, "data.root")
        whole(self.k, "data.k", least=1)
        whole(self.max_words, "data.max_words", least=1)
        whole(self.max_length, "data.max_length", least=1)
        task.prompt(text(self.prompt, "data.prompt"), kind)

    def draw(
        self,
        task: Task,
        train: Rows,
        tokenizer: "PreTrainedTokenizerBase",
        method: Method,
        *,
        kind: Kind,
        max_length: int,
        seed: int,
    ) -> tuple[FewShotSplit, FewShotData]:
        """Draw the split and encode its rows: all that a fit needs.

        Args:
            task: The task.
            train: The rows that train and dev are drawn from.
            tokenizer: The model's tokenizer.
            method: Its encoder puts the rows to the model.
            kind: How the model answers.
            max_length: The model's own limit in tokens.
            seed: The split's seed.

        Raises:
            UserError: Something about the data, the prompt or the label words is wrong.
        """
        self.check(task, kind)
        prompt = task.prompt(self.prompt, kind)
        style = "natural" if self.prompt == "natural" else self.label_words
        label_ids = label_word_ids(prompt, tokenizer, style)
        limit = min(self.max_length, max_length)
        if self.overlong == "released":
            eligible = fits(train, prompt, tokenizer, max_length=limit)
        else:
            eligible = eligible_rows(train, self.max_words)
        split = sample_few_shot(train.labels, eligible, k=self.k, seed=seed, names=task.classes)
        shots = train.select(split.train)
        plain = Encoder(prompt=prompt, tokenizer=tokenizer, max_length=limit, readout=self.readout)
        encode = method.encoder(plain, shots, seed)
        return split, FewShotData(
            train=encode(shots),
            dev=encode(train.select(split.dev)),
            label_ids=torch.tensor(label_ids),
            metric=task.metric,
            encode=encode,
        )

    def pose(
        self,
        rows: TaskRows,
        tokenizer: "PreTrainedTokenizerBase",
        method: Method,
        *,
        kind: Kind,
        max_length: int,
        seed: int,
    ) -> "Problem":
        """Draw the split, and encode the test set as well; arguments and errors as of `draw`."""
        split, data = self.draw(
            rows.task, rows.train, tokenizer, method, kind=kind, max_length=max_length, seed=seed
        )
        prompt, tests = rows.task.prompt(self.prompt, kind), rows.test
        if self.overlong == "released":
            limit = min(self.max_length, max_length)
            short = fits(tests, prompt, tokenizer, max_length=limit)
            tests = tests.select(row for row, fit in enumerate(short) if fit)
        drawn = Counter(map(_key, rows.train.select((*split.train, *split.dev)).texts))
        assert data.encode is not None
        return Problem(
            task=rows.task,
            split=split,
            data=data,
            test=data.encode(tests, RELEASED_TEST_BATCH),
            label_words=prompt.label_words,
            dropped_tests=len(rows.test) - len(tests),
            repeated=sum(count for count in drawn.values() if count > 1),
            seen_tests=sum(_key(text) in drawn for text in tests.texts),
        )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One few-shot problem, encoded."""

    task: Task
    split: FewShotSplit
    data: FewShotData
    """Train and dev."""
    test: Batch
    label_words: tuple[str, ...]
    dropped_tests: int
    """Test rows left out for their length; 0 unless ``overlong`` is ``released``."""
    repeated: int
    """Train and dev rows whose text occurs more than once; the real datasets have some."""
    seen_tests: int
    """Test rows whose text is also a train or dev row's."""


def _key(text: Mapping[str, str]) -> tuple[str, ...]:
    """Equal for rows with equal texts."""
    return tuple(text.values())
