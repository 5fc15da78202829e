"""Uploads a fit to the hub, its card included."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfolora.errors import UserError, explained, first_line
from dfolora.fewshot.card import hub_name
from dfolora.fewshot.kinds import CONFIG, files_of
from dfolora.fewshot.saved import CARD, RECORD, WRITTEN, read_record
from dfolora.model import file_shapes

REFUSED = (401, 403)
"""What the hub answers to a token that may not do it."""
FOLDER = re.compile(r"""(['"])(/.*?)\1""")
"""A path in what a method is written as."""


def push(folder: str | Path, repo: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a fitted folder with its model card to a repository of the hub, in one commit.

    Only files that a fit writes are uploaded, without paths of this machine: a base model that was
    a folder has no name there, and whoever loads the fit gives it. Those of an earlier fit go.

    Args:
        folder: Written by ``FewShotClassifier.save`` or a run.
        repo: ``OWNER/NAME``; made if there is none.
        private: Whether one that is made is seen by its owner alone. Some fits hold rows of yours:
            those of ``in_context`` its examples.
        token: One that may write; None for that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The commit's address. ``dfolora.load`` takes the folder that
        ``huggingface_hub.snapshot_download`` makes of the repository.

    Raises:
        UserError: The folder is not whole, or the hub did not take it.
    """
    import huggingface_hub  # late, for few need it

    files = _files(Path(folder))
    with explained(lambda error: _not_taken(error, repo)):
        hub = huggingface_hub.HfApi(token=token)
        hub.create_repo(repo, private=private, exist_ok=True)
        operations: list[Any] = [
            huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files.items()
        ]
        stale = {*WRITTEN}.intersection(hub.list_repo_files(repo)) - {*files}
        operations += [huggingface_hub.CommitOperationDelete(name) for name in sorted(stale)]
        commit = hub.create_commit(repo, operations, commit_message="A fit of dfolora")
    return commit.commit_url


def _files(folder: Path) -> Mapping[str, bytes]:
    """What is uploaded, by name.

    Raises:
        UserError: A file is missing or broken.
    """
    record = read_record(folder)
    names = (RECORD, CARD, *files_of(record["fitted"]))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} is no whole fit, for it lacks {', '.join(missing)}; save or copy it again."
        )
    files = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        if name.endswith(".safetensors"):
            file_shapes(folder / name)
    with explained(lambda error: f"{folder} is no whole fit: {first_line(error)}; copy it again."):
        parsed = {name: json.loads(files[name]) for name in names if name.endswith(".json")}
        card = files[CARD].decode()
    # It has adapters' folders, of which the names alone are told.
    method = FOLDER.sub(lambda found: repr(Path(found[2]).name), record["method"])
    files[CARD] = card.replace(record["method"], method).encode()
    files[RECORD] = _text({**record, "method": method, "model": _elsewhere(record["model"])})
    if CONFIG in parsed:
        base = {"base_model_name_or_path": hub_name(record["model"])}
        files[CONFIG] = _text(parsed[CONFIG] | base)
    return files


def _elsewhere(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's model on another machine, which has none of the folders of this one."""
    here = {key for key in ("path", "tokenizer") if Path(model[key] or "").is_absolute()}
    return {**model, **{key: "" if key == "path" else None for key in here}}


def _text(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def _not_taken(error: Exception, repo: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = (
        "Log in with hf auth login, or give token=, one that may write there"
        if status in REFUSED
        else "Check the name and the connection, and call again"
    )
    return f"The hub did not take the fit for {repo}: {first_line(error)} {advice}."
