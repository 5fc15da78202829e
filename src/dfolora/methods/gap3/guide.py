"""Evaluates prompts, and asks the model which token best fills a hole.

Letters: N examples, C classes, K places in a row, V tokens of the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import METRICS, Batch, Rows
from dfolora.engine import Affine, Engine, SolvedReadout, cross_entropy
from dfolora.errors import UserError
from dfolora.methods.gap3.genome import Genome, Hole, Template
from dfolora.model import Backbone
from dfolora.search import Answer, Memo, forgetful

Array = NDArray[np.float64]

Fitness = tuple[float, float]
"""Higher is better: the score, ties by the confidence."""

PASSES = 3
"""Passes of an individual with a hole: two to find the token, one to evaluate it."""


@dataclass(frozen=True, kw_only=True)
class Individual:
    """A prompt and its scores."""

    genome: Genome
    score: float
    """The task's metric, in [0, 1]."""
    confidence: float
    """Mean probability of the gold label word among the label words."""
    loss: float
    """Mean cross-entropy over the label words."""
    log_likelihood: float
    """Log-probability of the gold label word among all tokens, summed over the rows."""
    missed: float | None = None
    """By how much that exceeds the prediction for its new token; None without one."""

    @property
    def fitness(self) -> Fitness:
        """The fitness: score, ties by confidence."""
        return self.score, self.confidence


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Scores of every token for a hole."""

    gains: Array
    """``sum log p(t | x, gold label) - sum log p(t | x)``: ``(V,)``."""
    log_likelihood: float
    """``sum log p(gold label | x)`` while the hole is open."""

    def predicted(self, token: int) -> float:
        """``sum log p(gold label | x, t)`` by Bayes' rule."""
        return self.log_likelihood + float(self.gains[token])


class Passes:
    """Evaluates rows in one prompt after another, and counts passes.

    Args:
        backbone: The frozen model.
        template: Rows and genomes to batches.
        rows: The N examples.
        label_ids: ``(C,)``, the label words' token ids.
        metric: Name of the task's metric.
        readout: Solved for each prompt, whose label words are scored as it maps them.
        solved_on: Passes over the train set, if these rows are others; None: it is solved on these.
    """

    def __init__(
        self,
        backbone: Backbone,
        template: Template,
        rows: Rows,
        label_ids: Tensor,
        metric: str,
        readout: SolvedReadout,
        solved_on: "Passes | None" = None,
    ) -> None:
        self._backbone = backbone
        self._template = template
        self._rows = rows
        self._label_ids = label_ids
        self._labels = torch.tensor(rows.labels)
        self._metric = METRICS[metric]
        self._readout = readout
        self._solved_on = solved_on
        self._engines = dict[tuple[int, ...], Engine]()

    def token_scores(self, hole: Hole) -> TokenScores:
        """Two passes: one with the gold labels filled in, one with the labels left open."""
        gold = self._template.encode_gold(self._rows, hole)
        (given,) = self._log_probabilities(gold)
        blank, places = self._template.encode_blank(self._rows, hole)
        free, answers = self._log_probabilities(blank, torch.stack([places, blank.answer], 1))
        gains = (_over_rows(given) - _over_rows(free)).cpu().numpy()
        return TokenScores(gains=gains, log_likelihood=self._log_likelihood(answers))

    def evaluate(self, genome: Genome) -> Individual:
        """One pass, and one more where the readout is solved on other rows.

        Raises:
            UserError: The model gives no finite numbers.
        """
        answers, words = self._answers(genome)
        if not self._readout.plain:
            other = self._solved_on
            words = (self._solved(words) if other is None else other.solved(genome))(words)
        (loss,) = cross_entropy(words[None], self._labels)
        if not np.isfinite(loss):
            raise UserError(
                f"The loss under the prompt {self._template.prompt(genome).pattern!r} is not a "
                f"finite number. Check the model's weights, or use precision=fp32."
            )
        confidences = words.double().softmax(-1).gather(1, self._labels[:, None])
        return Individual(
            genome=genome,
            score=float(self._metric(self._labels.numpy(), words.argmax(-1).numpy())),
            confidence=float(confidences.mean()),
            loss=float(loss),
            log_likelihood=self._log_likelihood(answers),
        )

    def solved(self, genome: Genome) -> Affine:
        """The readout under a prompt, in one pass."""
        return self._solved(self._answers(genome)[1])

    def _solved(self, words: Tensor) -> Affine:
        return self._readout.solve(words[None], self._labels)[0]

    def _answers(self, genome: Genome) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all tokens, ``(N, V)``, and those of the label words, ``(N, C)``."""
        (answers,) = self._log_probabilities(self._template.encode(self._rows, genome))
        return answers, answers[:, self._label_ids.to(answers.device)].cpu()

    def _log_probabilities(self, batch: Batch, places: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of all tokens at K places or at the answer, in one pass: K times ``(N, V)``, float32."""
        return self._engine(batch).vocabulary(places).log_softmax(-1).unbind(1)

    def _engine(self, batch: Batch) -> Engine:
        """Cut as the last batch of its lengths was, for prompts of as many tokens have them."""
        lengths = *batch.attention_mask.sum(-1).tolist(), *batch.answer.tolist()
        known = self._engines.get(lengths)
        self._engines[lengths] = (
            known.of(batch)
            if known is not None
            else Engine(self._backbone, batch, self._label_ids, carry=False)
        )
        return self._engines[lengths]

    def _log_likelihood(self, answers: Tensor) -> float:
        gold = self._label_ids[self._labels, None].to(answers.device)
        return float(_over_rows(answers.gather(1, gold)))


