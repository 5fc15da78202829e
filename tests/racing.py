"""Processes that do something to one store at the same moment."""

import subprocess
import sys


def raced(script, folder, uri, names):
    """Run a script once a name, let all go on at once, and see that each ends well; their output.

    Args:
        script: Prints ``ready`` and reads a line before it does what is to happen at once; its
            arguments are the store's address and the name.
        folder: To run in.
        uri: The store's address.
        names: One a process.
    """
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, uri, name],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n", racer.stderr.read()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    told = [racer.communicate(timeout=300) for racer in racers]
    errors = "\n".join(error for _out, error in told)
    assert [racer.returncode for racer in racers] == [0] * len(racers), errors
    return [out for out, _error in told]
