"""A tracking server as one is set up for several machines: MLflow on PostgreSQL, files included.

Tests that ask for it are skipped, with the reason, where PostgreSQL or its driver is not installed.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def program(name):
    """One of PostgreSQL's programs, which Debian keeps out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([os.environ["PATH"], *map(str, places)])
    if (found := shutil.which(name, path=path)) is None:
        pytest.skip(f"{name} is not there: install PostgreSQL (Debian: postgresql)")
    return found


@contextmanager
def postgresql():
    """The address of a database of its own, in a folder that is deleted afterwards."""
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'dfolora[server]'")
    initdb, postgres = program("initdb"), program("postgres")
    # It refuses to be root.
    given = {"user": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if given:
            shutil.chown(folder, "postgres")
        made = subprocess.run(
            [initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"],
            cwd=folder, capture_output=True, text=True, check=False, **given,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-c", "fsync=off"]
        server = subprocess.Popen(
            [postgres, "-D", folder / "data", *options],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **given,
        )  # fmt: skip
        try:
            _wait_for(port, server)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


def _wait_for(port, process):
    while True:
        assert process.poll() is None, "the server has ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)


class TrackingServer:
    """MLflow's server, reached through a line that can be cut.

    Args:
        database: Its address.
        folder: For the runs' files.
    """

    def __init__(self, database, folder):
        self._database, self._folder = database, folder
        self._port = free_port()
        self._cut = False
        self._open = set()
        self._line = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._line.getsockname()[1]}"
        self._carrying = []
        self._listening = Thread(target=self._listen, daemon=True)
        self._listening.start()

    def start(self):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._database,
             "--serve-artifacts", "--artifacts-destination", self._folder, "--workers", "1",
             "--host", "127.0.0.1", "--port", str(self._port)],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true",
                              "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self._folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            try:
                urlopen(f"http://127.0.0.1:{self._port}/health").close()
                return
            except URLError:
                assert self._server.poll() is None, "the server has ended"
                time.sleep(0.2)

    def stop(self):
        processes = [self._server, *psutil.Process(self._server.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait()

    def cut(self):
        """Break all that is connected, and let nobody connect."""
        self._cut = True
        for end in [*self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self._cut = False

    def end(self):
        self.stop()
        self.cut()
        self._line.shutdown(socket.SHUT_RDWR)  # wakes who listens
        self._listening.join()
        for thread in self._carrying:
            thread.join()

    def _listen(self):
        with self._line, suppress(OSError):
            while True:
                near, _ = self._line.accept()
                if self._cut:
                    near.close()
                    continue
                thread = Thread(target=self._carry, args=(near,), daemon=True)
                self._carrying.append(thread)
                thread.start()

    def _carry(self, near):
        place = "127.0.0.1", self._port
        with near, suppress(OSError), socket.create_connection(place) as far:
            self._open |= {near, far}
            back = Thread(target=_copy, args=(far, near), daemon=True)
            back.start()
            _copy(near, far)
            back.join()
            self._open -= {near, far}


def _copy(one, other):
    """All that one end says to the other; when one is silent for good, so are both."""
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tracking_server(folder):
    """A server that is there, on a database of its own."""
    with postgresql() as database:
        server = TrackingServer(database, folder)
        server.start()
        try:
            yield server
        finally:
            server.end()
