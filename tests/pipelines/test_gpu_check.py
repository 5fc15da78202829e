"""The check of a GPU, on one that is emulated: its report is whole; its figures mean nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from hydra import initialize_config_dir

from dfolora.errors import UserError
from pipelines.gpu_check import __main__ as gpu_check
from pipelines.gpu_check import measures, steps, wheels
from tests.commands import PROJECT, command, whole_config
from tests.emulation import emulated_cuda
from tests.queues import Queues

SMALL = [
    "tests=null", "search.budget=21", "agreement.budget=21", "layers=3", "dim=40", "tasks=[rte]",
    "population=4", "allowed={megabytes:[10],length:16,sequences:4,tokens:64}", "search.dims=[40]",
    "attention={sequences:2,heads:2,width:8,shapes:2}", "lengths.sst2=[5,6,7,8]",
    *(f"model.architecture.{name}={size}" for name, size in {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 200}.items()),
    *(f"large.architecture.{name}={size}" for name, size in {
        "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 200}.items()),
]  # fmt: skip


@pytest.fixture
def config(in_folder):
    made = whole_config(*SMALL, config="gpu_check")
    del made.hydra
    return made


@pytest.mark.filterwarnings("ignore:The device will wait")
def test_report_has_every_step(config, in_folder, monkeypatch):
    """Where numbers are the CPU's, all bits are the same."""
    Queues(monkeypatch)
    monkeypatch.setattr(steps, "kernels", lambda _population, layers: dict.fromkeys(layers, 7))
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"), emulated_cuda():
        failed = gpu_check.check(config)
    report = (in_folder / config.report).read_text()
    assert failed == [], report
    assert re.findall("^## (.*)", report, re.M) == list(steps.STEPS)
    assert "other bits" not in report
    assert len(re.findall("twice on the GPU: the same bits", report)) == 3
    assert "Both have the same bits" in report
    assert re.findall(r"^\| (\w+) \| 40 \|", report, re.M) == ["bf16", "fp16", "int8"]
    assert "the card's stated peak is not known here" in report


def test_a_step_that_fails_leaves_the_rest(config, in_folder, monkeypatch):
    def broken(*_given):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(steps, "STEPS", {"One": broken, "Two": lambda *_given: iter(["done"])})
    with emulated_cuda():
        assert gpu_check.check(config) == ["One"]
    report = (in_folder / config.report).read_text()
    assert "no kernel image is available" in report
    assert report.endswith("\n## Two\n\ndone\n\n(0 s)\n")


def test_a_step_that_does_not_end_is_broken_off_and_the_last_has_all_that_is_left(
    config, in_folder, monkeypatch
):
    config.minutes = 3 / 60

    def endless(*_given):
        yield "a finding"
        while True:
            with suppress(Exception):  # it is none, for the step to explain
                time.sleep(0.01)

    def last(*_given):
        yield f"{signal.getitimer(signal.ITIMER_REAL)[0]:.2f}"

    timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    monkeypatch.setattr(steps, "STEPS", {"One": endless, "Two": last})
    with emulated_cuda():
        assert gpu_check.check(config) == ["One"]
    report = (in_folder / config.report).read_text()
    assert "## One\n\na finding\n\nFailed:" in report
    assert "Overdue: broken off after 1 s" in report
    assert 0 < float(re.search("## Two\n\n(.*)", report)[1]) <= 2
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == timer  # as it was before


def test_steps_stop_when_the_time_is_over(config, in_folder, monkeypatch):
    monkeypatch.setattr(steps, "STEPS", {"One": lambda *_given: pytest.fail("it began")})
    config.minutes = -1
    with emulated_cuda():
        assert gpu_check.check(config) == []
    assert "Left out" in (in_folder / config.report).read_text()


PEAKS = {"A10": 1, "A100": 2, "H100": 3, "H100 PCIe": 4, "L4": 5, "L40S": 6, "RTX 4090": 7}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 2), ("NVIDIA H100 80GB HBM3", 3), ("NVIDIA H100 PCIe", 4),
        ("NVIDIA L40S", 6), ("NVIDIA L4", 5), ("NVIDIA GeForce RTX 4090", 7), ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)  # fmt: skip
def test_a_cards_peak_is_found_by_the_words_of_its_name(name, peak):
    assert measures.stated_peak(name, PEAKS) == peak


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu", "tpu"])
def test_a_device_that_is_no_gpu_of_this_machine_is_refused(config, device, in_folder):
    config.device = device
    with pytest.raises(UserError, match=f"device={device}, but torch .* sees 0 CUDA devices; give"):
        gpu_check.check(config)
    if device != "cuda":
        with emulated_cuda(), pytest.raises(UserError, match=r"sees 1 CUDA devices; give cuda or"):
            gpu_check.check(config)
    assert not (in_folder / "reports").exists()


@pytest.mark.slow
def test_command_ends_with_status_2_and_a_line(tmp_path):
    done = command(tmp_path, "gpu_check")
    assert done.returncode == 2
    assert done.stderr.startswith("error: device=cuda, but torch")
    assert not (tmp_path / "reports").exists()


def test_wheels_are_what_is_needed_and_not_there():
    named = {line.partition("==")[0] for line in wheels.lacking()}
    assert {"cma", "nevergrad", "hydra-core", "antlr4-python3-runtime", "pytest"} <= named
    assert not named & {"torch", "numpy", "transformers", "dfolora", "mypy"}
    assert named | wheels.closure(wheels.THERE) | {"dfolora"} >= wheels.closure(wheels.NEEDED)


PLUGIN = "pytest_timeout"  # the others are not brought
BARE = """
import sys
from importlib.metadata import packages_distributions

there = set(sys.argv[1].split(","))
for module, of in packages_distributions().items():
    if not there & {name.lower().replace("_", "-") for name in of}:
        sys.modules[module] = None  # to import it fails
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def collected(*arguments):
    """How tests are collected where there is what the check names, and no more."""
    brought = {line.partition("==")[0] for line in wheels.lacking()}
    there = {"dfolora", *brought, *wheels.closure({*wheels.THERE} - {"datasets"})}
    return subprocess.run(
        [sys.executable, "-c", BARE, ",".join(there), "--collect-only", *arguments],
        cwd=PROJECT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": PLUGIN},
    )  # fmt: skip


@pytest.mark.slow
def test_tests_for_a_gpu_need_no_more_than_a_bare_machine_has():
    """All of them, and they alone: others import hypothesis."""
    assert collected(steps.TESTS).returncode == 0
    done = collected("tests/search/test_evaluator.py")
    assert done.returncode == 2
    assert "import of hypothesis halted" in done.stdout
    marked = {
        str(path.relative_to(PROJECT))
        for path in PROJECT.glob("tests/**/*.py")
        if re.search("^ *(@|pytestmark.*)?pytest.mark.gpu", path.read_text(), re.M)
    }
    assert marked == {steps.TESTS}
