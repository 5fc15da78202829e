"""The genetic prompt search: the model's advice, genomes as texts, the search, its limits."""

import json
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from dfolora.data import Encoder, Rows
from dfolora.data.task import Prompt, Task
from dfolora.engine import SolvedReadout
from dfolora.errors import UserError
from dfolora.fewshot.problem import ProblemSpec, TaskRows
from dfolora.methods import FewShotData, Gap3, ManualPrompt
from dfolora.methods.gap3.genome import Hole, Template, crossed, mutated, size
from dfolora.methods.gap3.guide import Guide, Individual, Passes, TokenScores
from dfolora.mini import BUNDLED
from dfolora.model import Backbone, Limits, Sequences
from dfolora.record import Store
from dfolora.search.selection import by_score
from pipelines.one_run.execute import execute
from tests.commands import command, composed
from tests.conftest import mini_tokenizer, tiny_model
from tests.reference import token_scores
from tests.shared import real_tokenizer

TASKS = Path(__file__).parents[2] / "conf" / "task"
KINDS = {"roberta": "masked", "bert": "masked", "gpt2": "causal"}
WORDS = [
    "a",
    "film",
    "was",
    "it",
    "so",
    "we",
    "bad",
    "great",
    "goodness",
    "fun",
    "##ny",
    "##s",
    "{",
]


def wordpiece():
    """A small tokenizer of BERT's kind, with pieces that only continue words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = Tokenizer(models.WordPiece({w: n for n, w in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", name_or_path="wordpiece",
    )  # fmt: skip


def tokenizer_of(family):
    return wordpiece() if family == "bert" else mini_tokenizer(KINDS[family])


def template_of(family, pattern=None, *, limit=60, room=20, slots=None, words=("bad", "great")):
    kind = KINDS[family]
    pattern = pattern or {"masked": "{x} . It was {mask} .", "causal": "{x} . It was"}[kind]
    prompt = Prompt(kind=kind, pattern=pattern, label_words=words, slots=slots)
    plain = Encoder(prompt=prompt, tokenizer=tokenizer_of(family), max_length=limit)
    return Template(plain=plain, room=room)


def ids_of(tokenizer, text):
    return tuple(tokenizer.encode(text, add_special_tokens=False))


ROWS = Rows(
    texts=tuple({"x": x} for x in ("a film", "we was so fun", "it {mask} a", "so so a film was")),
    labels=(0, 1, 1, 0),
)


def passes_of(family, template, rows=ROWS, *, tokens=None):
    """Passes over toy rows of a random model, and the model."""
    model = tiny_model(family, vocab_size=len(template.plain.tokenizer))
    label_ids = torch.tensor(
        [ids_of(template.plain.tokenizer, word)[0] for word in template.plain.prompt.label_words]
    )
    backbone = Backbone(model, Limits(tokens=tokens))
    passes = Passes(backbone, template, rows, label_ids, "accuracy", SolvedReadout())
    return passes, model, label_ids


@pytest.mark.parametrize("tokens", [2048, 20])
@pytest.mark.parametrize("family", ["roberta", "bert"])
@pytest.mark.parametrize(
    ("slot", "place", "write"),
    [
        (0, 1, lambda x, hole, answer: f"it {hole} {x} was so {answer}"),
        (1, 0, lambda x, hole, answer: f"it {x} {hole} was so {answer}"),
        (1, 1, lambda x, hole, answer: f"it {x} was {hole} so {answer}"),
        (1, 2, lambda x, hole, answer: f"it {x} was so {hole} {answer}"),
    ],
)
def test_tokens_score_as_row_by_row(family, slot, place, write, tokens):
    template = template_of(family)
    passes, model, label_ids = passes_of(family, template, tokens=tokens)
    tokenizer = template.plain.tokenizer
    start = " " if family == "roberta" else ""
    genome = (ids_of(tokenizer, "it"), ids_of(tokenizer, f"{start}was so"))
    assert list(map(len, genome)) == [1, 2]
    scores = passes.token_scores(Hole(genome=genome, slot=slot, place=place))
    rows = [(row["x"], label) for row, label in zip(ROWS.texts, ROWS.labels, strict=True)]
    gains, likelihood = token_scores.masked(
        model, tokenizer, rows, ("bad", "great"), label_ids, write
    )
    np.testing.assert_allclose(scores.gains, gains, rtol=0, atol=1e-4)  # float32 forwards
    assert scores.log_likelihood == pytest.approx(likelihood, abs=1e-4)
    assert gains.std() > 0.1


def test_hole_after_the_answer_is_found():
    """Of two masks the one that answers is the prompt's, wherever it stands."""
    template = template_of("roberta", "{mask} : {x}")
    passes, model, label_ids = passes_of("roberta", template)
    scores = passes.token_scores(Hole(genome=template.empty, slot=1, place=0))
    rows = [(row["x"], label) for row, label in zip(ROWS.texts, ROWS.labels, strict=True)]
    gains, likelihood = token_scores.masked(
        model, template.plain.tokenizer, rows, ("bad", "great"), label_ids,
        lambda x, hole, answer: f"{answer} {hole} {x}",
    )  # fmt: skip
    np.testing.assert_allclose(scores.gains, gains, rtol=0, atol=1e-4)
    assert scores.log_likelihood == pytest.approx(likelihood, abs=1e-4)


