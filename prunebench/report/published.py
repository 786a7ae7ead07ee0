"""Published numbers beside our own, where a model and a dataset stand in published tables.

`published.csv` holds facts of the tables of arXiv 2604.16029: one number per line, with the number
of its table there; nothing in it was measured here, and it has no intervals because none were
published. Ours come from analysed rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, Cell
from prunebench.report.blocks import name
from prunebench.report.markdown import escape, row_of
from prunebench.report.numbers import MISSING, counted, measure, number, plus_minus
from prunebench.report.records import Row, replacing
from prunebench.vote import Aggregator

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2604.16029"
MODELS = {
    "qwen1.5b": "DS-Qwen-2.5-1.5B",
    "qwen7b": "DS-Qwen-2.5-7B",
    "qwen3_8b": "DS-Qwen-3-8B",
    "gpt_oss_20b": "GPT-OSS-20B",
}
DATASETS = {
    "aime24": "AIME24",
    "aime25": "AIME25",
    "brumo25": "BRUMO25",
    "hmmt25": "HMMT25",
    "gpqa": "GPQA-D",
    "gpqa_diamond": "GPQA-D",
}
METHODS = {
    NONE: "none",
    "slim_sc": "slim_sc_jaccard",
    "labor_qwen25_math_7b": "prm_labor",
    "prm_qwen25_math_7b": "prm_labor",
    "entropy": "ppl_entropy",
    "entropy_top20_renorm": "ppl_entropy",
    "entropy_top20_trunc": "ppl_entropy",
    "stop": "stop",
}
"""Our methods by the name under which a published row measured the same signal."""


@lru_cache(maxsize=1)
def facts() -> pd.DataFrame:
    """All published numbers: source_table, model, dataset, method, type, n_paths, keep,
    prefix_length, setting, measure (the unit is its last word), value."""
    import pandas as pd

    with (files("prunebench.report") / "published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"source_table": str}, keep_default_na=True)


def main_facts(model: str, dataset: str) -> Any:
    """The published main results of our model and dataset, a DataFrame: one row per method with
    avg_pct and total_tokens; empty where the model or the dataset does not stand in the tables."""
    known: Any = facts()
    of = (known["model"] == MODELS.get(model, "")) & (known["dataset"] == DATASETS.get(dataset, ""))
    keys = ["source_table", "method", "type", "n_paths", "keep", "prefix_length"]
    own = known[of & known["measure"].isin(["avg_pct", "total_tokens"])].copy()
    own["type"] = own["type"].fillna("")
    wide = own.pivot_table(
        index=keys, columns="measure", values="value", sort=False, dropna=False, observed=True
    )
    return wide.dropna(how="all").reset_index()


def published_method(cell: Cell) -> str:
    """The published name of the cell's method, or nothing. Options in brackets do not matter. Of
    the reward models only the one that was published counts."""
    return METHODS.get(cell.method.split("(")[0], "")


def same_budget(cell: Cell, fact: dict[Hashable, Any]) -> bool:
    """Our N, k and L are the published ones, and so are the best k at one checkpoint and the vote
    by majority; without pruning N is all there is."""
    names = ("n_paths",) if cell.method == NONE else ("n_paths", "keep", "prefix_length")
    plain = not cell.rule and not cell.weights and cell.aggregator is Aggregator.majority
    return plain and all(getattr(cell, name) == fact[name] for name in names)


def comparison(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row of ours whose model, dataset and method stand in the published tables.

    Returns
    -------
    frame : avg in percent, tokens per problem. `same_budget`: our N, k and L are the published
        ones (no pruning: N), without which a difference says little. `difference` = ours −
        published, percentage points, with the interval of ours.
    """
    import pandas as pd

    lines = []
    for row in rows:
        for fact in main_facts(row.cell.model, row.cell.dataset).to_dict("records"):
            if fact["method"] != published_method(row.cell):
                continue
            avg, lo, hi = (100 * v for v in measure(row.line, "avg"))
            tokens, tokens_lo, tokens_hi = measure(row.line, "total_tokens")
            ours = (row.cell.n_paths, row.cell.keep, row.cell.prefix_length)
            lines.append(
                {
                    "model": row.cell.model,
                    "dataset": row.cell.dataset,
                    "method": name(row.cell),
                    "n_paths": ours[0],
                    "keep": ours[1],
                    "prefix_length": ours[2],
                    "published_as": fact["method"],
                    "published_table": fact["source_table"],
                    "same_budget": same_budget(row.cell, fact),
                    "avg_pct": avg,
                    "avg_pct_lo": lo,
                    "avg_pct_hi": hi,
                    "published_avg_pct": fact["avg_pct"],
                    "difference": avg - fact["avg_pct"],
                    "difference_lo": lo - fact["avg_pct"],
                    "difference_hi": hi - fact["avg_pct"],
                    "total_tokens": tokens,
                    "total_tokens_lo": tokens_lo,
                    "total_tokens_hi": tokens_hi,
                    "published_total_tokens": fact["total_tokens"],
                    "reason": row.line.reason if avg != avg else "",
                }
            )
    return pd.DataFrame(lines)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `published.csv` and `published.md`; nothing where no row stands in the tables."""
    if not any(c.model in MODELS and c.dataset in DATASETS for c in (row.cell for row in rows)):
        return []
    frame = comparison(rows)
    if frame.empty:
        return []
    table, text = folder / "published.csv", folder / "published.md"
    with replacing(table) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    with replacing(text) as temporary:
        temporary.write_text(_markdown(frame), encoding="utf-8")
    return [table, text]


def _markdown(frame: Any) -> str:
    heads = ("model", "dataset", "method", "budget", "avg %", "published", "difference")
    parts = ["# Published and ours", "", row_of([*heads, "tokens", "published", "table"])]
    parts.append("|---|---|---|---|" + "--:|" * 6)
    for line in frame.to_dict("records"):
        budget = f"{line['keep']} of {line['n_paths']}, checkpoint {line['prefix_length']}"
        budget = f"{line['n_paths']} paths" if line["keep"] == line["n_paths"] else budget
        values = [
            *(escape(str(line[c])) for c in ("model", "dataset", "method")),
            budget + ("" if line["same_budget"] else " †"),
            plus_minus(_ends(line, "avg_pct"), 1, 1),
            number(line["published_avg_pct"], 1),
            plus_minus(_ends(line, "difference"), 1, 1),
            counted(_ends(line, "total_tokens")),
            counted((line["published_total_tokens"], float("nan"), float("nan"))),
            str(line["published_table"]),
        ]
        parts.append(row_of(values))
    parts += [
        "",
        f"Published numbers: {SOURCE}, in the table named; they were published without "
        "intervals. ±: half of the 95% interval of ours. Difference: ours − published.",
    ]
    if not frame["same_budget"].all():
        parts.append("\n†: another budget, rule or vote than the published one.")
    reasons = frame.loc[frame["reason"] != "", ["method", "reason"]].drop_duplicates()
    parts += [f"\n{MISSING} {escape(m)}: {escape(r)}" for m, r in reasons.itertuples(index=False)]
    return "\n".join(parts) + "\n"


def _ends(line: dict, column: str) -> tuple[float, float, float]:
    return line[column], line[f"{column}_lo"], line[f"{column}_hi"]
