"""The formulae give what torch counts while transformers and the engine work."""

from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dfolora.engine.forward import COARSE, Engine
from dfolora.engine.work import Shape, work_of
from dfolora.fewshot import foreseen
from dfolora.methods import FewShotData, LayerwiseSearch, ManualPrompt
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.search.schedule import LastK
from dfolora.search.subspace import CoreSubspaceSpec, LoraSubspaceSpec
from pipelines.benchmark.flops import flops_authors, flops_engine
from tests.conftest import random_batch, tiny_model
from tests.families import CONFIGS
from tests.searching import limited, some_solution, subspace_of

WINDOWS = ("sliding_window", "window_size", "local_attention")
LENGTHS = [60, 5, 31, 17, 17, 44, 8, 23, 60, 12, 5, 38]
LABELS = torch.tensor([7, 50, 99])
POPULATION = 20
SIZES = {
    "roberta": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4},
    "bert": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4},
    "gpt2": {"n_embd": 64, "n_layer": 4},
    "distilbert": {"n_layers": 4},
    "llama with wide heads and biases": {"num_hidden_layers": 4},
    "gpt_neox": {"num_hidden_layers": 4},
    "phi3": {"num_hidden_layers": 4, "sliding_window": None},
    "modernbert": {"num_hidden_layers": 4, "local_attention": 128},
}


def shape(family):
    return Shape(architecture=shared_backbone(family).architecture, rank=2, classes=3)


@lru_cache
def shared_backbone(family):
    return Backbone(tiny_model(family, vocab_size=200, **SIZES[family]))


def in_place(_self, first, second, *, out_shape=None, **_options):
    """Of ``addmm_`` and ``baddbmm_``, which torch's table lacks: ``(..., n, k) x (..., k, m)``."""
    *batch, rows, inner = first
    return 2 * torch.Size(batch).numel() * rows * inner * second[-1]


def counted(work):
    """Attention by its plain definition, since the table lacks the CPU's fused one too."""
    ours = {torch.ops.aten.addmm_: in_place, torch.ops.aten.baddbmm_: in_place}
    counter = FlopCounterMode(display=False, custom_mapping=ours)
    with sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return counter.get_total_flops()


def batch(lengths=LENGTHS):
    return random_batch(lengths, [length - 1 for length in lengths])


def generations(backbone):
    """What an engine is given for every layer: incumbents of all the others, and candidates."""
    subspace, layers = subspace_of(backbone, batch()), backbone.architecture.layers
    solution, candidates = some_solution(POPULATION, layers=layers)
    return [
        (subspace.incumbents(solution, without=[layer]), subspace.interventions(layer, candidates))
        for layer in range(layers)
    ]


@pytest.fixture(autouse=True)
def _fine_groups(monkeypatch):
    """The formulae know nothing of padding within attention."""
    monkeypatch.setitem(COARSE, "cpu", False)


@pytest.mark.parametrize(
    ("family", "layer", "tokens"),
    [
        ("roberta", 0, 10_000), ("roberta", 1, 10_000), ("roberta", 2, 10_000),
        ("roberta", 2, 1300), ("roberta", 3, 10_000), ("roberta", 3, 90),
        ("gpt2", 1, 10_000), ("gpt2", 3, 10_000), ("distilbert", 2, 10_000),
        ("llama with wide heads and biases", 0, 10_000), ("phi3", 1, 10_000), ("phi3", 3, 10_000),
        ("llama with wide heads and biases", 3, 10_000), ("gpt_neox", 1, 10_000),
        ("gpt_neox", 3, 10_000), ("modernbert", 0, 10_000),
    ],
)  # fmt: skip
def test_engine_costs_what_the_formula_says(family, layer, tokens):
    """Coming from the embeddings, from the layer itself, and from the one below it."""
    work = Engine(limited(shared_backbone(family), tokens=tokens), batch(), LABELS)
    given = generations(shared_backbone(family))
    steps = {layer: counted(lambda: work(*given[layer]))}
    if layer:
        steps[0] = counted(lambda: work(*given[layer]))
        work(*given[layer - 1])
        steps[1] = counted(lambda: work(*given[layer]))
    for advanced, got in steps.items():
        assert got == work_of(shape(family), layer, LENGTHS, advanced=advanced).of(POPULATION)


