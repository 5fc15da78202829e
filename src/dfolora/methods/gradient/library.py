"""PEFT, where a method needs it."""

from dfolora.errors import UserError


def check_peft() -> None:
    """Raise UserError unless it is installed; importing it takes seconds, so not within a fit."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError("This method needs PEFT: pip install peft.") from error
