"""PromptBoosting: an ensemble of prompts with words of their own, from a pass a template.

Hou, O'Connor, Andreas, Chang, Zhang, "PromptBoosting: Black-Box Text Classification with Ten
Forward Passes", ICML 2023; boosted by SAMME (Zhu, Zou, Rosset, Hastie, "Multi-class AdaBoost",
2009). A weak learner is a template with a word for each class; it answers the class whose word is
likeliest.

Letters: N examples, C classes, V tokens of the vocabulary, S words that are tried for a class,
K tuples of C words, M learners.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import log, nan
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import FILLER, MASK, METRICS, Batch, Encode, Encoder, Rows
from dfolora.engine import Engine, classify, cross_entropy
from dfolora.errors import UserError
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search import DevPoint, Memo, by_score, forgetful
from dfolora.seeding import stream
from dfolora.validation import texts, whole

ENSEMBLE = "ensemble.json"
"""Holds the templates and the learners."""


@dataclass(frozen=True, kw_only=True)
class PromptBoosting:
    """Boosts weak learners over the task's prompt and other templates of it."""

    templates: Sequence[str]
    """Patterns beside the task's own prompt, which comes first. Those with ``{mask}`` are for
    masked models, the others for causal ones."""
    learners: int = 200
    """The most weak learners, M."""
    words: int | None = None
    """S; None for 50 of two classes, 10 of three or four, 5 of more."""
    tuples: int = 20_000
    """The most tuples of words that are tried for a learner, K."""

    seeded: ClassVar[bool] = True
    resumable: ClassVar[bool] = False

    @property
    def budget(self) -> int:
        """A pass for each template, if all are of the model's kind and differ from the prompt."""
        return 1 + len(self.templates)

    def check(self, architecture: Architecture) -> None:
        if self.templates not in ([], ()):  # the task's prompt alone
            texts(self.templates, "method.templates")
        whole(self.learners, "method.learners", least=1)
        whole(self.tuples, "method.tuples", least=1)
        if self.words is not None:
            whole(self.words, "method.words", least=1)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        masked = plain.prompt.kind == "masked"
        others = [each for each in self.templates if (f"{{{MASK}}}" in each) == masked]
        return Templates.of(plain, [plain.prompt.pattern, *others], fields=[*train.texts[0]])

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "Boosting":
        """Prepare the passes; the model is not asked yet."""
        self.check(backbone.architecture)
        if not isinstance(data.encode, Templates):
            raise TypeError("PromptBoosting needs data.encode to be its own encoder.")
        return Boosting(self, backbone, data, data.encode, seed)


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Encoders of several prompts; as an ``Encode``, the first of them."""

    encoders: tuple[Encoder, ...]

    @classmethod
    def of(cls, plain: Encoder, patterns: Sequence[str], *, fields: Sequence[str] = ()) -> Self:
        """Other patterns in place of the prompt's, each once.

        Args:
            plain: The task's prompt.
            patterns: Of the same kind.
            fields: That rows have; empty for unknown.

        Raises:
            UserError: A pattern has other fields, or cannot be read.
        """
        if plain.prompt.kind == "causal" and plain.readout == "released":
            raise UserError(
                "PromptBoosting answers at the last token of every row, not at the last column of "
                "a padded batch; use data.readout=last_token."
            )
        prompts = [
            replace(plain.prompt, pattern=each, slots=None) for each in dict.fromkeys(patterns)
        ]
        for prompt in prompts:
            unknown = sorted({*prompt.placeholders} - {*fields, MASK, FILLER})
            if fields and unknown:
                raise UserError(
                    f"The template {prompt.pattern!r} has placeholders {unknown}, and a row has "
                    f"{list(fields)}; change method.templates."
                )
        return cls(encoders=tuple(replace(plain, prompt=prompt) for prompt in prompts))

    @property
    def patterns(self) -> list[str]:
        """The patterns, in order."""
        return [encoder.prompt.pattern for encoder in self.encoders]

    def __call__(self, rows: Rows, group: int | None = None) -> Batch:
        return self.encoders[0](rows, group)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A weak learner: one template, a word for each class, and what its vote counts."""

    template: int
    words: tuple[int, ...]
    """Token ids, ``(C,)``."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class BoostingStep:
    """One more template."""

    calls: int
    losses: NDArray[np.float64]
    """Mean cross-entropies of the ensembles of the first 0, 1, 2, ... learners, ``(M + 1,)``."""
    loss: float
    """That of the length that the dev set chose."""
    step_size: float = nan


class Boosting:
    """One fit: after every pass, an ensemble over the templates so far."""

    def __init__(
        self,
        method: PromptBoosting,
        backbone: Backbone,
        data: FewShotData,
        encode: Templates,
        seed: int,
    ) -> None:
        self._method = method
        self._backbone = backbone
        self._data = data
        self._encode = encode
        self._seed = seed
        self._selected: DevPoint | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Read a template after the other."""
        data, method, classes = self._data, self._method, len(self._data.label_ids)
        train, dev = list[Tensor](), list[Tensor]()
        for calls, encoder in enumerate(self._encode.encoders, start=1):
            train.append(self._read(encoder, data.train))
            dev.append(self._read(encoder, data.dev))
            learners = boost(
                train, data.train.labels,
                classes=classes, learners=method.learners, words=method.words or screened(classes),
                tuples=method.tuples, rng=stream(self._seed, "word tuples"),
            )  # fmt: skip
            losses, _ = self._evaluated(learners, train, data.train.labels)
            on_dev, scores = self._evaluated(learners, dev, data.dev.labels)
            # Of equals the shortest; without a learner only where there is none.
            shortest = min(1, len(learners))
            length = shortest + int(np.lexsort([on_dev[shortest:], -scores[shortest:]])[0])
            look = DevPoint(
                calls=calls,
                score=float(scores[length]),
                loss=float(on_dev[length]),
                solution=tuple(learners[:length]),
            )
            if self._selected is None or by_score(look) < by_score(self._selected):
                self._selected = look
            step = BoostingStep(calls=calls, losses=losses, loss=float(losses[length]))
            yield Progress(step=step, looks=[look], selected=self._selected)

    def predictor(self) -> Predictor:
        """The ensemble that the dev set chose."""
        learners: Sequence[Learner] = self._selected.solution if self._selected else ()
        numbers = sum(len(learner.words) + 1 for learner in learners)
        return Predictor(
            logits=ensemble(self._backbone, self._encode, learners, len(self._data.label_ids)),
            write=lambda folder: _save(self._encode, learners, folder),
            dev=self._selected,
            searched=numbers,
            stored=numbers,
            found={
                "learners": len(learners),
                "templates": len({learner.template for learner in learners}),
            },
        )

    def _evaluated(
        self, learners: Sequence[Learner], logits: Sequence[Tensor], labels: Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses and scores of the ensembles of the first 0, 1, 2, ... learners, ``(M + 1,)``."""
        rows, classes = len(labels), len(self._data.label_ids)
        cast = votes(learners, lambda at, words: logits[at][:, words], rows, classes)
        sums = torch.cat([torch.zeros(1, rows, classes), cast]).cumsum(0)
        scores = METRICS[self._data.metric](labels.numpy(), sums.argmax(-1).numpy())
        return cross_entropy(sums, labels), scores

    def _read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """Logits of all tokens, ``(N, V)``."""
        written = encoder(batch.rows)
        engine = Engine(self._backbone, written, self._data.label_ids, carry=False)
        logits = engine.vocabulary()[:, 0].cpu()
        if logits.isnan().any():
            raise UserError(
                f"The model's logits under the template {encoder.prompt.pattern!r} are NaN. Check "
                f"the model's weights, or use precision=fp32."
            )
        return logits


def screened(classes: int) -> int:
    """S as in the released code; of five classes, which it has none of, as of six."""
    return {2: 50, 3: 10, 4: 10}.get(classes, 5)


def boost(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    classes: int,
    learners: int,
    words: int,
    tuples: int,
    rng: np.random.Generator,
) -> list[Learner]:
    """Boost weak learners by SAMME; templates take turns.

    A turn whose best learner is no better than chance adds none. The boosting ends early once no
    template's turn has changed the rows' weights.

    Args:
        logits: Of all tokens at the answers, ``(N, V)`` for each template.
        labels: ``(N,)``.
        classes: C.
        learners: The most turns.
        words: S.
        tuples: K at most.
        rng: Draws the tuples where there are more than that.
    """
    shares = [each.double().softmax(-1) for each in logits]
    weights = torch.full((len(labels),), 1 / len(labels), dtype=torch.float64)
    found, idle = list[Learner](), 0
    for turn in range(learners):
        template = turn % len(logits)
        tried = word_tuples(screen(shares[template], labels, weights, classes, words), tuples, rng)
        wrong = guesses(logits[template], tried) != labels
        # Rounded, so that tuples which miss equally much are equal, and the first is taken.
        errors = (wrong.double() @ weights).round(decimals=12)
        best = int(errors.argmin())
        weight = vote(float(errors[best]), classes, len(labels))
        missed = wrong[best]
        if weight > 0:
            chosen = tuple(tried[best].tolist())
            found.append(Learner(template=template, words=chosen, weight=weight))
            weights = weights * torch.exp(weight * missed.double())
            weights = weights / weights.sum()
        idle = 0 if weight > 0 and missed.any() else idle + 1
        if idle == len(logits):
            break
    return found


def vote(error: float, classes: int, rows: int) -> float:
    """A learner's weight by SAMME, log((1 - eps) / eps) + log(C - 1): 0 at chance.

    Args:
        error: The weighted share of rows that it misses, eps.
        classes: C.
        rows: N. A learner that misses none counts as if it had missed half a row; the released code
            divides by zero there.
    """
    error = error or 0.5 / rows
    return log((1 - error) / error) + log(classes - 1) if error < 1 else -float("inf")


def screen(shares: Tensor, labels: Tensor, weights: Tensor, classes: int, words: int) -> Tensor:
    """The words that speak most for each class: ``(C, S)``, the best first.

    A token's score for a class is the sum over rows of weight times probability, with a minus sign
    for rows of other classes. (The released code gives each token to one class alone; once rows of
    one class have most of the weight, that leaves other classes without words.)

    Args:
        shares: Probabilities of all tokens, ``(N, V)``.
        labels: ``(N,)``.
        weights: ``(N,)``.
        classes: C.
        words: S at most.
    """
    signs = 2 * torch.nn.functional.one_hot(labels, classes).to(shares) - 1
    scores = (signs * weights[:, None]).T @ shares
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :words]


def word_tuples(candidates: Tensor, tuples: int, rng: np.random.Generator) -> Tensor:
    """All tuples of one word a class, or so many random ones if there are more: ``(K, C)``."""
    classes, words = candidates.shape
    if words**classes <= tuples:
        places = torch.cartesian_prod(*[torch.arange(words)] * classes)
    else:
        places = torch.from_numpy(rng.integers(words, size=(tuples, classes)))
    return candidates.gather(1, places.T).T


def guesses(logits: Tensor, tuples: Tensor) -> Tensor:
    """The class whose word is likeliest, of equals the first: ``(N, V), (K, C) -> (K, N)``.

    Each word's rank in a row and the class that it stands for become one whole number, higher for
    the likelier and then for the earlier class; so one maximum over the classes has both.
    """
    last = tuples.shape[1] - 1
    words, places = tuples.unique(return_inverse=True)
    table = logits[:, words]
    ranks = torch.searchsorted(table.sort(-1).values, table).int().T.contiguous() * (last + 1)
    codes = ranks[places[:, 0]] + last
    for label in range(1, last + 1):  # one at a time: together they are K N C numbers
        torch.maximum(codes, ranks[places[:, label]] + (last - label), out=codes)
    return last - codes % (last + 1)


def votes(
    learners: Sequence[Learner], read: Callable[[int, Tensor], Tensor], rows: int, classes: int
) -> Tensor:
    """What each learner's vote adds: ``(M, N, C)``, float64.

    Their sums are logits: SAMME's estimate of the classes' probabilities is their softmax. Where a
    learner's logits are not finite, so are its votes.

    Args:
        learners: M of them.
        read: Logits of some tokens under a template: ``(template, (W,)) -> (N, W)``.
        rows: N.
        classes: C.
    """
    cast = torch.zeros(len(learners), rows, classes, dtype=torch.float64)
    for template in sorted({learner.template for learner in learners}):
        mine = [n for n, learner in enumerate(learners) if learner.template == template]
        words = torch.tensor([learners[n].words for n in mine])
        logits = read(template, words.flatten()).cpu().unflatten(-1, words.shape)
        weights = torch.tensor([learners[n].weight for n in mine], dtype=torch.float64)
        said = torch.nn.functional.one_hot(logits.argmax(-1), classes).double()
        said[~logits.isfinite().all(-1)] = torch.nan
        cast[mine] = (said * weights[:, None]).transpose(0, 1)
    return cast


def ensemble(
    backbone: Backbone, encode: Templates, learners: Sequence[Learner], classes: int
) -> Callable[[Batch], Tensor]:
    """The ensemble's logits of a batch, ``(N, C)``, float32, by a pass for each template in use.

    Args:
        backbone: The frozen model.
        encode: Its templates.
        learners: That vote.
        classes: C.
    """

    def logits(batch: Batch) -> Tensor:
        def read(template: int, words: Tensor) -> Tensor:
            return classify(backbone, words, encode.encoders[template](batch.rows))

        return votes(learners, read, len(batch.rows), classes).sum(0).float()

    return logits


def _save(encode: Templates, learners: Sequence[Learner], folder: Path) -> None:
    """Write ``ENSEMBLE``; words as tokens too, for whoever reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    spell = encode.encoders[0].tokenizer.convert_ids_to_tokens
    written = {
        "templates": encode.patterns,
        "learners": [{**asdict(one), "tokens": spell(list(one.words))} for one in learners],
    }
    text = json.dumps(written, indent=1, ensure_ascii=False)
    (folder / ENSEMBLE).write_text(text + "\n", encoding="utf-8")


def load_ensemble(folder: Path) -> tuple[list[str], list[Learner]]:
    """The templates and the learners of a folder that was saved to."""
    found: Any = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    learners = [
        Learner(template=one["template"], words=tuple(one["words"]), weight=one["weight"])
        for one in found["learners"]
    ]
    return found["templates"], learners
