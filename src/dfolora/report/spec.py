"""What a table or figure shows: data, made from a file in ``conf/table/``.

A figure is a picture of a table, so both have the same description.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from dfolora.errors import UserError
from dfolora.validation import check_keys, choice, mapping, shown, text, whole

Made = TypeVar("Made")
PICTURES = ("bars", "lines", "curves")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method of a table."""

    label: str
    where: Mapping[str, str]
    """Tags that its runs have."""
    group: str = ""
    """The group's label; empty if the table has no groups."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A table that repeats its rows for each value of a tag."""

    tag: str
    title: str
    """Title of the group column."""
    values: Sequence[str]

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """All rows of the first group, then of the second, ..."""
        return [
            Row(label=row.label, where={**row.where, self.tag: str(value)}, group=str(value))
            for value in self.values
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """A metric of the runs, as columns show it; compared by identity."""

    metric: str
    """MLflow's name."""
    title: str
    """A column's title; ``{task}`` is the task's title."""
    factor: float = 1.0
    """From the metric's unit to the column's: 100 for percent."""
    digits: int = 2
    averaged: bool = False
    """Whether its columns count in the average."""
    tasks: Sequence[str] | None = None
    """The tasks that have it; None for all."""
    ratio_to: str | None = None
    """A row's label: show how many times that row's value this one is, seed by seed."""
    optional: bool = False
    """Whether its columns are left out where no run has the metric."""

    @property
    def is_score(self) -> bool:
        """Whether more of it is better."""
        return self.metric.startswith("test/") and self.ratio_to is None


@dataclass(frozen=True)
class Column:
    """A measure of one task; of the row's own task where ``task`` is None."""

    measure: Measure
    task: str | None
    title: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How the table is drawn."""

    kind: str
    """A name in ``PICTURES``."""
    x_title: str = ""
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """What a table shows."""

    name: str
    """The table's name, and the item that runs are tagged with."""
    title: str
    caption: str
    """What the numbers are."""
    tasks: Mapping[str, str]
    """Task name to title."""
    measures: Sequence[Measure]
    rows: Sequence[Row]
    """The rows of one group, if there are groups."""
    profile: str
    seeds: Sequence[int]
    note: str
    """The profile's note below the table."""
    suffix: str = ""
    """Ends its file names, and so keeps profiles apart."""
    constants: Mapping[str, str]
    """Constant predictors, metric name to label."""
    groups: Groups | None = None
    """The groups that the rows are repeated for."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Headings, each with the label of the row that it stands above."""
    compare: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Which rows are tested against which one. Each entry is corrected within itself; the first
    one's marks stand in the table."""
    picture: Picture | None = None

    @classmethod
    def from_mapping(cls, layout: Mapping[str, Any], **given: Any) -> "TableSpec":
        """Check a file's plain data and build the table's description.

        Args:
            layout: As in ``conf/table/``.
            given: The fields that are not in the file.
        """
        parts: dict[str, Any] = {
            name: [_made(kind, each, f"table.{name}[{n}]") for n, each in enumerate(listed)]
            for name, kind in (("measures", Measure), ("rows", Row))
            if (listed := _listed(layout.get(name), f"table.{name}"))
        }
        parts["compare"] = mapping(layout.get("compare") or {}, "table.compare")
        for name, kind in (("groups", Groups), ("picture", Picture)):
            if layout.get(name) is not None:
                parts[name] = _made(kind, layout[name], f"table.{name}")
        for name in ("name", "title", "caption"):
            text(layout.get(name), f"table.{name}")
        for name in ("tasks", "constants", "sections"):
            mapping(layout.get(name, {}), f"table.{name}")
        labels = [row.label for row in parts.get("rows", [])]
        for label in layout.get("sections", {}).values():
            choice(label, "row in table.sections", labels)
        for measure in parts.get("measures", []):
            if measure.ratio_to is not None:
                choice(measure.ratio_to, "table.measures.ratio_to", labels)
        for against, tested in parts["compare"].items():
            for label in (against, *_listed(tested, f"table.compare[{against!r}]")):
                choice(label, "row in table.compare", labels)
        if parts.get("picture") is not None:
            choice(parts["picture"].kind, "table.picture.kind", PICTURES)
        for seed in _listed(given.get("seeds"), "sweep.seeds"):
            whole(seed, "in sweep.seeds, seed", least=0)
        return _made(cls, {"constants": {}, **layout, **parts, **given}, "table")

    @property
    def stem(self) -> str:
        """The name of its files, without suffix."""
        return f"{self.name}{self.suffix}"

    @property
    def item(self) -> str:
        """The tag that its runs have; its value says when they were last asked for."""
        return f"item.{self.name}.{self.profile}"

    @property
    def columns(self) -> Sequence[Column]:
        """All columns of numbers, from left to right."""
        if self.groups is not None and self.groups.tag == "task":
            return [Column(measure, None, measure.title) for measure in self.measures]
        return [
            Column(measure, task, measure.title.replace("{task}", title))
            for task, title in self.tasks.items()
            for measure in self.measures
            if measure.tasks is None or task in measure.tasks
        ]

    @property
    def all_rows(self) -> Sequence[Row]:
        """The rows of all groups."""
        return self.rows if self.groups is None else self.groups.rows(self.rows)

    def section(self, label: str) -> str:
        """The heading that a row stands below; empty if there is none."""
        above = {first: title for title, first in self.sections.items()}
        found = ""
        for row in self.rows:
            found = above.get(row.label, found)
            if row.label == label:
                return found
        return ""

    def group_title(self, group: str) -> str:
        """How a group is shown: a task by its title."""
        return self.tasks.get(group, group)


def _made(kind: type[Made], value: object, where: str) -> Made:
    """Build a part from plain data; raises UserError for missing or unknown fields."""
    given = mapping(value, where)
    of_kind = fields(kind)  # type: ignore[arg-type]  # Made is a dataclass, which no bound can say
    bare = {f.name: f.default is MISSING and f.default_factory is MISSING for f in of_kind}
    check_keys(
        given,
        where,
        required=[n for n in bare if bare[n]],
        optional=[n for n in bare if not bare[n]],
    )
    return kind(**given)


def _listed(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where} must be a list with something in it, got {shown(value)}.")
    return value
