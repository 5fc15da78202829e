"""What a command says and returns where something is wrong.

Exit status 0 if all is well, 2 if something given was wrong, 1 for all else.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

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
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        # Hydra's own would print a block of many lines and end the process.
        with patch("hydra._internal.utils.run_and_report", lambda function: function()):
            main()
    except CommandError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        print(_line(error), file=sys.stderr)
        sys.exit(MISTAKE)
    except SystemExit as end:
        sys.exit(MISTAKE if end.code == DEFECT else end.code)


def _line(error: Exception) -> str:
    """What to say of what Hydra does not take."""
    line, _where, _path = failure(error).line.partition(" Config search path:")
    if "Could not override" not in line:
        return line
    named = re.search(r"'([\w.]+)'", line)
    key = named[1] if named else "KEY"
    return (
        f"error: {key} is no key of the parts that are chosen; with -m, of the default parts, "
        f"before a sweep chooses others. --help lists the keys; ++{key}=VALUE sets one of a part "
        f"that a sweep chooses."
    )