@pytest.mark.parametrize("slot", [0, 1])
def test_tokens_follow_row_and_label_where_the_model_is_causal(slot):
    template = template_of("gpt2")
    passes, model, label_ids = passes_of("gpt2", template)
    tokenizer = template.plain.tokenizer
    genome = (ids_of(tokenizer, "it"), ids_of(tokenizer, " was so"))
    scores = passes.token_scores(Hole(genome=genome, slot=slot, place=0))
    rows = [(row["x"], label) for row, label in zip(ROWS.texts, ROWS.labels, strict=True)]
    gains, likelihood = token_scores.causal(
        model, tokenizer, rows, ("bad", "great"), label_ids, lambda x: f"it {x} was so"
    )
    np.testing.assert_allclose(scores.gains, gains, rtol=0, atol=1e-4)
    assert scores.log_likelihood == pytest.approx(likelihood, abs=1e-4)


def test_individual_is_what_its_prompt_gives(family):
    template = template_of(family)
    passes, model, label_ids = passes_of(family, template)
    tokenizer = template.plain.tokenizer
    genome = (ids_of(tokenizer, "so"), ())
    individual = passes.evaluate(genome)
    mask = f" {tokenizer.mask_token}" if KINDS[family] == "masked" else ""
    rows, likelihood = [], 0.0
    for row, label in zip(ROWS.texts, ROWS.labels, strict=True):
        ids, found = token_scores.log_probabilities(model, tokenizer, f"so {row['x']}{mask}")
        answer = ids.index(tokenizer.mask_token_id) if mask else -1
        rows.append(found[answer, label_ids].softmax(0))
        likelihood += float(found[answer, label_ids[label]])
    chances, labels = torch.stack(rows), torch.tensor(ROWS.labels)
    gold = chances[torch.arange(4), labels]
    assert individual.genome == genome
    assert individual.score == float((chances.argmax(1) == labels).double().mean())
    assert individual.confidence == pytest.approx(float(gold.mean()), abs=1e-5)
    assert individual.loss == pytest.approx(float(-gold.log().mean()), abs=1e-5)
    assert individual.log_likelihood == pytest.approx(likelihood, abs=1e-4)
    assert individual.fitness == (individual.score, individual.confidence)


class Advised(Passes):
    """Passes whose model prefers tokens in a given order and is wrong by a given amount."""

    def __init__(self, tokens, gains, measured):
        self.gains = np.full(tokens, -100.0)
        self.gains[list(gains)] = list(gains.values())
        self.measured = measured

    def token_scores(self, hole):
        return TokenScores(gains=self.gains, log_likelihood=-10.0)

    def evaluate(self, genome):
        return Individual(
            genome=genome, score=0.5, confidence=0.5, loss=1.0, log_likelihood=self.measured
        )


