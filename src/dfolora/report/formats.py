"""Writes grids as Markdown and LaTeX; each escapes text that comes from data."""

import re
from collections.abc import Sequence

from dfolora.report.grid import Grid

MARKDOWN = re.compile(r"[\\`\[|~]|\*(?=\S)|(?<![^\W_])_(?=\S)|&(?=#?\w+;)")
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


def markdown(grid: Grid, level: int = 1) -> str:
    """Write a heading, the table and its caption.

    Args:
        grid: The table.
        level: The heading's level.
    """
    texts = [[plain(text) for text in row] for row in (grid.header, *grid.rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    rule = ["-" * width for width in widths]
    body = "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in [texts[0], rule, *texts[1:]]
    )
    caption = "".join(f"\n{plain(paragraph)}\n" for paragraph in grid.caption)
    return f"{'#' * level} {plain(grid.title)}\n\n{body}\n{caption}"


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
            _row(grid.header),
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
            _row(grid.header),
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


def _row(texts: Sequence[str]) -> str:
    # Braces keep a cell that begins with [ or * from being taken for an option of the last row.
    return " & ".join(f"{{{escaped(text)}}}" for text in texts) + r" \\"


def _body(grid: Grid) -> Sequence[str]:
    """The rows, with a rule where the first column's group changes."""
    lines: list[str] = []
    grouped = grid.header.index("#Params") > 1 if "#Params" in grid.header else False
    for above, row in zip([None, *grid.rows], grid.rows, strict=False):
        if grouped and above is not None and above[0] != row[0]:
            lines.append(r"\midrule")
        lines.append(_row(row))
    return lines
