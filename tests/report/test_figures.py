"""Pictures of tables: what is drawn, read off the figure's own data."""

from dataclasses import replace

import pandas as pd
import pytest

from dfolora.report import Groups, Picture
from dfolora.report.figures import draw, save
from tests.reporting import RUNS, SPEC, run, table

BARS = replace(SPEC, picture=Picture(kind="bars"))
LINES = replace(
    SPEC,
    constants={},
    rows=SPEC.rows[1:],
    groups=Groups(tag="dim", title="d", values=[48, 500]),
    picture=Picture(kind="lines", x_title="d", log_x=True),
)
CURVES = replace(SPEC, constants={}, rows=SPEC.rows[1:], picture=Picture(kind="curves"))


def test_bars_are_the_averages_and_holes_stay_empty():
    figure = draw(table(*RUNS, spec=BARS), {})
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A table"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Manual prompt", "C-LoRA", "F-LoRA",
    ]  # fmt: skip
    assert [bar.get_width() for bar in axes.patches] == [62.5, 73.5]  # F-LoRA has no average
    assert [text.get_text().strip() for text in axes.texts] == ["62.50", "73.50", "—"]
    assert axes.get_legend_handles_labels()[1] == ["Majority class"]


def test_lines_have_a_point_a_group_with_its_deviation():
    runs = [
        run(task, seed, score, dim=dim)
        for task in ("sst2", "mrpc")
        for dim, scores in (("48", (0.6, 0.7)), ("500", (0.8, 0.8)))
        for seed, score in zip((8, 13), scores, strict=True)
        if (task, dim, seed) != ("mrpc", "48", 13)
    ]
    sst2, mrpc = draw(table(*runs, spec=LINES), {}).axes
    assert (sst2.get_title(), mrpc.get_title()) == ("SST-2", "MRPC")
    bars, empty = sst2.containers
    line, _, (deviations,) = bars
    assert line.get_xdata().tolist() == [48, 500]
    assert line.get_ydata() == pytest.approx([65, 80])
    (low, high), (same, too) = (segment[:, 1] for segment in deviations.get_segments())
    assert (high - low) / 2 == pytest.approx(50**0.5)  # sqrt(2 * 5^2 / (2 - 1))
    assert same == too == 80
    assert list(empty[0].get_xdata()) == []  # F-LoRA has no runs
    assert mrpc.containers[0][0].get_xdata().tolist() == [500]  # at 48 a seed is missing
    assert [tick.get_text() for tick in sst2.get_xticklabels()] == ["48", "500"]


def points(*given):
    return pd.DataFrame(given, columns=["run_id", "step", "seconds", "value"])


def test_curves_are_means_over_seeds_where_all_have_begun():
    runs = [run("sst2", 8, 0.8), run("sst2", 13, 0.9), run("sst2", 8, 0.8, optimizer="fwa")]
    built = table(*runs, spec=CURVES)
    losses = points(
        ("sst2-cma-8", 1, 0.5, 0.8), ("sst2-cma-8", 21, 1.0, 0.4),
        ("sst2-cma-13", 11, 0.7, 0.6), ("sst2-cma-13", 31, 2.0, 0.2),
        ("sst2-fwa-8", 1, 0.1, 0.1),
    )  # fmt: skip
    against_calls, against_seconds, *scores = draw(built, {"train/loss": losses}).axes
    (line,) = against_calls.get_lines()  # F-LoRA lacks a seed
    assert line.get_label() == "C-LoRA"
    assert line.get_xdata().tolist() == [11, 21, 31]
    # The first seed has 0.8 at 11, 0.4 from 21 on; the second 0.6, and 0.2 at 31.
    assert line.get_ydata() == pytest.approx([0.7, 0.5, 0.3])
    (line,) = against_seconds.get_lines()
    assert line.get_xdata().tolist() == [0.7, 1.0, 2.0]
    assert not any(axes.get_lines() for axes in scores)


def test_curve_of_one_point_is_seen():
    losses = points(("sst2-cma-8", 1, 0.5, 0.8), ("sst2-cma-13", 1, 0.5, 0.6))
    runs = [run("sst2", 8, 0.8), run("sst2", 13, 0.9)]
    against_calls, *_ = draw(table(*runs, spec=CURVES), {"train/loss": losses}).axes
    (line,) = against_calls.get_lines()
    assert line.get_marker() == "o"
    assert line.get_ydata().tolist() == pytest.approx([0.7])


def test_curve_of_a_seed_without_points_is_no_mean_of_the_others():
    runs = [run("sst2", 8, 0.8), run("sst2", 13, 0.9)]
    losses = points(("sst2-cma-8", 1, 0.5, 0.8))
    figure = draw(table(*runs, spec=CURVES), {"train/loss": losses})
    assert not any(axes.get_lines() for axes in figure.axes)
    assert figure.legends == []


def test_curves_show_the_best_so_far_each_of_its_own_kind_with_one_legend():
    runs = [run("sst2", 8, 0.8), run("sst2", 13, 0.9)]
    there_and_back = points(
        ("sst2-cma-8", 1, 0.1, 0.6), ("sst2-cma-8", 2, 0.2, 0.8), ("sst2-cma-8", 3, 0.3, 0.4),
        ("sst2-cma-13", 1, 0.1, 0.6), ("sst2-cma-13", 2, 0.2, 0.4), ("sst2-cma-13", 3, 0.3, 0.8),
    )  # fmt: skip
    curves = {"train/loss": there_and_back, "dev/score": there_and_back}
    figure = draw(table(*runs, spec=CURVES), curves)
    losses, _, scores, _ = figure.axes
    # Lowest: 0.6, 0.6, 0.4 and 0.6, 0.4, 0.4; highest: 0.6, 0.8, 0.8 and 0.6, 0.6, 0.8.
    assert losses.get_lines()[0].get_ydata() == pytest.approx([0.6, 0.5, 0.4])
    assert scores.get_lines()[0].get_ydata() == pytest.approx([0.6, 0.7, 0.8])
    (band,) = losses.collections  # at 2 the deviation is sqrt(2 * 0.1^2)
    edges = band.get_paths()[0].vertices[:, 1].round(6)
    assert {0.358579, 0.641421} <= set(edges)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["C-LoRA"]


def test_files_are_the_same_each_time_and_hold_labels_as_they_are(tmp_path):
    rows = [replace(SPEC.rows[1], label="$x^ <b>")]  # neither a formula nor markup
    built = table(*RUNS, spec=replace(BARS, rows=rows))
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        save(draw(built, {}), folder / "figure")
    svg = (tmp_path / "a" / "figure.svg").read_bytes()
    assert svg == (tmp_path / "b" / "figure.svg").read_bytes()
    assert b"<b>" not in svg
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
