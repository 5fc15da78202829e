"""A solution's scores under other prompts of its task; nothing else of a run changes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.fewshot import Problem, Source, score_paraphrases, score_test
from dfolora.fewshot.score import ensemble, most_certain
from dfolora.record import Store
from dfolora.record.provenance import digest
from pipelines.one_run import execute as pipeline
from pipelines.one_run.execute import Run, execute
from pipelines.one_run.identity import settings_of
from tests.commands import composed
from tests.methods.test_every_method import rows

BOTH = "paraphrases=[natural,gap3]"


def checked(*overrides: str) -> Run:
    config, choices = composed(*overrides)
    return Run.checked(config, choices, "s")


def test_a_run_without_paraphrases_is_what_it_was():
    """Its digest, settings and recorded values hold nothing of them."""
    config, choices = composed("row=c_lora")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    job = Run.checked(config, choices, "s")
    parts = {
        "settings": settings_of(plain, job.checkpoint, job.method),
        "task": plain["task"],
        "rows": job.rows.fingerprint,
        "split_seed": 42,
        "search_seed": 42,
    }
    assert job.digest == digest(parts)
    assert "paraphrases" not in job.config
    tested = checked("row=c_lora", BOTH)
    assert tested.digest == digest({**parts, "paraphrases": ["gap3", "natural"]})
    assert tested.digest == checked("row=c_lora", "paraphrases=[gap3,natural]").digest
    assert tested.labels["settings"] == job.labels["settings"]
    assert tested.config["paraphrases"] == ["gap3", "natural"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["paraphrases=[mine]"], r"no masked prompt 'mine'; it has released: masked"),
        (["paraphrases=[bbt]"], r"no masked prompt 'bbt'"),  # there is a causal one
        (["paraphrases=natural"], r"paraphrases must be a list of texts, got 'natural'"),
        (["paraphrases=null"], r"paraphrases must be a list of texts"),
        (["paraphrases=[natural,natural]"], r"paraphrases repeats an entry"),
        (["paraphrases=[natural,released]"], r"has data\.prompt=released, under which every fit"),
        (["row=gap3", BOTH], r"Gap3 fits the prompt itself, .* set paraphrases=\[\]"),
        (["row=in_context", BOTH], r"InContext fits the prompt itself"),
        (["row=prompt_boosting", BOTH], r"PromptBoosting fits the prompt itself"),
    ],
)
def test_what_cannot_be_tested_is_told_before_anything_is_loaded(overrides, message):
    with pytest.raises(UserError, match=message):
        checked(*overrides)


@pytest.mark.parametrize("row", ["c_lora", "bbtv2", "manual_prompt"])
def test_tests_are_in_the_words_of_the_other_prompt(row):
    """Its pattern with the label words of the fit, by the method's own encoder."""
    config, _ = composed(f"row={row}", "data.k=4", "prompt_tokens=5")
    checkpoint = instantiate(config.model, _convert_="all")
    method, spec = instantiate(config.method), instantiate(config.data)
    tokenizer = checkpoint.load_tokenizer()
    problem = spec.pose(
        rows(), tokenizer, method,
        kind="masked", max_length=128, seed=13, paraphrases=["natural"],
    )  # fmt: skip
    natural = problem.task.prompt("natural", "masked")
    plain = Encoder(prompt=natural, tokenizer=tokenizer, max_length=128)
    train = rows().train.select(problem.split.train)
    expected = method.encoder(plain, train, 13)(rows().test)
    got = problem.paraphrases["natural"]
    assert torch.equal(got.input_ids, expected.input_ids)
    assert torch.equal(got.answer, expected.answer)
    assert torch.equal(got.labels, problem.test.labels)
    assert not torch.equal(got.input_ids[:, : problem.test.input_ids.shape[1]],
                           problem.test.input_ids[:, : got.input_ids.shape[1]])  # fmt: skip


def posed(*paraphrases: str) -> Problem:
    config, _ = composed("row=manual_prompt")
    spec, checkpoint = instantiate(config.data), instantiate(config.model, _convert_="all")
    posed: Problem = spec.pose(
        rows(), checkpoint.load_tokenizer(), instantiate(config.method),
        kind="masked", max_length=128, seed=13, paraphrases=paraphrases,
    )  # fmt: skip
    return posed


def certain(classes: Tensor, logit: float) -> Tensor:
    """Logits, ``(N, 2)``, for these classes."""
    return logit * torch.nn.functional.one_hot(classes, 2).float()


def test_mean_and_worst_are_of_all_prompts():
    problem = posed("natural", "gap3")
    labels = problem.test.labels

    def predict(batch):
        """Right in the natural prompt, the class 0 everywhere in the other."""
        if batch is problem.paraphrases["gap3"]:
            return torch.tensor([[1.0, 0.0]]).expand(len(labels), 2)
        return certain(labels, 1)

    share = (labels == 0).double().mean().item()
    right = torch.arange(len(labels)) % 4 > 0
    got = score_paraphrases(predict, problem, certain(torch.where(right, labels, 1 - labels), 3))
    assert got["prompt_natural"] == 1.0
    assert got["prompt_gap3"] == share
    assert got["prompts_mean"] == pytest.approx((1.75 + share) / 3)
    assert got["prompts_worst"] == share
    wrong = certain(1 - labels, 1)
    assert score_paraphrases(predict, problem, wrong)["prompts_worst"] == 0


