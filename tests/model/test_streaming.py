"""Layers' weights in host memory, lent to the device while a layer runs."""

import pytest
import torch

from dfolora.model import FAMILIES, Backbone, Limits
from dfolora.model.quantize import quantize_layers
from dfolora.model.streaming import ALIGNMENT, Streaming, move_but_layers, plain_parts
from tests.conftest import tiny_model
from tests.emulation import emulated_cuda
from tests.model.test_checkpoint import checkpoint
from tests.queues import Queues

CPU = torch.device("cpu")


def layers_of(model):
    return list(model.get_submodule(FAMILIES[model.config.model_type].layers))


def in_8_bits(family):
    pytest.importorskip("torchao")
    model = tiny_model(family).bfloat16()
    quantize_layers(model)
    return model


MODELS = {
    "gpt2": lambda: tiny_model("gpt2"),
    "modernbert": lambda: tiny_model("modernbert"),  # its first layer lacks a norm
    "gpt_neo": lambda: tiny_model("gpt_neo").bfloat16(),  # it has buffers
    "int8": lambda: in_8_bits("llama"),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_where_they_are_stored_and_where_they_are_lent(name):
    """Of any type; lent ones lie elsewhere, and the model's own are put back."""
    model = MODELS[name]()
    layers = layers_of(model)
    expected = [layer.state_dict() for layer in layers_of(MODELS[name]())]
    streaming = Streaming(layers, CPU)
    for index in (0, 1, 2, 0, 2, 1):
        layer = layers[index]
        own = dict(layer.named_parameters())
        with streaming.lent(index):
            lent = dict(layer.named_parameters())
            for key, weight in expected[index].items():
                parts = plain_parts(weight), plain_parts(layer.state_dict()[key])
                assert all(map(torch.equal, *parts)), key
        assert all(lent[key] is not weight for key, weight in own.items())
        assert all(dict(layer.named_parameters())[key] is own[key] for key in own)
        assert not any(weight.requires_grad for weight in (*own.values(), *lent.values()))


def test_lent_weights_lie_in_two_pieces_of_memory_where_torch_would_put_them():
    layers = layers_of(tiny_model("roberta", num_hidden_layers=5))
    streaming = Streaming(layers, CPU)
    pieces = {}
    for index, layer in enumerate(layers):
        with streaming.lent(index):
            places = [weight.data_ptr() for weight in layer.parameters()]
            (pieces[index],) = {w.untyped_storage().data_ptr() for w in layer.parameters()}
        assert all((place - pieces[index]) % ALIGNMENT == 0 for place in places)
        assert len(set(places)) == len(places)
    assert pieces[0] == pieces[2] == pieces[4] != pieces[1] == pieces[3]
    assert streaming.nbytes == 2 * streaming.layer_nbytes
    numbers = sum(weight.nbytes for weight in layers[0].parameters())
    count = len(list(layers[0].parameters()))
    assert numbers <= streaming.layer_nbytes < numbers + count * ALIGNMENT


def test_place_of_an_interrupted_copy_is_filled_again(monkeypatch):
    """Also with the weights that were there before it."""
    layers = layers_of(tiny_model("gpt2"))
    expected = {name: weight.clone() for name, weight in layers[2].named_parameters()}
    streaming, copy = Streaming(layers, CPU), Streaming._copy
    with streaming.lent(2):
        pass

    def half(_self, _layer, slot):
        slot.buffer.zero_()
        raise KeyboardInterrupt

    monkeypatch.setattr(Streaming, "_copy", half)
    with pytest.raises(KeyboardInterrupt), streaming.lent(0):
        pytest.fail("layer 0 ran without its weights")
    monkeypatch.setattr(Streaming, "_copy", copy)
    with streaming.lent(2):
        assert all(torch.equal(w, expected[name]) for name, w in layers[2].named_parameters())


def test_bytes_on_the_device_are_the_rest_and_two_layers(family):
    whole = Backbone(tiny_model(family))
    assert whole.device_nbytes == whole.nbytes
    streamed = Backbone(tiny_model(family), Limits(stream=True))
    assert streamed.nbytes == whole.nbytes
    layers = sum(weight.nbytes for layer in layers_of(whole.model) for weight in layer.parameters())
    assert streamed.device_nbytes == whole.nbytes - layers + streamed.streaming.nbytes
    assert whole.streaming is None


def test_next_layer_is_copied_while_one_runs(monkeypatch):
    """It waits for the layer before, whose place it takes, and whoever runs it waits for it."""
    queues = Queues(monkeypatch)
    with emulated_cuda():
        streaming = Streaming(layers_of(tiny_model("gpt2")), torch.device("cuda", 0))
        for index in range(3):
            for piece in range(2):
                with streaming.lent(index):
                    queues.asked.append(f"layer {index}, piece {piece}")
    assert queues.asked == [
        "copying waits for running", "copied 0",
        "copying waits for running", "copied 1",
        "running waits for copied 0", "layer 0, piece 0",
        "running waits for copied 0", "layer 0, piece 1",
        "copying waits for running", "copied 2",
        "running waits for copied 1", "layer 1, piece 0",
        "running waits for copied 1", "layer 1, piece 1",
        "running waits for copied 2", "layer 2, piece 0",
        "running waits for copied 2", "layer 2, piece 1",
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["roberta", "gpt2", "opt", "modernbert"])
def test_all_but_the_layers_moves(family):
    model = tiny_model(family)
    names = list(model.state_dict())
    move_but_layers(model, FAMILIES[family].layers, torch.device("meta"))
    assert list(model.state_dict()) == names
    inside = FAMILIES[family].layers + "."
    assert all(w.is_meta != name.startswith(inside) for name, w in model.state_dict().items())
    assert model.device.type == "meta"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_checkpoint_is_loaded_with_its_layers_on_the_host(tmp_path, precision, monkeypatch):
    """No layer is ever on the device as a whole but those that are lent."""
    if precision == "int8":
        pytest.importorskip("torchao")
    Queues(monkeypatch)
    tiny_model("gpt2").save_pretrained(tmp_path)
    with emulated_cuda():
        loaded = checkpoint(tmp_path, precision=precision, device="cuda:0")
        streamed = loaded.load_backbone(Limits(stream=True))
        assert streamed.device.type == streamed.embedding.device.type == "cuda"
        layers = layers_of(streamed.model)
        inside = {id(weight) for layer in layers for weight in layer.parameters()}
        for weight in streamed.model.parameters():
            assert weight.device.type == ("cpu" if id(weight) in inside else "cuda")
        with streamed.streaming.lent(1):
            assert {weight.device.type for weight in layers[1].parameters()} == {"cuda"}
    assert streamed.architecture.streamed
    whole = checkpoint(tmp_path, precision=precision).load_backbone()
    assert not whole.architecture.streamed
    assert streamed.nbytes == whole.nbytes
