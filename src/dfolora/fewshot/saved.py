"""A fit as a folder: what was fitted, and beside it `classifier.json`, all else that it needs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor, nn

from dfolora.data import Batch, Encode, Encoder, Prompt, Rows, Task
from dfolora.errors import UserError, explained, first_line
from dfolora.fewshot.base import Base
from dfolora.fewshot.card import About, card
from dfolora.fewshot.inputs import GIVEN, task_of
from dfolora.fewshot.kinds import CONFIG, IN_PEFT, TENSORS, reading, readout_of, restore
from dfolora.fewshot.problem import RELEASED_TEST_BATCH
from dfolora.methods import (
    LABEL_WORDS,
    BatchMean,
    Predictor,
)
from dfolora.model import Backbone, Checkpoint, Limits, files_digest
from dfolora.validation import check_keys, mapping, text, text_or_none

RECORD = "classifier.json"
CARD = "README.md"
FORMAT = 3
KEYS = (
    *("format", "versions", "model", "weights", "vocabulary", "task", "task_digest"),
    *("fitted", "method", "seed", "about"),
)
MODEL = "model=, on the command line model.path="
TOKENIZER = "tokenizer=, on the command line model.tokenizer="
"""How what a folder does not hold is given."""
ORIGIN = ("path", "revision", "tokenizer", "weights", "architecture", "precision")
"""Of a record's ``model``; see ``Checkpoint.origin``."""
WRITTEN = (
    *(RECORD, CARD, LABEL_WORDS, "readout.json", "prompt.json", "ensemble.json"),
    *(CONFIG, TENSORS, "soft_prompts.safetensors"),
    "trained.safetensors",
)
"""All files that fits write, the record first: it goes first and comes last."""
PACKAGES = ("dfolora", "torch", "transformers", "peft")
PROBE = "It was GREAT, wasn't it?  N/A 10 %"
"""A text that tokenizers cut each in its way."""
SAMPLE = 64
"""Numbers of each parameter that tell a model."""
LIKE_EACH_OTHER = ("auto", "fp32", "bf16")
"""Precisions in which ``weights_digest`` of a model is the same."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fit, with all that its predictions depend on."""

    predictor: Predictor
    backbone: Backbone
    origin: Mapping[str, Any]
    """See ``Checkpoint.origin``."""
    task: Task
    """Of its values those that say how rows are read and cleaned."""
    classes: Sequence[Any]
    """Texts, whole numbers or truth values, ``(C,)``."""
    plain: Encoder
    """The prompt."""
    encode: Encode
    """What the method made of it."""
    label_ids: Tensor
    """Token ids of the label words: ``(C,)``."""
    describe: Callable[[], Mapping[str, Any]]
    """See ``fitted_of``."""
    method: str
    """In words."""
    seed: int
    """Of the fit."""
    about: About
    """For its card."""
    versions: Mapping[str, str | None] = field(default_factory=lambda: versions())
    """Of the packages that it was made with."""

    def batch(self, rows: Rows) -> Batch:
        """Rows as its predictor takes them, grouped as a test set is."""
        return self.encode(rows, RELEASED_TEST_BATCH)

    def save(self, folder: Path) -> None:
        """Write a folder from which ``Saved`` makes it again, in place of an earlier fit's files.

        These go when all that replaces them is written. Whoever is stopped between leaves a folder
        without a record, which is no whole fit.

        Raises:
            UserError: No such fit can be restored; then nothing is written.
        """
        described, task = self.describe(), self._task()
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=folder) as place:  # on the same file system
            made = Path(place)
            self._write(made, described, task)
            here = [name for name in WRITTEN if (made / name).exists()]
            for name in WRITTEN:
                (folder / name).unlink(missing_ok=True)
            for name in reversed(here):
                (made / name).replace(folder / name)

    def _write(self, folder: Path, described: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self.predictor.save(folder)
        record = {
            "format": FORMAT,
            "versions": self.versions,
            "model": self.origin,
            "weights": weights_digest(self.backbone.model),
            "vocabulary": vocabulary_digest(self.plain.tokenizer),
            "task": task,
            "task_digest": _digest(task),
            "fitted": described,
            "method": self.method,
            "seed": self.seed,
            "about": asdict(self.about),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
        in_peft = described["kind"] == "lora" or described.get("trained") in IN_PEFT
        (folder / CARD).write_text(card(record, in_peft=in_peft), encoding="utf-8")

    def _task(self) -> Mapping[str, Any]:
        plain, prompt = self.plain, self.plain.prompt
        return {
            "fields": list(self.task.fields),
            "replace": dict(self.task.replace),
            "strip": self.task.strip,
            "classes": list(self.classes),
            "pattern": prompt.pattern,
            "prefix": prompt.prefix,
            "words": list(prompt.label_words),
            "label_ids": self.label_ids.tolist(),
            "max_length": plain.max_length,
            "readout": plain.readout,
        }


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A folder that ``Fitted.save`` wrote, before the weights of its model are loaded."""

    folder: Path
    record: Mapping[str, Any]
    base: Base
    task: Task
    """How rows are read and cleaned; of its prompts it has the one that was fitted."""

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        model: Any = None,
        tokenizer: Any = None,
        device: str = "auto",
        precision: str | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Read a folder.

        Args:
            folder: The folder.
            model: The model that it was fitted to, loaded, or its name or folder; None: where it
                was then.
            tokenizer: Likewise; a loaded model needs it.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, for a model given by name.
            precision: Likewise, of ``LIKE_EACH_OTHER`` if the fit's is; None: the fit's.
            limits: How much goes through the model at once; None for the defaults of its device.

        Raises:
            UserError: There is no such folder or model, the tokenizer or the task are others, or
                the fit cannot be used in this precision or within these limits.
        """
        record = read_record(folder)
        if limits is not None and limits.stream and record["fitted"].get("kind") == "trained":
            raise UserError(
                f"{folder} was trained with gradients, and such a fit needs the layers' weights on "
                f"the device; set engine.stream=false."
            )
        base = _base(folder, record["model"], model, tokenizer, device, precision, limits)
        if vocabulary_digest(base.tokenizer) != record["vocabulary"]:
            raise UserError(
                f"{folder} was fitted with the tokenizer of {_named(record['model'])}, and "
                f"{base.tokenizer.name_or_path or 'the one given'} cuts texts otherwise; give the "
                f"model as it was then ({MODEL}), and its tokenizer if it had one of its own "
                f"({TOKENIZER})."
            )
        task = record["task"]
        prompt = Prompt(
            kind=base.architecture.family.kind,
            pattern=task["pattern"],
            label_words=tuple(task["words"]),
            prefix=task["prefix"],
        )
        reads = task_of(
            prompt,
            task["classes"],
            fields=task["fields"],
            replace=task["replace"],
            strip=task["strip"],
        )
        return cls(folder=folder, record=record, base=base, task=reads)

    @property
    def transductive(self) -> bool:
        """Whether what is said of a row depends on the rows that are asked about with it."""
        with reading(self.folder):
            return isinstance(readout_of(self.folder, self.record["fitted"]), BatchMean)

    @property
    def together(self) -> int:
        """Rows that have to be asked about together, or a multiple of them; mostly 1."""
        released = self.record["task"]["readout"] == "released"
        return RELEASED_TEST_BATCH if released else 1

    def load(self) -> Fitted:
        """The fit, on its model.

        Raises:
            UserError: The model's weights are others, or a file is missing or broken.
        """
        folder, record, task = self.folder, self.record, self.record["task"]
        plain = Encoder(
            prompt=self.task.prompt(GIVEN, self.base.architecture.family.kind),
            tokenizer=self.base.tokenizer,
            max_length=task["max_length"],
            readout=task["readout"],
        )
        backbone = self.base.load()
        if weights_digest(backbone.model) != record["weights"]:
            raise UserError(
                f"{folder} was fitted to {_named(record['model'])}, and the weights of the model "
                f"given are others; give the model as it was then ({MODEL}), in "
                f"precision={record['model']['precision']}."
            )
        label_ids = torch.tensor(task["label_ids"])
        files = files_digest(folder, WRITTEN)
        encode, logits = restore(folder, record["fitted"], backbone, plain, label_ids)
        return Fitted(
            predictor=Predictor(logits=logits, write=partial(copy_fit, folder, files)),
            backbone=backbone,
            origin=self.base.origin,
            task=self.task,
            classes=task["classes"],
            plain=plain,
            encode=encode,
            label_ids=label_ids,
            describe=lambda: record["fitted"],
            method=record["method"],
            seed=record["seed"],
            about=About(**record["about"]),
            versions=record["versions"],
        )


def _base(
    folder: Path,
    origin: Mapping[str, Any],
    model: Any,
    tokenizer: Any,
    device: str,
    precision: str | None,
    limits: Limits | None,
) -> Base:
    """The model that is given, or else the one of the record."""
    if model is not None and not isinstance(model, str | Path):
        return Base.loaded(model, tokenizer, device, precision or "auto", limits)
    fitted_in = origin["precision"]
    if precision not in (None, fitted_in) and not {precision, fitted_in} <= {*LIKE_EACH_OTHER}:
        raise UserError(
            f"precision={precision}: {folder} was fitted in precision={fitted_in}; leave it out, "
            f"or fit in one of {', '.join(LIKE_EACH_OTHER)}, which can stand for each other."
        )
    if model is None and not origin["path"] and origin["weights"] == "pretrained":
        raise UserError(
            f"{folder} was saved from a loaded model without a name; give the same one ({MODEL}) "
            f"and its tokenizer ({TOKENIZER})."
        )
    named = {"precision": precision or fitted_in}
    if model is not None:
        named |= {"path": str(model), "weights": "pretrained"}
    if isinstance(tokenizer, str | Path):
        named["tokenizer"], tokenizer = str(tokenizer), None
    return Base.named(Checkpoint(**{**origin, **named}, device=device), tokenizer, limits)


def _named(origin: Mapping[str, Any]) -> str:
    return origin["path"] or "a model without a name"


def versions() -> Mapping[str, str | None]:
    """Of the packages that predictions depend on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def weights_digest(model: Any) -> str:
    """SHA-256 of some numbers of each parameter, the same in float32 as in bfloat16."""
    digest = sha256()
    for name, weight in model.named_parameters():
        if type(weight) is nn.Parameter:  # an 8-bit weight is of a type of torchao's
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}\n".encode())
            digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's tokens with their ids, and of how it cuts a text."""
    return _digest([sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]])


def _digest(plain: object) -> str:
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> Mapping[str, Any]:
    """The record of a folder.

    Raises:
        UserError: There is none, or none that this version reads.
    """
    path = folder / RECORD

    def unread(error: Exception) -> str:
        within = folder / "adapter"  # of a run's artifacts
        whole = (within / RECORD).is_file()
        given = within if whole else "a folder that save or a run of this version wrote"
        return f"{folder} holds no whole fit: {first_line(error)}. Give {given}."

    with explained(unread):
        record = mapping(json.loads(path.read_text(encoding="utf-8")), str(path))
    written = record.get("format")
    if written != FORMAT:
        raise UserError(
            f"{path} has format {written!r}, this version of dfolora reads {FORMAT}: fit again, or "
            f"load it with the version that wrote it."
        )
    check_keys(record, str(path), required=KEYS)
    if _digest(record["task"]) != record["task_digest"]:
        raise UserError(
            f"The task of {path} was changed since it was fitted: its fields, prompt, words or "
            f"classes; put it back, or fit again."
        )
    for key in ("versions", "fitted"):
        mapping(record[key], f"{path}, {key}")
    _check_origin(record["model"], f"{path}, model")
    About.read(record["about"], f"{path}, about")
    return record


def _check_origin(value: object, where: str) -> None:
    """Raise UserError if what a record has of its model was changed to what it cannot be."""
    origin = mapping(value, where)
    check_keys(origin, where, required=ORIGIN)
    for key in ("path", "revision", "weights", "precision"):
        text(origin[key], f"{where}.{key}", empty=key == "path")
    text_or_none(origin["tokenizer"], f"{where}.tokenizer")


def copy_fit(folder: Path, files: str, target: Path) -> None:
    """What ``save`` means for a classifier that was loaded.

    Raises:
        UserError: The folder has other ``files`` than it had then.
    """
    if not folder.is_dir() or files_digest(folder, WRITTEN) != files:
        raise UserError(
            f"{folder} no longer holds the fit that was loaded from it, so that it cannot be saved "
            f"from there; fit again, or load what is there now."
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        if (folder / name).exists():
            copyfile(folder / name, target / name)
