"""Recorded passes on an emulated GPU: the bits of those that are launched kernel by kernel."""

from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.model import Backbone, Limits, SoftPrompt
from dfolora.model.graphs import AFTER
from tests.conftest import SIZES, random_batch, tiny_model
from tests.emulation import SHORTAGES, emulated_cuda
from tests.engine.test_limits import LENGTHS, WIDE
from tests.families import CONFIGS
from tests.reference.live_bytes import LiveBytes
from tests.searching import logits_of, some_solution, subspace_of

ROUNDS = AFTER + 2


def search(family, batch, label_ids, precision=torch.float32, **limits):
    """The logits of some rounds, whose solution changes from turn to turn, and of the solution.

    And of the model as it is, between them.
    """
    backbone = Backbone(tiny_model(family).to("cuda", precision), Limits(**limits))
    subspace = subspace_of(backbone, batch, targets=("q", "k", "v", "o"))
    engine, solution, found = Engine(backbone, batch, label_ids), some_solution()[0], []
    for turn in range(3 * ROUNDS):
        candidates = some_solution(5 - turn % 2, seed=turn)[1]
        found.append(logits_of(engine, subspace, solution, turn % 3, candidates))
        if turn % 2:  # else the turn has lowered no loss
            solution[turn % 3] = candidates[0]
        found.append(engine(subspace.incumbents(solution) if turn % 2 else {}))
    return [logits.cpu() for logits in found]


def both(*given, **limits):
    """What a search gives without and with graphs, and how many of these it launches."""
    with emulated_cuda():
        single = search(*given, **limits)
    with emulated_cuda() as gpu:
        graphs = search(*given, graphs=True, **limits)
    return single, graphs, gpu.kernels["graph"]


@pytest.mark.parametrize(
    "family", [*SIZES, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS)]
)
def test_bits_are_those_of_single_kernels(family, batch, label_ids):
    single, graphs, launches = both(family, batch, label_ids)
    assert all(map(torch.equal, single, graphs))
    assert launches > 20


def test_bits_of_many_pieces_are_too(batch, label_ids):
    """They have shapes of their own, and packs."""
    single, graphs, launches = both("llama", batch, label_ids, tokens=100)
    assert all(map(torch.equal, single, graphs))
    assert launches > 60


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_bits_in_half_precision_are_too(family, batch, label_ids):
    """Attention is one kernel then."""
    single, graphs, launches = both(family, batch, label_ids, torch.bfloat16)
    assert all(map(torch.equal, single, graphs))
    assert launches > 20


@pytest.mark.parametrize(
    ("after", "broken"),
    [(3, False), (3, True), (60, False)],
    ids=["in a recording", "and it cannot be ended", "between them"],
)
def test_recorded_passes_survive_a_shortage(after, broken, batch, label_ids, monkeypatch):
    """All is recorded anew, in smaller pieces, and the stream is the one that it was."""
    with emulated_cuda():
        expected = search("roberta", batch, label_ids)
    with emulated_cuda() as gpu:
        graph, recordings, gpu.broken = torch.cuda.CUDAGraph, [], broken

        def begun():
            if not recordings:
                gpu.run_out(SHORTAGES["torch"], after=after)
            recordings.append(gpu.recording)
            return graph()

        monkeypatch.setattr(torch.cuda, "CUDAGraph", begun)
        with pytest.warns(UserWarning, match="Out of memory with"):
            found = search("roberta", batch, label_ids, graphs=True)
        monkeypatch.undo()
        assert gpu.stream == "usual"
    assert len(recordings) > 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_graphs_need_a_gpu_and_weights_that_stay():
    with pytest.raises(UserError, match=r"engine\.graphs=true records CUDA graphs, and .* on cpu"):
        Backbone(tiny_model("gpt2"), Limits(graphs=True))
    with pytest.raises(UserError, match=r"with engine\.stream=true they come and go"):
        Limits(graphs=True, stream=True)


def test_soft_prompts_are_recorded_too(batch, label_ids):
    """Those of later layers are of the solution, and of one candidate."""
    found = []
    for graphs in (False, True):
        with emulated_cuda() as gpu:
            backbone = Backbone(tiny_model("roberta").to("cuda"), Limits(graphs=graphs))
            engine, width = Engine(backbone, batch, label_ids), backbone.architecture.width
            draw, logits = torch.Generator().manual_seed(3), []

            def prompt(layer, candidates, draw=draw, width=width):
                vectors = torch.randn(candidates, 2, width, generator=draw).to("cuda")
                return SoftPrompt(layer=layer, start=1, vectors=vectors)

            solution = {layer: prompt(layer, 1) for layer in range(3)}
            for turn in range(3 * ROUNDS):
                layer = turn % 3
                logits.append(engine(solution, {layer: prompt(layer, 4)}).cpu())
                solution[layer] = prompt(layer, 1)
        found.append(logits)
    assert all(map(torch.equal, *found))
    # Layer 1 is passed once a round, and layer 2 twice.
    assert gpu.kernels["graph"] == (ROUNDS - AFTER) + (2 * ROUNDS - AFTER)


class Pool:
    """Graphs that are recorded and never replayed, and the memory they come to share.

    Torch keeps for all of them what the largest recording took, beside what lives on after one.
    """

    def __init__(self, live):
        self._live = live
        self.nbytes = 0
        self.recordings = 0

    @contextmanager
    def recording(self, _graph, pool, stream):
        before, peak = self._live.now, self._live.peak
        self._live.peak = before
        yield
        self.nbytes = max(self.nbytes, self._live.peak - before)
        self._live.peak = max(peak, self._live.peak)
        self.recordings += 1


@pytest.mark.parametrize("allowed", [3.0, 10.0])
@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_recorded_passes_keep_to_the_memory_allowed(family, allowed, label_ids, monkeypatch):
    batch = random_batch(LENGTHS, [length - 1 for length in LENGTHS])
    with emulated_cuda():
        model = tiny_model(family, **WIDE[family]).bfloat16().to("cuda")
        backbone = Backbone(model, Limits(graphs=True, memory=allowed, tokens=10_000))
        subspace = subspace_of(backbone, batch, targets=("q", "k", "v", "o"))
        solution, candidates = some_solution(20)
        calls = [
            (subspace.incumbents(solution, without=[n]), subspace.interventions(n, candidates))
            for n in range(3)
        ]
        with LiveBytes() as live:
            pool = Pool(live)
            monkeypatch.setattr(torch.cuda, "graph", pool.recording)
            monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Mock())
            engine = Engine(backbone, batch, label_ids)
            for call in calls * (AFTER + 1):
                engine(*call)
    assert pool.recordings >= 2
    assert live.peak + pool.nbytes <= allowed * 1e6
    assert pool.nbytes > 0.02 * allowed * 1e6