def test_token_that_promised_too_much_is_trusted_less_from_then_on():
    template = template_of("bert")
    film, fun = WORDS.index("film") + 5, WORDS.index("fun") + 5
    passes = Advised(len(WORDS) + 5, {film: 6.0, fun: 5.0}, measured=-5.5)
    guide = Guide(passes, template, top=3, tokens=len(WORDS) + 5)
    holes = [Hole(genome=template.empty, slot=slot, place=0) for slot in (0, 1)]
    assert guide.realised(holes[0]).genome == ((film,), ())
    assert guide._bias[film] == -1.5  # measured -5.5, predicted -10 + 6
    assert guide.realised(holes[1]).genome == ((), (fun,))  # 5 > 6 - 1.5
    assert guide._bias[fun] == -0.5
    passes.measured = -3.0  # better than predicted: nothing is forgiven
    assert guide.realised(holes[1]).genome == ((), (film,))  # fun is there already
    assert guide._bias[film] == -1.5


def test_nothing_that_was_seen_is_made_again_and_only_the_top_is_tried():
    template = template_of("bert")
    film, fun = WORDS.index("film") + 5, WORDS.index("fun") + 5
    passes = Advised(len(WORDS) + 5, {film: 6.0, fun: 5.0}, measured=-4.0)
    guide = Guide(passes, template, top=2, tokens=len(WORDS) + 5)
    hole = Hole(genome=template.empty, slot=0, place=0)
    assert [guide.realised(hole).genome[0] for _ in range(2)] == [(film,), (fun,)]
    assert guide.realised(hole) is None
    assert guide.seen == {template.empty, ((film,), ()), ((fun,), ())}


@pytest.mark.parametrize(
    ("word", "suits"),
    [
        ("film", True), ("was", True), ("great", False), ("a", True), ("bad", False),
        ("goodness", False), ("fun", True), ("##ny", True), ("{", True),
        ("##s", True), ("[MASK]", False), ("[SEP]", False), ("[UNK]", False),
    ],
)  # fmt: skip
def test_words_that_give_a_label_away_are_no_genes(word, suits):
    template = template_of("bert", words=("Bad", "good"))
    tokenizer = template.plain.tokenizer
    expected = suits if word != "great" else True  # not one of these label words
    assert template.suits(tokenizer.convert_tokens_to_ids(word)) == expected


def test_parts_of_label_words_are_no_genes_either():
    template = template_of("roberta", words=("bad", "great"))
    tokenizer = template.plain.tokenizer
    refused = {
        tokenizer.decode([token]).strip()
        for token in range(len(tokenizer))
        if not template.suits(token)
    }
    assert {"b", "ba", "d", "g", "gre", "t", "eat", "Great", ""} & refused >= {"b", "d", "g", "t"}
    assert "e" not in refused


@pytest.mark.parametrize(
    ("slot", "genes", "spelled"),
    [
        (0, ["film"], True),
        (0, ["##ny"], False),  # no word begins with it
        (0, ["fun", "##ny"], True),
        (1, ["fun", "film", "##s"], True),
        (1, ["[UNK]"], True),
        (1, [], False),
    ],
)
def test_pieces_must_read_back_as_they_are(slot, genes, spelled):
    template = template_of("bert")
    ids = tuple(template.plain.tokenizer.convert_tokens_to_ids(genes))
    genome = (ids, ()) if slot == 0 else ((), ids)
    assert template.spells(genome, slot) == spelled


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_first_word_has_no_space_and_all_others_have(family):
    template = template_of(family)
    tokenizer = template.plain.tokenizer
    bare, spaced = ids_of(tokenizer, "so"), ids_of(tokenizer, " so")
    assert bare != spaced
    assert template.spells((bare, ()), 0)
    assert not template.spells((spaced, ()), 0)
    assert template.spells(((), spaced), 1)
    assert not template.spells(((), bare), 1)


