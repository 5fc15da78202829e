"""LOZO's law: directions that are matrices of low rank, one side of which lasts for some steps.

Chen et al., arXiv:2410.07698, 2024: a matrix is moved along U V', U being new at each step and V
only every nu steps, so that within those steps the search stays in the span of V. So does momentum,
N V' / r: where V changes, N becomes N V_old' V_new / n (LOZO-M), which is to multiply the momentum
by V_new V_new' / n.

The released code makes both from one stream of numbers at each step: the first matrix's V, where
it is new, and U, then the next one's. It draws them again to move the weights, when each V is there
already. So where V was new it moves along other U's: the first is made of the numbers that V was,
the second of those that the first U was, and so on. What it measured says nothing of that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from dfolora.errors import UserError
from dfolora.validation import flag, whole

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Directions U V' / sqrt(r) of each of the matrices that z is read as.

    U and V are normal, so their covariance is I. The paper moves by U V' and divides the estimated
    gradient by r; with the root on either side the gradient is the same and sigma keeps its
    meaning.
    """

    shape: Sequence[int] = (2, 2)
    """(m, n): z is matrices of m rows of n numbers, one after another, such as the R's of the core
    subspace. Of the last one there may be only a beginning."""
    rank: int = 1
    """Of a step's matrices, r."""
    steps: int = 10
    """nu: V is drawn anew after so many steps."""
    released: bool = False
    """Whether the step in which V is new goes along another direction than was measured, as in the
    released code."""

    def check(self, dim: int) -> None:
        """Raise UserError unless a z of d numbers can have this law."""
        if not isinstance(self.shape, Sequence) or len(self.shape) != 2:
            raise UserError(f"law.shape={self.shape} must be a matrix's rows and columns, [m, n].")
        rows, columns = (whole(size, "in law.shape, size", least=1) for size in self.shape)
        whole(self.rank, "law.rank", least=1)
        whole(self.steps, "law.steps", least=1)
        flag(self.released, "law.released")
        if rows * columns > dim:
            raise UserError(
                f"law.shape=[{rows}, {columns}] is {rows * columns} numbers, more than dim={dim}; "
                f"take a smaller matrix."
            )
        if self.rank > min(rows, columns):
            raise UserError(
                f"law.rank={self.rank} is more than the {min(rows, columns)} that a matrix of "
                f"law.shape=[{rows}, {columns}] can have; take that or less."
            )

    def directions(
        self, rng: np.random.Generator, directions: int, dim: int
    ) -> Iterator[tuple[Array, Array, Callable[[Array], Array] | None]]:
        """The K directions of each step, ``(K, d)``, which have one V in common.

        Beside those that are measured stand those that are gone along, which are the same unless
        ``released``, and where V is new what brings a ``(d,)`` into its span.

        Args:
            rng: Where they are drawn.
            directions: K.
            dim: d.
        """
        rows, columns = self.shape
        matrices = math.ceil(dim / (rows * columns))
        for step in count():
            renewed = step % self.steps == 0
            if renewed:
                v = rng.standard_normal((matrices, columns, self.rank))
            u = rng.standard_normal((directions, matrices, rows, self.rank))
            measured = gone = self._products(u, v)[:, :dim]
            if self.released and renewed:
                drawn = np.concatenate(
                    [v.reshape(matrices, -1), u.swapaxes(0, 1).reshape(matrices, -1)], axis=1
                )
                of_matrices = matrices, directions, rows, self.rank
                others = drawn.ravel()[: u.size].reshape(of_matrices).swapaxes(0, 1)
                gone = self._products(others, v)[:, :dim]
            yield measured, gone, partial(self.projected, v) if renewed else None

    def _products(self, u: Array, v: Array) -> Array:
        """U V' / sqrt(r) of all matrices, one after another.

        Args:
            u: ``(K, matrices, m, r)``.
            v: ``(matrices, n, r)``.

        Returns:
            ``(K, matrices m n)``.
        """
        products = u @ v.transpose(0, 2, 1) / math.sqrt(self.rank)
        return products.reshape(len(u), -1)

    def projected(self, v: Array, momentum: Array) -> Array:
        """Each matrix M of the momentum as M V V' / n.

        What is missing of the last matrix counts as 0, as the gradient there is.

        Args:
            v: V, ``(matrices, n, r)``.
            momentum: ``(d,)``.

        Returns:
            ``(d,)``.
        """
        rows, columns = self.shape
        filled = np.zeros((len(v), rows, columns))
        filled.reshape(-1)[: len(momentum)] = momentum
        return (filled @ v @ v.transpose(0, 2, 1) / columns).reshape(-1)[: len(momentum)]
