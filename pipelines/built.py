"""What a part of a configuration stands for."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig


def built(config: DictConfig, key: str, **options: Any) -> Any:
    """Instantiate a node of the configuration.

    Raises:
        UserError: It cannot be built.
    """
    try:
        return instantiate(config[key], **options)
    except InstantiationException as error:
        from dfolora.errors import UserError  # late, for its package takes seconds

        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = " ".join(str(error).split())
        raise UserError(f"{key} cannot be built: {reason}. See conf/{key}/.") from error
