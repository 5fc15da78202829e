"""Checks that PEFT is installed."""

from dfolora.errors import UserError


def check_peft() -> None:
    """Raise UserError unless PEFT is installed; slow to import, so before the fit."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError("This method needs PEFT: pip install peft.") from error
