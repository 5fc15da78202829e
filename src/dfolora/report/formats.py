"""Writes grids as Markdown and LaTeX; each escapes text that comes from data."""

import re
from collections.abc import Iterator, Mapping, Sequence

from dfolora.report.grid import Grid

MARKDOWN = re.compile(r"[\\`\[|~*]|(?<![^\W_])_(?=\S)|&(?=#?\w+;)")
"""What begins markup in Markdown, except ``<``, which not every reader lets a backslash escape."""
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "—": "---",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "†": r"$\dagger$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
IN_MARKDOWN = {"": "{}", "best": "**{}**", "near": "<ins>{}</ins>"}
IN_LATEX = {"": "{{{}}}", "best": r"{{\textbf{{{}}}}}", "near": r"{{\underline{{{}}}}}"}
"""How a text is marked by its lead. GitHub keeps ``<ins>``, which it underlines, and drops ``<u>``;
braces keep what begins with [ or * from being taken for an option of LaTeX's last row."""


def markdown(grid: Grid, level: int = 1) -> str:
    """Write a heading, the table and its caption.

    Args:
        grid: The table.
        level: The heading's level.
    """
    header, *rows = [[plain(text) for text in row] for row in (grid.header, *grid.rows)]
    body, empty = list[Sequence[str]](), [""] * (len(header) - 1)
    for number, (row, leads) in enumerate(zip(rows, _leads(grid), strict=True)):
        if heading := grid.blocks.get(number):
            body.append([f"**{plain(heading)}**", *empty])
        body.append(_marked(row, leads, IN_MARKDOWN))
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rule = ["-" * width for width in widths]
    table = "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in [header, rule, *body]
    )
    caption = "".join(f"\n{plain(paragraph)}\n" for paragraph in grid.caption)
    return f"{'#' * level} {plain(grid.title)}\n\n{table}\n{caption}"


def plain(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.splitlines())).replace("<", "&lt;")


def latex(grid: Grid, label: str) -> str:
    """Write a ``table`` with booktabs rules, as wide as the text.

    The caption's first paragraph is LaTeX's; the others stand below the table.

    Args:
        grid: The table.
        label: To refer to it by.
    """
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_captioned(grid)}}}",
            rf"\label{{{label}}}",
            r"\par\smallskip",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{_alignment(grid)}}}",
            r"\toprule",
            _header(grid),
            r"\midrule",
            *_body(grid),
            r"\bottomrule",
            r"\end{tabular}}",
            *_notes(grid),
            r"\end{table}",
            "",
        ]
    )


def long_latex(grid: Grid) -> str:
    """Write a ``longtable``, which breaks over pages.

    Args:
        grid: The table.
    """
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,longtable}.",
            r"\begingroup\scriptsize\setlength{\tabcolsep}{2pt}",
            rf"\begin{{longtable}}{{{_alignment(grid)}}}",
            rf"\caption{{{_captioned(grid)}}}\\",
            r"\toprule",
            _header(grid),
            r"\midrule",
            r"\endhead",
            *_body(grid),
            r"\bottomrule",
            r"\end{longtable}",
            *_notes(grid),
            r"\endgroup",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Escape a text for LaTeX, on one line; a question mark for what its fonts may lack."""
    line = " ".join(text.splitlines())
    known = "".join(
        c if (c.isascii() and c.isprintable()) or ord(c) in LATEX else "?" for c in line
    )
    return known.translate(LATEX)


def _captioned(grid: Grid) -> str:
    """Title and first paragraph; LaTeX numbers tables and figures itself."""
    title = re.sub(r"^(Table|Figure) \d+\. ", "", grid.title)
    return escaped(" ".join([f"{title}.", *grid.caption[:1]]))


def _notes(grid: Grid) -> Sequence[str]:
    """The other paragraphs of the caption, below the table."""
    notes = [escaped(paragraph) for paragraph in grid.caption[1:]]
    return [
        rf"\par\medskip\noindent\parbox{{\textwidth}}{{\footnotesize {note}}}" for note in notes
    ]


def _alignment(grid: Grid) -> str:
    """Text is aligned left, numbers right."""
    first = next((i for i, title in enumerate(grid.header) if title == "#Params"), None)
    texts = len(grid.header) if first is None else first
    return "l" * texts + "r" * (len(grid.header) - texts)


def _row(texts: Sequence[str], leads: Sequence[str]) -> str:
    return " & ".join(_marked([*map(escaped, texts)], leads, IN_LATEX)) + r" \\"


def _header(grid: Grid) -> str:
    return _row(grid.header, [""] * len(grid.header))


def _body(grid: Grid) -> Iterator[str]:
    """The rows, with a rule between blocks, and their headings."""
    for number, (row, leads) in enumerate(zip(grid.rows, _leads(grid), strict=True)):
        if number and number in grid.blocks:
            yield r"\midrule"
        if heading := grid.blocks.get(number):
            yield rf"\multicolumn{{{len(row)}}}{{l}}{{\emph{{{escaped(heading)}}}}} \\"
        yield _row(row, leads)


def _leads(grid: Grid) -> Sequence[Sequence[str]]:
    return grid.leads or [[""] * len(row) for row in grid.rows]


def _marked(texts: Sequence[str], leads: Sequence[str], marks: Mapping[str, str]) -> Sequence[str]:
    return [marks[lead].format(text) for text, lead in zip(texts, leads, strict=True)]