@pytest.mark.parametrize("name", ["sst2", "agnews", "dbpedia", "mrpc"])
@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("variant", ["released", "gap3"])
def test_slots_are_the_tables(name, kind, variant):
    prompt = Task.from_file(TASKS / f"{name}.yaml").prompt(variant, kind)
    plain = Encoder(prompt=prompt, tokenizer=mini_tokenizer(kind), max_length=256)
    template = Template(plain=plain, room=100)
    label_first = name == "dbpedia" or (name == "agnews" and variant == "released")
    if kind == "masked" and name == "mrpc":
        assert template.fields == ("sentence1", "mask", "sentence2")
        assert template.slots == (0, 2)
    elif kind == "masked" and label_first:
        assert template.fields[0] == "mask"
        assert template.slots == (0, 1)
    else:
        assert template.fields[-1] == "mask"
        only = name == "agnews" and variant == "gap3"
        assert template.slots == ((1,) if only else tuple(range(len(template.fields))))
    pattern = template.prompt(template.empty).pattern
    shown = [f"{{{field}}}" for field in template.fields if kind == "masked" or field != "mask"]
    assert pattern == " ".join(shown)


def test_braces_of_genes_are_text():
    template = template_of("bert")
    brace = template.plain.tokenizer.convert_tokens_to_ids("{")
    assert template.prompt(((brace,), ())).pattern == "{{ {x} {mask}"
    batch = template.encode(ROWS, ((brace,), ()))
    assert batch.input_ids[0].tolist()[:2] == [2, brace]


def test_children_keep_to_room_and_slots():
    rng, slots = np.random.default_rng(0), (0, 2)
    genome, seen = ((), (), ()), Counter()
    for step in range(300):
        hole = mutated(genome, slots, 6, rng)
        assert hole.slot in slots
        grown = hole.filled(1000 + step)
        assert grown[hole.slot][hole.place] == 1000 + step
        assert size(grown) - size(genome) in (0, 1)
        seen[size(grown) - size(genome)] += 1
        genome = grown
        assert size(genome) <= 6
        assert genome[1] == ()
    assert size(genome) == 6
    assert seen[1] == 6


def test_holes_insert_or_replace_with_even_chances():
    rng = np.random.default_rng(0)
    genome = ((1, 2, 3),)
    kept = [size(mutated(genome, (0,), 9, rng).genome) for _ in range(400)]
    assert 160 < kept.count(3) < 240  # five standard deviations are 50
    assert kept.count(3) + kept.count(2) == 400
    assert {mutated(((), (5,)), (0, 1), 9, rng).slot for _ in range(50)} == {0, 1}


@pytest.mark.parametrize(("slot", "places"), [(0, {1, 2}), (1, {0, 1, 2})])
def test_nothing_is_put_before_the_word_that_begins_the_text(slot, places):
    """It has no space before it, which it would need in second place."""
    rng, genome = np.random.default_rng(0), ((1, 2), (3, 4))
    holes = [mutated(genome, (slot,), 9, rng) for _ in range(100)]
    assert {hole.place for hole in holes if hole.genome == genome} == places


def test_slots_of_a_child_come_from_either_parent():
    rng = np.random.default_rng(0)
    first, second = ((1,), (2,), (3,)), ((4,), (5,), (6,))
    assert crossed(first, second, 0.0, rng) == first
    assert crossed(first, second, 1.0, rng) == second
    children = {crossed(first, second, 0.5, rng) for _ in range(200)}
    assert len(children) == 8


@lru_cache
def mini_rows(name):
    """A task's rows on the mini world, as few tests as will do."""
    task = Task.from_file(TASKS / f"{name}.yaml")
    rows = TaskRows.load(replace(task, dataset=replace(task.dataset, path="mini")))
    return replace(rows, test=rows.test.select(range(20)))


def mini_backbone(kind):
    """A bundled model."""
    source = BUNDLED[{"masked": "mini-roberta", "causal": "mini-gpt2"}[kind]]
    loader = {
        "masked": transformers.AutoModelForMaskedLM, "causal": transformers.AutoModelForCausalLM
    }[kind]  # fmt: skip
    return Backbone(loader.from_pretrained(source))


