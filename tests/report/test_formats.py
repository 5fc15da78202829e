"""Markdown and LaTeX of a table: escaped, and LaTeX compiled where it is installed."""

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dfolora.report import Grid
from dfolora.report.formats import escaped, latex, long_latex, markdown

HOSTILE = r"100% of $x_1^2$ & {a}\b #1 ~ <i>|* é — ☃"
GRID = Grid(
    title="A table of 5 % & more",
    header=["Model", "Method", "#Params", "SST-2", "Avg."],
    rows=[
        ["gpt2", HOSTILE, "1,500", "85.00 (7.07)", "73.50↓"],
        ["gpt2", "[C-LoRA]", "0", "—", "—"],
        ["gpt2-xl", "F_LoRA", "0", "n/a", "— (1/2)"],
    ],
    caption=[HOSTILE, HOSTILE],
    blocks={0: HOSTILE, 2: ""},
    leads=[["", "", "", "best", "near"], ["", "", "", "", ""], ["", "near", "", "", "best"]],
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
    assert len({len(line) for line in lines[2:8]}) == 1  # aligned
    assert [line.replace("\\|", "").count("|") for line in lines[2:8]] == [6] * 6
    assert not [line for line in lines if "<i>" in line]
    assert markdown(GRID, level=2).startswith("## A table")


def test_latex_is_as_written_by_hand():
    grid = Grid(
        title="Table 9. A & B",
        header=["Method", "#Params"],
        rows=[["C_1", "5"]],
        caption=["10 %.", "A note_", "[1] Another."],
    )
    assert latex(grid, "tab:x").splitlines() == [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B. 10 \%.}",
        r"\label{tab:x}",
        r"\par\smallskip",
        r"\resizebox{\textwidth}{!}{%",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"{Method} & {\#Params} \\",
        r"\midrule",
        r"{C\_1} & {5} \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\medskip\noindent\parbox{\textwidth}{\footnotesize A note\_}",
        r"\par\medskip\noindent\parbox{\textwidth}{\footnotesize [1] Another.}",
        r"\end{table}",
    ]


def test_groups_are_ruled_off():
    lines = latex(GRID, "tab:x").splitlines()
    assert lines.count(r"\midrule") == 2
    assert lines[lines.index(r"\midrule", lines.index(r"\midrule") + 1) + 1].startswith("{gpt2-xl}")


def test_rows_without_groups_are_not_ruled_off():
    grid = replace(GRID, blocks={})
    assert latex(grid, "tab:x").splitlines().count(r"\midrule") == 1


def test_every_special_character_is_escaped():
    assert escaped(r"a_b\c{}") == r"a\_b\textbackslash{}c\{\}"
    assert escaped("é☃—↑↓") == r"??---$\uparrow$$\downarrow$"
    assert escaped("50 % & #1 $2") == r"50 \% \& \#1 \$2"
    assert escaped("a\n\nb\tc\0") == "a  b?c?"  # an empty line would end a caption


def test_markdown_shows_every_text_as_it_is():
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    reader.enable(["table", "strikethrough"])
    texts = [
        HOSTILE,
        "[a](javascript:alert(1)) ![b](c) [d]: e",
        "*a* **b** _c_ __d__ ~~e~~ `f` d_e_f",
        "<script>alert(1)</script> <http://x> &lt; &#60; a & b",
        r"\| \< \[ a|b \\",
    ]
    grid = Grid(title=texts[1], header=texts, rows=[texts], caption=[" ".join(texts)])
    page = Read(reader.render(markdown(grid)))
    tags = {"h1", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert set(page.tags) == tags
    assert page.texts == [texts[1], *texts, *texts, " ".join(texts)]
    marked = replace(grid, blocks={0: texts[2]}, leads=[["best", "near", "best", "near", "best"]])
    page = Read(reader.render(markdown(marked)))
    assert (set(page.tags), page.tags.count("strong")) == (tags | {"strong", "ins"}, 4)
    assert page.texts == [texts[1], *texts, texts[2], *texts, " ".join(texts)]
    assert markdown(Grid(title="a\n# b", header=["c\nd"], rows=[])).splitlines()[0] == "# a # b"


class Read(HTMLParser):
    """Tags of a page, and the text of each that has some."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)
        self.texts = [text for text in self.texts if text.strip()]

    def handle_starttag(self, tag, _attributes):
        self.tags.append(tag)

    def handle_data(self, text):
        self.texts.append(text)


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
