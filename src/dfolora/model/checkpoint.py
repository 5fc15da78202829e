"""Loads a model and its tokenizer from the hub, a local folder, or with random weights."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.hub import cached_file

from dfolora.errors import UserError, explained, first_line
from dfolora.mini import BUNDLED
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.limits import Limits
from dfolora.model.preflight import check_files, check_names, described, expected_shapes, loader_of
from dfolora.model.quantize import check_torchao, quantize_layers
from dfolora.model.streaming import move_but_layers
from dfolora.validation import choice, mapping, text

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
}
"""The type of hidden states; int8 concerns the layers' weights alone."""
RANDOM_WEIGHTS_SEED = 0
WEIGHTS = "model.safetensors"
"""The file with the weights, unless an index beside it names several."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model to load, cheapest part first: configuration, tokenizer, weights."""

    path: str
    """A local folder, a hub name, or a bundled model: ``mini-roberta``, ``mini-gpt2``."""
    revision: str
    """The hub's revision; unused for folders."""
    tokenizer: str | None
    """A folder or hub name; None for the model's own."""
    weights: str
    """``pretrained``, or ``random`` for an untrained model of the same shape."""
    architecture: Mapping[str, Any] | None
    """The ``transformers`` configuration, with its ``model_type``, for random weights."""
    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str
    """``auto`` (bf16 on a GPU, fp32 elsewhere) or a name in ``PRECISIONS``."""
    root: str | None = None
    """A folder with models of the hub, each in a folder named by the last part of its name."""

    @property
    def label(self) -> str:
        """The last part of the folder's or the hub's name; a link's own name, not its target's."""
        return Path(os.path.normpath(Path(self._source).absolute())).name

    def config(self) -> Any:
        """The model's configuration, checked once; no weight is touched.

        Raises:
            UserError: The configuration could not be loaded.
        """
        return self._config

    @cached_property
    def _config(self) -> Any:
        self._check()
        if self._random:
            config = described(self.architecture or {})
            expected_shapes(config, "model.architecture")
            return config
        folder, where = Path(self._source), f"model.path={self.path}"
        with _explained(where, "model.path"):
            config = transformers.AutoConfig.from_pretrained(
                self._source, revision=self.revision, trust_remote_code=False
            )
            expected = expected_shapes(config, where)
            if folder.is_dir():
                self._check_weights(config)
                check_files(folder, expected, Architecture.of(config).family)
        return config

    @property
    def quantized(self) -> bool:
        """Whether its layers' weights will be in 8 bits."""
        return self.precision == "int8"

    def load_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            UserError: The tokenizer could not be loaded, or holds more tokens than the model.
        """
        config = self.config()
        source = str(self.tokenizer or self._source)
        _check_folder(source, "model.tokenizer" if self.tokenizer else "model.path")
        with _explained(f"the tokenizer of {source}", "model.tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, revision=self.revision, trust_remote_code=False
            )
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
            raise UserError(
                f"{source} holds no tokenizer (tokenizer.json or its like); copy one there or set "
                f"model.tokenizer to a folder that has one."
            )
        if (tokens := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
            raise UserError(
                f"The tokenizer {source} holds {tokens} tokens, the model embeds "
                f"{config.vocab_size}: it is another model's. Set model.tokenizer to the right one."
            )
        return tokenizer

    def load_backbone(self, limits: Limits | None = None) -> Backbone:
        """The frozen model on its device.

        Args:
            limits: How much goes through it at once; None for the defaults of its device.

        Raises:
            UserError: The weights could not be loaded, or are not those of a language model; or
                the limits are not for its device.
        """
        limits = limits or Limits()
        precision, device = self._resolved_precision(), self.resolved_device()
        limits.check(device)
        model = self._load_model(PRECISIONS[precision])
        if limits.stream:
            move_but_layers(model, Architecture.of(self.config()).family.layers, device)
        else:
            model.to(device)
        if precision == "int8":
            quantize_layers(model)
        return Backbone(model, limits)

    def _load_model(self, dtype: torch.dtype) -> Any:
        config = self.config()
        loader, attention = loader_of(config), Architecture.of(config).padded_attention
        if self._random:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(RANDOM_WEIGHTS_SEED)
                return loader.from_config(
                    config,
                    dtype=dtype,
                    attn_implementation=attention,
                    trust_remote_code=False,
                )
        with _explained(f"the weights of {self.path}", "model.path"), _quiet():
            self._check_weights(config)
            model, info = loader.from_pretrained(
                self._source,
                revision=self.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=attention,
                output_loading_info=True,
            )
        family = Architecture.of(config).family
        check_names(self.path, info["unexpected_keys"], (), family)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(
                f"The weights of {self.path} lack {len(info['missing_keys'])} tensors ({missing}, "
                f"...): it is no {loader.__name__} checkpoint. Use one with its vocabulary head."
            )
        return model

    def _check_weights(self, config: Any) -> None:
        """Raise UserError if transformers would read files that ``use_safetensors`` does not cover.

        An adapter beside the weights and files that the configuration names may be pickles.
        """
        if named := getattr(config, "transformers_weights", None):
            raise UserError(
                f"The configuration of {self.path} names the weights {named}; they must be in "
                f"{WEIGHTS}. Rename them and remove transformers_weights from config.json."
            )
        if self._file("adapter_config.json") is not None:
            raise UserError(
                f"{self.path} holds an adapter (adapter_config.json), which is no part of a frozen "
                f"model; merge it into the weights or give a copy without it."
            )
        index = self._file(f"{WEIGHTS}.index.json")
        names = {} if index is None else {*json.loads(index.read_text())["weight_map"].values()}
        if others := sorted(x for x in names if not re.fullmatch(r"[\w.-]+\.safetensors", x)):
            raise UserError(
                f"{index} names weights in {others}; only *.safetensors files beside it are read. "
                f"Convert them."
            )

    def _file(self, name: str) -> Path | None:
        """A file of the folder or the hub's repository; None if it does not exist."""
        path = cached_file(
            self._source,
            name,
            revision=self.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if path is None else Path(path)

    def identity(self) -> Mapping[str, Any]:
        """What identifies the model: contents for folders, name and commit for the hub."""
        if self._random:
            model: Any = {"architecture": self.architecture}
        elif Path(self._source).is_dir():
            model = folder_digest(Path(self._source))
        else:
            model = {"name": self.path, "commit": getattr(self.config(), "_commit_hash", None)}
        tokenizer = self.tokenizer
        if tokenizer and Path(tokenizer).is_dir():
            tokenizer = folder_digest(Path(tokenizer))
        return {"model": model, "tokenizer": tokenizer, "precision": self._resolved_precision()}

    def origin(self) -> Mapping[str, Any]:
        """What it is made of, as plain values: with a device they are a checkpoint again.

        Folders are whole paths; ``path`` is empty where the model has no name.
        """
        return {
            "path": self.path if self.path in BUNDLED else _whole_path(self._source),
            "revision": self.revision,
            "tokenizer": self.tokenizer and _whole_path(self.tokenizer),
            "weights": self.weights,
            "architecture": self.architecture if self._random else None,
            "precision": self.precision,
        }

    @property
    def _random(self) -> bool:
        return self.weights == "random"

    @property
    def _source(self) -> str:
        if self.path in BUNDLED:
            return str(BUNDLED[self.path])
        return str(Path(self.root) / Path(self.path).name) if self.root else self.path

    def _check(self) -> None:
        choice(self.weights, "model.weights", ("pretrained", "random"))
        if not text(self.path, "model.path", empty=True):
            raise UserError("model.path is not set; give a folder or a hub name.")
        for name in ("root", "revision", "tokenizer"):
            if getattr(self, name) is not None:
                text(getattr(self, name), f"model.{name}", empty=True)
        if self._random and self.architecture is None:
            raise UserError("model.weights=random needs model.architecture; see conf/model/.")
        if self.architecture is not None:
            mapping(self.architecture, "model.architecture")
        if not self._random:
            _check_folder(self._source, "model.path")
        if self.root and (Path(self.path).name == ".." or not Path(self._source).is_dir()):
            raise UserError(
                f"model.root={self.root} has no folder {Path(self.path).name}; put the model there "
                f"or set model.path to its folder."
            )
        self._resolved_precision()
        self.resolved_device()

    def resolved_device(self) -> torch.device:
        """The device that ``device`` names.

        Raises:
            UserError: There is none of that name.
        """
        if text(self.device, "device") == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", self.device):
            raise UserError(f"device={self.device}; choose auto, cpu, cuda or cuda:N.")
        device = torch.device(self.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device={self.device}, but torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices; use device=cpu."
            )
        return device

    def _resolved_precision(self) -> str:
        choice(self.precision, "precision", ("auto", *PRECISIONS))
        if self.precision == "auto":
            return "bf16" if self.resolved_device().type == "cuda" else "fp32"
        if self.precision == "int8":
            check_torchao()
        return self.precision


def _whole_path(source: str) -> str:
    """A folder from the root on; a hub name as it is."""
    return str(Path(source).resolve()) if source and Path(source).is_dir() else source


def _check_folder(source: str, key: str) -> None:
    """Raise UserError unless a source is a folder or a hub name, ``name`` or ``owner/name``."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise UserError(f"{key}={source} is not a folder; give a folder or a hub name.")


def _explained(what: str, key: str) -> AbstractContextManager[None]:
    """Turn the loaders' many errors into one that says what to do."""
    return explained(
        lambda error: (
            f"Cannot load {what}: {first_line(error)} Without network, set {key} to a "
            f"local folder that holds config.json, tokenizer files and *.safetensors."
        )
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which transformers shows no bar and no report; what matters of it is raised."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a model's or an adapter's files."""
    names = [p.name for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".txt")]
    return files_digest(folder, names)


def files_digest(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 of the names and contents of those of a folder's files that exist."""
    files = [folder / name for name in sorted(names) if (folder / name).exists()]
    stamps = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _digest(stamps)


@lru_cache
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 of the files' names and contents; size and time only make the cache expire."""
    digest = hashlib.sha256()
    for path, size, _time in stamps:
        digest.update(f"{Path(path).name}\0{size}\0".encode())
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
