"""Writes down each pickle that a process makes or reads; Python runs a module of this name first.

A line of JSON each goes to the file ``$PICKLES``: what was done, by which module, to which file.
"""

import _pickle
import json
import os
import pickle
import sys
from pathlib import Path

PICKLED = {".bin", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
"""Files that are pickles or may hold some: torch reads them with an unpickler of its own."""
LOG = os.environ["PICKLES"]


def tell(what, file=None):
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") in (__name__, "pickle", "sitecustomize"):
        frame = frame.f_back
    where = getattr(file, "name", file if isinstance(file, str) else None)
    line = {"what": what, "by": frame.f_globals.get("__name__"), "file": where and str(where)}
    with Path(LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def watched(name, original):
    """A function or class of the same kind that tells who uses it."""
    if not isinstance(original, type):

        def function(*arguments, **options):
            tell(name, next((x for x in arguments if hasattr(x, "name")), None))
            return original(*arguments, **options)

        return function

    class Watched(original):
        def __init__(self, *arguments, **options):
            tell(name, *arguments[:1])
            super().__init__(*arguments, **options)

    Watched.__name__ = Watched.__qualname__ = original.__name__
    return Watched


def listen(event, arguments):
    if event == "pickle.find_class":
        tell(event)
    elif event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = os.fspath(arguments[0])
        if isinstance(path, str) and Path(path).suffix in PICKLED:
            tell(event, path)


for _module in (pickle, _pickle):
    for _name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        setattr(_module, _name, watched(_name, getattr(_module, _name)))
for _name in ("_Pickler", "_Unpickler"):  # in Python; what dill builds upon
    setattr(pickle, _name, watched(_name, getattr(pickle, _name)))
sys.addaudithook(listen)
