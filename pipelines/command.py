"""What a command says and returns where something is wrong.

Exit status 0 if all is well, 2 if something given was wrong, 1 for all else.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.job import DEFECT, MISTAKE, failure


class CommandError(SystemExit):
    """The end of a command that has said why; any other exit within Hydra is Hydra's own."""


@contextmanager
def reported() -> Iterator[None]:
    """Within, an error ends the command with a line that says what is wrong."""
    try:
        yield
    except Exception as error:
        result = failure(error)
        print(result.line, file=sys.stderr)
        raise CommandError(result.status) from None


def run(main: Callable[[], None]) -> None:
    """Run a function of ``hydra.main``'s; what Hydra itself does not take was given wrong.

    Args:
        main: Tells of its own errors, as within ``reported``.
    """
    try:
        main()
    except CommandError:
        raise
    except SystemExit as end:
        sys.exit(MISTAKE if end.code == DEFECT else end.code)
