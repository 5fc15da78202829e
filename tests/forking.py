"""A child process that begins with all that this one has loaded."""

import os
import traceback
from collections.abc import Callable

import torch


def forked(work: Callable[[], None]) -> int:
    """The id of a child that does the work; it ends with status 0, or 1 if the work raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # torch makes its pool anew after a fork, but not for several loading threads at once.
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
