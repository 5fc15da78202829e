"""The one search loop: blocks take turns, one generation each, under one budget.

Letters: P candidates, L blocks, d search dimension.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import cycle
from math import ceil

import numpy as np
from numpy.typing import NDArray

from dfolora.errors import UserError
from dfolora.search.evaluator import Evaluator
from dfolora.search.generation import Generation
from dfolora.search.optim import Optimizer, Point
from dfolora.search.price import PerRow, Price
from dfolora.search.schedule import Order, fixed

Array = NDArray[np.float64]
NO_LOSS = (
    "{whose} on the train set is not a finite number. Check the model's weights, or use "
    "precision=fp32."
)


def tune(
    evaluate: Evaluator,
    optimizers: Sequence[Optimizer],
    *,
    dim: int,
    budget: int,
    incumbent: str = "improving",
    order: Order | None = None,
    price: Price | None = None,
    spent: int = 0,
) -> Iterator[Generation]:
    """Search all blocks' vectors, one optimizer per block, and yield every generation.

    The search starts from z = 0, the unadapted model or a given adapter. Its loss is the first call
    and the first generation; rules that are not ``MEASURED`` do not need it and do not spend it.
    What is left at the end pays for the first candidates of one more generation, so the budget is
    met exactly where each costs a call.

    Args:
        evaluate: Losses of candidates for one block of a solution, on the train set.
        optimizers: One for each of the L blocks, in d dimensions; in fewer if a block is smaller
            than the first, whose row of a solution then ends in zeros, which nobody searches.
        dim: d.
        budget: At most so many calls; 0 searches nothing.
        incumbent: A name in ``INCUMBENTS``: what a block contributes while others are searched.
        order: Whose turn it is, told each generation; the search ends where it does. None: in
            ascending order, again and again.
        price: What candidates cost; None: a call each.
        spent: Calls of the budget that are spent already.

    Raises:
        UserError: The unadapted model's loss is no finite number; or where nobody asks for it, none
            of the first turn's is.

    Warns:
        RuntimeWarning: A turn brought no finite loss, or a whole round only equal ones.
    """
    start = np.zeros((len(optimizers), dim))
    search = _Search(evaluate, price or PerRow(), left=Fraction(budget - spent), solution=start)
    order = fixed(cycle(range(len(optimizers)))) if order is None else order
    block = next(order, None)
    if incumbent in MEASURED and search.affords(0):
        search.measure_base()
        yield search.end_turn(0, np.nan, budget, last=not search.affords(block))
    watch = _Watch(blocks=len(optimizers))
    while block is not None and search.affords(block):
        optimizer = optimizers[block]
        step_size = optimizer.step_size  # before telling, for it may take a while to learn
        for _ in range(optimizer.asks):
            candidates = optimizer.ask(search.point(block, len(optimizer.center)))
            losses = search.measure(block, candidates)
            if len(losses) == len(candidates):
                optimizer.tell(losses)
            if not search.affords(block):
                break
        INCUMBENTS[incumbent](search, block, optimizer)
        generation = search.end_turn(block, step_size, budget, last=False)
        watch.see(generation)
        block = _following(order, generation)
        yield replace(generation, last=not search.affords(block))


def _following(order: Order, generation: Generation) -> int | None:
    try:
        return order.send(generation)
    except StopIteration:
        return None


@dataclass
class _Watch:
    """Warns if the losses teach the optimizer nothing."""

    blocks: int
    turns: int = 0
    flat: int = 0
    """Turns in a row whose candidates all had one loss."""
    warned: bool = False
    """Whether it has warned; once is enough, since losses are recorded."""

    def see(self, generation: Generation) -> None:
        self.turns += 1
        losses = generation.losses[np.isfinite(generation.losses)]
        if not len(losses):
            if self.turns == 1 and np.isnan(generation.loss):
                raise UserError(NO_LOSS.format(whose="Every candidate's loss in the first turn"))
            self._warn(
                f"No candidate of block {generation.block} had a finite loss up to call "
                f"{generation.calls}; all rank equal. Steps of {generation.step_size:.3g} may be "
                f"too large for the precision: lower optimizer.sigma or subspace.alpha, or use "
                f"precision=fp32."
            )
        self.flat = self.flat + 1 if len(losses) > 1 and np.ptp(losses) == 0 else 0
        if self.flat == self.blocks:
            self._warn(
                f"All candidates of a whole round had the same loss, {losses[0]:.6g}, up to call "
                f"{generation.calls}. Their steps may be too small for the precision to show: "
                f"raise optimizer.sigma or subspace.alpha, or use precision=fp32."
            )

    def _warn(self, text: str) -> None:
        if not self.warned:
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        self.warned = True


@dataclass
class _Search:
    """State of the search: the current solution, its loss if known, and the calls left."""

    evaluate: Evaluator
    price: Price
    left: Fraction
    solution: Array
    loss: float = np.nan
    tried: list[tuple[Array, Array]] = field(default_factory=list)

    def affords(self, block: int | None) -> bool:
        """Whether a candidate for this block can still be had; for none it cannot."""
        return block is not None and self.price.affords(self.left, block) > 0

    def measure(self, block: int, candidates: Array) -> Array:
        """Losses of as many candidates as the budget allows."""
        candidates = candidates[: self.price.affords(self.left, block)]
        losses = self.evaluate(self.solution, block, candidates).losses
        losses = np.where(np.isfinite(losses), losses, np.inf)
        self.left -= self.price.pay(block, len(losses))
        self.tried.append((candidates.copy(), losses))
        return losses

    def measure_base(self) -> None:
        self.loss = float(self.measure(0, self.solution[:1])[0])  # the first block has all of d
        if not np.isfinite(self.loss):
            raise UserError(NO_LOSS.format(whose="The unadapted model's loss"))

    def point(self, block: int, dim: int) -> Point | None:
        """The block's incumbent with the current solution's loss; None if that is unknown."""
        if np.isnan(self.loss):
            return None
        return Point(z=self.solution[block, :dim].copy(), loss=self.loss)

    def adopt(self, block: int, z: Array) -> None:
        """Put the block's vector into the current solution."""
        self.solution[block, : len(z)] = z

    def end_turn(self, block: int, step_size: float, budget: int, *, last: bool) -> Generation:
        candidates, losses = (np.concatenate(parts) for parts in zip(*self.tried, strict=True))
        self.tried.clear()
        return Generation(
            block=block,
            calls=ceil(budget - self.left),
            candidates=candidates,
            losses=losses,
            solution=self.solution.copy(),
            loss=self.loss,
            step_size=step_size,
            last=last,
        )


