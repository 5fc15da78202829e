"""The store as ``make mlflow-ui`` shows it, in a real browser: C-LoRA's curve beside F-LoRA's."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from dfolora.record import Store
from tests.browser import opened

PROJECT = Path(__file__).parents[2]


def planned(port, *variables):
    """The command, as make would run it."""
    making = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/ready",
        "mlflow-ui",
        f"PORT={port}",
        *variables,
    ]
    done = subprocess.run(making, cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", "").strip()


@contextmanager
def served(uri, folder):
    """The address of a server of the store; its processes are signalled as a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"{shlex.quote(sys.executable)} -m mlflow"
    server = subprocess.Popen(
        ["sh", "-c", planned(port).replace(".venv/bin/mlflow", program)],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urlopen(f"{address}/health").close()
                break
            except URLError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def searched(store, name, losses):
    tags = {"method": "dfo_lora", "seed": "8"}
    with store.start("table1", name, tags=tags, params={"rank": 2}) as log:
        for step, loss in enumerate(losses):
            log.metrics({"train/loss": loss}, step=step)
    return log.run_id


@pytest.mark.slow
def test_curves_of_c_lora_and_f_lora_are_compared_side_by_side(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = Store(uri)
    names = ["sst2-roberta-dfo_lora-cma-seed8", "sst2-roberta-dfo_lora-fwa-seed8"]
    runs = [
        searched(store, name, losses)
        for name, losses in zip(names, ([0.7, 0.6, 0.53125], [0.7, 0.5, 0.34375]), strict=True)
    ]
    experiment = store.runs()["experiment_id"][0]
    (tmp_path / "chromium").mkdir()
    with opened(tmp_path / "chromium") as browser, served(uri, tmp_path) as address:
        compared = {
            "runs": runs,
            "metric": "train/loss",
            "experiments": [experiment],
            "plot_metric_keys": ["train/loss"],
        }
        asked = "&".join(f"{key}={quote(json.dumps(value))}" for key, value in compared.items())
        browser.get(f"{address}/#/metric?{asked}")
        waited(browser, lambda: len(drawn(browser)) == 2)
        text = browser.find_element("tag name", "body").text
        assert "2/2" in text  # completed runs
        assert "0.53125 (step=2)" in text
        assert "0.34375 (step=2)" in text
        found = quote("tags.method = 'dfo_lora' AND tags.seed = '8'")
        browser.get(f"{address}/#/experiments/{experiment}/runs?searchFilter={found}")
        for name in names:
            waited(browser, lambda name=name: name in browser.page_source)
        fetched = browser.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert all(url.startswith((address, "data:", "blob:")) for url in fetched)


def drawn(browser):
    """The shapes of the curves that are shown."""
    lines = browser.find_elements("css selector", ".js-plotly-plot path.js-line")
    return {line.get_attribute("d") for line in lines}


def waited(browser, shown):
    """Until it is there."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    gone = [StaleElementReferenceException]  # drawn anew while it was looked at
    WebDriverWait(browser, 30, ignored_exceptions=gone).until(lambda _: shown())


def test_server_is_for_this_machine_alone_and_starts_no_jobs():
    command = planned(5000)
    assert "--port 5000 --workers 1" in command
    assert "--host 127.0.0.1" in command
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in command


SHOWN = """
import sys
from mlflow.cli import server
given = server.make_context("server", sys.argv[2:]).params
print(sys.argv[1], given["host"], given["backend_store_uri"], sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("port", ["5000", "5000 --host 0.0.0.0"])
def test_no_variable_changes_whom_the_server_is_for(port):
    other = {name: "0.0.0.0" for name in ("HOST", "MLFLOW_HOST", "UVICORN_HOST")}
    uri = "sqlite:///x.db --host 0.0.0.0"
    program = shlex.join([sys.executable, "-W", "ignore", "-c", SHOWN])
    command = planned(port, *(f"{name}={value}" for name, value in other.items()))
    done = subprocess.run(
        ["sh", "-c", command.replace(".venv/bin/mlflow", program)],
        env=os.environ | other | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["server", "127.0.0.1", uri]
