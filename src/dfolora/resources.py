"""Checks memory and disk before work starts."""

import os
from pathlib import Path

from dfolora.errors import UserError


def check_room(size: float, what: str, advice: str) -> None:
    """Raise UserError if something needs more memory than the machine has.

    Args:
        size: Its least memory, in bytes.
        what: Its name in the message.
        advice: What the user can do about it.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > machine:
        raise UserError(
            f"{what} would take {size / 1e9:,.0f} GB, this machine has {machine / 1e9:,.0f} GB; "
            f"{advice}."
        )


def check_folder(folder: Path, where: str) -> None:
    """Raise UserError unless a folder can be written to.

    Args:
        folder: The folder; it need not exist yet.
        where: The key it was given with.
    """
    known = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not known.is_dir() or not os.access(known, os.W_OK):
        what = "is not writable" if known.is_dir() else "is not a folder"
        raise UserError(f"{where}={folder} cannot be used: {known} {what}; give another folder.")
