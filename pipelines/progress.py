"""A progress bar for one run, silent where nobody watches."""

import math
from types import TracebackType

from tqdm import tqdm

from dfolora.methods import Progress


class ProgressBar:
    """Calls, lowest loss, dev score and time left; a context, which clears it.

    Args:
        name: The run's name.
        budget: Calls in all.
    """

    def __init__(self, name: str, budget: int) -> None:
        # disable=None: nothing is drawn unless standard error is a terminal.
        self._bar = tqdm(total=budget, desc=name, unit="call", disable=None, leave=False)
        self._best = math.inf

    def __enter__(self) -> "ProgressBar":
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

    def show(self, step: Progress) -> None:
        """Move on to this generation."""
        self._best = min(self._best, float(step.generation.losses.min()))
        dev = "-" if step.selected is None else f"{step.selected.score:.3f}"
        self._bar.set_postfix_str(f"loss {self._best:.4f}, dev {dev}", refresh=False)
        self._bar.update(step.generation.calls - self._bar.n)
