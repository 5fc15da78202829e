"""What a command without jobs says and returns where something is wrong.

Exit status 0 if all is well, 2 if something given was wrong, 1 for all else.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.job import DEFECT, MISTAKE, TRACEBACK


class Told(SystemExit):
    """The end of a command that has said why; any other exit within Hydra is Hydra's own."""


@contextmanager
def told() -> Iterator[None]:
    """Within, an error ends the command with a line that says what is wrong."""
    # Imported late, so that --help and configuration errors come at once.
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dfolora.errors import ResourceError, UserError

    try:
        yield
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        mistaken = isinstance(error, UserError | HydraException | OmegaConfBaseException)
        what, hint = " ".join(str(error).split()), ""
        if not mistaken and not isinstance(error, ResourceError | OSError | MemoryError):
            what = f"a defect of ours, {type(error).__name__}: {what}."
            hint = f" {TRACEBACK}=1 shows where."
        print(f"error: {what}{hint}", file=sys.stderr)
        raise Told(MISTAKE if mistaken else DEFECT) from None


def run(main: Callable[[], None]) -> None:
    """Run a function of ``hydra.main``'s; what Hydra itself does not take was given wrong.

    Args:
        main: What happens in it is within ``told``.
    """
    try:
        main()
    except Told:
        raise
    except SystemExit as end:
        sys.exit(MISTAKE if end.code == DEFECT else end.code)
