"""Labels for new texts, by what a run fitted.

python -m pipelines.predict run=RUN_ID input=reviews.csv output=labels.csv
python -m pipelines.predict folder=DIR input=- output=- < reviews.jsonl
"""

import hashlib
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.command import CommandError, reported, run
from pipelines.jobs.job import STOPPED, exit_on_signals
from pipelines.progress import telling_warnings

if TYPE_CHECKING:  # their import takes seconds
    from dfolora.data import Rows, Task
    from dfolora.fewshot import Fitted, Saved
    from pipelines.predict.answers import Answers

STANDARD = "-"
LEFT = 128 + signal.SIGPIPE
"""The exit status where who read standard output has gone, as that of other tools."""
CHUNK = 1024
"""Rows that are read and answered at once."""
CHARACTERS = 2_000_000
"""Of a chunk that holds fewer rows; tokenizing takes about a hundred times its memory."""

Row = Mapping[str, object]
Ids = Sequence[str | int]
"""A row's id alone, or nothing."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can spell alone and no file can hold."""


@hydra.main(version_base="1.3", config_path="../../conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Predict, and tell how many rows had which label."""
    with reported(), telling_warnings("predict"):
        to_output = config.get("output") == STANDARD
        print(predict(config), file=sys.stderr if to_output else sys.stdout)


@dataclass(frozen=True, kw_only=True)
class Input:
    """Where rows come from."""

    name: str
    """A file, or ``-`` for JSON Lines from standard input."""
    id: str | None = None
    """A column that the output has too."""

    @property
    def path(self) -> Path | None:
        """None of standard input."""
        return None if self.name == STANDARD else Path(self.name)

    def chunks(self, task: "Task", together: int) -> "Iterator[tuple[Rows, list[Ids]]]":
        """The rows and their ids, read and checked a chunk at a time.

        Args:
            task: Says which columns there are and how texts are cleaned.
            together: Of how many rows a chunk holds a multiple, but for the last.

        Raises:
            UserError: A row is not as it needs to be, or there is none.
        """
        from dfolora.data import stream_lines, stream_rows
        from dfolora.errors import UserError
        from dfolora.fewshot.inputs import read_rows

        where = "standard input" if self.path is None else self.name
        ids = () if self.id is None else (self.id,)
        columns = tuple(dict.fromkeys((*task.fields, *ids)))  # an id may be a text of the task
        if self.path is None:
            rows = stream_lines(sys.stdin.buffer, where, columns)
        else:
            rows = stream_rows(self.path, columns)
        before, kinds = 0, set[type]()
        for chunk in chunked(rows, together):
            yield (
                read_rows(chunk, task, where, before=before),
                [
                    tuple(_checked_id(row[name], f"{where}, row {number}", kinds) for name in ids)
                    for number, row in enumerate(chunk, before + 1)
                ],
            )
            before += len(chunk)
        if not before:
            raise UserError(f"{where} holds no rows; it needs some, with {list(task.fields)}.")

    def count(self, task: "Task") -> int | None:
        """The number of rows, all of which are checked; None of standard input.

        Raises:
            UserError: One is not as it needs to be, or there is none.
        """
        return None if self.path is None else sum(len(rows) for rows, _ in self.chunks(task, 1))


def _checked_id(value: object, where: str, kinds: set[type]) -> str | int:
    """A row's id.

    Args:
        value: What the row has for one.
        where: The row.
        kinds: The types of all ids so far.

    Raises:
        UserError: It is none that every output can hold, or of another type than those before.
    """
    from dfolora.errors import UserError
    from dfolora.validation import shown

    kinds.add(type(value))
    match value:
        case str() if len(kinds) == 1 and value.strip() and not SURROGATE.search(value):
            return value
        case int() if len(kinds) == 1 and not isinstance(value, bool) and abs(value) < 2**63:
            return value
    raise UserError(
        f"{where} has the id {shown(value)}; give each row one, all texts or all whole numbers of "
        f"64 bits."
    )


def chunked(rows: Iterable[Row], together: int) -> Iterator[list[Row]]:
    """Lists of at most ``CHUNK`` rows and about ``CHARACTERS``, of a multiple of ``together``."""
    chunk, characters = list[Row](), 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(chunk) % together == 0 and (len(chunk) >= CHUNK or characters >= CHARACTERS):
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def predict(config: DictConfig) -> str:
    """Answer all rows of an input, and return the text to print.

    Args:
        config: What ``conf/predict.yaml`` composes.

    Raises:
        UserError: Something given is wrong; but for the weights of the model, and for the rows of
            standard input, this is told before they are loaded and before anything is written.
    """
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError
    from dfolora.fewshot import Saved
    from dfolora.validation import flag, mapping, text, text_or_none
    from pipelines.built import built
    from pipelines.one_run.identity import check_built
    from pipelines.predict.answers import columns_of

    plain = mapping(OmegaConf.to_container(config, resolve=True), "the configuration")
    source = Input(name=text(plain.get("input"), "input"), id=text_or_none(plain.get("id"), "id"))
    target = text(plain.get("output"), "output")
    overwrite = flag(plain.get("overwrite"), "overwrite")
    if target != STANDARD:
        _check_output(Path(target), source, overwrite=overwrite)
    model = mapping(plain.get("model"), "model")
    check_built(plain.get("engine"), "engine")
    folder = _folder(plain)
    saved = Saved.read(
        folder,
        model=text_or_none(model.get("path"), "model.path"),
        tokenizer=text_or_none(model.get("tokenizer"), "model.tokenizer"),
        device=text(plain.get("device"), "device"),
        precision=text_or_none(plain.get("precision"), "precision"),
        limits=built(config, "engine"),
    )
    if source.id in (columns := columns_of(saved.task.classes)):
        raise UserError(f"id={source.id}: the output has {columns} anyway; rename the id's column.")
    if saved.transductive:
        raise UserError(
            f"{folder} was fitted with calibration=batch_test, by which what is said of a row "
            f"depends on all rows that are asked about with it, and a file is answered in parts; "
            f"use calibration=batch, or dfolora.load({str(folder)!r}).predict for all at once."
        )
    total = source.count(saved.task)
    return _answer(saved, source, target, total, overwrite=overwrite)


def _answer(
    saved: "Saved", source: Input, target: str, total: int | None, *, overwrite: bool
) -> str:
    from pipelines.outputs import check_new
    from pipelines.predict.answers import Partial, Tally, json_line, write

    fitted = saved.load()
    tally = Tally(fitted.classes, id=source.id)
    chunks = source.chunks(saved.task, saved.together)
    bar = tqdm(total=total, unit="row", disable=None, leave=False)  # none but on a terminal
    if target == STANDARD:
        columns = tally.columns
        with bar:
            for answers in _answers(fitted, chunks, bar):
                _tell("".join(json_line(columns, row) for row in tally.rows(answers)))
        return str(tally)
    output = Path(target)
    path, kept = _partial(output), False
    with Partial(path, _identity(saved, fitted, source)) as partial:  # no other command writes it
        try:
            check_new(output, overwrite=overwrite)  # another may have written it meanwhile
            with bar:
                bar.update(partial.rows)
                for answers in _answers(fitted, chunks, bar, done=partial.chunks):
                    partial.add(answers)
            write(output, tally, partial)
        except BaseException as error:
            kept = source.path is not None and partial.chunks > 0
            if kept and isinstance(error, SystemExit) and error.code in STOPPED:
                print(f"stopped: {path} keeps what was done; call again to go on", file=sys.stderr)
            raise
        finally:
            if not kept:
                path.unlink(missing_ok=True)
    return f"{tally}; written to {output}"


def _tell(lines: str) -> None:
    """Write to standard output; where its reader has had enough, as ``head`` does, end quietly."""
    try:
        sys.stdout.buffer.write(lines.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python writes what is left as it exits, and would tell of the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise CommandError(LEFT) from None


def _answers(
    fitted: "Fitted", chunks: "Iterable[tuple[Rows, list[Ids]]]", bar: tqdm, *, done: int = 0
) -> "Iterator[Answers]":
    """Those of a fit, a chunk at a time.

    Args:
        fitted: The fit.
        chunks: All of them, each with its rows' ids.
        bar: Moves on with each.
        done: So many of the first are answered already.

    Raises:
        UserError: The model gives nothing that is finite in the very first chunk.
    """
    from dfolora.fewshot.score import count_not_finite
    from pipelines.predict.answers import Answers

    for number, (rows, ids) in islice(enumerate(chunks), done, None):
        batch = fitted.batch(rows)
        logits = fitted.predictor.logits(batch).cpu()
        if not number:  # told at once; of later chunks the last line counts them
            count_not_finite(logits, "row")
        finite = logits.isfinite().all(-1).tolist()
        shares = logits.double().softmax(-1).tolist()
        yield Answers(
            probabilities=[
                row if known else None for row, known in zip(shares, finite, strict=True)
            ],
            cut=batch.truncated,
            ids=ids,
        )
        bar.update(len(rows))


def _folder(plain: Mapping[str, Any]) -> Path:
    """The folder of what was fitted."""
    from dfolora.errors import UserError
    from dfolora.validation import mapping, text, text_or_none

    run_id = text_or_none(plain.get("run"), "run")
    folder = text_or_none(plain.get("folder"), "folder")
    if (run_id is None) == (folder is None):
        raise UserError(f"Got run={run_id} and folder={folder}; give one of them.")
    if folder is not None:
        return Path(folder)
    from dfolora.record import Store

    uri = text(mapping(plain.get("tracking"), "tracking").get("uri"), "tracking.uri")
    return Store.existing(uri).fitted(str(run_id))


def _check_output(output: Path, source: Input, *, overwrite: bool) -> None:
    """Raise UserError if an output cannot be written."""
    from dfolora.errors import UserError
    from dfolora.resources import check_folder
    from pipelines.outputs import check_new
    from pipelines.predict.answers import WRITERS, check_ours

    if output.suffix not in WRITERS:
        raise UserError(
            f"output={output} has no known ending; write {', '.join(WRITERS)}, or {STANDARD} for "
            f"JSON Lines to standard output."
        )
    there = output.exists() and source.path is not None and source.path.exists()
    if there and output.samefile(source.name):  # by whatever name, links followed
        raise UserError(f"output={output} is the input; give another file.")
    if output.is_dir():
        raise UserError(f"output={output} is a folder; give a file.")
    check_new(output, overwrite=overwrite)
    check_folder(output.parent, "output's folder")
    check_ours(_partial(output))


def _partial(output: Path) -> Path:
    """Where the answers so far are kept."""
    return output.with_name(f"{output.name}.partial")


def _identity(saved: "Saved", fitted: "Fitted", source: Input) -> Mapping[str, Any]:
    """What answers depend on; what is begun on standard input is never gone on with."""
    from dfolora.fewshot.saved import versions
    from dfolora.model import folder_digest

    if source.path is None:
        return {"unique": uuid.uuid4().hex}
    with source.path.open("rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "input": contents,
        "id": source.id,
        "fitted": folder_digest(saved.folder),
        "versions": versions(),
        "device": str(fitted.backbone.device),
        "dtype": str(fitted.backbone.model.dtype),
        "engine": asdict(fitted.backbone.limits),
        "chunks": [CHUNK, CHARACTERS],
    }


if __name__ == "__main__":
    exit_on_signals()
    run(main)
