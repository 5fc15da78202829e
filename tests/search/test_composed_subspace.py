"""Mixtures of adapters: what weights of 0, 1 and -1 give, what PEFT reads, what is refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.model import Backbone, load_adapter
from dfolora.search.evaluator import PopulationEvaluator
from dfolora.search.optim import Cma
from dfolora.search.subspace import ComposedSubspaceSpec
from pipelines.one_run.identity import settings_of
from tests.adapters import random_adapter
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits, merged_model

FORMS = ["factors", "products"]
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32, other summation order, large weights
ALL_MAPS = ("q", "k", "v", "o")


@pytest.fixture
def given(family, backbone, tmp_path):
    """Two adapters of one rank; the second lacks a layer and has other maps."""
    one = random_adapter(tmp_path / "one", backbone, 1, targets=("q", "k"))
    other = random_adapter(tmp_path / "other", backbone, 2, targets=("k", "q"), layers=(0, 2))
    return one, other


def built(backbone, batch, adapters, form="factors"):
    spec = ComposedSubspaceSpec(adapters=adapters, form=form)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, 0)


def updates(subspace, weights):
    """A B of every map, by layer and name."""
    return {
        (layer, name): (factors.down @ factors.up)[0]
        for layer, lora in subspace.interventions(0, np.array([weights], dtype=float)).items()
        for name, factors in lora.factors.items()
    }


def in_peft(family, folder):
    return PeftModel.from_pretrained(tiny_model(family), folder).eval()


@pytest.mark.parametrize("form", FORMS)
def test_weight_one_alone_is_the_adapter_itself(
    family, backbone, batch, label_ids, given, form, tmp_path
):
    engine = Engine(backbone, batch, label_ids)
    base = answer_logits(tiny_model(family), batch, label_ids)
    subspace = built(backbone, batch, given, form)
    for folder, weights in zip(given, ([1.0, 0.0], [0.0, 1.0]), strict=True):
        ours = engine({}, subspace.interventions(0, np.array([weights])))[0]
        torch.testing.assert_close(ours, engine(load_adapter(Path(folder), backbone))[0])
        theirs = answer_logits(in_peft(family, folder), batch, label_ids)
        torch.testing.assert_close(ours, theirs, **CLOSE)
        assert (theirs - base).abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_zero_is_the_base_model_exactly(backbone, batch, label_ids, given, form):
    subspace, engine = built(backbone, batch, given, form), Engine(backbone, batch, label_ids)
    base = engine({})
    assert torch.equal(engine({}, subspace.interventions(0, np.zeros((1, 2)))), base)
    assert not subspace.incumbents(np.zeros((1, 2)))
    assert not subspace.incumbents(np.ones((1, 2)), without=[0])


@pytest.mark.parametrize("form", FORMS)
def test_mirror_image_is_the_same_under_factors_alone(backbone, batch, label_ids, given, form):
    subspace, engine = built(backbone, batch, given, form), Engine(backbone, batch, label_ids)
    plus, minus = (engine({}, subspace.interventions(0, np.full((1, 2), w))) for w in (1.0, -1.0))
    even = ComposedSubspaceSpec(adapters=given, form=form).even
    assert even == torch.allclose(plus, minus, **CLOSE) == (form == "factors")


def test_factors_are_lorahubs_sums(backbone, batch, given):
    """Of the raw tensors of the files, whose scaling is 1 here."""
    tensors = [load_file(Path(folder) / "adapter_model.safetensors") for folder in given]
    mixed = updates(built(backbone, batch, given), [0.7, -0.4])
    for (layer, name), update in mixed.items():
        linear = backbone.layers[layer].maps[name]
        a, b = (
            torch.stack(
                [
                    weight * own[key]
                    for weight, own in zip([0.7, -0.4], tensors, strict=True)
                    if (key := f"base_model.model.{linear.path}.lora_{side}.weight") in own
                ]
            ).sum(0)
            for side in "AB"
        )
        torch.testing.assert_close(update, (b @ a)[linear.columns].T, rtol=0, atol=1e-5)


def test_products_add_up_whatever_their_ranks(backbone, batch, tmp_path):
    folders = [
        random_adapter(tmp_path / "one", backbone, 1, rank=1, targets=ALL_MAPS),
        random_adapter(tmp_path / "other", backbone, 2, rank=3, targets=("q", "o")),
    ]
    subspace = built(backbone, batch, folders, "products")
    one, other, both = (updates(subspace, w) for w in ([0.5, 2.0], [-1.5, 0.3], [-1.0, 2.3]))
    for key, update in both.items():
        torch.testing.assert_close(update, one[key] + other[key], **CLOSE)
    factors = subspace.interventions(0, np.ones((1, 2)))[0].factors
    assert factors["q"].down.shape[-1] == 4
    assert factors["v"].down.shape[-1] == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_call_changes_all_layers_of_each_candidate(backbone, batch, label_ids, given, form):
    subspace = built(backbone, batch, given, form)
    evaluate = PopulationEvaluator(
        Engine(backbone, batch, label_ids), subspace, batch.labels,
        objective="ce", metric="accuracy",
    )  # fmt: skip
    candidates = np.random.default_rng(0).normal(size=(4, 2))
    together = evaluate(np.ones((1, 2)), 0, candidates).losses
    alone = []
    for each in candidates:
        changed = subspace.interventions(0, each[None]).values()
        logits = answer_logits(merged_model(backbone, changed), batch, label_ids)
        alone.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert np.ptp(together) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_search_finds_a_mixture_that_peft_reads(
    family, backbone, batch, label_ids, given, form, tmp_path
):
    """Dev is train, so what is selected has the lowest loss that the search saw."""
    method = LayerwiseSearch(
        subspace=ComposedSubspaceSpec(adapters=given, form=form),
        optimizer=partial(Cma, population=6), budget=61, dev_interval=6,
    )  # fmt: skip
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    fit = method.begin(backbone, data, seed=0)
    losses = [progress.step.loss for progress in fit]
    base = answer_logits(tiny_model(family), batch, label_ids)
    assert losses[-1] < torch.nn.functional.cross_entropy(base, batch.labels).item() - 1e-2
    predictor = fit.predictor()
    assert predictor.searched == 2
    predictor.save(tmp_path / "mixed")
    theirs = answer_logits(in_peft(family, tmp_path / "mixed"), batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), theirs, **CLOSE)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapter_of_pefts_own_with_its_scaling(rslora, batch, label_ids, tmp_path):
    """Patterns of ranks and alphas are ends of names."""
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=["query", "value"], rank_pattern={"value": 3},
        alpha_pattern={"layer.1.attention.self.query": 5}, use_rslora=rslora,
        init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    get_peft_model(tiny_model("roberta"), config).save_pretrained(tmp_path)
    theirs = answer_logits(in_peft("roberta", tmp_path), batch, label_ids)
    backbone = Backbone(tiny_model("roberta"))
    engine = Engine(backbone, batch, label_ids)
    for form in FORMS:
        subspace = built(backbone, batch, [str(tmp_path)], form)
        ours = engine(subspace.incumbents(np.ones((1, 1))))[0]
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_runs_are_told_apart_by_what_the_adapters_hold(tmp_path):
    backbone = Backbone(tiny_model("roberta"))

    class Model:
        def identity(self):
            return "model"

    def settings(folder):
        method = LayerwiseSearch(subspace=ComposedSubspaceSpec(adapters=[folder]))
        plain = {"data": {}, "method": {"subspace": {"adapters": [folder], "form": "factors"}}}
        return settings_of(plain, Model(), method)

    one, moved, other = (
        random_adapter(tmp_path / name, backbone, seed)
        for name, seed in (("one", 1), ("moved", 1), ("other", 2))
    )
    assert settings(one) == settings(moved) != settings(other)


def spoilt(folder, *, config=None, tensors=None):
    """Change an adapter's files."""
    path = folder / "adapter_config.json"
    if config:
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors:
        file = folder / "adapter_model.safetensors"
        held = load_file(file)
        save_file(
            {name: value for old, own in held.items() for name, value in tensors(old, own)}, file
        )