def posed(method, name="sst2", kind="masked", *, k=4, seed=42):
    backbone = mini_backbone(kind)
    problem = ProblemSpec(k=k).pose(
        mini_rows(name), mini_tokenizer(kind), method, kind=kind,
        max_length=backbone.architecture.max_length, seed=seed,
    )  # fmt: skip
    return backbone, problem


def run(method, *, seed=42, **problem):
    backbone, posed_problem = posed(method, seed=seed, **problem)
    fit = method.begin(backbone, posed_problem.data, seed)
    return list(fit), fit, posed_problem, backbone


def test_learns_and_pays_for_every_pass_and_for_nothing_else():
    method = Gap3(population=8, budget=150, dev_interval=30, selection="released")
    backbone, problem = posed(method, k=8)
    passes, embed = [], backbone.embed
    backbone.embed = lambda pack: passes.append(len(pack.rows)) or embed(pack)
    answers = []

    def memo(_question, compute):
        answers.append(compute())
        return answers[-1]

    fit = method.begin(backbone, problem.data, 42, memo)
    steps = [progress.step for progress in fit]
    assert passes == [16] * steps[-1].calls  # no dev row, and no pass uncounted
    assert 147 < steps[-1].calls <= 150
    assert steps[0].calls == 24
    assert steps[0].losses.shape == (8,)
    assert all(len(step.losses) <= 6 for step in steps[1:])  # two of eight survive
    scores = [answer["individual"]["score"] for answer in answers if answer["individual"]]
    assert len(scores) == sum(len(step.losses) for step in steps)
    assert max(scores) > max(scores[:8]) + 0.1
    assert steps[-1].loss < steps[0].losses.min()
    predictor = fit.predictor()
    assert predictor.dev is None
    logits = predictor.logits(problem.data.train)
    hits = (logits.argmax(-1) == problem.data.train.labels).double().mean()
    assert float(hits) == pytest.approx(max(scores))


def test_rows_are_cut_once_for_prompts_of_as_many_tokens(monkeypatch):
    cut, packs = list[str](), Sequences.packs

    def counted(self, *given, **named):
        cut.append(f"{self.lengths} {self.answer}")
        return packs(self, *given, **named)

    monkeypatch.setattr(Sequences, "packs", counted)
    steps, *_ = run(Gap3(population=8, budget=150, dev_interval=30), k=8)
    assert len(cut) == len(set(cut)) < steps[-1].step.calls / 3


@pytest.mark.parametrize("budget", [12, 13, 20, 33])
def test_budget_is_never_exceeded(budget):
    steps, *_ = run(Gap3(population=4, budget=budget, generations=None))
    calls = [progress.step.calls for progress in steps]
    assert budget - 3 < calls[-1] <= budget
    assert calls[0] == 12


def test_generations_end_the_search_before_the_budget():
    steps, *_ = run(Gap3(population=4, generations=2, budget=600))
    assert len(steps) == 3
    assert steps[-1].step.calls <= 12 + 2 * 2 * 3
    assert steps[-1].looks  # the last is looked at


def test_every_prompt_reads_as_its_genes():
    """Between the row's own tokens stand those of the slots, and nothing else."""
    for kind in ("masked", "causal"):
        method = Gap3(population=6, budget=60, selection="released")
        steps, fit, problem, _ = run(method, kind=kind, k=2)
        template, row = fit._template, problem.data.train.rows.select([0])
        tokenizer, special = template.plain.tokenizer, (0, 4, 2)
        assert len(fit._guide.seen) > 15
        for genome in fit._guide.seen:
            text = row.texts[0]["sentence"]
            own = ids_of(tokenizer, f" {text}" if genome[0] else text)
            ids = tuple(template.encode(row, genome).input_ids[0].tolist())
            if kind == "masked":
                start, mask, end = special
                assert tokenizer.mask_token_id == mask
                assert ids == (start, *genome[0], *own, *genome[1], mask, end)
            else:
                assert ids == (*genome[0], *own, *genome[1])
        patterns = [pattern for progress in steps for pattern in progress.step.patterns]
        assert len(set(patterns)) == len(patterns)


def _new(step: Any):
    """The prompts of a step and their losses."""
    return step.patterns, step.losses.tolist()


