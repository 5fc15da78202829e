"""The wheel as a user installs it: in an environment that holds what it requires and no more."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import importlib.util, pathlib
import transformers
import dfolora
from dfolora.mini import BUNDLED

assert "site-packages" in dfolora.__file__, dfolora.__file__
for extra in ("mlflow", "hydra", "omegaconf", "nevergrad", "datasets", "matplotlib"):
    assert importlib.util.find_spec(extra) is None, extra

classifier = dfolora.FewShotClassifier(
    "mini-roberta", prompt="{text} It was {mask}.", words={"no": "bad", "yes": "great"},
    method=dfolora.CLora(dim=8, budget=21), verbose=True,
)
classifier.fit(["it is dull", "it is fine"] * 4, ["no", "yes"] * 4).save("classifier")
again = dfolora.FewShotClassifier.load("classifier")
print(*again.predict(["the food was good", "the food was bad"]))

predictor = dfolora.fit(
    transformers.AutoModelForMaskedLM.from_pretrained(BUNDLED["mini-roberta"]),
    transformers.AutoTokenizer.from_pretrained(BUNDLED["mini-roberta"]),
    dfolora.Task.named("mini/sst2"),
    method=dfolora.CLora(dim=8, budget=21),
)
predictor.save("adapter")
print(*sorted(path.name for path in pathlib.Path("adapter").iterdir()))
"""


# Without what leads Python to this checkout, whose metadata pip would take for an installation.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def ran(*command, **options) -> subprocess.CompletedProcess[str]:
    given = {"env": {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}, "capture_output": True, "text": True}
    return subprocess.run(command, check=False, **given, **options)


@pytest.fixture
def wheel(tmp_path):
    """Built from a copy, for building leaves files beside the source."""
    source = tmp_path / "source"
    source.mkdir()
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    built = ran(*pip, "--wheel-dir", str(tmp_path), str(source))
    assert built.returncode == 0, built.stderr
    (path,) = tmp_path.glob("*.whl")
    return path


@pytest.fixture
def python(tmp_path):
    """An empty environment's; pip installs there from outside."""
    venv.create(tmp_path / "venv", with_pip=False)
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_wheel_fits_saves_and_loads_with_what_it_requires_alone(wheel, python, tmp_path):
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    probe = ran(*pip, "download", "--retries=0", "--no-deps", f"--dest={tmp_path}", "cma>=4.4,<4.5")
    if probe.returncode:
        pytest.skip(f"no package index can be reached: {probe.stderr.strip().splitlines()[-1]}")
    constraints = f"--constraint={ROOT / 'constraints.txt'}"
    done = ran(*pip, "install", "--quiet", "--no-compile", constraints, str(wheel))
    assert done.returncode == 0, done.stderr
    used = ran(str(python), "-I", "-c", USE, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    predicted, files = used.stdout.splitlines()
    assert {*predicted.split()} <= {"no", "yes"}
    assert files == "adapter_config.json adapter_model.safetensors"
