"""A run as a model of MLflow's: what it answers, over HTTP too, and what the registry knows."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest

import dfolora
from dfolora.record import Store
from tests.commands import command, environment

ROWS = {
    "agnews": [{"text": text} for text in ("the team won .", "the market fell .", "a" * 900)],
    "rte": [{"sentence1": "a dog ran .", "sentence2": "a dog moved ."}],
}
"""Texts of one column, and of two."""


@pytest.fixture(scope="module", params=["agnews", "rte"])
def logged(request, tmp_path_factory):
    """A folder with a store, the run's id, and rows of its task."""
    folder = tmp_path_factory.mktemp("logged")
    task = request.param
    command(folder, "run", f"task=mini/{task}", "row=calibrated_bias").check_returncode()
    store = Store.existing(f"sqlite:///{folder}/mlflow.db")
    (run_id,) = store.runs()["run_id"]
    before = store.runs()
    command(folder, "log_model", f"run={run_id}", f"name={task}").check_returncode()
    assert store.runs()["status"].equals(before["status"])
    return folder, run_id, ROWS[task]


@contextmanager
def serving(folder, model):
    """The address of ``mlflow models serve``, as its page has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "models", "serve", "-m", model,
            "--env-manager", "local", "--port", str(port),
        ],
        cwd=folder,
        env=environment(folder)
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # of uvicorn
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urlopen(f"{address}/ping").close()
                break
            except URLError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def asked(address, body):
    """Status and answer."""
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urlopen(request) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def records(rows):
    return json.dumps({"dataframe_records": rows}).encode()


def expected(folder, run_id, rows):
    """What the library says."""
    fitted = dfolora.load(run_id, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    texts = [next(iter(row.values())) for row in rows] if len(rows[0]) == 1 else rows
    return fitted.classes_, fitted.predict_proba(texts)


@pytest.mark.slow
def test_server_answers_as_the_library_does_and_outlives_nonsense(logged):
    folder, run_id, rows = logged
    classes, shares = expected(folder, run_id, rows)
    with serving(folder, f"runs:/{run_id}/model") as address:
        for _ in range(2):
            status, answer = asked(address, records(rows))
            assert status == 200
            got = answer["predictions"]
            assert [each["label"] for each in got] == list(classes[shares.argmax(-1)])
            columns = [[each[f"probability_{name}"] for name in classes] for each in got]
            np.testing.assert_allclose(columns, shares, rtol=0, atol=1e-6)
            # Then nonsense, and once more.
            for body in (
                b"not JSON", b"", records([]), records([{"colour": "red"}]), b'{"inputs": 3}',
                *(records([dict.fromkeys(rows[0], value)]) for value in (None, 3, "")),
            ):  # fmt: skip
                status, answer = asked(address, body)
                assert 400 <= status < 500
                assert answer["error_code"]
                assert answer["message"]
            long = [{name: "the market " * 90_000 for name in rows[0]}]
            assert asked(address, records(long))[0] == 200  # cut, as everywhere


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's, of no type at all
def test_row_without_an_answer_has_no_label(monkeypatch):
    """NaN's argmax would be the first class."""
    shares = np.array([[0.1, 0.9], [np.nan, np.nan], [0.7, 0.3]])
    fitted = SimpleNamespace(classes_=["bad", "good"], predict_proba=lambda _rows: shares)
    monkeypatch.setattr(dfolora, "load", lambda _folder: fitted)
    from pipelines.served import Served

    served = Served()
    served.load_context(SimpleNamespace(artifacts={"fitted": "folder"}))
    answers = served.predict(None, pd.DataFrame({"text": ["a", "b", "c"]}))
    assert json.loads(answers.to_json(orient="records")) == [
        {"label": "good", "probability_bad": 0.1, "probability_good": 0.9},
        {"label": None, "probability_bad": None, "probability_good": None},
        {"label": "bad", "probability_bad": 0.7, "probability_good": 0.3},
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own as it loads models, of its own code
def test_registry_and_aliases_lead_to_it_and_nothing_is_pickled(logged, monkeypatch):
    import mlflow
    import pandas as pd

    folder, run_id, rows = logged
    classes, shares = expected(folder, run_id, rows)
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", uri)
    client = mlflow.MlflowClient(uri)
    (model,) = client.search_registered_models()
    (version,) = client.search_model_versions(f"name='{model.name}'")
    assert version.run_id == run_id
    client.set_registered_model_alias(model.name, "best", version.version)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.name}@best")
    got = loaded.predict(pd.DataFrame(rows))
    assert got["label"].tolist() == list(classes[shares.argmax(-1)])
    np.testing.assert_allclose(got.iloc[:, 1:], shares, rtol=0, atol=1e-6)
    files = [path.name for path in Path(folder, "mlruns").rglob("*") if path.is_file()]
    assert "served.py" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle"))]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run must be non-empty text"),
        (["run=abc"], "There is no tracking store"),
        (["run=abc", "tracking.uri=3"], "tracking.uri must be non-empty text, got 3"),
        (["run=abc", "name=3"], "name must be"),
        (["run=abc", "colour=red"], "colour is no key"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments, told, ended, tmp_path):
    status, _, errors = ended("log_model", *arguments)
    (line,) = errors.strip().splitlines()
    assert status == 2
    assert told in line
    assert not [*tmp_path.iterdir()]
