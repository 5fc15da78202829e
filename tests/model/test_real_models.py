"""Real weights: small models of other people, whose own padded forward the engine reproduces."""

import pytest
import torch
from transformers import AutoTokenizer

from dfolora.data import Task, encode, load_rows
from dfolora.data.task import label_word_ids
from dfolora.engine.forward import Engine
from dfolora.model.backbone import Backbone
from tests.model.test_checkpoint import checkpoint
from tests.reference import one_candidate
from tests.searching import evaluator_of, some_solution
from tests.shared import shared


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("stories260K", "causal", ["\u2581b", "\u2581g"]), ("minilm-mlm", "masked", ["bad", "great"])],
)
def test_real_rows_have_the_losses_of_merged_weights(name, kind, words):
    """A Llama with grouped heads and a token that begins every row; a BERT in half precision.

    With factors in float64, for of large ones losses in float32 differ by 4e-4 on some processors.
    """
    path = shared(f"models/{name}")
    backbone = checkpoint(path).load_backbone()
    tokenizer = AutoTokenizer.from_pretrained(path)
    task = Task.from_file("sst2")
    prompt = task.prompt("natural", kind)
    label_ids = torch.tensor(label_word_ids(prompt, tokenizer, "natural", cut=True))
    assert tokenizer.convert_ids_to_tokens(label_ids.tolist()) == words
    rows = load_rows(task, "train", root=shared("data")).select(range(12))
    batch = encode(rows, prompt, tokenizer, max_length=256)
    if kind == "causal":
        assert batch.input_ids[:, 0].tolist() == [tokenizer.bos_token_id] * 12
    expected = one_candidate.answer_logits(backbone.model, batch, label_ids)
    got = Engine(backbone, batch, label_ids)({})[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # logits up to 20
    backbone = Backbone(backbone.model.double())
    evaluator, subspace = evaluator_of(backbone, batch, label_ids)
    layers = backbone.architecture.layers
    solution, candidates = some_solution(3, layers=layers)
    for block in (0, layers - 1):
        torch.testing.assert_close(
            torch.tensor(evaluator(solution, block, candidates).losses),
            torch.tensor(
                one_candidate.losses(
                    backbone, subspace, batch, label_ids, solution, block, candidates
                ),
                dtype=torch.float64,
            ),
            rtol=0,
            atol=1e-4,
        )