def test_dev_set_chooses_and_does_nothing_else():
    method = Gap3(population=6, budget=110, dev_interval=1)
    backbone, problem = posed(method)
    flipped = replace(problem.data.dev, labels=1 - problem.data.dev.labels)
    flipped = replace(flipped, rows=replace(flipped.rows, labels=tuple(flipped.labels.tolist())))
    chosen, journals = [], []
    for dev in (problem.data.dev, flipped):
        fit = method.begin(backbone, replace(problem.data, dev=dev), 42)
        steps = list(fit)
        journals.append([_new(one.step) for one in steps])
        looks = [look for progress in steps for look in progress.looks]
        assert len(looks) == len(steps)
        predictor = fit.predictor()
        assert predictor.dev == min(looks, key=by_score) == steps[-1].selected
        logits = predictor.logits(dev)
        hits = (logits.argmax(-1) == dev.labels).double().mean()
        assert predictor.dev.score == pytest.approx(float(hits))
        chosen.append(predictor.dev.solution)
    assert journals[0] == journals[1]
    assert chosen[0] != chosen[1]


def test_looks_are_an_interval_apart():
    steps, *_ = run(Gap3(population=6, budget=110, dev_interval=40))
    calls = [look.calls for progress in steps for look in progress.looks]
    assert [n // 40 for n in calls[:-1]] == [1, 2]
    assert calls[-1] == steps[-1].step.calls


def test_same_seed_gives_the_same_search_and_another_another():
    method = Gap3(population=4, budget=40)
    journals = []
    for seed in (1, 1, 2):
        backbone, problem = posed(method, seed=7)
        torch.rand(1)
        np.random.default_rng().random()
        fit = method.begin(backbone, problem.data, seed)
        journals.append([_new(one.step) for one in fit])
    assert journals[0] == journals[1] != journals[2]


class Scripted:
    """A guide whose individuals have given scores, in turn."""

    def __init__(self, scores):
        self.seen = set()
        self.calls = 0
        self._scores = iter(scores)

    def realised(self, child):
        score = next(self._scores)
        return Individual(
            genome=((int(100 * score),), ()), score=score, confidence=score, loss=1 - score,
            log_likelihood=0.0,
        )  # fmt: skip


@pytest.mark.parametrize(("comparison", "best"), [("fixed", 0.9), ("released", 0.3)])
def test_what_differs_is_better_only_where_it_is_asked_for(comparison, best):
    method = Gap3(population=4, generations=0, budget=12, comparison=comparison)
    backbone, problem = posed(method)
    fit = method.begin(backbone, problem.data, 0)
    fit._guide = Scripted([0.5, 0.9, 0.2, 0.3])
    (progress,) = fit
    assert progress.step.loss == pytest.approx(1 - best)
    assert fit._best.score == best


def test_fittest_and_the_best_survive():
    method = Gap3(population=9, generations=1, budget=600, comparison="released")
    backbone, problem = posed(method)
    fit = method.begin(backbone, problem.data, 0)
    first = [0.5, 0.9, 0.2, 0.8, 0.7, 0.1, 0.6, 0.4, 0.3]
    fit._guide = Scripted([*first, 0.05, 0.15, 0.25, 0.35, 0.45])
    list(fit)
    scores = [one.score for one in fit._population]
    assert scores == [0.9, 0.8, 0.7, 0.3, 0.05, 0.15, 0.25, 0.35, 0.45]  # 0.3 counted as the best


def test_parents_are_drawn_by_the_exponential_of_their_score():
    method = Gap3(population=2, generations=0, budget=6, mutation=0.0, crossover=0.0)
    backbone, problem = posed(method)
    fit = method.begin(backbone, problem.data, 0)
    fit._guide = Scripted([0.0, 1.0])
    list(fit)
    drawn = Counter(fit._child() for _ in range(2000))
    share = drawn[((100,), ())] / 2000
    assert share == pytest.approx(np.e / (1 + np.e), abs=0.05)  # five standard deviations


def test_child_that_was_there_before_gets_a_new_token():
    method = Gap3(population=4, budget=60, mutation=0.0, crossover=0.0)
    steps, fit, *_ = run(method)
    assert steps[-1].step.calls > 12
    assert len(fit._guide.seen) == 1 + sum(len(progress.step.losses) for progress in steps)


def test_model_is_left_as_it_was():
    method = Gap3(population=4, budget=30)
    backbone, problem = posed(method)
    model = backbone.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    fit = method.begin(backbone, problem.data, 0)
    list(fit)
    fit.predictor().logits(problem.data.dev)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(model.modules()) == modules
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_saved_prompt_is_a_tasks_prompt_with_the_same_logits(kind, tmp_path):
    _steps, fit, problem, backbone = run(Gap3(population=4, budget=60), kind=kind)
    predictor = fit.predictor()
    predictor.save(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "prompt.json").read_text())
    prompt = Prompt(**saved | {"label_words": tuple(saved["label_words"])})
    encoder = Encoder(prompt=prompt, tokenizer=mini_tokenizer(kind), max_length=256)
    method = ManualPrompt()
    data = replace(problem.data, encode=encoder)
    again = method.begin(backbone, data, 0).predictor().logits(encoder(problem.data.dev.rows))
    torch.testing.assert_close(predictor.logits(problem.data.dev), again, rtol=0, atol=1e-5)
    genes = size(predictor.dev.solution)
    assert genes > 0
    assert predictor.searched == predictor.stored == predictor.found["gene_tokens"] == genes


