"""A dataset of the hub that a task is drafted from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dfolora.data.files import ENDINGS, PACKED, Columns
from dfolora.data.rows import labelled
from dfolora.errors import UserError, explained, first_line, installed
from dfolora.validation import shown

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
TESTS = ("test", "validation", "dev", "valid")
"""Splits to test on, the best first."""


def is_name(given: str) -> bool:
    """Whether a dataset of the hub can be called so; what ends as a file does is none."""
    return bool(NAME.fullmatch(given)) and not given.endswith((*ENDINGS, *PACKED))


@dataclass(frozen=True, kw_only=True)
class HubInput:
    """A dataset's splits; nothing is asked of the hub before its rows are."""

    path: str
    config: str | None
    """Its configuration, such as ``sst2`` of GLUE; None if it has but one."""
    revision: str
    """Commit, tag or branch."""
    train: str
    """The split that the task is drafted from."""
    test: str | None
    """The split to test on; None for the best with labels."""

    @property
    def name(self) -> str:
        """A name for the task, as a command line takes it."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(filter(None, [self.path, self.config])))

    @property
    def where(self) -> str:
        """What the rows are called in messages."""
        return f"dataset {self.path} ({self.config or 'default'}, {self.train})"

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        with installed("pipelines"):
            import datasets

        def unread(error: Exception) -> str:
            return (
                f"data={self.path} is no file here, and could not be loaded from the hub: "
                f"{first_line(error).removesuffix('.')}. Give a file, a dataset's name with "
                f"config= and revision=, or without network the folder that save_to_disk wrote."
            )

        with explained(unread):
            configs = datasets.get_dataset_config_names(self.path, revision=self.revision)
            if self.config is None and len(configs) > 1:
                raise UserError(
                    f"data={self.path} has several configurations; choose one with config=NAME, "
                    f"of {shown(configs)}."
                )
            splits = datasets.load_dataset(self.path, self.config, revision=self.revision)
        for key, split in (("split", self.train), ("test", self.test)):
            if split not in (None, *splits):
                raise UserError(
                    f"{key}={split}: dataset {self.path} has the splits {shown([*splits])}; choose "
                    f"one of them with {key}=NAME."
                )
        return splits

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """The names of the classes of each column that has some, in the order of their numbers."""
        features = self._splits[self.train].features
        return {
            column: feature.names
            for column, feature in features.items()
            if hasattr(feature, "names")
        }

    def columns(self) -> Columns:
        """The rows to train on, with the names of classes in place of their numbers."""
        found = self._columns(self.train)
        if not any(found.values()):
            raise UserError(f"{self.where} holds no rows; choose another split with split=NAME.")
        return found

    def _columns(self, split: str) -> Columns:
        data = self._splits[split]
        columns = {column: list(data[column]) for column in data.column_names}
        return columns | {
            column: [names[n] if isinstance(n, int) and n >= 0 else n for n in columns[column]]
            for column, names in self.names.items()
        }

    def tested(self, label: str) -> tuple[str, str | None]:
        """The split to test on, and a question about it."""
        if self.test is not None:
            return self.test, None
        others = [split for split in self._splits if split != self.train]
        bare = [split for split in others if not self._labelled(split, label)]
        test = next((split for split in TESTS if split in others and split not in bare), None)
        chosen = (
            f"The split {test}" if test else f"A fifth of the texts of each class of {self.train}"
        )
        beside = f" There are {shown(others)}" * bool(others)
        without = f", of which {shown(bare)} have no labels" * bool(bare)
        return test or self.train, f"{chosen} is the test. Is there a better one?{beside}{without}."

    def _labelled(self, split: str, label: str) -> bool:
        data = self._splits[split]
        return label in data.column_names and labelled({label: data[label]}, label)

    def dataset(self, test: str) -> Mapping[str, str | None]:
        """As a task names it."""
        return {
            "path": self.path, "name": self.config, "revision": self.revision,
            "train": self.train, "test": test,
        }  # fmt: skip
