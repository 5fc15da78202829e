"""A run's working folder, from which an interrupted run continues.

``config.yaml``, ``split.json``, ``asked.txt`` and ``run.json`` are written as the run begins,
``journal.jsonl`` as it goes on, ``adapter`` and ``fitness.png`` at its end, and last
``summary.json``: with that the run is over and only has to be recorded. What a kill leaves
half-written is never read.
"""

import json
import platform
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfolora.errors import UserError
from dfolora.record import RunLog
from dfolora.record.journal import Journal
from pipelines.outputs import replacing

OUTPUTS = Path("outputs")


class Attempt:
    """The working folder of one run.

    Args:
        name: The run's.
        identity: What must be the same for it to go on: ``digest``, the code, the libraries, the
            device.
    """

    def __init__(self, name: str, identity: Mapping[str, str]) -> None:
        self._identity = identity
        tail = f"-{identity['digest'][:12]}"
        named = OUTPUTS / (re.sub(r"[^\w.-]+", "_", name)[:100] + tail)
        # It may have been begun by another name.
        self.folder = next(OUTPUTS.glob(f"*{tail}"), named)
        self._begun = self.folder / "run.json"
        self._over = self.folder / "summary.json"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return self._begun.exists()

    @property
    def finished(self) -> bool:
        """Whether the run is over and only has to be recorded."""
        return self.begun and self._over.exists()

    def check(self) -> None:
        """Raise UserError if the folder is damaged, or was begun by other code or elsewhere."""
        if not self.begun:
            return
        was = _read(self._begun).get("identity", {})
        changed = [
            f"{key} was {was.get(key)} and is {value}"
            for key, value in self._identity.items()
            if key != "commit" and was.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{self.folder} holds this run as it was broken off, but {', '.join(changed)}. Go "
                f"on with what was, or delete the folder to begin the run anew."
            )
        self.journal()

    def begin(self, params: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Begin the run, unless it was begun before.

        Args:
            params: For the record; those of the first beginning stay.
            files: Texts to keep beside, by name.
        """
        if self.begun:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        beginning = {"key": uuid.uuid4().hex, "began": time.time()}
        _write(self._begun, {**beginning, "identity": dict(self._identity), "params": dict(params)})

    @property
    def key(self) -> str:
        """A key that no other attempt has."""
        return str(_read(self._begun)["key"])

    @property
    def tags(self) -> Mapping[str, str]:
        """By which the store knows it: its digest, and the machine and folder of the work.

        Once begun, also its key, and the commit and the source that it was made with.
        """
        tags = {
            "digest": self._identity["digest"],
            "place": f"{platform.node()}:{OUTPUTS.absolute()}",
        }
        if self.begun:
            identity = _read(self._begun)["identity"]
            kept = ("commit", "source")  # an attempt of before may lack the last
            tags |= {key: str(identity[key]) for key in kept if key in identity}
            tags["attempt"] = self.key
        return tags

    @property
    def began(self) -> float:
        """The run's start, in seconds since the epoch."""
        return float(_read(self._begun)["began"])

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters as they were when the run began."""
        return dict(_read(self._begun)["params"])

    def journal(self) -> Journal:
        """The journal, with what it already holds; errors as of ``Journal``."""
        return Journal(self.folder / "journal.jsonl", self.key)

    def finish(self, *, told: str, seconds: float, metrics: Mapping[str, float]) -> None:
        """Mark the run as over.

        Args:
            told: The run in a few words.
            seconds: Since it began.
            metrics: All that was measured once.
        """
        _write(self._over, {"told": told, "seconds": seconds, "metrics": dict(metrics)})

    def record(self, log: RunLog) -> str:
        """Put the finished run into the store; errors as of ``RunLog.artifacts``.

        Returns:
            The run in a few words.
        """
        summary = _read(self._over)
        log.metrics(summary["metrics"], seconds=summary["seconds"])
        log.artifacts(self.folder)
        return str(summary["told"])

    def discard(self) -> None:
        """Delete the folder."""
        if self.folder.exists():
            for voucher in (self._over, self._begun):  # first, for they vouch for all the rest
                voucher.unlink(missing_ok=True)
            shutil.rmtree(self.folder)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete {path.parent} to begin the run anew."
        ) from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
