"""How many kernels a generation launches on a GPU, as an emulated one counts them."""

from collections import Counter

import pytest
import torch
import transformers

from dfolora.model import Backbone, Limits
from dfolora.model.graphs import AFTER
from tests.conftest import random_batch
from tests.emulation import emulated_cuda
from tests.searching import evaluator_of, some_solution

# Tokens of SST-2's 16-shot train set, and RoBERTa-large's layers: no count depends on widths, nor
# on how many candidates a generation has, as long as they go through the model together.
LENGTHS = [
    10, 10, 10, 10, 10, 11, 12, 13, 13, 14, 14, 14, 14, 14, 15, 15, 16, 17, 17, 17, 18, 18, 18, 19,
    19, 20, 23, 23, 25, 27, 34, 36,
]  # fmt: skip
LAYERS, MOST, MOST_IN_ALL_MAPS, MOST_WITH_GRAPHS = 24, 220, 270, 85
TRAFFIC = Counter({"to device": 2 * LAYERS, "to host": LAYERS, "wait": 5})
"""Of a round: a generation sends z of its candidates and of the block before, and fetches logits;
the embeddings wait."""


@pytest.mark.parametrize(
    ("graphs", "targets", "most"),
    [
        pytest.param(False, "qk", MOST, id="kernels"),
        pytest.param(False, "qkvo", MOST_IN_ALL_MAPS, id="in all maps", marks=pytest.mark.slow),
        pytest.param(True, "qk", MOST_WITH_GRAPHS, id="graphs", marks=pytest.mark.slow),
    ],
)
def test_a_generation_is_few_kernels(graphs, targets, most):
    """In half precision, as a GPU runs by default; the mean of a round when all is recorded."""
    config = transformers.AutoConfig.for_model(
        model_type="roberta", vocab_size=120, hidden_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.AutoModelForMaskedLM.from_config(config, dtype=torch.bfloat16)
    batch = random_batch(LENGTHS, [length - 2 for length in LENGTHS])
    solution, candidates = some_solution(3, layers=LAYERS)
    last = AFTER if graphs else 1  # the round that is counted: in the first one all is embedded
    counted, traffic = dict[int, Counter[str]](), Counter[str]()
    with emulated_cuda() as on:
        backbone = Backbone(model.to("cuda"), Limits(graphs=graphs))
        evaluate, _ = evaluator_of(backbone, batch, torch.tensor([7, 50, 99]), targets=[*targets])
        for round_ in range(last + 1):
            for layer in range(LAYERS):
                solution[layer - 1] += 1  # the layer before was searched, and is another now
                on.kernels.clear()
                on.traffic.clear()
                evaluate(solution, layer, candidates)
                if round_ == last:
                    counted[layer] = Counter(on.kernels)
                    traffic += on.traffic
    mean = sum(map(Counter.total, counted.values())) / LAYERS
    where = {layer: counted[layer].most_common() for layer in (0, 12, 22, 23)}
    assert 0.9 * most < mean <= most, where
    assert counted[12]["graph"] == 11 * graphs, where
    assert counted[12]["_flash_attention_forward"] == 13 - 11 * graphs, where  # a layer's is one
    assert traffic == TRAFFIC, traffic
