"""Writes a task file from rows, and shows what a model makes of it.

python -m pipelines.new_task data=reviews.csv
python -m pipelines.new_task data=nyu-mll/glue config=sst2
python -m pipelines.new_task data=DIR/train.jsonl test=DIR/test.jsonl name=mine model.path=DIR
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipelines.command import CONF, reported, run
from pipelines.progress import telling_warnings

if TYPE_CHECKING:  # their import takes seconds
    from dfolora.data import Kind, Rows
    from dfolora.data.files import Columns
    from dfolora.fewshot import TaskRows
    from dfolora.model import Architecture, Checkpoint
    from pipelines.new_task.draft import Draft
    from pipelines.new_task.hub import HubInput

TASKS = CONF / "task"
"""Where ``task=NAME`` finds a file."""
OWN = TASKS / "own"
"""The users' own, which git ignores."""
OF_A_MODEL = ("model", "device", "precision")
"""Keys that a run takes as well."""
SHOTS = 16
"""Rows of a class in train, and as many in dev, where there are so many."""
SEED = 42


@hydra.main(version_base="1.3", config_path="../../conf", config_name="new_task")
def main(config: DictConfig) -> None:
    """Write the task, and tell what it asks and scores."""
    given = [text for text in HydraConfig.get().overrides.task if text.startswith(OF_A_MODEL)]
    with reported(), telling_warnings("new_task"):
        print(new_task(config, given))


