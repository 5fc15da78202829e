"""The model with the prompt that was found."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dfolora.data import Batch
from dfolora.engine import Engine, Limits
from dfolora.methods.gap3.genome import Genome, Template, size
from dfolora.model import Backbone
from dfolora.search import DevPoint


class Written:
    """A ``Predictor`` that puts rows anew, in the prompt that was found."""

    def __init__(
        self,
        backbone: Backbone,
        template: Template,
        genome: Genome,
        dev: DevPoint | None,
        label_ids: Tensor,
        limits: Limits,
    ) -> None:
        self.dev = dev
        self.searched = self.stored = size(genome)
        self.found: Mapping[str, float] = {"gene_tokens": size(genome)}
        self.prompt = template.prompt(genome)
        """As a task's file could have it."""
        self._backbone = backbone
        self._template = template
        self._genome = genome
        self._label_ids = label_ids
        self._limits = limits

    def logits(self, batch: Batch) -> Tensor:
        """See ``Predictor``."""
        written = self._template.encode(batch.rows, self._genome)
        return Engine(self._backbone, written, self._label_ids, self._limits, carry=False)({})[0]

    def save(self, folder: str | Path) -> None:
        """Write ``prompt.json``: kind, pattern and label words."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        prompt = {
            "kind": self.prompt.kind,
            "pattern": self.prompt.pattern,
            "label_words": list(self.prompt.label_words),
        }
        text = json.dumps(prompt, indent=2, ensure_ascii=False)
        (Path(folder) / "prompt.json").write_text(text + "\n", encoding="utf-8")
