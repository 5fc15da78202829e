"""Methods by name: the same as conf/ has by the rows of tables."""

from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import dfolora
from dfolora.errors import UserError
from dfolora.methods import METHODS, CalibratedPrompt, method_of, written
from dfolora.search.optim import RandomSearch

CONF = Path(__file__).parents[2] / "conf"
ROWS = {name: f"row={name}" for name in METHODS} | {
    "calibrated_prompt": "row=calibrated_bias",
    "random_search": "optimizer=random",
    "random_lora": "row=ril",
}


def plain(value):
    """Values to compare: lists for tuples, optimizers by class and options."""
    if isinstance(value, partial):
        return {"function": value.func, **value.keywords}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value)} | plain(vars(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_method_is_written_as_what_differs_from_defaults():
    assert written(dfolora.FLora(budget=9)) == ("LayerwiseSearch(optimizer=Lotfwa, budget=9)")
    assert written(CalibratedPrompt(calibration="knn")) == "CalibratedPrompt(calibration='knn')"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", ["~profile", "row=c_lora", "budget=60"])
    of_config = written(instantiate(config.method))
    assert "optimizer=Cma(population=20" in of_config
    assert "budget=60" in of_config
    assert "object at" not in of_config


@pytest.mark.parametrize("name", METHODS)
def test_named_method_is_the_row_of_its_name(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", ["~profile", ROWS[name]])
    given, named = plain(instantiate(config.method)), plain(method_of(name))
    optimizer = given.get("optimizer")
    if isinstance(optimizer, dict):  # conf writes the optimizer's own defaults out
        bound = named.pop("optimizer")
        bound = plain(bound) if isinstance(bound, partial) else {"function": bound}
        assert bound.items() <= given.pop("optimizer").items()
    assert named == given


def test_constructors_bind_what_they_are_given():
    one = dfolora.CLora(budget=7, dim=4, rank=1, targets=("v",), alpha=0.5, patience=9)
    assert (one.budget, one.patience) == (7, 9)
    assert one.subspace == dfolora.LoraSubspaceSpec(dim=4, rank=1, targets=("v",), alpha=0.5)
    assert dfolora.FLora(optimizer=RandomSearch, dim=4).optimizer is RandomSearch
    prompt: Any = dfolora.Bbt(positions=5).subspace
    assert (prompt.every_layer, prompt.positions) == (False, 5)
    assert dfolora.Bbtv2(positions=5).subspace == replace(prompt, every_layer=True)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="Unknown method=sgd; choose one of c_lora, f_lora, bbt"):
        method_of("sgd")
    with pytest.raises(UserError, match="is no method; give one of c_lora"):
        method_of(dfolora.CLora)
