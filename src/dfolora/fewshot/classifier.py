"""A few-shot text classifier with scikit-learn's interface, which need not be installed."""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dfolora.data import Encoder, Prompt, Rows, Task, label_word_ids, shuffled_by_class
from dfolora.errors import UserError
from dfolora.fewshot.base import Base, brief
from dfolora.fewshot.card import About
from dfolora.fewshot.inputs import (
    check_kind,
    read_labels,
    read_rows,
    task_of,
    word_style,
    words_of,
)
from dfolora.fewshot.kinds import fitted_of
from dfolora.fewshot.saved import Fitted, Saved
from dfolora.fewshot.score import count_not_finite
from dfolora.methods import FewShotData, Fit, Method, Predictor, Progress, method_of, written
from dfolora.model import Checkpoint
from dfolora.validation import text, whole


class NotFittedError(UserError, AttributeError):
    """Raised when an unfitted classifier is asked to predict."""


class FewShotClassifier:
    """Classifies texts by a language model, a prompt and a few labelled rows.

    The model fills the prompt's mask (or continues it, if causal); the class is that of the label
    word with the highest logit. ``fit`` tunes the model for that, mostly with forward passes alone;
    its weights are never written.

    Parameters are stored as given and checked by ``fit``, so ``sklearn.base.clone``,
    ``cross_val_score``, ``GridSearchCV`` and pipelines work.

    Args:
        model: A hub name or folder, loaded by each ``fit``; or a ``transformers`` model with a
            vocabulary head, which is left frozen, in evaluation mode, and is shared by clones.
        prompt: The pattern, such as ``"{text} It was {mask}."``: a placeholder for each text of a
            row, and, for a masked model, ``{mask}`` once. A causal model answers after its end.
        words: The label words: a mapping from class to word, or words in the order of the sorted
            classes (``classes_``).
        tokenizer: Needed beside a loaded model; for a name or folder that of another one.
        method: A name (``c_lora``, ``f_lora``, ``bbt``, ``bbtv2``, ``random_search``,
            ``random_lora``, ``gap3``, ``manual_prompt``, ``calibrated_prompt``, ``in_context``,
            ``model_tuning``, ``adapter``, ``bitfit``, ``lora``, ``prompt_tuning``, ``p_tuning_v2``,
            ``feature_mlp``, ``feature_bilstm``), or an object such as ``CLora(budget=1000)``.
        k: Rows per class that are drawn from those given to ``fit`` to train on, and as many to
            choose the solution by (dev); more are left unused. None uses all: half of each class to
            train, half as dev, the odd one to train.
        max_length: Most tokens of a row, the prompt included, at most the model's own limit; longer
            ones are cut inside their texts.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, for a model given by name.
        precision: ``auto`` (bf16 on a GPU, fp32 elsewhere), ``fp32``, ``bf16``, ``fp16`` or
            ``int8``, for a model given by name.
        revision: Commit, tag or branch on the hub, for a model given by name.
        random_state: Seed of the split, the projections and the search, 0 or more.
        verbose: Whether ``fit`` shows a progress bar.
        callback: Called with the ``Progress`` of each generation or epoch.

    Attributes:
        classes_: The classes, sorted, ``(C,)``.
        predictor_: What ``fit`` chose, with the look at dev that chose it (``predictor_.dev``; None
            after ``load``).
    """

    classes_: NDArray[Any]
    predictor_: Predictor

    def __init__(
        self,
        model: Any,
        *,
        prompt: str,
        words: Mapping[Any, str] | Sequence[str],
        tokenizer: Any = None,
        method: str | Method = "c_lora",
        k: int | None = None,
        max_length: int = 512,
        device: str = "auto",
        precision: str = "auto",
        revision: str = "main",
        random_state: int = 42,
        verbose: bool = False,
        callback: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.words = words
        self.tokenizer = tokenizer
        self.method = method
        self.k = k
        self.max_length = max_length
        self.device = device
        self.precision = precision
        self.revision = revision
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback

    def fit(self, X: Any, y: Any, *, dev: tuple[Any, Any] | None = None) -> Self:  # noqa: N803
        """Fit to rows; an earlier fit is forgotten once all is checked.

        Args:
            X: N texts (a list, an array, a pandas Series), or for a prompt with several fields N
                mappings from field to text (or a pandas DataFrame).
            y: Their N classes: whole numbers, texts or truth values; two classes or more.
            dev: Other rows and classes ``(X, y)`` to choose the solution by; then all of ``X``
                trains, and ``k`` must be None.

        Returns:
            The classifier itself.

        Raises:
            UserError: Parameters, rows and model do not fit together; all but what only the
                weights can show is told before these are loaded.
        """
        method = method_of(self.method)
        seed = whole(self.random_state, "random_state", least=0)
        labels = read_labels(y, "y")
        classes, numbers = np.unique(labels, return_inverse=True)
        words = words_of(self.words, classes)
        base = self._base()
        task, plain = self._prompted(base, classes, words)
        label_ids = self._label_ids(plain)
        method.check(base.architecture)
        rows = read_rows(X, task, "X", numbers.tolist())
        train, chosen_by = self._split(rows, task, classes, dev, seed)
        encode = method.encoder(plain, train, seed)
        data = FewShotData(
            train=encode(train),
            dev=encode(chosen_by),
            label_ids=label_ids,
            metric=task.metric,
            encode=encode,
        )
        for name in ("_fitted", "classes_", "predictor_"):  # of an earlier fit, with its model
            vars(self).pop(name, None)
        backbone = base.load()
        predictor = self._followed(method.begin(backbone, data, seed), method.budget)
        self.classes_, self.predictor_ = classes, predictor
        self._fitted = Fitted(
            predictor=predictor,
            backbone=backbone,
            origin=base.origin,
            task=task,
            classes=classes.tolist(),
            plain=plain,
            encode=encode,
            label_ids=label_ids,
            describe=lambda: fitted_of(method, encode),
            method=self.method if isinstance(self.method, str) else written(method),
            seed=seed,
            about=About(
                title="A classifier",
                train=len(train),
                dev=len(chosen_by),
                split_seed=seed,
                dev_score=None if predictor.dev is None else predictor.dev.score,
            ),
        )
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The classes of rows as ``fit`` takes them: ``(N,)``.

        A row for which the model gives NaN, of which a warning tells, has the first class;
        ``predict_proba`` shows which.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(-1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities ``(N, C)``, in the order of ``classes_``.

        They are the softmax of the label words' logits, all other words left aside. Nothing
        calibrates them, unless the method fits a readout.
        """
        fitted = self._known()
        logits = fitted.predictor.logits(fitted.batch(read_rows(X, fitted.task, "X")))
        count_not_finite(logits, "row")
        return logits.double().softmax(-1).cpu().numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Accuracy of ``predict(X)``: the share, or weighted share, of rows that are right."""
        self._known()
        labels = read_labels(y, "y")
        check_kind(labels, self.classes_, "y")
        predicted = self.predict(X)
        if len(predicted) != len(labels):
            raise UserError(f"X has {len(predicted)} rows, y {len(labels)}; give one label a row.")
        return float(np.average(predicted == labels, weights=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write a folder from which ``load`` makes this classifier again; the model is not in it.

        Beside ``classifier.json`` it holds what the method fitted: a PEFT adapter, soft prompts, a
        prompt, or tensors.

        Args:
            folder: New, or of an earlier ``save``, whose files are replaced.
        """
        self._known().save(Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, *, model: Any = None, tokenizer: Any = None, device: str = "auto"
    ) -> Self:
        """The classifier that ``save`` wrote, or of what a run fitted.

        Args:
            folder: Written by ``save``, or the folder ``adapter`` of a run's artifacts, whose
                ``classes_`` are in the order of its task.
            model: The model that it was fitted to, as for the constructor; None: by the name or
                folder that it had then.
            tokenizer: As for the constructor.
            device: As for the constructor.

        Raises:
            UserError: The folder is not whole, or model, tokenizer or task are others.
        """
        saved = Saved.read(Path(folder), model=model, tokenizer=tokenizer, device=device)
        fitted = saved.load()
        origin, prompt = fitted.origin, fitted.plain.prompt
        by_name = model is None or isinstance(model, str | Path)
        classifier = cls(
            origin["path"] if by_name else model,
            prompt=prompt.pattern,
            words=dict(zip(fitted.classes, prompt.label_words, strict=True)),
            tokenizer=tokenizer or origin["tokenizer"],
            method=fitted.method,
            max_length=fitted.plain.max_length,
            device=device,
            precision=origin["precision"],
            revision=origin["revision"],
            random_state=fitted.seed,
        )
        classifier.classes_ = np.array(fitted.classes)
        classifier.predictor_ = fitted.predictor
        classifier._fitted = fitted
        return classifier

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name, as scikit-learn asks for them."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments; ``fit`` is needed for them to matter."""
        if unknown := sorted({*params} - {*self.get_params()}):
            raise UserError(
                f"{type(self).__name__} has no parameters {unknown}; it has "
                f"{', '.join(self.get_params())}."
            )
        vars(self).update(params)
        return self

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        changed = [
            f"{name}={brief(value)}"
            for name, value in self.get_params().items()
            if type(value) is not type(defaults[name]) or value != defaults[name]
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __getstate__(self) -> dict[str, Any]:
        if "_fitted" in vars(self):
            raise TypeError(
                "A fitted FewShotClassifier is not pickled, for the language model would go along "
                "and pickles can run code; use save(folder) and FewShotClassifier.load(folder)."
            )
        return vars(self).copy()

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params())

    def __sklearn_is_fitted__(self) -> bool:
        return "_fitted" in vars(self)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, string=True),
        )

    def _known(self) -> Fitted:
        if "_fitted" not in vars(self):
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet; call fit(X, y), or use "
                f"{type(self).__name__}.load(folder)."
            )
        return self._fitted

    def _base(self) -> Base:
        model, tokenizer = self.model, self.tokenizer
        if not isinstance(model, str | Path):
            return Base.loaded(model, tokenizer, self.device, self.precision)
        named = isinstance(tokenizer, str | Path)
        checkpoint = Checkpoint(
            path=str(model),
            revision=self.revision,
            tokenizer=str(tokenizer) if named else None,
            weights="pretrained",
            architecture=None,
            device=self.device,
            precision=self.precision,
        )
        return Base.named(checkpoint, None if named else tokenizer)

    def _prompted(
        self, base: Base, classes: NDArray[Any], words: Sequence[str]
    ) -> tuple[Task, Encoder]:
        architecture = base.architecture
        prompt = Prompt(
            kind=architecture.family.kind,
            pattern=text(self.prompt, "prompt"),
            label_words=tuple(words),
        )
        limit = min(whole(self.max_length, "max_length", least=1), architecture.max_length)
        encoder = Encoder(prompt=prompt, tokenizer=base.tokenizer, max_length=limit)
        return task_of(prompt, classes), encoder

    def _label_ids(self, plain: Encoder) -> torch.Tensor:
        ids = label_word_ids(plain.prompt, plain.tokenizer, word_style(plain.prompt))
        return torch.tensor(ids)

    def _split(
        self,
        rows: Rows,
        task: Task,
        classes: NDArray[Any],
        dev: tuple[Any, Any] | None,
        seed: int,
    ) -> tuple[Rows, Rows]:
        """Train and dev rows."""
        if dev is not None:
            if self.k is not None:
                raise UserError(f"Got k={self.k} and dev: all of X trains then; set k=None.")
            labels = read_labels(dev[1], "dev's y")
            check_kind(labels, classes, "dev's y")
            if unknown := sorted({*labels.tolist()} - {*classes.tolist()}):
                raise UserError(f"dev's y has classes that y lacks: {unknown}; leave them out.")
            numbers = np.searchsorted(classes, labels).tolist()
            return rows, read_rows(dev[0], task, "dev's X", numbers)
        k = None if self.k is None else whole(self.k, "k", least=1)
        order, members = shuffled_by_class(
            rows.labels, [True] * len(rows), classes=len(classes), seed=seed
        )
        if min(map(len, members)) < 2 * (k or 1):
            counts = ", ".join(f"{n}: {len(m)}" for n, m in zip(task.classes, members, strict=True))
            raise UserError(
                f"Got rows of {counts}; k={k} needs {2 * (k or 1)} or more of each class, half to "
                f"train and half to choose by. Give more rows, a smaller k, or fit(X, y, "
                f"dev=(X_dev, y_dev))."
            )
        parts = [(m, k or (len(m) + 1) // 2) for m in members]
        train = {row for m, size in parts for row in m[:size]}
        chosen_by = {row for m, size in parts for row in m[size : k and 2 * k]}
        return (
            rows.select(row for row in order if row in train),
            rows.select(row for row in order if row in chosen_by),
        )

    def _followed(self, fit: Fit, budget: int) -> Predictor:
        """Let the fit work to its end, with whoever looks on."""
        steps = iter(fit)
        # A method that changes the model undoes it as its steps are closed, also by an error.
        with (
            closing(steps) if isinstance(steps, Generator) else nullcontext(),
            _bar(budget, shown=self.verbose) as show,
        ):
            for progress in steps:
                show(progress)
                if self.callback is not None:
                    self.callback(progress)
        return fit.predictor()


@contextmanager
def _bar(budget: int, *, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error, or none."""
    if not shown:
        yield lambda _progress: None
        return
    from tqdm import tqdm

    with tqdm(total=budget, unit="call") as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.step.calls - bar.n)
            dev = progress.selected
            bar.set_postfix(
                {"loss": f"{progress.step.loss:.3f}"}
                | ({} if dev is None else {"dev": f"{dev.score:.3f}"})
            )

        yield show