REFUSED = {
    "no folder": (None, r"nowhere holds no adapter_config\.json; give a folder that PEFT's"),
    "no tensors": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        r"bad holds no adapter_model\.safetensors",
    ),
    "a broken configuration": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        r"adapter_config\.json cannot be read",
    ),
    "broken tensors": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"),
        r"adapter_model\.safetensors cannot be read",
    ),
    "another kind": (
        lambda folder: spoilt(folder, config={"peft_type": "IA3"}),
        r"bad is of type IA3; give one of LoRA",
    ),
    "other modules": (
        lambda folder: spoilt(folder, tensors=lambda name, own: [(name.replace("self", "x"), own)]),
        r"holds 12 tensors that are no A and B of the model's attention maps \(.*attention\.x\.key",
    ),
    "more layers": (
        lambda folder: spoilt(
            folder, tensors=lambda name, own: [(name.replace(".2.", ".3."), own)]
        ),
        r"holds 4 tensors that are no A and B",
    ),
    "more than factors": (
        lambda folder: spoilt(
            folder,
            tensors=lambda name, own: [(name, own), (name + ".magnitude", own.clone())],
        ),
        r"Give an adapter of this model, and one that changes its attention maps alone",
    ),
    "another width": (
        lambda folder: spoilt(folder, tensors=lambda name, own: [(name, own.repeat(2, 1))]),
        r"A of shape \(4, 32\) and B of shape \(64, 2\).*takes \(r, 32\) and \(32, r\): it is of",
    ),
    "half of the factors": (
        lambda folder: spoilt(
            folder, tensors=lambda name, own: [(name, own)] if "lora_A" in name else []
        ),
        r"A of shape \(2, 32\) and B of shape \(\)",
    ),
    "no tensor": (
        lambda folder: spoilt(folder, tensors=lambda _name, _own: []),
        r"bad holds no tensor; save it again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folder_that_cannot_be_mixed_is_refused_before_weights_are_read(case, tmp_path):
    spoil, message = REFUSED[case]
    backbone = Backbone(tiny_model("roberta"))
    good = random_adapter(tmp_path / "good", backbone, 0)
    bad = random_adapter(tmp_path / "bad", backbone, 1)
    ComposedSubspaceSpec(adapters=[good, bad]).check(backbone.architecture)
    if spoil is None:
        bad = str(tmp_path / "nowhere")
    else:
        spoil(tmp_path / "bad")
    with pytest.raises(UserError, match=message):
        ComposedSubspaceSpec(adapters=[good, bad]).check(backbone.architecture)


def test_ranks_must_be_equal_under_factors(tmp_path):
    backbone = Backbone(tiny_model("roberta"))
    two = random_adapter(tmp_path / "two", backbone, 0, rank=2)
    three = random_adapter(tmp_path / "three", backbone, 0, rank=3)
    ComposedSubspaceSpec(adapters=[two, three], form="products").check(backbone.architecture)
    with pytest.raises(UserError, match=r"two has rank 2 and .*three has rank 3 for .*form=prod"):
        ComposedSubspaceSpec(adapters=[two, three]).check(backbone.architecture)


@pytest.mark.parametrize("form", FORMS)
def test_adapter_that_changes_nothing_is_refused(form, batch, tmp_path):
    backbone = Backbone(tiny_model("roberta"))
    folder = random_adapter(tmp_path / "untrained", backbone, 0)
    spoilt(
        tmp_path / "untrained",
        tensors=lambda name, own: [(name, own * ("lora_A" in name))],
    )
    with pytest.raises(UserError, match="untrained changes nothing, for all its B are 0"):
        built(backbone, batch, [folder], form)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": None}, r"method\.subspace\.adapters must be a list of texts"),
        ({"adapters": []}, r"method\.subspace\.adapters must be a list of texts"),
        ({"adapters": "folder"}, r"method\.subspace\.adapters must be a list of texts"),
        ({"adapters": ["a", "a"]}, r"method\.subspace\.adapters repeats an entry"),
        ({"adapters": ["a"], "form": "sum"}, "Unknown method.subspace.form=sum; choose one of fac"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    architecture = Backbone(tiny_model("roberta")).architecture
    with pytest.raises(UserError, match=message):
        ComposedSubspaceSpec(**options).check(architecture)