def test_predictor_before_any_step_is_the_prompt_without_words():
    method = Gap3(population=4, budget=12)
    backbone, problem = posed(method)
    predictor = method.begin(backbone, problem.data, 0).predictor()
    assert problem.data.encode.prompt(predictor.dev.solution).pattern == "{sentence} {mask}"
    assert (predictor.dev.calls, predictor.searched) == (0, 0)


def test_rows_are_cut_with_room_for_the_words():
    template = template_of("roberta", limit=60, room=20)
    long = Rows(texts=({"x": "a film " * 60}, {"x": "so"}), labels=(0, 1))
    batch = template(long)
    assert batch.input_ids.shape[1] == 40
    assert batch.truncated == 1
    words = ids_of(template.plain.tokenizer, " was" * 20)
    assert template.encode(long, ((), words)).input_ids.shape[1] <= 60


def test_no_prompt_has_more_words_than_there_is_room_for():
    _steps, fit, *_ = run(Gap3(population=6, budget=110, room=2, mutation=0.5))
    sizes = Counter(map(size, fit._guide.seen))
    assert set(sizes) == {0, 1, 2}
    assert sizes[2] > 10


@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased", "gpt2"])
def test_real_vocabularies_fill_holes(name):
    """A random model's advice: any word will do, if it is one."""
    tokenizer = real_tokenizer(name)
    family = {"roberta-base": "roberta", "gpt2": "gpt2"}.get(name, "bert")
    kind, backbone = KINDS[family], Backbone(tiny_model(family, vocab_size=len(tokenizer)))
    prompt = Task.from_file(TASKS / "sst2.yaml").prompt("released", kind)
    method = Gap3(population=6, budget=40, room=20)
    train = Rows(texts=({"sentence": "a dull film"}, {"sentence": "fun"}), labels=(0, 1))
    plain = Encoder(prompt=prompt, tokenizer=tokenizer, max_length=64)
    encode: Any = method.encoder(plain, train, 0)
    data = FewShotData(
        train=encode(train), dev=encode(train), label_ids=torch.tensor([1000, 1001]),
        metric="accuracy", encode=encode,
    )  # fmt: skip
    fit = method.begin(backbone, data, 0)
    list(fit)
    assert len(fit._guide.seen) > 10
    for genome in fit._guide.seen - {encode.empty}:
        ids = encode.encode(train.select([1]), genome).input_ids[0].tolist()
        frame = {"masked": 4, "causal": 1}[kind]  # begin, text, mask and end; or the text alone
        assert len(ids) == size(genome) + frame


