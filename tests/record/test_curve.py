"""A picture is written, whatever the losses."""

import math

import numpy as np
import pytest

from dfolora.methods import Progress
from dfolora.record.curve import Curve, save_fitness_curve
from dfolora.search.loop import Generation
from dfolora.search.selection import DevPoint


def step(calls, losses, *, loss=0.5, dev=None):
    look = None
    if dev is not None:
        look = DevPoint(calls=calls, score=dev, loss=0.5, solution=np.zeros((2, 3)))
    shown = Generation(
        block=0,
        calls=calls,
        candidates=np.zeros((len(losses), 3)),
        losses=np.array(losses),
        solution=np.zeros((2, 3)),
        loss=loss,
        step_size=1.0,
        last=False,
    )
    return Progress(step=shown, looks=[look] if look else [], selected=look)


def curve(steps):
    drawn = Curve()
    for each in steps:
        drawn.add(each, each.step.calls / 10)
    return drawn


@pytest.mark.parametrize(
    "steps",
    [
        [step(1, [0.7], dev=0.5), step(21, [0.6, 0.5]), step(41, [0.4, 0.6], dev=0.75)],
        [step(1, [0.7]), step(21, [0.6, 0.5])],
        [step(1, [0.7])],
        [step(1, [0.7], dev=0.5), step(21, [math.inf, math.inf]), step(41, [0.4, math.inf])],
        [step(20, [math.inf, math.inf], loss=math.nan)],
    ],
    ids=["usual", "no looks", "one generation", "infinite losses", "nothing finite"],
)
def test_png_of_the_stated_size_is_written(tmp_path, steps):
    path = tmp_path / "fitness.png"
    save_fitness_curve(path, curve(steps), "sst2-$mini^$-dfo_lora")  # no formula
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (700, 400)


def test_other_losses_give_another_picture(tmp_path):
    for name, loss in (("a.png", 0.4), ("b.png", 0.3)):
        save_fitness_curve(tmp_path / name, curve([step(1, [0.7]), step(21, [loss])]), "title")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_losses_that_are_no_number_are_counted():
    steps = [step(2, [0.7, math.inf]), step(4, [math.nan, -math.inf]), step(6, [0.4, 0.3])]
    assert curve(steps).not_finite == 3


def test_best_is_the_first_look_with_the_highest_score():
    drawn = curve([step(1, [0.7], dev=0.5), step(21, [0.6], dev=0.75), step(41, [0.5], dev=0.75)])
    assert (drawn.best_at, drawn.best_s) == (21, 2.1)
    assert math.isnan(curve([step(1, [0.7])]).best_s)
