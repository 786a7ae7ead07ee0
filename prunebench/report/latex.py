r"""Tables as LaTeX: booktabs through pandas, best bold, second underlined, ± intervals.

Needs `\usepackage{booktabs,graphicx}` in the document. Lays out analysed rows; `table` turns any
frame of cells into one float and knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.cells import REFERENCES
from prunebench.report.blocks import Block, at_budget, is_method, kind, legend, name, title
from prunebench.report.numbers import MISSING, measure, plus_minus
from prunebench.report.numbers import seconds as seconds_text
from prunebench.stats import Comparison

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = "% In the preamble: \\usepackage{booktabs,graphicx}\n"
TIED = "$^{=}$"
LEGEND = (
    r"Bold: best method; underlined: second; $^{=}$: not significantly worse than the best "
    r"(paired bootstrap, Holm); $\pm$: half of the 95\% interval, left out where all problems "
    r"have the same number."
)
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        "|": r"$|$",
        "±": r"$\pm$",
        "–": "--",
        "−": "$-$",
        "Δ": r"$\Delta$",
        "γ": r"$\gamma$",
        "→": r"$\rightarrow$",
        "⟨": r"$\langle$",
        "⟩": r"$\rangle$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
    }
)


@dataclass
class Footnotes:
    """Reasons, each with the letter that stands at the cells it explains."""

    reasons: dict[str, str]

    def mark(self, reason: str) -> str:
        """The letter of a reason: a, b, …, z, aa, ab, …"""
        if reason not in self.reasons:
            self.reasons[reason] = _letters(len(self.reasons))
        return self.reasons[reason]


def escape(text: str) -> str:
    """Keep LaTeX from reading a name or a reason as markup."""
    return " ".join(text.split()).translate(_ESCAPES)


def superscript(letter: str) -> str:
    return rf"$^{{\mathrm{{{letter}}}}}$"


def marks(block: Block, measured: str) -> list[tuple[str, bool]]:
    """How each row of the block is set off: ("best", "second" or "", tied with the best)."""
    comparisons: list[Comparison] = getattr(block, measured)
    others = {
        i: value
        for i, row in enumerate(block.rows)
        if is_method(row) and not comparisons[i].best
        if (value := getattr(row.line, measured)) == value
    }
    second = max(others.values(), default=None)
    return [
        ("best" if c.best else "second" if others.get(i) == second is not None else "",
         c.tied and not c.best)
        for i, c in enumerate(comparisons)
    ]  # fmt: skip


def summary(found: Sequence[Block]) -> str:
    """The text of `summary.tex`: one table per block."""
    parts = [PACKAGES]
    for number, block in enumerate(found, start=1):
        parts.append(_block(block, f"tab:summary-{number}"))
    return "\n".join(parts)


def table(
    cells: pd.DataFrame,
    weights: pd.DataFrame,
    *,
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    n_text: int = 2,
) -> str:
    """One `table*` float.

    Parameters
    ----------
    cells : LaTeX text, already escaped, as are the names of columns and of the index.
    weights : same shape, "best" (bold), "second" (underlined) or "".
    notes : lines below the table, already escaped.
    n_text : the first columns (of index and body together) that are set flush left.
    """
    wraps = {"best": "textbf: --rwrap;", "second": "underline: --rwrap;", "": ""}
    styler = cells.style.apply(lambda _: weights.map(wraps.__getitem__), axis=None)
    n_index = cells.index.nlevels if any(cells.index.names) else 0
    if not n_index:
        styler = styler.hide(axis="index")
    width = n_index + len(cells.columns)
    text = styler.to_latex(
        hrules=True,
        column_format="l" * n_text + "r" * (width - n_text),
        caption=caption,
        label=label,
        position="tbp",
        environment="table*",
        multicol_align="c",
        multirow_align="naive",
    )
    fit = r"\centering\footnotesize\setlength{\tabcolsep}{4pt}" + "\n"
    fit += r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" + "\n"
    end = "\\end{tabular}}\n" + "".join(rf"\par\scriptsize {note}" + "\n" for note in notes)
    text = text.replace(r"\begin{tabular}", fit + r"\begin{tabular}", 1)
    return text.replace("\\end{tabular}\n", end, 1)


def _block(block: Block, label: str) -> str:
    import pandas as pd

    footnotes = Footnotes({})
    avg_name, cons_name = (at_budget(measured, block.cell) for measured in ("avg", "cons"))
    columns = [
        *("method", "type", f"{avg_name} %", f"{cons_name} %", "generator tokens"),
        *("verifier tokens", "saved %", "AUROC within", "headroom %", "score s"),
    ]
    body, weights = [], []
    for row, avg, cons in zip(block.rows, marks(block, "avg"), marks(block, "cons"), strict=True):
        line = row.line
        values = [
            plus_minus(measure(line, "avg"), 100, 1),
            plus_minus(measure(line, "cons"), 100, 1),
            plus_minus(measure(line, "generator_tokens"), 1, 0),
            plus_minus(measure(line, "verifier_tokens"), 1, 0),
            plus_minus(measure(line, "token_reduction_pct"), 1, 1),
            plus_minus(measure(line, "auroc_within"), 1, 2),
            plus_minus(measure(line, "headroom"), 100, 1),
            seconds_text(measure(line, "score_seconds")),
        ]
        control = "no signal is scored" if row.cell.method in REFERENCES else ""
        reason = control or line.reason or "not measured"
        texts = [
            escape(v) + (superscript(footnotes.mark(reason)) if v == MISSING else "")
            for v in values
        ]
        for i, (_, tied) in enumerate((avg, cons)):
            texts[i] += TIED if tied else ""
        body.append([escape(name(row.cell)), kind(row.cell), *texts])
        weights.append(["", "", avg[0], cons[0], *[""] * (len(values) - 2)])
    header = [escape(c) for c in columns]
    return table(
        pd.DataFrame(body, columns=header),
        pd.DataFrame(weights, columns=header),
        caption=escape(title(block.cell, keep=True)) + ". Tokens and seconds per problem.",
        label=label,
        notes=[legend(LEGEND, block.rows), *notes_of(footnotes)],
    )


def notes_of(footnotes: Footnotes) -> list[str]:
    """The lines that explain the letters."""
    return [f"{superscript(letter)} {escape(r)}." for r, letter in footnotes.reasons.items()]


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
