"""What a command says and returns where something is wrong.

Exit status 0 if all is well, 2 if something given was wrong, 1 for all else.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from unittest.mock import patch

from pipelines.jobs.job import DEFECT, MISTAKE, failure

CONF = Path(__file__).parent.parent / "conf"


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
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, error.options)
    line, _where, _path = failure(error).line.partition(" Config search path:")
    if "Could not override" not in line:
        return line
    named = re.search(r"'([\w.]+)'", line)
    key = named[1] if named else "KEY"
    parent, _, last = key.rpartition(".")
    near = [f"{parent}.{name}".lstrip(".") for name in get_close_matches(last, _keys(error), 1)]
    return (
        f"error: {key} is no key{_meant(near)} of the parts that are chosen; with -m, of the "
        f"default parts, before a sweep chooses others. --help lists the keys; ++{key}=VALUE sets "
        f"one of a part that a sweep chooses."
    )


def _no_option(missing: str, options: Sequence[str]) -> str:
    """Hydra lists a group's own files alone, not those of the folders in it."""
    group, _, name = missing.partition("/")
    files = (CONF / group).rglob("*.yaml")
    known = {path.relative_to(CONF / group).with_suffix("").as_posix() for path in files}
    listed = sorted(known | {*options}, key=lambda each: ("/" in each, each))
    near = [f"{group}={each}" for each in get_close_matches(name, listed, 1)]
    return f"error: There is no {group}={name}{_meant(near)}. There are {', '.join(listed)}."


def _keys(error: Exception) -> list[str]:
    """The keys beside the one that an error is about."""
    node = getattr(error.__cause__, "parent_node", None)
    return [str(key) for key in node] if isinstance(node, Mapping) else []


def _meant(near: Sequence[str]) -> str:
    return f" (did you mean {near[0]}?)" if near else ""
