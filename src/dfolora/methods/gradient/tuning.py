"""The method of all trained baselines: back-propagation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.errors import UserError, first_line, is_shortage
from dfolora.methods.gradient.trainable import Attached, Trainable
from dfolora.methods.gradient.training import Trained, Training, TrainingSpec, all_logits, readers
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search import DevPoint, Memo, forgetful


def check_trainable(architecture: Architecture, *, through_model: bool) -> None:
    """Raise UserError if no gradient can be had of such a model.

    Args:
        architecture: The model's.
        through_model: Whether gradients pass through the model.
    """
    if architecture.streamed:
        raise UserError(
            "engine.stream=true keeps the layers' weights in host memory, and this method, which "
            "trains with gradients, needs them on the device; set engine.stream=false, or take a "
            "method that searches."
        )
    if through_model and architecture.quantized:
        raise UserError(
            "precision=int8 lets no gradient through the model, which this method needs; use "
            "precision=bf16 or fp32."
        )


@contextmanager
def within_memory(batch_size: str) -> Iterator[None]:
    """A context that says what to lower where training runs out of memory.

    Args:
        batch_size: The key of the minibatches' size, and its value.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise UserError(
            f"Out of memory in training: {first_line(error).removesuffix('.')}. Lower "
            f"{batch_size}, data.max_length or engine.tokens, or use precision=bf16."
        ) from error


@dataclass(frozen=True, kw_only=True)
class GradientTuning:
    """Trains a part of the model, or one attached to it, by AdamW.

    An epoch counts as three passes over the train set, also where a head is trained on features
    that the model computed once: ``found["model_passes"]`` tells how many were the model's.
    """

    trained: Trainable
    training: TrainingSpec

    seeded: ClassVar[bool] = True
    resumable: ClassVar[bool] = False

    @property
    def budget(self) -> int:
        """Calls of the whole grid of learning rates."""
        return self.training.budget

    def check(self, architecture: Architecture) -> None:
        if not isinstance(self.training, TrainingSpec):
            raise UserError(f"method.training={self.training} must be a TrainingSpec, as in conf/.")
        self.training.check()
        check_trainable(architecture, through_model=self.trained.through_model)
        self.trained.check(architecture)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        return self.trained.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "GradientFit":
        self.check(backbone.architecture)
        return GradientFit(self, backbone, data, seed)


class GradientFit:
    """The fit of a trained baseline."""

    def __init__(
        self, method: GradientTuning, backbone: Backbone, data: FewShotData, seed: int
    ) -> None:
        self._method = method
        self._backbone = backbone
        self._data = data
        self._seed = seed
        self._chosen: DevPoint | None = None
        self._calls = 0

    def __iter__(self) -> Iterator[Progress]:
        """Train; the model is changed until the last epoch, or until this iterator is closed."""
        with self.attached() as attached:
            spec = self._method.training
            training = Training(attached, self._data, spec, self._seed, self._backbone.tokens)
            with within_memory(f"method.training.batch_size={spec.batch_size}"):
                for progress in training:
                    self._chosen, self._calls = progress.selected, progress.step.calls
                    yield progress

    def attached(self) -> AbstractContextManager[Attached]:
        """The trained part, attached to the model."""
        trained = self._method.trained
        return trained.attached(self._backbone, self._data.label_ids, self._seed)

    def predictor(self) -> Predictor:
        """What the dev set chose; the start where it has not been looked at."""
        if self._chosen is not None:
            solution: Trained = self._chosen.solution
        else:
            with self.attached() as attached:
                solution = Trained.of(attached.parameters)

        @contextmanager
        def restored() -> Iterator[Attached]:
            with self.attached() as attached:
                solution.put(attached.parameters)
                yield attached

        def logits(batch: Batch) -> Tensor:
            with restored() as attached:
                return all_logits(readers(attached, batch, self._backbone.tokens))

        def write(folder: Path) -> None:
            with restored() as attached:
                attached.save(folder)

        size = sum(map(Tensor.numel, solution.tensors.values()))
        passes = self._calls if self._method.trained.through_model else min(self._calls, 1)
        return Predictor(
            logits=logits,
            write=write,
            dev=self._chosen,
            searched=size,
            stored=size,
            found={"learning_rate": solution.learning_rate, "model_passes": passes},
        )