def _adopt_improving(search: _Search, block: int, _optimizer: Optimizer) -> None:
    """Adopt this turn's best candidate if it lowers the loss of the current solution."""
    for candidates, losses in search.tried:
        if losses.min() < search.loss:
            search.loss = float(losses.min())
            search.adopt(block, candidates[losses.argmin()])


def _adopt_mean(search: _Search, block: int, optimizer: Optimizer) -> None:
    """Adopt the optimizer's center and measure its loss with one more call."""
    if search.affords(block):
        search.adopt(block, optimizer.center)
        search.loss = float(search.measure(block, optimizer.center[None])[0])


def _adopt_center(search: _Search, block: int, optimizer: Optimizer) -> None:
    """Adopt the optimizer's center unmeasured, so the loss of the whole stays unknown."""
    search.adopt(block, optimizer.center)


def _adopt_released(search: _Search, block: int, optimizer: Optimizer) -> None:
    """Adopt the block's all-time best candidate, by losses measured with other incumbents.

    As in the released code of Jin, Liu, Tan 2024, so the loss of the whole stays unknown.
    """
    if optimizer.best is not None:
        search.adopt(block, optimizer.best.z)


INCUMBENTS: Mapping[str, Callable[[_Search, int, Optimizer], None]] = {
    "improving": _adopt_improving,
    "mean": _adopt_mean,
    "center": _adopt_center,
    "released": _adopt_released,
}
MEASURED = ("improving", "mean")
"""Rules under which the loss of the whole solution is always known, from the first call on."""
