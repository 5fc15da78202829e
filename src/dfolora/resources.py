"""Whether the machine has room for something, told before it is tried."""

import os
from pathlib import Path

from dfolora.errors import UserError


def check_room(size: float, what: str, advice: str) -> None:
    """Raise UserError if the machine has less memory than something takes.

    Args:
        size: What it takes at least, in bytes.
        what: What it is.
        advice: What to do.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > machine:
        raise UserError(
            f"{what} would take {size / 1e9:,.0f} GB, this machine has {machine / 1e9:,.0f} GB; "
            f"{advice}."
        )


def check_folder(folder: Path, where: str) -> None:
    """Raise UserError if a folder is none, or nothing can be written there.

    Args:
        folder: Need not exist yet.
        where: The key that it was given with.
    """
    known = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not known.is_dir() or not os.access(known, os.W_OK):
        what = "may not be written to" if known.is_dir() else "is no folder"
        raise UserError(f"{where}={folder} cannot be used: {known} {what}; give another folder.")
