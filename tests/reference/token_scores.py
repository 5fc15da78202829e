"""What tokens would do in a hole, row by row: one text, one forward, all logits."""

from typing import Any

import torch


@torch.no_grad()
def log_probabilities(model, tokenizer, text):
    """Token ids of one text, and ``(T, V)``."""
    encoded = tokenizer(text, return_tensors="pt")
    logits = model(input_ids=encoded["input_ids"]).logits[0].double()
    return encoded["input_ids"][0].tolist(), torch.log_softmax(logits, dim=-1)


def masked(model, tokenizer, rows, label_words, label_ids, write):
    """Gains of all tokens and the labels' log-likelihood beside the hole.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        rows: ``(text, label)`` each.
        label_words: By class.
        label_ids: By class.
        write: ``(text, hole, answer) -> str``; the hole stands before the answer or after it as the
            returned text has it, and both may be the mask token.
    """
    gains: Any = 0.0
    mask, likelihood = tokenizer.mask_token, 0.0
    for text, label in rows:
        ids, given = log_probabilities(model, tokenizer, write(text, mask, label_words[label]))
        (hole,) = [n for n, token in enumerate(ids) if token == tokenizer.mask_token_id]
        gains += given[hole]
        ids, free = log_probabilities(model, tokenizer, write(text, mask, mask))
        holes = [n for n, token in enumerate(ids) if token == tokenizer.mask_token_id]
        marked = write(text, "HOLE", "ANSWER")
        if marked.index("HOLE") > marked.index("ANSWER"):
            holes.reverse()
        gains -= free[holes[0]]
        likelihood += free[holes[1], label_ids[label]]
    return gains.numpy(), float(likelihood)


def causal(model, tokenizer, rows, label_words, label_ids, write):
    """The same of a causal model, to which the token follows the row and its label.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        rows: ``(text, label)`` each.
        label_words: By class.
        label_ids: By class.
        write: ``text -> str``, without a hole.
    """
    gains: Any = 0.0
    likelihood = 0.0
    for text, label in rows:
        _, given = log_probabilities(model, tokenizer, f"{write(text)} {label_words[label]}")
        _, free = log_probabilities(model, tokenizer, write(text))
        gains += given[-1] - free[-1]
        likelihood += free[-1, label_ids[label]]
    return gains.numpy(), float(likelihood)
