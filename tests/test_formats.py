"""Markdown and LaTeX of a table: escaped, and LaTeX compiled where it is installed."""

import shutil
import subprocess

import pytest

from dfolora.report import Grid
from dfolora.report.formats import escaped, latex, long_latex, markdown

HOSTILE = r"100% of $x_1^2$ & {a}\b #1 ~ <i>|* é — ☃"
GRID = Grid(
    title="A table of 5 % & more",
    header=["Model", "Method", "#Params", "SST-2", "Avg."],
    rows=[
        ["gpt2", HOSTILE, "1,500", "85.00 (7.07)", "73.50*"],
        ["gpt2", "[C-LoRA]", "0", "—", "—"],
        ["gpt2-xl", "F_LoRA", "0", "n/a", "— (1/2)"],
    ],
    caption=HOSTILE,
)
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx,longtable}
\begin{document}
%s
See Table~\ref{tab:table1}.
\end{document}
"""


def test_markdown_keeps_its_columns():
    lines = markdown(GRID).splitlines()
    assert lines[0] == "# A table of 5 % & more"
    assert len({len(line) for line in lines[2:7]}) == 1  # aligned
    assert [line.replace("\\|", "").count("|") for line in lines[2:7]] == [6] * 5
    assert "<i>" not in lines[4]
    assert markdown(GRID, level=2).startswith("## A table")


def test_latex_is_as_written_by_hand():
    grid = Grid(title="A & B", header=["Method", "#Params"], rows=[["C_1", "5"]], caption="10 %.")
    assert latex(grid, "tab:x").splitlines() == [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B. 10 \%.}",
        r"\label{tab:x}",
        r"\resizebox{\textwidth}{!}{%",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"{Method} & {\#Params} \\",
        r"\midrule",
        r"{C\_1} & {5} \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def test_groups_are_ruled_off():
    lines = latex(GRID, "tab:x").splitlines()
    assert lines.count(r"\midrule") == 2
    assert lines[lines.index(r"\midrule", lines.index(r"\midrule") + 1) + 1].startswith("{gpt2-xl}")


def test_every_special_character_is_escaped():
    assert escaped(r"a_b\c{}") == r"a\_b\textbackslash{}c\{\}"
    assert escaped("é☃—") == "??---"
    assert escaped("50 % & #1 $2") == r"50 \% \& \#1 \$2"


@pytest.mark.parametrize("engine", ["pdflatex"])
def test_latex_compiles(tmp_path, engine):
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed (Debian: texlive-latex-recommended)")
    rows = [[*row[:2], *row[2:]] for row in GRID.rows] * 40  # more than a page
    long = Grid(title=GRID.title, header=GRID.header, rows=rows, caption=GRID.caption)
    text = f"{latex(GRID, 'tab:table1')}\n{long_latex(long)}"
    (tmp_path / "report.tex").write_text(DOCUMENT.replace("%s", text), encoding="utf-8")
    for _ in range(2):  # the second resolves the reference
        done = subprocess.run(
            [engine, "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
            cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 1000
    assert "undefined" not in done.stdout.lower()
