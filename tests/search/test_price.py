"""What candidates cost: fractions of a call, exact, and the arithmetic that the engine does."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import transformers

from dfolora.engine import Shape
from dfolora.engine.forward import COARSE, Engine
from dfolora.methods import LayerwiseSearch
from dfolora.model import Architecture
from dfolora.search.loop import tune
from dfolora.search.optim import RandomSearch
from dfolora.search.price import PerFlop, PerRow
from dfolora.search.schedule import LastK
from dfolora.search.subspace import PromptSubspaceSpec
from tests.pipelines.test_flops import LABELS, LENGTHS, batch, counted, shape, shared_backbone
from tests.search.test_loop import DIM, Quadratic
from tests.searching import limited, some_solution, subspace_of

LAYERS = 4


TOY = 96  # d of ``some_solution``


def prices(family="roberta"):
    return PerFlop(shape(family), LENGTHS, range(LAYERS))


def searched(price, *, blocks=LAYERS, budget=30, population=7, **options):
    """The evaluations by block, and the generations."""
    optimizers = [
        RandomSearch(DIM, budget, np.random.default_rng(block), population=population)
        for block in range(blocks)
    ]
    evaluate = Quadratic(blocks)
    generations = list(tune(evaluate, optimizers, dim=DIM, budget=budget, price=price, **options))
    return evaluate.calls, generations


@pytest.mark.parametrize("incumbent", ["improving", "mean", "center"])
@pytest.mark.parametrize("share", [Fraction(1), Fraction(1, 2), Fraction(16, 224), Fraction(3, 7)])
def test_a_budget_pays_for_the_whole_number_of_candidates(share, incumbent):
    calls, generations = searched(PerRow(share), incumbent=incumbent)
    assert calls == 30 // share
    assert [each.last for each in generations] == [False] * (len(generations) - 1) + [True]
    assert generations[-1].calls == -int(-calls * share // 1)  # begun calls count


def test_calls_count_those_begun():
    _, generations = searched(PerRow(Fraction(1, 8)), incumbent="center", budget=3, population=7)
    assert [each.calls for each in generations] == [1, 2, 3, 3]  # 7/8, 14/8, 21/8, 24/8


def test_one_candidate_of_the_first_layer_alone_is_a_call():
    assert prices().pay(0, 1) == 1


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("family", ["roberta", "gpt2", "gpt_neox", "phi3"])
def test_turns_cost_what_torch_counts_of_them(family, prompts, monkeypatch):
    """As layers take turns, stay, go back, and jump: with what is carried, and from anew."""
    monkeypatch.setitem(COARSE, "cpu", False)  # the formulae know no padding within attention
    backbone = shared_backbone(family)
    sizes = replace(shape(family), rank=0 if prompts else 2)
    price = PerFlop(sizes, LENGTHS, range(LAYERS), entering=prompts)
    engine = Engine(limited(backbone, tokens=10_000), batch(), LABELS)
    if prompts:
        spec = PromptSubspaceSpec(dim=TOY, positions=3)
        subspace = spec.build(backbone, batch().input_ids, batch().attention_mask, 0)
    else:
        subspace = subspace_of(backbone, batch())
    solution, _ = some_solution(layers=LAYERS)

    def got(block, population, engine=engine):
        candidates = some_solution(population, layers=LAYERS)[1]
        given = subspace.incumbents(solution, without=[block])
        made = subspace.interventions(block, candidates)
        return counted(lambda: engine(given, made))

    unit = got(0, 1, Engine(backbone, batch(), LABELS))
    for block, population in [(0, 5), (1, 5), (1, 1), (3, 20), (3, 1), (2, 4), (0, 3), (3, 2)]:
        assert got(block, population) == price.pay(block, population) * unit


def test_what_is_afforded_is_what_can_be_paid():
    for calls in (Fraction(1), Fraction(5, 2), Fraction(1, 50)):
        for block in range(LAYERS):
            most = prices().affords(calls, block)
            assert prices().pay(block, most) <= calls or most == 0
            assert prices().pay(block, most + 1) > calls


def test_late_layers_have_more_candidates_for_the_same_arithmetic():
    schedule = LastK(k=1)
    order = schedule.order(LAYERS, turns=4, rng=np.random.default_rng(0))
    price = prices()
    late, generations = searched(price, order=order)
    in_turns, _ = searched(prices())
    # The start is a whole pass; the last of four layers does little more than q, k and v once.
    assert late > 10 * in_turns > 10 * 30
    assert generations[-1].last
    spent = sum(prices().pay(3, len(each.losses)) for each in generations[1:])
    assert spent > 25  # each from the embeddings, which the search itself carries


def test_usual_price_is_that_of_a_turn_where_the_last_one_was():
    price = prices()
    price.pay(2, 1)
    assert price.usual(2, 20) * 20 == price.pay(2, 20)
    assert PerRow(Fraction(2, 7)).usual(1, 20) == Fraction(2, 7)


def test_a_joint_block_costs_nearly_twice_what_turns_of_its_layers_do():
    """Of RoBERTa-large's 24; by hand in layers, for a candidate.

    The searched one costs 3/4, for its projections are shared, and the last one 1/6, of k and v.
    """
    turn_by_hand = sum(3 / 4 + 22 - layer + 1 / 6 for layer in range(23)) / 24
    config = transformers.AutoConfig.for_model(
        "roberta", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, vocab_size=50_265, max_position_embeddings=514,
    )  # fmt: skip
    large = Shape(architecture=Architecture.of(config), rank=2, classes=2)
    lengths, budget = [20] * 32, 24_000
    joint, turns = (
        LayerwiseSearch(budget=budget, layers_per_block=size).passes(large, lengths)
        for size in ("all", 1)
    )
    assert 0.98 * budget < joint < budget  # of the first layer all share the projections
    assert joint / turns == pytest.approx((3 / 4 + 22 + 1 / 6) / turn_by_hand, abs=0.01)  # 2.01
