"""A fit goes to the hub whole, and what the hub did not take is not said to be there.

The hub is a local server that keeps what is committed.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard

import dfolora
from dfolora.errors import UserError
from dfolora.methods import GradientTuning, InContext, TrainingSpec
from dfolora.methods.gradient import BitFit, PromptTuning
from dfolora.mini import BUNDLED

TEXTS = [f"the {food} was {word}" for food in ("soup", "rice") for word in ("bad", "good")]
LABELS = ["no", "yes"] * 2
TOKEN = "hf_may_write"


class Hub(ThreadingHTTPServer):
    """Repositories by name: their files, in as many commits as there were."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: dict[str, str] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.deleted: list[str] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """As the hub answers; ``OWNER/full`` takes no commit."""

    server: Hub

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if not (found := re.match(r"/api/models/(\w+/\w+)/tree/main\b", self.path)):
            return self._answer(404, {"error": "Repository not found"})
        there = {name for repo, files in self.server.commits if repo == found[1] for name in files}
        listed = [{"type": "file", "path": name, "size": 1, "oid": "b"} for name in sorted(there)]
        self._answer(
            200, [*listed, {"type": "file", "path": ".gitattributes", "size": 1, "oid": "c"}]
        )

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            self.server.made[repo] = given["visibility"]
            return self._answer(200, {"url": f"{self.server.url}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        repo, what = re.fullmatch(r"/api/models/(\w+/\w+)/(\w+)/main", self.path).groups()
        if what == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if repo.endswith("/full"):
            return self._answer(507, {"error": "Storage limit reached"})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        self.server.deleted += [
            line["value"]["path"] for line in lines if line["key"] == "deletedFile"
        ]
        self.server.commits.append((repo, files))
        oid = "a" * 40
        url = f"{self.server.url}/{repo}/commit/{oid}"
        return self._answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def fitted(folder: Path, method: Any = None, model: str = "mini-roberta") -> Any:
    classifier = dfolora.FewShotClassifier(
        model, prompt="{text} It was {mask}.", words={"no": "bad", "yes": "great"},
        method=method or dfolora.CLora(dim=8, budget=21),
    )  # fmt: skip
    classifier.fit(TEXTS, LABELS).save(folder)
    return classifier


METHODS: dict[str, Any] = {
    "a search": dfolora.CLora(dim=8, budget=21),
    "a readout and words": dfolora.CLora(
        dim=8, budget=22, words=2, readout=dfolora.SolvedReadout(form="bias")
    ),
    "the prompt": "manual_prompt",
    "in context": InContext(demonstrations=1),
    **{
        type(trained).__name__: GradientTuning(
            trained=trained, training=TrainingSpec(learning_rates=[0.1], epochs=1)
        )
        for trained in (BitFit(), PromptTuning(tokens=4))
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_fetched_predicts_as_the_fit_does(hub, tmp_path, name):
    classifier = fitted(tmp_path / "fit", METHODS[name])
    (tmp_path / "fit" / "notes.txt").write_text("mine")
    where = dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN)
    assert where == f"{hub.url}/me/mine/commit/{'a' * 40}"
    assert hub.made == {"me/mine": "private"}
    ((repo, files),) = hub.commits
    assert repo == "me/mine"
    assert {*files} == {path.name for path in (tmp_path / "fit").iterdir()} - {"notes.txt"}
    (fetched := tmp_path / "fetched").mkdir()
    for file, content in files.items():
        (fetched / file).write_bytes(content)
    assert ModelCard.load(fetched / "README.md").data["pipeline_tag"] == "text-classification"
    again = dfolora.load(fetched)
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_no_path_of_this_machine_is_uploaded(hub, tmp_path):
    shutil.copytree(BUNDLED["mini-roberta"], model := tmp_path / "secret" / "model")
    classifier = fitted(tmp_path / "fit", model=str(model))
    before = {path.name: path.read_bytes() for path in (tmp_path / "fit").iterdir()}
    dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN, private=False)
    assert hub.made == {"me/mine": "public"}
    ((_, files),) = hub.commits
    assert b"secret" in b"".join(before.values())
    assert b"secret" not in b"".join(files.values())
    assert {path.name: path.read_bytes() for path in (tmp_path / "fit").iterdir()} == before
    (fetched := tmp_path / "fetched").mkdir()
    for file, content in files.items():
        (fetched / file).write_bytes(content)
    with pytest.raises(UserError, match="give the same one"):
        dfolora.load(fetched)
    again = dfolora.load(fetched, model=str(model))
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_files_of_an_earlier_fit_go(hub, tmp_path):
    """PEFT would load them; what is not a fit's stays."""
    fitted(tmp_path / "search")
    fitted(tmp_path / "prompt", "manual_prompt")
    dfolora.push(tmp_path / "search", "me/mine", token=TOKEN)
    assert hub.deleted == []
    dfolora.push(tmp_path / "prompt", "me/mine", token=TOKEN)
    assert hub.deleted == ["adapter_config.json", "adapter_model.safetensors"]


