"""The model card of a fit: a `README.md` as the hub reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml

from dfolora.mini import BUNDLED
from dfolora.validation import check_keys, mapping, share, text, text_or_none, whole

TUNED = {
    "manual_prompt": "Nothing: the model answers the prompt as it is.",
    "in_context": "Nothing: labelled rows stand before each text (they are in `classifier.json`).",
    "prompt": "The prompt: the search began with the one below and found that of `prompt.json`.",
    "ensemble": "Prompts that vote, with words of their own (`ensemble.json`), not the one below.",
    "soft_prompts": "Soft prompt vectors, by forward passes alone.",
    "lora": "LoRA factors of the attention maps (a PEFT adapter).",
    "trained": "Parameters trained with gradients",
}
"""By the kind of a fit."""
LOADED = """```python
import dfolora

classifier = dfolora.load("FOLDER")  # of this file
classifier.predict(TEXTS)  # also predict_proba
```
"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card tells of a fit beside all that its predictions depend on."""

    title: str
    """The task's."""
    train: int
    """Rows that it was fitted to."""
    dev: int
    """Rows that it was chosen by."""
    split_seed: int
    metric: str = "accuracy"
    dev_score: float | None = None
    """By the metric, in [0, 1]; None if nothing was chosen."""
    test_score: float | None = None
    """Likewise; None if nothing was tested."""
    test: int = 0
    """Rows that were tested."""
    dataset: str | None = None
    """The repository of its rows on the hub."""
    language: str | None = None
    """Its code."""
    rows: str | None = None
    """What its rows are, where they are not the task's own; None where they are."""

    @classmethod
    def read(cls, value: object, where: str) -> Self:
        """What a record has of it.

        Args:
            value: As ``dataclasses.asdict`` gave it.
            where: What it is called in messages.

        Raises:
            UserError: It was changed to what it cannot be.
        """
        given = mapping(value, where)
        check_keys(given, where, required=[each.name for each in fields(cls)])
        for key in ("title", "metric"):
            text(given[key], f"{where}.{key}")
        for key in ("train", "dev", "test", "split_seed"):
            whole(given[key], f"{where}.{key}", least=0)
        for key in ("dataset", "language", "rows"):
            text_or_none(given[key], f"{where}.{key}")
        for key in ("dev_score", "test_score"):
            if given[key] is not None:
                share(given[key], f"{where}.{key}")
        return cls(**given)

    @property
    def named(self) -> str:
        """The task, and what the rows are where they are not its own."""
        return f"{self.title} ({self.rows})" if self.rows else self.title


def card(record: Mapping[str, Any], *, in_peft: bool) -> str:
    """The text of a card.

    Args:
        record: See ``Fitted.save``.
        in_peft: Whether the folder is a PEFT adapter too.
    """
    about, task, model = About(**record["about"]), record["task"], record["model"]
    base = Path(model["path"]).name if _is_local(model) else model["path"]
    front = {
        "base_model": hub_name(model),
        "library_name": "peft" if in_peft else "dfolora",
        "pipeline_tag": "text-classification",
        "tags": ["dfolora", "few-shot"],
        "language": about.language,
        "datasets": [about.dataset] if about.dataset else None,
        "metrics": [about.metric],
    }
    known = {key: value for key, value in front.items() if value is not None}
    fitted = record["fitted"]
    tuned = TUNED[fitted["kind"]]
    if fitted["kind"] == "trained":
        tuned += f" ({fitted['trained']})."
    if fitted.get("readout"):
        tuned += " Its class logits are mapped by `readout.json`."
    if fitted.get("words", 1) > 1:
        tuned += f" Each class has {fitted['words']} label words (`label_words.json`)."
    words = "\n".join(
        f"| {name} | `{word}` | {token} |"
        for name, word, token in zip(task["classes"], task["words"], task["label_ids"], strict=True)
    )
    scores = [
        f"{part} {about.metric} {score:.3f} ({rows} rows)"
        for part, score, rows in (
            ("dev", about.dev_score, about.dev),
            ("test", about.test_score, about.test),
        )
        if score is not None
    ]
    seeds = f"{about.split_seed} (of the split) and {record['seed']} (of the fit)"
    fit = (
        f"Seeds: {seeds}."
        if about.dev_score is None  # for then nothing was fitted, or nothing chosen by dev
        else f"Fitted to {about.train} rows, chosen by {about.dev}; seeds {seeds}."
    )
    first = task["fields"][0]
    texts = [f"a {first}"] if len(task["fields"]) == 1 else [dict.fromkeys(task["fields"], "text")]
    return f"""---
{yaml.safe_dump(known, sort_keys=False)}---

# {about.named}, few-shot, on {base or "a model without a name"}

{tuned}

The prompt, in which a row's texts stand for the names in braces:

```
{task["pattern"]}
```

| class | label word | its token |
|---|---|---|
{words}

A word after a space and the same word without one are two tokens, so the ids above count.

- Method: `{record["method"]}`
- {fit}
- Scores: {"; ".join(scores) or "none was measured"}.
- Base model: {base or "without a name"}, weights {record["weights"][:12]}, tokenizer
  {record["vocabulary"][:12]} (digests of dfolora's); another one is refused.

## How to load it

{LOADED.replace("TEXTS", repr(texts))}
## What it was not tested for

{_untested(about)} It was not tested on texts of another kind or in another language, on texts
meant to mislead it, or for how it treats groups of people; its probabilities were not compared with
how often it is right. Texts of more than {task["max_length"]} tokens, the prompt included, are cut.
"""


def hub_name(model: Mapping[str, Any]) -> str | None:
    """The base model's repository on the hub, of a record's ``model``; None if it is elsewhere."""
    return None if _is_local(model) or model["path"] in BUNDLED else str(model["path"])


def _is_local(model: Mapping[str, Any]) -> bool:
    path = model["path"]
    return not path or Path(path).is_absolute() or model["weights"] == "random"


def _untested(about: About) -> str:
    if about.test_score is not None:
        return f"It was tested on {about.test} rows of {about.named} alone."
    if about.dev_score is not None:
        return "It was tested on no rows but those that chose it, on which scores are too high."
    return "It was tested on no rows."
