"""The search loop: its budget, its turns, what blocks contribute."""

import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfolora.errors import UserError
from dfolora.search.evaluator import Evaluation
from dfolora.search.loop import INCUMBENTS, tune
from dfolora.search.optim import Cma, Lotfwa, RandomSearch
from dfolora.search.schedule import WholeRounds

DIM = 6


class Quadratic:
    """Squared distance of the whole solution to a target, every evaluation noted."""

    def __init__(self, blocks, failing=(), flat=()):
        self.target = np.random.default_rng(9).normal(size=(blocks, DIM))
        self.failing, self.flat = failing, flat
        self.calls = 0
        self.seen = []

    def __call__(self, solution, block, candidates):
        losses = []
        for candidate in candidates:
            whole = solution.copy()
            whole[block] = candidate
            self.calls += 1
            loss = float(((whole - self.target) ** 2).sum())
            loss = 7.0 if self.calls in self.flat else loss
            losses.append(np.nan if self.calls in self.failing else loss)
        self.seen.append((solution.copy(), block, candidates.copy()))
        return Evaluation(losses=np.array(losses), scores=np.zeros(len(losses)))


def run(factory, *, blocks=3, budget=100, failing=(), flat=(), **options):
    evaluate = Quadratic(blocks, failing, flat)
    optimizers = [
        factory(dim=DIM, budget=budget // blocks, rng=np.random.default_rng(block))
        for block in range(blocks)
    ]
    return evaluate, list(tune(evaluate, optimizers, dim=DIM, budget=budget, **options))


SMALL_CMA = partial(Cma, population=5)
FACTORIES = {
    "cma": SMALL_CMA,
    "fwa": Lotfwa,
    "fwa_tournament": partial(Lotfwa, fireworks=3, sparks=9),
    "random": partial(RandomSearch, population=7),
}


@settings(deadline=None, max_examples=40)
@given(
    budget=st.integers(1, 120),
    blocks=st.integers(1, 5),
    name=st.sampled_from(sorted(FACTORIES)),
    incumbent=st.sampled_from(sorted(INCUMBENTS)),
)
def test_budget_is_met_exactly(budget, blocks, name, incumbent):
    evaluate, generations = run(FACTORIES[name], blocks=blocks, budget=budget, incumbent=incumbent)
    assert evaluate.calls == budget == generations[-1].calls
    spent = [0, *(generation.calls for generation in generations)]
    sizes = [after - before for before, after in pairwise(spent)]
    assert sizes == [len(generation.losses) for generation in generations]
    assert [generation.last for generation in generations[:-1]] == [False] * len(sizes[:-1])
    assert generations[-1].last


def test_budget_0_searches_nothing():
    evaluate, generations = run(SMALL_CMA, budget=0)
    assert evaluate.calls == 0
    assert generations == []


def test_search_starts_from_the_unadapted_model_at_the_price_of_one_call():
    evaluate, generations = run(SMALL_CMA)
    assert not generations[0].candidates.any()
    assert generations[0].calls == 1
    assert generations[0].loss == pytest.approx((evaluate.target**2).sum())


def test_blocks_take_turns_in_order_one_generation_each():
    _, generations = run(Lotfwa, blocks=3, budget=61)
    assert [generation.block for generation in generations] == [0, *([0, 1, 2] * 4)]
    assert {len(generation.losses) for generation in generations[1:]} == {5}  # 4 sparks, 1 guide


def test_released_schedule_runs_whole_rounds_only():
    rng = np.random.default_rng(0)
    order = WholeRounds().order(3, turns=11, rng=rng)
    evaluate, generations = run(SMALL_CMA, blocks=3, budget=59, incumbent="released", order=order)
    assert [generation.block for generation in generations] == [0, 1, 2] * 3
    assert evaluate.calls == 45
    assert [generation.last for generation in generations] == [False] * 8 + [True]


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_improving_incumbents_never_raise_the_loss_and_it_is_always_known(name):
    evaluate, generations = run(FACTORIES[name], budget=300)
    losses = [generation.loss for generation in generations]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < losses[0]
    for generation in generations:
        true = ((generation.solution - evaluate.target) ** 2).sum()
        assert generation.loss == pytest.approx(true, rel=1e-12)


def test_improving_adopts_the_best_candidate_of_the_turn():
    _, generations = run(SMALL_CMA, budget=200)
    adopted = 0
    for before, after in pairwise(generations):
        if after.losses.min() < before.loss:
            adopted += 1
            best = after.candidates[after.losses.argmin()]
            assert np.array_equal(after.solution[after.block], best)
        else:
            assert np.array_equal(after.solution, before.solution)
    assert 0 < adopted < len(generations) - 1


def test_mean_incumbent_is_the_center_measured_by_one_more_call():
    evaluate = Quadratic(2)
    optimizers = [SMALL_CMA(dim=DIM, budget=50, rng=np.random.default_rng(b)) for b in (0, 1)]
    for generation in tune(evaluate, optimizers, dim=DIM, budget=61, incumbent="mean"):
        if generation.calls == 1:
            continue
        assert len(generation.losses) == 6
        center = optimizers[generation.block].center
        assert np.array_equal(generation.solution[generation.block], center)
        assert np.array_equal(generation.candidates[-1], center)
        assert generation.loss == generation.losses[-1]


def test_center_incumbent_is_adopted_unmeasured_and_costs_no_call():
    evaluate = Quadratic(2)
    optimizers = [SMALL_CMA(dim=DIM, budget=50, rng=np.random.default_rng(b)) for b in (0, 1)]
    turns = 0
    for generation in tune(evaluate, optimizers, dim=DIM, budget=60, incumbent="center"):
        turns += 1
        assert len(generation.losses) == 5
        center = optimizers[generation.block].center
        assert np.array_equal(generation.solution[generation.block], center)
        assert np.isnan(generation.loss)
    assert turns == 12  # no call for the unadapted model either


def test_an_order_is_told_each_generation_and_ends_the_search():
    told = []

    def order():
        for block in (1, 1, 0):
            told.append((yield block))

    evaluate, generations = run(SMALL_CMA, blocks=2, budget=100, order=order())
    assert [generation.block for generation in generations[1:]] == [1, 1, 0]
    assert evaluate.calls == 1 + 3 * 5
    assert [generation.last for generation in generations] == [False, False, False, True]
    assert [one.calls for one in told] == [one.calls for one in generations[1:]]


def test_released_incumbent_is_the_all_time_best_by_old_losses():
    """By hand: the block's lowest loss so far, although measured beside other incumbents."""
    _, generations = run(SMALL_CMA, budget=150, incumbent="released")
    best = {}
    stale = 0
    for generation in generations:
        block = generation.block
        for z, loss in zip(generation.candidates, generation.losses, strict=True):
            if loss < best.get(block, (None, np.inf))[1]:
                best[block] = (z, loss)
        stale += generation.losses.min() > best[block][1]
        assert np.array_equal(generation.solution[block], best[block][0])
        assert np.isnan(generation.loss)
    assert stale > 0  # the rule and `improving` do differ here


def test_candidates_are_measured_beside_the_present_incumbents():
    evaluate, generations = run(SMALL_CMA, budget=101)
    for (solution, _block, _candidates), before in zip(
        evaluate.seen[1:], generations, strict=False
    ):
        assert np.array_equal(solution, before.solution)


def test_failed_candidates_rank_worst_and_are_never_adopted():
    with pytest.warns(RuntimeWarning, match="No candidate of block 0 had a finite loss"):
        _, generations = run(SMALL_CMA, budget=26, failing=range(2, 7))
    assert np.isinf(generations[1].losses).all()
    assert np.array_equal(generations[1].solution, generations[0].solution)
    assert np.isfinite(generations[-1].loss)


def test_a_base_loss_that_is_no_number_stops_before_the_search():
    with pytest.raises(UserError, match=r"unadapted model's loss .* not a finite number"):
        run(SMALL_CMA, failing=[1])


def test_a_first_turn_without_any_loss_stops_a_search_that_never_asks_for_the_base():
    with pytest.raises(UserError, match=r"Every candidate's loss .* not a finite"):
        run(SMALL_CMA, budget=40, failing=range(1, 6), incumbent="released")


@pytest.mark.parametrize(("turns", "warned"), [(3, True), (2, False)])
def test_losses_that_stay_flat_for_a_whole_round_are_told_once(turns, warned):
    flat = range(2, 2 + 5 * turns)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(SMALL_CMA, budget=61, flat=flat)
    texts = [str(warning.message) for warning in told]
    assert len(texts) == warned
    assert all(
        text.startswith("All candidates of a whole round had the same loss") for text in texts
    )


def test_one_block_is_the_optimizer_itself():
    """Degenerate case: with one block the loop is a bare ask and tell."""
    evaluate, generations = run(SMALL_CMA, blocks=1, budget=51)
    bare = SMALL_CMA(dim=DIM, budget=51, rng=np.random.default_rng(0))
    for generation in generations[1:]:
        candidates = bare.ask()
        np.testing.assert_array_equal(generation.candidates, candidates)
        bare.tell(((candidates - evaluate.target[0]) ** 2).sum(axis=1))


def test_same_seed_same_search():
    first, second = (run(Lotfwa, budget=120)[1] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.candidates, other.candidates)
        assert np.array_equal(one.losses, other.losses)


@pytest.mark.parametrize("incumbent", sorted(INCUMBENTS))
def test_a_shorter_block_is_searched_in_its_own_numbers_alone(incumbent):
    """The last block has two: as if alone beside equal ones, and its row ends in zeros."""
    dims, evaluate = [DIM, DIM, 2], Quadratic(3)

    def cut(solution, block, candidates):
        """All d numbers of the block, those that are not searched being 0."""
        assert candidates.shape[1] in (dims[block], DIM)
        assert not solution[2, 2:].any()
        wide = np.pad(candidates, [(0, 0), (0, DIM - candidates.shape[1])])
        return evaluate(solution, block, wide)

    optimizers = [SMALL_CMA(dim=dim, budget=40, rng=np.random.default_rng(7)) for dim in dims]
    alone = SMALL_CMA(dim=2, budget=40, rng=np.random.default_rng(7))
    generations = list(tune(cut, optimizers, dim=DIM, budget=120, incumbent=incumbent))
    assert evaluate.calls == 120
    turns = [each for each in generations[:-1] if each.block == 2]
    assert len(turns) > 5
    extra = int(incumbent == "mean")  # the center, measured last
    for turn in turns:
        assert turn.candidates.shape[1] == 2
        np.testing.assert_array_equal(alone.ask(), turn.candidates[: len(turn.losses) - extra])
        alone.tell(turn.losses[: len(turn.losses) - extra])
        assert turn.solution.shape == (3, DIM)
        assert not turn.solution[2, 2:].any()
        if incumbent in ("mean", "center"):
            np.testing.assert_array_equal(turn.solution[2, :2], alone.center)
        if incumbent == "released":
            np.testing.assert_array_equal(turn.solution[2, :2], alone.best.z)
        if incumbent == "improving" and turn.losses.min() == turn.loss:
            best = turn.candidates[turn.losses.argmin()]
            np.testing.assert_array_equal(turn.solution[2, :2], best)
    assert generations[-1].solution[2, :2].any()