def test_each_row_in_its_most_certain_prompt_beats_every_prompt():
    """Each of three is right and certain on other rows; the two others, unsure, outvote it."""
    problem = posed("natural", "gap3")
    labels, row = problem.test.labels, torch.arange(len(problem.test.labels))
    logits = [
        certain(labels, 2.0).where((row % 3 == turn)[:, None], certain(1 - labels, 1.5))
        for turn in range(3)
    ]
    others = dict(zip(problem.paraphrases, logits[1:], strict=True))
    named = {id(batch): name for name, batch in problem.paraphrases.items()}
    got = score_paraphrases(lambda batch: others[named[id(batch)]], problem, logits[0])
    assert got["prompts_mean"] == pytest.approx(1 / 3)  # 60 rows
    assert got["prompts_instance"] == 1.0
    assert got["prompts_ensemble"] == 0.0


def test_a_prompt_beside_its_equal_changes_no_score():
    problem = posed("natural")
    own = torch.randn(len(problem.test.labels), 2, generator=torch.Generator().manual_seed(0))
    own[:3] = torch.tensor([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0]])
    got = score_paraphrases(lambda _: own.clone(), problem, own)
    assert {*got.values()} == {score_test(own, problem)["score"]}
    assert len(got) == 5


def slow_predictions(logits: list[list[list[float]]]) -> tuple[list[int], list[int]]:
    """Of the most certain prompt and of the ensemble, a row and a prompt at a time."""
    instance, together = [], []
    for prompts in zip(*logits, strict=True):
        lowest, predicted, total = math.inf, prompts[0].index(max(prompts[0])), [0.0] * 4
        for row in prompts:
            if not all(map(math.isfinite, row)):
                continue
            exponentials = [math.exp(logit) for logit in row]
            probabilities = [each / sum(exponentials) for each in exponentials]
            entropy = -sum(p * math.log(p) for p in probabilities)
            if entropy < lowest:
                lowest, predicted = entropy, row.index(max(row))
            total = [before + p for before, p in zip(total, probabilities, strict=True)]
        instance.append(predicted)
        together.append(total.index(max(total)))
    return instance, together


def test_predictions_of_several_prompts_are_the_slow_ones():
    """Of three prompts and four classes; some logits are not finite, and one row ties."""
    logits = 3 * torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(1))
    logits[0, :20, 1] = torch.nan
    logits[1, 10:30, 2] = torch.inf
    logits[2, 25:35, 3] = -torch.inf
    logits[2, 50] = logits[0, 50] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    instance, together = slow_predictions(logits.tolist())
    assert most_certain(logits).tolist() == instance
    assert ensemble(logits).tolist() == together
    own = logits[0].argmax(-1)
    assert 20 < (most_certain(logits) != own).sum() < 180
    assert (most_certain(logits) != ensemble(logits)).any()


def test_of_equally_certain_prompts_the_first_is_taken():
    first = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    assert most_certain(torch.stack([first, -first])).tolist() == [0, 1, 0]


def test_scores_are_recorded_and_the_search_is_the_same(in_folder, monkeypatch):
    whole = pipeline._task_rows

    def fewer(task, source: Source):
        found = whole(task, source)
        return type(found)(task=task, train=found.train, test=found.test.select(range(60)))

    monkeypatch.setattr(pipeline, "_task_rows", fewer)
    small = ["optimizer=fwa", "budget=60", "dim=40", "dev_interval=20"]
    for overrides in ([], [BOTH]):
        config, choices = composed(*small, *overrides)
        assert execute(config, choices, sweep_id="s").new
    runs = Store(f"sqlite:///{in_folder}/mlflow.db").runs()
    with_them = runs["metrics.test/prompts_mean"].notna()
    assert with_them.sum() == 1
    (one,), (other,) = (runs[which].to_dict("records") for which in (~with_them, with_them))
    same = ["test/score", "test/not_finite", "dev/selected_score", "dev/selected_at", "calls"]
    for name in (f"metrics.{each}" for each in (*same, "train/loss", "train/best")):
        assert one[name] == other[name]
    names = ("test/score", "test/prompt_natural", "test/prompt_gap3")
    scores = [other[f"metrics.{name}"] for name in names]
    assert other["metrics.test/prompts_mean"] == pytest.approx(np.mean(scores))
    assert other["metrics.test/prompts_worst"] == min(scores)
    for name in ("instance", "ensemble"):
        assert 0 <= other[f"metrics.test/prompts_{name}"] <= 1
    assert other["params.paraphrases"] == "['gap3', 'natural']"