class Guide:
    """Fills holes with the model's best token, and corrects tokens that were overrated.

    Args:
        passes: Over the train set.
        template: Which words may be.
        top: So many tokens, the best of all, are tried.
        tokens: V.
        memo: Of the search.
    """

    def __init__(
        self,
        passes: Passes,
        template: Template,
        *,
        top: int,
        tokens: int,
        memo: Memo = forgetful,
    ) -> None:
        self._passes = passes
        self._template = template
        self._top = top
        self._memo = memo
        self._bias = np.zeros(tokens)
        self.calls = 0
        """Passes that the children so far took."""
        self.seen = {template.empty}
        """Every genome there was, and that without words."""

    def realised(self, child: Genome | Hole) -> Individual | None:
        """The evaluated child; None if no token gives a new prompt.

        Raises:
            UserError: The memo holds another child.
        """
        hole = child if isinstance(child, Hole) else None
        question = {"child": asdict(hole) if hole else child}
        answer = self._memo(question, lambda: self._answer(self._evaluated(child)))
        individual = _individual(answer["individual"])
        self.calls += PASSES - (individual is None) if hole else 1
        if individual is None:
            return None
        if hole and individual.missed is not None:
            token = individual.genome[hole.slot][hole.place]
            self._bias[token] = min(self._bias[token], individual.missed)
        self.seen.add(individual.genome)
        return individual

    def _evaluated(self, child: Genome | Hole) -> Individual | None:
        if not isinstance(child, Hole):
            return self._passes.evaluate(child)
        scores = self._passes.token_scores(child)
        token = self._token(child, scores)
        if token is None:
            return None
        individual = self._passes.evaluate(child.filled(token))
        missed = individual.log_likelihood - scores.predicted(token)
        return replace(individual, missed=missed) if np.isfinite(missed) else individual

    def _answer(self, individual: Individual | None) -> Answer:
        if individual is None:
            return {"individual": None}
        pattern = self._template.prompt(individual.genome).pattern
        return {"pattern": pattern, "individual": asdict(individual)}

    def _token(self, hole: Hole, scores: TokenScores) -> int | None:
        known = len(self._template.plain.tokenizer)  # a model may embed more
        ranked = np.argsort(-(scores.gains + self._bias)[:known], kind="stable")
        for token in ranked[: self._top].tolist():
            genome = hole.filled(token)
            if (
                genome not in self.seen
                and self._template.suits(token)
                and self._template.spells(genome, hole.slot)
            ):
                return int(token)
        return None


def _individual(kept: Mapping[str, Any] | None) -> Individual | None:
    """From what JSON makes of one: lists in place of tuples."""
    if kept is None:
        return None
    return Individual(**{**kept, "genome": tuple(map(tuple, kept["genome"]))})


def _over_rows(log_probabilities: Tensor) -> Tensor:
    """Their sum, ``(N, n) -> (n,)``, float64."""
    return log_probabilities.sum(0, dtype=torch.float64)
