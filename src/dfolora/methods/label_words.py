"""More label words a class, found in one pass over the train set.

After BBT-RGB (Sun et al., "Make Prompt-based Black-Box Tuning Colorful", 2023), whose classes have
five words each and the mean of their logits; its words come from lists that a search on all of a
task's data made, these from the few-shot train set alone.

Letters: N examples, C classes, W words a class, V tokens of the vocabulary.
"""

import torch
from torch import Tensor

from dfolora.errors import UserError


def words_by_margin(
    logits: Tensor, labels: Tensor, given: Tensor, words: int, *, among: Tensor | None = None
) -> Tensor:
    """The given word of each class, and the W - 1 others that speak most for it.

    A token speaks for a class by its mean log-probability at that class's examples minus the mean
    at all others'. It can only be a word of the class that it speaks most for.

    Args:
        logits: The unadapted model's at the answers, ``(N, V)``.
        labels: ``(N,)``.
        given: The task's own label words, ``(C,)``.
        words: W.
        among: Which tokens may be words, ``(V,)``; None for all.

    Returns:
        ``(C, W)``, the given words first.

    Raises:
        UserError: A class has no example, or fewer than W tokens speak most for it.
    """
    classes = len(given)
    shares = torch.log_softmax(logits.double(), dim=-1)
    of_class = torch.nn.functional.one_hot(labels, classes).to(shares)
    counts = of_class.sum(0)[:, None]
    if not (counts > 0).all():
        raise UserError(
            f"words={words} finds words by a class's train examples, and class "
            f"{int(counts.argmin())} has none; set words=1, or give each class some."
        )
    sums = of_class.T @ shares
    margins = sums / counts - (sums.sum(0) - sums) / (len(labels) - counts)
    own = margins.argmax(0) == torch.arange(classes, device=margins.device)[:, None]
    if among is not None:
        own &= among.to(own.device)
    own[:, given] = torch.eye(classes, dtype=torch.bool, device=own.device)
    if (most := int(own.sum(1).min())) < words:
        raise UserError(f"words={words} is more than the {most} tokens that speak for some class.")
    ranks = margins.masked_fill(~own, -torch.inf)
    ranks[torch.arange(classes), given] = torch.inf
    return ranks.sort(dim=1, descending=True, stable=True).indices[:, :words]
