"""SAMME over templates and word tuples, by loops over plain lists."""

from itertools import product
from math import exp, log


def boosted(shares, labels, classes, learners, words):
    """Weak learners ``(template, words, weight)``.

    Args:
        shares: ``shares[t][n][v]``, probabilities by template, row and token.
        labels: ``(N,)``.
        classes: C.
        learners: The most turns.
        words: Tried for each class; all their tuples are.
    """
    rows, tokens = range(len(labels)), range(len(shares[0][0]))
    weights = [1 / len(labels)] * len(labels)
    found, unchanged = [], 0
    for turn in range(learners):
        t = turn % len(shares)
        scores = [
            [sum(weights[n] * shares[t][n][v] * (1 if labels[n] == c else -1) for n in rows)
             for v in tokens]
            for c in range(classes)
        ]  # fmt: skip
        tried = [sorted(tokens, key=lambda v, c=c: -scores[c][v])[:words] for c in range(classes)]
        lowest = None
        for combination in product(*tried):
            missed = [
                max(range(classes), key=lambda c: shares[t][n][combination[c]]) != labels[n]
                for n in rows
            ]
            error = sum(weights[n] for n in rows if missed[n])
            if lowest is None or error < lowest[0] - 1e-12:
                lowest = error, combination, missed
        error, combination, missed = lowest
        error = error if any(missed) else 0.5 / len(labels)
        weight = log((1 - error) / error) + log(classes - 1)
        unchanged += 1
        if weight > 0:
            found.append((t, combination, weight))
            if any(missed):
                unchanged = 0
                weights = [
                    w * exp(weight) if m else w for w, m in zip(weights, missed, strict=True)
                ]
                weights = [w / sum(weights) for w in weights]
        if unchanged == len(shares):
            break
    return found