@pytest.mark.parametrize("family", CONFIGS)
def test_formulae_hold_for_every_family(family):
    """First and last layer; windows are wide, for the formulae know of none.

    Lengths are equal, for embeddings are padded.
    """
    lengths = [17] * 12
    wide = {name: 128 for name in WINDOWS if name in CONFIGS[family]}
    backbone = Backbone(tiny_model(family, **wide))
    engine = Engine(limited(backbone, tokens=10_000), batch(lengths), LABELS)
    sizes = Shape(architecture=backbone.architecture, rank=2, classes=3)
    given = generations(backbone)
    for layer in (0, backbone.architecture.layers - 1):
        got = counted(lambda layer=layer: engine(*given[layer]))
        assert got == work_of(sizes, layer, lengths, advanced=layer).of(POPULATION)


@pytest.mark.parametrize("family", SIZES)
def test_authors_way_costs_what_the_formula_says(family):
    """The whole padded forward of transformers; LoRA not merged, added to every layer's q and k."""
    model = tiny_model(family, vocab_size=200, **SIZES[family])
    maps = [layer.maps[name] for layer in Backbone(model).layers for name in ("q", "k")]

    def added(place):
        down, up = torch.zeros(place.d_in, 2), torch.zeros(2, place.d_out)

        def hook(_module, args, output):
            output[..., place.columns] += args[0] @ down @ up
            return output

        return hook

    for linear in maps:
        linear.module.register_forward_hook(added(linear.place))
    given = {"input_ids": batch().input_ids, "attention_mask": batch().attention_mask}
    with torch.no_grad():
        got = counted(lambda: model(**given))
    assert got == flops_authors(shape(family), LENGTHS, 200)


def test_a_search_of_roberta_large_costs_a_fifth():
    """Mean over the layers, 32 texts of SST-2's length, by hand."""
    config = transformers.RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        vocab_size=50_265, max_position_embeddings=514,
    )  # fmt: skip
    large = Shape(architecture=Architecture.of(config), rank=2, classes=2)
    lengths = [18] * 31 + [44]
    theirs = flops_authors(large, lengths, 50_265)
    assert theirs == pytest.approx(1.014e12, rel=0.01)
    assert 5 < theirs / flops_engine(large, lengths, 20) < 7


@pytest.mark.parametrize(
    ("method", "within"),
    [
        (ManualPrompt(), 0),
        # LoRA's own products are not foreseen.
        (LayerwiseSearch(subspace=LoraSubspaceSpec(dim=20), budget=240), 0.05),
        (LayerwiseSearch(subspace=CoreSubspaceSpec(), budget=320, schedule=LastK(k=1)), 0.05),
        (LayerwiseSearch(subspace=CoreSubspaceSpec(), budget=80, layers_per_block="all"), 0.05),
        (LayerwiseSearch(subspace=CoreSubspaceSpec(), budget=160, layers_per_block=2), 0.05),
        (LayerwiseSearch(subspace=CoreSubspaceSpec(), budget=160, layers=[0, 2]), 0.05),
        (LayerwiseSearch(subspace=CoreSubspaceSpec(vectors=2), budget=160), 0.05),
    ],
    ids=["prompt", "in turn", "last layer", "joint", "two and one", "two of three", "shared"],
)
def test_fit_and_its_test_cost_what_was_foreseen(method, within):
    train, test = batch(), random_batch([9, 40, 22], [8, 39, 21])
    data = FewShotData(train=train, dev=train, label_ids=LABELS, metric="accuracy")
    problem = SimpleNamespace(task=SimpleNamespace(classes="abc"), data=data, test=test)
    wide = Backbone(
        tiny_model("roberta", **SIZES["roberta"] | {"hidden_size": 256, "vocab_size": 200})
    )
    work = foreseen(method, wide.architecture, problem)
    fit = method.begin(wide, data, 0)
    got = counted(lambda: list(fit)) if method.budget else 0
    assert got == pytest.approx(work.fit, rel=within)
    predictor = fit.predictor()
    assert counted(lambda: predictor.logits(test)) == pytest.approx(work.test, rel=within)
