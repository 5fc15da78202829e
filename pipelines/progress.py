"""How far a command is: a line for each job that ends, and bars where somebody watches."""

import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from tqdm import tqdm

if TYPE_CHECKING:  # its import takes seconds
    from dfolora.methods import Progress

Ending = Literal["done", "in the store already", "failed", "busy"]
"""The last is no end: others are at work on it, and its turn comes again."""
ENDINGS: tuple[Ending, ...] = ("done", "in the store already", "failed")

# disable=None in what follows: nothing is drawn unless standard error is a terminal.


@contextmanager
def telling_warnings(name: str) -> Iterator[None]:
    """Within, a warning is one line on standard error, with the run's name."""

    def show(message: Warning | str, *_where: object) -> None:
        tqdm.write(f"warning: {name}: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # assigning is the documented way
        yield


class RunBar:
    """Calls, lowest loss, dev score and time left of one run; a context, which clears it.

    Args:
        name: The run's name.
        budget: Calls in all; 0 for a method that makes none.
        jobs: Those that the run is one of; their bar moves along.
        hidden: Whether to draw nothing, as other processes draw.
    """

    def __init__(
        self, name: str, budget: int, jobs: "Jobs | None" = None, *, hidden: bool = False
    ) -> None:
        self.name = name
        self._budget = budget
        self._jobs = jobs
        disable = True if hidden else None
        self._bar = tqdm(total=budget, desc=name, unit="call", disable=disable, leave=False)
        self._best = math.inf

    def __enter__(self) -> Self:
        """The bar itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self._bar.close()

    def tell(self, text: str) -> None:
        """Print a text, unless the run is one of many, whose lines it would drown."""
        if self._jobs is not None and self._jobs.single:
            tqdm.write(text)

    def show(self, progress: "Progress") -> None:
        """Move on to this step."""
        step = progress.step
        self._best = min(self._best, float(step.losses.min()))
        dev = "-" if progress.selected is None else f"{progress.selected.score:.3f}"
        self._bar.set_postfix_str(f"loss {self._best:.4f}, dev {dev}", refresh=False)
        self._bar.update(step.calls - self._bar.n)
        if self._jobs is not None:
            self._jobs.move(step.calls / self._budget)


class Jobs:
    """The jobs of one command; of a sweep also what became of them, and the time left for all.

    A context; leaving it clears the bar and sums a sweep up.
    """

    def __init__(self) -> None:
        self._total = 1
        self._ended: Counter[Ending] = Counter()
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        """The jobs themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Take the bar away, and tell what became of all."""
        if self._bar is not None:
            self._bar.close()
            if kind is None:
                print(f"{self._total} runs: {self._counts}")

    def begin(self, total: int) -> None:
        """There are so many, and the next begins."""
        self._total = total
        if total == 1:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
                smoothing=0,
                miniters=0,
                disable=None,
                leave=False,
            )
        self._describe()

    @property
    def single(self) -> bool:
        """Whether there is but one."""
        return self._total == 1

    def run(self, name: str, budget: int) -> RunBar:
        """The bar of the job that runs."""
        return RunBar(name, budget, self)

    def move(self, share: float) -> None:
        """So much of the job that runs is done, in [0, 1]."""
        if self._bar is not None:
            self._bar.update(self._ended.total() + share - self._bar.n)

    def end(self, ending: Ending, line: str, file: TextIO | None = None) -> None:
        """The job that ran has ended.

        Args:
            ending: What became of it.
            line: What to tell.
            file: Where; None for standard output.
        """
        tqdm.write(self._place + line, file=file)
        self._ended[ending] += 1
        if ending != "done" and self._bar is not None and not self._bar.disable:
            self._bar.initial += 1  # does not count in the pace, from which comes the time left
        self._describe()
        self.move(0)

    def _describe(self) -> None:
        if self._bar is not None and self._ended.total() < self._total:
            self._bar.set_description_str(f"{self._place}{self._counts} ")

    @property
    def _place(self) -> str:
        return f"[{self._ended.total() + 1}/{self._total}] " if self._total > 1 else ""

    @property
    def _counts(self) -> str:
        return ", ".join(f"{self._ended[how]} {how}" for how in ENDINGS if self._ended[how])