@dataclass(frozen=True, kw_only=True)
class Input:
    """Files of rows in a folder, by what a task calls them."""

    folder: Path
    train: str
    test: str
    path: Path
    """The one that the task is drafted from."""
    names: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Files have none for the numbers of their classes."""

    @classmethod
    def of(cls, data: str, test: str | None) -> "Input":
        """Files that are there.

        Raises:
            UserError: They are not, or lie in two folders.
        """
        from dfolora.errors import UserError

        path = _file(data, "data")
        if test is None:
            return cls(folder=path.parent, train=_stem(path), test=_stem(path), path=path)
        other = _file(test, "test")
        if other.parent != path.parent or _stem(other) == _stem(path):
            raise UserError(f"test={test} must lie beside data={data}, with another name; move it.")
        return cls(folder=path.parent, train=_stem(path), test=_stem(other), path=path)

    @property
    def name(self) -> str:
        """A name for the task: the file's or its folder's, as a command line takes it."""
        from pipelines.new_task.hub import TESTS

        given = self.folder.name if self.train in ("train", *TESTS) else self.train
        return re.sub(r"[^A-Za-z0-9_-]+", "_", given).strip("_-") or "task"

    @property
    def where(self) -> str:
        """What the rows are called in messages."""
        return str(self.path)

    def tested(self, _label: str) -> tuple[str, str | None]:
        """The file to test on, and a question about it."""
        from pipelines.new_task.hub import TESTS

        if self.train != self.test:
            return self.test, None
        others = (path for path in sorted(self.folder.iterdir()) if path != self.path)
        other = next((path for path in others if _stem(path) in TESTS), None)
        beside = f" {other.name} lies beside it (test: {_stem(other)})." if other else ""
        return (
            self.test,
            f"A fifth of the texts of each class is the test. Is there a better one?{beside}",
        )

    def dataset(self, test: str) -> Mapping[str, str]:
        """As a task names it."""
        return {"path": str(self.folder), "train": self.train, "test": test}

    def columns(self) -> "Columns":
        """What the file holds.

        Raises:
            UserError: It cannot be read, has no rows, or its first line seems to be one.
        """
        from dfolora.data.files import read_files
        from dfolora.errors import UserError
        from pipelines.new_task.draft import check_header

        columns = read_files((self.path,))
        check_header(columns, self.where)
        if not columns or not any(columns.values()):
            raise UserError(f"{self.path} holds no rows; give a file that has some.")
        return columns


def new_task(config: DictConfig, given: list[str]) -> str:
    """Draft a task, score its prompt without any fit, write it, and return the text to print.

    Args:
        config: What ``conf/new_task.yaml`` composes.
        given: The command's arguments that a run takes as well.

    Raises:
        UserError: Something given is wrong; then nothing is written.
    """
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.data import Task
    from dfolora.fewshot import TaskRows
    from dfolora.model import Architecture
    from dfolora.validation import file_name, flag, mapping, text_or_none, whole
    from pipelines.built import built
    from pipelines.one_run.identity import check_built
    from pipelines.outputs import check_new, replacing

    plain = mapping(OmegaConf.to_container(config, resolve=True), "the configuration")
    source = _source(plain)
    name = file_name(text_or_none(plain["name"], "name") or source.name, "name")
    output = Path(text_or_none(plain["output"], "output") or OWN / f"{name}.yaml")
    overwrite = flag(plain["overwrite"], "overwrite")
    most = whole(plain["scored"], "scored", least=1)
    _check_output(output, name, overwrite=overwrite)
    check_built(plain["model"], "model")
    checkpoint: Checkpoint = built(config, "model", _convert_="all")
    architecture = Architecture.of(checkpoint.config(), quantized=checkpoint.quantized)
    tokenizer = checkpoint.load_tokenizer()
    draft = _draft(plain, source, name, architecture.family.kind, tokenizer)
    rows = TaskRows.load(Task.from_mapping(draft.values))
    shots = _shots(rows.train, rows.task.classes)
    if shots < SHOTS:
        draft.ask(
            "classes",
            f"A class has so few rows that only {shots} of each can train and as many choose "
            f"(data.k={shots}). Are there more?",
        )
    told = _tried(rows, checkpoint, architecture, tokenizer, shots, most)
    drawn_from = Path(source.path).name
    title = (
        f"Drafted from {drawn_from} for {checkpoint.label}. Answer the questions (lines with a "
        f"question mark in front) by changing what stands below them, then take them out."
    )
    drafted = draft.text(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_new(output, overwrite=overwrite)  # another may have written it meanwhile
    with replacing(output) as part:
        part.write_text(drafted, encoding="utf-8")
    options = ["data.prompt=natural", *[f"data.k={shots}"] * (shots < SHOTS), *given]
    return (
        f"{told}\nwritten to {output} with {draft.questions} questions; when they are answered:\n"
        f"  {_command(output, options)}"
    )


def _command(output: Path, options: list[str]) -> str:
    """What runs the task; in other places Hydra takes it from a folder called task alone."""
    folder, task, place = output.absolute().parent, output.stem, list[str]()
    if folder == OWN:
        task = f"{OWN.name}/{task}"
    elif folder.name == TASKS.name:
        place = ["--config-dir", str(folder.parent)]
    else:
        return f"dfolora.Task.from_file({str(output)!r})"
    return shlex.join(["python", "-m", "pipelines.run", *place, f"task={task}", *options])


def _source(plain: Mapping[str, Any]) -> "Input | HubInput":
    """Files that are there, or else what may be a dataset of the hub.

    Raises:
        UserError: The files are not as they need to be, or keys are given that are not for them.
    """
    from dfolora.errors import UserError
    from dfolora.validation import text, text_or_none
    from pipelines.new_task.hub import HubInput, is_name

    data, test = text(plain["data"], "data"), text_or_none(plain["test"], "test")
    of_hub = {key: text_or_none(plain[key], key) for key in ("config", "split", "revision")}
    if is_name(data) and not Path(data).exists():
        return HubInput(
            path=data, test=test, config=of_hub["config"], train=of_hub["split"] or "train",
            revision=of_hub["revision"] or "main",
        )  # fmt: skip
    if given := [key for key, value in of_hub.items() if value is not None]:
        raise UserError(f"data={data} is no dataset of the hub, which {given} are for; leave out.")
    return Input.of(data, test)


def _draft(
    plain: Mapping[str, Any],
    source: "Input | HubInput",
    name: str,
    kind: "Kind",
    tokenizer: Any,
) -> "Draft":
    """The values and questions, from the rows and what was given."""
    from dfolora.validation import text_or_none
    from pipelines.new_task import draft as of_rows

    columns, where, draft = source.columns(), source.where, of_rows.Draft()
    label = of_rows.choose_label(draft, columns, text_or_none(plain["label"], "label"), where)
    fields = of_rows.choose_fields(draft, columns, label, plain["fields"], where)
    classes, known = of_rows.choose_classes(
        draft, columns, label, plain["classes"], where, source.names.get(label)
    )
    of_rows.check_enough(columns, fields, label, where)
    of_rows.ask_about_repeats(draft, columns, fields, label)
    test, asked = source.tested(label)
    if asked is not None:
        draft.ask("dataset", asked)
    prompts = of_rows.choose_prompt(draft, fields, classes, known, plain["words"], kind, tokenizer)
    draft.values = {
        "name": name,
        "title": name,
        "dataset": source.dataset(test),
        "fields": [*fields],
        "label": label,
        "classes": [*classes],
        "metric": of_rows.choose_metric(draft, columns, label, classes),
        "prompts": prompts,
    }
    return draft


def _shots(train: "Rows", classes: Sequence[str]) -> int:
    """Rows of each class that train can have, where dev has as many."""
    from dfolora.data import eligible_rows

    counts = Counter(compress(train.labels, eligible_rows(train)))
    return min(SHOTS, max(1, min(counts[label] for label in range(len(classes))) // 2))


def _tried(
    rows: "TaskRows", checkpoint: "Checkpoint", architecture: "Architecture", tokenizer: Any,
    shots: int, most: int,
) -> str:  # fmt: skip
    """What the model is asked, and what its prompt alone scores."""
    from dfolora.fewshot import ProblemSpec, score_test
    from dfolora.methods import ManualPrompt
    from dfolora.seeding import stream

    tests = rows.test
    if len(tests) > most:
        drawn = sorted(stream(SEED, "scored").permutation(len(tests))[:most].tolist())
        chosen = tests.select(drawn)
        rows = replace(rows, test=replace(chosen, source=tests.source, unlabelled=tests.unlabelled))
    method = ManualPrompt()
    problem = ProblemSpec(k=shots, prompt="natural").pose(
        rows, tokenizer, method,
        kind=architecture.family.kind, max_length=architecture.max_length, seed=SEED,
    )  # fmt: skip
    predictor = method.begin(checkpoint.load_backbone(), problem.data, SEED).predictor()
    scores = score_test(predictor.logits(problem.test), problem)
    of = f"{len(rows.test)} of {len(tests)}" if len(rows.test) < len(tests) else f"{len(tests)}"
    return (
        f"{problem.details()}\n"
        f"zero-shot: {rows.task.metric} {scores['score']:.3f} of {of} test rows; the largest class "
        f"alone has {scores['majority_score']:.3f}"
    )


def _check_output(output: Path, name: str, *, overwrite: bool) -> None:
    """Raise UserError if a task cannot be written there."""
    from dfolora.errors import UserError
    from dfolora.resources import check_folder
    from pipelines.outputs import check_new

    if output.suffix != ".yaml" or output.is_dir():
        raise UserError(f"output={output} must be a file that ends in .yaml.")
    if (TASKS / f"{name}.yaml").exists():
        raise UserError(
            f"There is a task {name} already: run task={name} with data.root=DIR, which holds "
            f"{name}/train and {name}/test, or give another name=NAME."
        )
    check_new(output, overwrite=overwrite)
    check_folder(output.parent, "output's folder")


def _file(given: str, key: str) -> Path:
    """A file of rows, by its whole path.

    Raises:
        UserError: There is none.
    """
    from dfolora.data.files import ENDINGS, PACKED, SAVED
    from dfolora.errors import UserError

    path = Path(given).absolute()
    if not path.exists():
        raise UserError(
            f"{key}={given}: there is no such file. Of a dataset of the hub, give its name or, "
            f"with its splits in files, the folder that save_to_disk(FOLDER) writes."
        )
    unpacked = path.with_suffix("") if path.suffix in PACKED else path
    if not (path.is_file() and unpacked.suffix in ENDINGS) and not (path / SAVED).is_file():
        raise UserError(
            f"{key}={given} is no file of rows; give {', '.join(ENDINGS)} (also with "
            f"{', '.join(PACKED)}), or a folder of save_to_disk."
        )
    return path


def _stem(path: Path) -> str:
    """A file's name without its ending, as a split of a task is called."""
    from dfolora.data.files import PACKED

    if path.is_dir():
        return path.name
    return (path.with_suffix("") if path.suffix in PACKED else path).stem


if __name__ == "__main__":
    run(main)