MISTAKES = {
    "a budget below the first population": (
        {"budget": 30}, r"budget=30 is smaller than the first population, which needs 192 calls"),
    "no second individual": ({"population": 1}, r"method.population=1 must be .* 2 or more"),
    "an unknown comparison": (
        {"comparison": "x"}, r"Unknown method.comparison=x; choose one of fixed, released"),
    "an unknown selection": (
        {"selection": "dev"}, r"Unknown selection=dev; choose one of incumbent, loss, released"),
    "a probability above 1": ({"mutation": 1.5}, r"method.mutation=1.5 must be a probability"),
    "no probability": ({"crossover": True}, r"method.crossover=True must be a probability"),
    "no tokens": ({"top": 0}, r"method.top=0 must be a whole number, 1 or more"),
    "no room": ({"room": 0}, r"method.room=0 must be a whole number, 1 or more"),
    "half a generation": ({"generations": 0.5}, r"method.generations=0.5 must be a whole"),
    "no interval": ({"dev_interval": 0}, r"dev_interval=0 must be a whole number, 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_makes_no_sense_is_refused(name):
    options, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        Gap3(**options).check(Backbone(tiny_model("roberta")).architecture)


def test_model_too_short_for_the_words_is_told():
    message = r"limit of 64 tokens leaves no text beside method.room=64 .* lower method.room"
    with pytest.raises(UserError, match=message):
        template_of("roberta", limit=64, room=64)


def test_released_readout_is_refused():
    template = template_of("gpt2")
    with pytest.raises(UserError, match=r"use data.readout=last_token"):
        Template(plain=replace(template.plain, readout="released"), room=20)


def test_masked_prompt_needs_a_mask():
    template = template_of("roberta")
    plain = replace(template.plain, tokenizer=mini_tokenizer("causal"))
    with pytest.raises(UserError, match="has no mask token for the masked pattern"):
        Gap3(room=20).encoder(plain, ROWS, 0)(ROWS)


def test_model_without_numbers_is_told():
    template = template_of("roberta")
    passes, model, _ = passes_of("roberta", template)
    model.lm_head.bias.data[:] = float("nan")
    with pytest.raises(UserError, match=r"loss under the prompt '\{x\} \{mask\}' is not a finite"):
        passes.evaluate(template.empty)


def test_batches_of_another_encoder_are_refused(backbone, batch, label_ids):
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    with pytest.raises(TypeError, match="its own encoder"):
        Gap3().begin(backbone, data, 0)


def test_mini_profile_pays_for_eight_generations():
    config, _ = composed("row=gap3", "profile=mini")
    population, budget = config.method.population, config.method.budget
    children = population - int(population**0.5)
    assert (budget - 3 * population) // (3 * children) >= 8
    config, _ = composed("row=gap3", "profile=paper")
    assert (config.method.population, config.method.budget) == (64, 6000)


@pytest.mark.slow
def test_commands_as_users_type_them(tmp_path):
    ran = command(
        tmp_path, "run", "-m", "method=gap3", "task=mini/mrpc", "model=mini_roberta,mini_gpt2",
        "individuals=4", "budget=30", "data.k=2",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    runs = Store(f"sqlite:///{tmp_path}/mlflow.db").runs()
    assert len(runs) == 2
    assert runs["metrics.calls"].between(28, 30).all()
    assert (runs["metrics.fitted/gene_tokens"] > 0).all()
    assert (runs["metrics.params/searched"] == runs["metrics.fitted/gene_tokens"]).all()


def test_run_as_in_its_own_code_leaves_journal_and_prompt(in_folder):
    config, choices = composed(
        "row=gap3_released", "task=mini/dbpedia", "data.k=2", "individuals=4", "budget=30"
    )
    outcome = execute(config, choices, sweep_id="s")
    client = Store(f"sqlite:///{in_folder}/mlflow.db")._client
    assert "dev/selected_score" not in client.get_run(outcome.run_id).data.metrics
    folder = Path(client.download_artifacts(outcome.run_id, ""))
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    saved = json.loads((folder / "adapter" / "prompt.json").read_text())
    assert saved["label_words"][-1] == "literature"
    assert saved["pattern"] in [line.get("pattern") for line in lines]