def test_card_tells_label_words_by_their_tokens(tmp_path):
    """The same word after a space is another token."""
    fitted(tmp_path / "fit")
    said = (tmp_path / "fit" / "README.md").read_text()
    task = json.loads((tmp_path / "fit" / "classifier.json").read_text())["task"]
    told = zip(task["classes"], task["words"], task["label_ids"], strict=True)
    for name, word, token in told:
        assert f"\n| {name} | `{word}` | {token} |\n" in said
    assert len({*task["label_ids"]}) == len(task["classes"])


@pytest.mark.parametrize("folder", ["/home/me/one/", "/home/it's/one", "/one"])
def test_no_folder_of_an_adapter_is_uploaded(hub, tmp_path, folder):
    fitted(tmp_path / "fit")
    record, card = tmp_path / "fit" / "classifier.json", tmp_path / "fit" / "README.md"
    known, said = json.loads(record.read_text()), card.read_text()
    composed = f"Composed(adapters=({folder!r}, 'b'))"
    assert known["method"] in said
    record.write_text(json.dumps(known | {"method": composed}))
    card.write_text(said.replace(known["method"], composed))
    dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN)
    ((_, files),) = hub.commits
    assert json.loads(files["classifier.json"])["method"] == "Composed(adapters=('one', 'b'))"
    assert b"/home" not in files["README.md"] + files["classifier.json"]


REFUSED = {
    "a token that may not": (
        "me/mine",
        "hf_other",
        r"401.*Log in with hf auth login, or give token",
    ),
    "no name of a repository": ("a/b/c", TOKEN, "Check the name"),
    "a hub that is full": ("me/full", TOKEN, "507.*call again"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_does_not_take_is_told_and_no_address(hub, tmp_path, case):
    repo, token, message = REFUSED[case]
    fitted(tmp_path / "fit", "manual_prompt")
    with pytest.raises(
        UserError, match=rf"(?s)did not take the fit for {repo}: .*{message}"
    ) as told:
        dfolora.push(tmp_path / "fit", repo, token=token)
    assert token not in str(told.value)
    assert "\n" not in str(told.value)
    assert not hub.commits


def test_hub_that_is_not_there_is_told(hub, tmp_path):
    fitted(tmp_path / "fit", "manual_prompt")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"did not take the fit for me/mine.*connection"):
        dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "adapter_model.safetensors": (Path.unlink, "lacks adapter_model.safetensors"),
    "adapter_config.json": (shortened, "is no whole fit"),
    "README.md": (Path.unlink, "lacks README.md"),
    "classifier.json": (Path.unlink, "holds no whole fit"),
    "readout.json": (Path.unlink, "lacks readout.json"),
    "label_words.json": (Path.unlink, "lacks label_words.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folder_that_is_not_whole_is_refused_before_the_hub_is_asked(hub, tmp_path, name):
    fitted(tmp_path / "fit", METHODS["a readout and words"])
    breaks, message = BROKEN[name]
    breaks(tmp_path / "fit" / name)
    with pytest.raises(UserError, match=message):
        dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN)
    assert not hub.asked


def test_tensors_cut_short_are_refused(hub, tmp_path):
    fitted(tmp_path / "fit")
    shortened(tmp_path / "fit" / "adapter_model.safetensors")
    with pytest.raises(
        UserError, match=r"adapter_model\.safetensors cannot be read.*copy it again"
    ):
        dfolora.push(tmp_path / "fit", "me/mine", token=TOKEN)
    with pytest.raises(UserError, match="holds no whole fit"):
        dfolora.push(tmp_path / "nowhere", "me/mine", token=TOKEN)
    assert not hub.asked


@pytest.mark.slow
def test_hub_is_that_of_the_environment(hub, tmp_path):
    """And so is its token, in a process of its own."""
    fitted(tmp_path / "fit", "manual_prompt")
    code = f"import dfolora; print(dfolora.push({str(tmp_path / 'fit')!r}, 'me/mine'))"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == f"{hub.url}/me/mine/commit/{'a' * 40}", done.stderr
