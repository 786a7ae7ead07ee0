"""The HTML report, in a real browser: what it shows, by keyboard and on a narrow screen, with texts
that try to be markup, and with long paths."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunebench import samples
from prunebench.backends.fake import FakeBackend
from prunebench.cells import Cell
from prunebench.errors import ConfigError, DamagedFile
from prunebench.evaluate import ProblemPool, Status, draw_subsets, evaluate_problem
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.report import pieces, records
from prunebench.report.blocks import LABELS
from prunebench.report.html import in_script, write_html
from prunebench.types import Problem, SignalType, TokenStats, Trace

pytestmark = pytest.mark.pictures

BANK, N, KEEP, L = "b1", 16, 4, 32
METHODS = {"strong": SignalType.IV, "twin": SignalType.III}
HOSTILE = [
    "<b>bold</b><img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "<!-- <script> --> &lt;b&gt; {{data}} {{pieces}} $& $1 \\u003c",
    "line\u2028separator\u2029and\x00\x07\x1b controls \x7f",
    "שלום עולם \u202eevil\u202c العربية",
    "😀 astral 𝒳 e\u0301 👩‍👩‍👧",
]
MB = 1e6


@dataclass
class Case:
    """What `write_html` takes."""

    rows: list[records.Row]
    paths: pd.DataFrame
    traces: list[Path]
    traced: list[dict[str, Any]]

    def write(self, folder: Path, **options: Any) -> Path:
        facts = [
            {"run_id": "r1", "config": {"n_paths": N, "evil": HOSTILE[1]}, "notes": ["a note"]}
        ]
        options = {"figures": [], "facts": facts, **options}
        return write_html(
            self.rows,
            self.paths,
            self.traces,
            options.pop("figures"),
            folder,
            options.pop("facts"),
            **options,
        )


def words(rng: np.random.Generator, n_tokens: int) -> list[str]:
    """Tokens of a text: words of made-up lengths, with a line end now and then."""
    stock = [" so", " we", " need", " x", "=", "12", " wait", ",", " therefore", " sum", " check"]
    tokens = [stock[i] for i in rng.integers(len(stock), size=n_tokens)]
    for i in np.flatnonzero(rng.random(n_tokens) < 0.02):
        tokens[i] = ".\n"
    return tokens


def case(
    folder: Path,
    *,
    n_problems: int = 3,
    n_paths: int = N,
    n_tokens: int = 90,
    texts: list[str] | None = None,
    keeps: tuple[int, ...] = (KEEP,),
    pool: int | None = None,
) -> Case:
    """Problems with made-up paths, scored by two methods. `texts` replace the first tokens of the
    first paths."""
    rng = np.random.default_rng(0)
    pool = pool or n_paths
    found, scores, traced = [], [], []
    stock = words(rng, 2 * n_tokens)
    sizes = np.array([len(token) for token in stock], dtype=np.uint32)
    for p in range(n_problems):
        lengths = rng.integers(n_tokens // 2, n_tokens + 1, size=pool)
        lengths[:3] = n_tokens, L - 5, n_tokens
        correct = rng.random(pool) < 0.5
        codes = np.where(correct, 0, rng.integers(1, 4, size=pool))
        own = ProblemPool(
            problem_id=f"p{p}",
            indices=np.arange(pool),
            lengths=lengths,
            stopped=np.ones(pool, dtype=bool),
            codes=codes,
            correct=correct,
            answers=["1", "2", "3", HOSTILE[0]],
        )
        found.append(own)
        for method, kind in METHODS.items():
            values = rng.normal(size=pool) + 2 * correct
            values[3] = np.nan
            scores += [
                {
                    **{"run_id": "r1", "bank": BANK, "model": "tiny", "dataset": "arithmetic"},
                    **{"method": method, "type": str(kind), "seed": 0, "prefix_length": L},
                    **{"config": "c0", "n_paths": 0, "rule": ""},
                    **{"probability": False, "problem_id": own.problem_id, "index": i},
                    **{"score": None if np.isnan(values[i]) else values[i]},
                    **{"n_tokens": lengths[i], "stopped": True, "correct": bool(correct[i])},
                    "answer": own.answers[codes[i]],
                }
                for i in range(pool)
            ]
        for i, n in enumerate(lengths):
            at = int(rng.integers(n_tokens))
            tokens, own_sizes = stock[at : at + n], sizes[at : at + n].copy()
            if texts and i < len(texts):
                tokens[0], own_sizes[0] = texts[i], len(texts[i])
            traced.append(
                {
                    **{"problem_id": own.problem_id, "index": i, "n_tokens": int(n)},
                    **{"question": f"{HOSTILE[0]} {p} + 1?", "gold": "1", "text": "".join(tokens)},
                    "pieces": own_sizes,
                    "confidence": rng.integers(0, 256, size=n, dtype=np.uint8),
                }
            )
    frame = pd.DataFrame(scores)
    rows = [row for keep in keeps for row in rows_of(found, frame, keep, n_paths)]
    file = folder / "traces" / f"{BANK}.parquet"
    pieces.write_traces(file, traced, {"bank": BANK, "model": "tiny", "dataset": "arithmetic"})
    return Case(records.analyse(records.frame(rows)), frame, [file], traced)


def rows_of(
    pools: list[ProblemPool], scores: pd.DataFrame, keep: int, n_paths: int
) -> list[dict[str, Any]]:
    rows = []
    for method, kind in METHODS.items():
        cell = Cell(
            run_id="r1",
            bank=BANK,
            model="tiny",
            dataset="arithmetic",
            method=method,
            type=kind,
            mode="replay",
            n_paths=n_paths,
            keep=keep,
            prefix_length=L,
        )
        for i, pool in enumerate(pools):
            own = scores[(scores["method"] == method) & (scores["problem_id"] == pool.problem_id)]
            subsets = draw_subsets(len(pool.indices), n_paths, 4, np.random.default_rng(i))
            values = own["score"].to_numpy(dtype=np.float64)[subsets]
            options = {"keep": keep, "prefix_length": L}
            rng = np.random.default_rng(i)
            for where, result in (
                (cell, evaluate_problem(pool, subsets, values, **options)),
                (cell.reference("none"), no_pruning(pool, subsets, prefix_length=L)),
                (cell.reference("random"), random_pruning(pool, subsets, **options, rng=rng)),
                (cell.reference("oracle"), oracle_pruning(pool, subsets, **options)),
            ):
                rows.append(records.record(where, result))
    broken = Cell(**{**vars(cell), "method": "broken<i>", "run_id": "b"})
    rows.append(records.failed_record(broken, Status.SKIPPED, "needs </script> an endpoint"))
    return rows


# ---- pieces of texts


def trace(text: str | None, ids: list[int] | None, logprobs: list[float] | None = None) -> Any:
    stats = TokenStats(logprobs=None if logprobs is None else np.array(logprobs, np.float32))
    return Trace(
        index=0,
        token_ids=None if ids is None else np.array(ids, dtype=np.int32),
        text=text,
        length=3 if ids is None else None,
        stats=stats,
        stopped=True,
        answer=None,
        correct=False,
    )


def pieces_of(text: str, ids: list[int], decode: pieces.Decode) -> list[int] | None:
    row = pieces.trace_rows(samples.PROBLEM, [trace(text, ids)], decode)[0]
    return None if row["pieces"] is None else row["pieces"].tolist()


def test_a_character_spread_over_tokens_belongs_to_the_last_of_them():
    decode = FakeBackend().decode  # one token per byte, 256 ends the text
    text = "aé€😀\n"
    ids = [*text.encode(), 256]
    assert pieces_of(text, ids, decode) == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0]


def test_a_text_cut_within_a_character_and_broken_bytes():
    decode = FakeBackend().decode
    for data in ("ab€".encode()[:-1], b"a\xff\xfeb", b"\xf0\x9f\x98", b"\xe2\x82a\xe2\x82\xac"):
        text = decode(np.frombuffer(data, dtype=np.uint8))
        found = pieces_of(text, list(data), decode)
        assert found is not None
        assert sum(found) == len(text)


def test_blanks_that_a_tokenizer_drops_at_a_beginning_are_found():
    stock = ["▁so", "▁", "x", "▁we", "\n", "▁so"]

    def decode(ids: np.ndarray) -> str:  # as sentencepiece does
        return "".join(stock[i] for i in ids).replace("▁", " ").removeprefix(" ")

    ids = list(range(6))
    assert pieces_of("so x we\n so", ids, decode) == [2, 0, 2, 3, 1, 3]


def test_headers_that_become_tags_are_found_by_looking_back():
    from prunebench.backends._harmony import plain

    stock = ["<|channel|>", "analysis", "<|message|>", "Let", " me", " see", ".", "<|end|>"]
    stock += ["<|start|>", "assistant", "final", " 42", " it", " is", ", yes", " really", " so"]
    ids = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10, 2, 11, 12, 13, 14, 15, 16, 11]

    def decode(ids: np.ndarray) -> str:
        return plain("".join(stock[i] for i in ids))

    text = decode(np.array(ids))
    found = pieces_of(text, ids, decode)
    exact = [len(decode(np.array(ids[: i + 1]))) for i in range(len(ids))]
    assert np.cumsum(found or []).tolist() == exact  # of every prefix, decoded anew


def test_no_pieces_when_tokens_do_not_give_the_text_or_are_not_there():
    decode = FakeBackend().decode
    assert pieces_of("another text", list(b"this text"), decode) is None
    assert pieces_of("longer", list(b"long"), decode) is None
    assert pieces_of("", [256], decode) == [0]
    row = pieces.trace_rows(samples.PROBLEM, [trace("abc", None)], decode)[0]
    assert row["text"] == "abc"
    assert row["pieces"] is None
    assert row["n_tokens"] == 3


def test_imported_paths_bring_their_pieces_or_have_no_text():
    decode = FakeBackend().decode
    told = replace(trace("abc", None), pieces=np.array([1, 0, 2], dtype=np.int32))
    wrong = replace(told, pieces=np.array([1, 0, 1], dtype=np.int32))
    silent = replace(told, text=None)
    rows = pieces.trace_rows(samples.PROBLEM, [told, wrong, silent], decode)
    assert rows[0]["pieces"].tolist() == [1, 0, 2]
    assert all(row["pieces"] is None for row in rows[1:])
    assert [row["text"] for row in rows] == ["abc", "abc", None]


def test_confidence_is_the_probability_of_the_sampled_token():
    decode = FakeBackend().decode
    given = [np.log(p) for p in (1.0, 0.6, 0.2, 1e-9)]
    row = pieces.trace_rows(samples.PROBLEM, [trace("abcd", list(b"abcd"), given)], decode)[0]
    assert row["confidence"].tolist() == [255, 153, 51, 0]
    holes = [0.0, float("nan")]
    row = pieces.trace_rows(samples.PROBLEM, [trace("ab", list(b"ab"), holes)], decode)[0]
    assert row["confidence"] == [255, None]
    assert (
        pieces.trace_rows(samples.PROBLEM, [trace("ab", list(b"ab"))], decode)[0]["confidence"]
        is None
    )


def test_traces_come_back_from_a_file(tmp_path: Path):
    problem = Problem(id="p", question="1 + \ud800 1?", answer="2")
    rows = pieces.trace_rows(problem, [trace("a\ud83db", None)], FakeBackend().decode)
    rows += pieces.trace_rows(problem, samples.varied(), samples.decode)
    rows += pieces.trace_rows(
        Problem(id="q", question="?", answer="3"), samples.varied(), samples.decode
    )
    file = tmp_path / "traces" / "b.parquet"
    pieces.write_traces(file, rows, {"bank": "b", "model": "m", "dataset": "d"})
    meta, problems = pieces.read_traces(file)
    assert meta == {"bank": "b", "model": "m", "dataset": "d"}
    groups = list(problems)
    assert [group[0]["problem_id"] for group in groups] == ["p", "q"]
    back = [row for group in groups for row in group]
    assert len(back) == len(rows)
    for old, new in zip(rows, back, strict=True):
        assert new["question"] in ("1 + \ufffd 1?", "?")
        assert new["text"] == old["text"]
        if new["pieces"] is not None:
            assert sum(new["pieces"]) == len(new["text"])
            assert new["pieces"] == old["pieces"].tolist()
            assert new["confidence"] == old["confidence"].tolist()
    assert [p.name for p in file.parent.iterdir()] == ["b.parquet"]
    again = tmp_path / "again.parquet"
    pieces.write_traces(again, rows, meta)
    assert again.read_bytes() == file.read_bytes()


def test_a_traces_file_that_is_none(tmp_path: Path):
    with pytest.raises(ConfigError, match="no traces at"):
        pieces.read_traces(tmp_path / "absent.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(DamagedFile, match="cannot be read"):
        pieces.read_traces(broken)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(DamagedFile, match="version 1"):
        pieces.read_traces(other)


# ---- the file


def test_the_same_records_give_the_same_bytes(tmp_path: Path):
    made = case(tmp_path, texts=HOSTILE)
    first = made.write(tmp_path).read_bytes()
    assert made.write(tmp_path).read_bytes() == first
    other = tmp_path / "other"
    assert case(other, texts=HOSTILE).write(other).read_bytes() == first


def test_json_within_a_script_cannot_end_it():
    text = in_script({"a": HOSTILE, "b": "\ud800"})
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_past_the_budget_texts_of_later_problems_are_left_out(tmp_path: Path):
    made = case(tmp_path, n_problems=4, n_tokens=2000)
    whole = made.write(tmp_path).stat().st_size
    none = made.write(tmp_path, max_mb=0).stat().st_size
    per_problem = (whole - none) / 4
    limit = (none + 2.5 * per_problem) / MB
    page = made.write(tmp_path, max_mb=limit)
    assert none + 1.5 * per_problem < page.stat().st_size < limit * MB
    assert b"The texts of 2 of 4 problems are left out" in page.read_bytes()


def test_records_without_paths_or_texts_still_make_a_page(tmp_path: Path):
    made = case(tmp_path)
    made.paths, made.traces = pd.DataFrame(), []
    assert made.write(tmp_path).exists()
    made.rows = []
    assert made.write(tmp_path).exists()


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install playwright"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs a Chromium on the path (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int = 1400, height: int = 900, **options: Any):
    """The page, checked at its end: it asked for nothing, and the console stayed empty."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("#paths tbody tr, #paths p")
    yield page
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}
    assert said == []
    page.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    folder = tmp_path_factory.mktemp("small")
    made = case(folder, texts=HOSTILE, keeps=(2, KEEP))
    made.paths.loc[0, "answer"] = "<u>\ufffd"
    return made, made.write(folder, figures=[figure(folder)])


def figure(folder: Path) -> Path:
    from PIL import Image, PngImagePlugin

    described = PngImagePlugin.PngInfo()
    described.add_text("Description", 'Accuracy "against" tokens <of all methods>')
    Image.new("RGB", (40, 20), "white").save(
        folder / "accuracy_vs_tokens.png", dpi=(192, 192), pnginfo=described
    )
    return folder / "accuracy_vs_tokens.png"


def column(page: Any, table: str, label: str) -> list[str]:
    """Texts of a column, without marks, intervals and footnotes."""
    return page.evaluate(
        """([table, label]) => {
          const heads = [...document.querySelectorAll(`${table} thead th`)];
          const at = heads.findIndex((head) => head.textContent === label);
          return [...document.querySelectorAll(`${table} tbody tr`)].map((row) => {
            const cell = row.cells[at].cloneNode(true);
            cell.querySelectorAll("sup, .pm").forEach((part) => part.remove());
            return cell.textContent;
          });
        }""",
        [table, label],
    )


def head(page: Any, table: str, label: str) -> Any:
    return page.locator(f"{table} thead th", has_text=re.compile(f"^{re.escape(label)}$"))


def wait_until(page: Any, expression: str) -> None:
    """As `wait_for_function`, which the page's content policy refuses."""
    end = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def open_text(page: Any, index: int) -> str:
    page.locator("#paths tbody th button", has_text=re.compile(f"^{index}$")).click()
    page.wait_for_selector(f"#text[data-ready='{index}']")
    return page.evaluate(
        "[...document.querySelectorAll('.chunk')].map(c => c.textContent).join('')"
    )


@pytest.mark.browser
def test_tables_sort_by_click_and_by_keyboard(browser: Any, small: tuple[Case, Path]):
    made, file = small
    block = [r for r in made.rows if r.cell.keep in (2, N)]
    expected = {LABELS.get(r.cell.method, r.cell.method): r.line.auroc_within for r in block}
    with opened(browser, file) as page:
        names = column(page, "#table", "method")
        assert names[0] == "no pruning"
        assert names[-1] == "oracle"
        cell = head(page, "#table", "AUROC")
        assert cell.get_attribute("aria-sort") == "none"
        cell.locator("button").click()
        assert cell.get_attribute("aria-sort") == "descending"
        order = [n for n in column(page, "#table", "method") if not np.isnan(expected[n])]
        numbers = [expected[n] for n in order]
        assert len(numbers) == 4  # random, two methods, oracle
        assert numbers == sorted(numbers, reverse=True)
        assert column(page, "#table", "AUROC")[-1] == "–"  # the missing come last
        cell.locator("button").press("Enter")
        page.wait_for_selector("#table th[aria-sort=ascending]")
        assert column(page, "#table", "method")[0] == order[-1]
        assert column(page, "#table", "AUROC")[-1] == "–"
        head(page, "#table", "method").locator("button").press("Space")
        page.wait_for_selector("#table th:first-child[aria-sort=ascending]")
        assert column(page, "#table", "method") == sorted(names)


@pytest.mark.browser
def test_tables_mark_the_best_and_say_what_is_missing(browser: Any, small: tuple[Case, Path]):
    made, file = small
    line = next(r.line for r in made.rows if r.cell.method == "strong" and r.cell.keep == 2)
    with opened(browser, file) as page:
        row = page.locator("#table tbody tr", has=page.locator("th", has_text="strong"))
        mean, interval = f"{100 * line.avg:.1f}", f"{50 * (line.avg_hi - line.avg_lo):.1f}"
        assert row.locator("td").nth(1).inner_text() in (f"{mean} ±{interval}", mean)
        assert page.locator("#table td.best").count() == 2  # avg and cons
        assert page.locator("#reasons").inner_text().count("needs </script> an endpoint") == 1
        broken = page.locator("#table tbody tr", has_text="broken<i>")
        assert broken.locator("td").nth(1).inner_text() == "–"
        assert "needs </script>" in broken.locator("td").nth(1).get_attribute("title")
        page.select_option("#block", "all")
        wait_until(page, "document.querySelectorAll('#table tbody tr').length == 11")
        assert sorted(set(column(page, "#table", "k"))) == ["16", "2", "4"]
        image = page.locator("#figures img")
        assert image.get_attribute("alt") == 'Accuracy "against" tokens <of all methods>'
        image.scroll_into_view_if_needed()
        wait_until(page, "document.querySelector('#figures img').naturalWidth == 40")
        assert image.bounding_box()["width"] == pytest.approx(40 * 1.3 * 96 / 192, abs=3)
        page.locator("#facts summary", has_text="Settings").click()
        assert HOSTILE[1] in page.locator("#facts").inner_text()


@pytest.mark.browser
def test_hostile_texts_are_shown_as_text(browser: Any, small: tuple[Case, Path]):
    made, file = small
    with opened(browser, file) as page:
        title = page.title()
        for i in range(len(HOSTILE)):
            assert open_text(page, i) == made.traced[i]["text"]
        assert HOSTILE[0] in page.locator("#question").inner_text()
        assert "<u>" in column(page, "#paths", "answer")[0]
        assert (
            page.locator("main b, main u, #text img, #text script").count()
            == page.locator(".length b").count()
        )
        assert page.title() == title
        assert page.evaluate("document.scripts.length") == len(
            re.findall(rb"<script", file.read_bytes())
        )


@pytest.mark.browser
def test_paths_with_scores_answers_and_what_was_kept(browser: Any, small: tuple[Case, Path]):
    made, file = small
    kept = {
        r.cell.method: set(r.results[1].kept)
        for r in made.rows
        if r.cell.keep == KEEP and r.line.status != "skipped"
    }
    own = made.paths[made.paths["problem_id"] == "p1"]
    with opened(browser, file) as page:
        page.select_option("#block2", "1")
        page.select_option("#rowA", label="strong")
        page.select_option("#rowB", label="twin")
        page.select_option("#problem", "1")
        wait_until(page, "document.querySelector('#question').textContent.includes(' 1 + 1?')")
        wait_until(page, "document.querySelectorAll('#paths tbody tr').length == 16")
        for method, label in (("strong", "A"), ("twin", "B")):
            marks = column(page, "#paths", label)
            assert {i for i, mark in enumerate(marks) if mark == "● kept"} == kept[method]
            assert marks.count("○ dropped") == N - KEEP
            scores = own[own["method"] == method]["score"].to_numpy(dtype=float)
            texts = column(page, "#paths", method)
            assert texts[3] == "–"
            shown = [float(text) for i, text in enumerate(texts) if i != 3]
            np.testing.assert_allclose(shown, np.delete(scores, 3), rtol=1e-3)
        right = own[own["method"] == "strong"]["correct"].tolist()
        assert [v == "✓ right" for v in column(page, "#paths", "verdict")] == right
        lengths = own[own["method"] == "strong"]["n_tokens"].tolist()
        assert [int(t) for t in column(page, "#paths", "tokens")] == lengths
        groups = {
            "Kept by both": kept["strong"] & kept["twin"],
            "Only A": kept["strong"] - kept["twin"],
            "Only B": kept["twin"] - kept["strong"],
            "Neither": set(range(N)) - kept["strong"] - kept["twin"],
        }
        for label, members in groups.items():
            box = page.locator(f"#choices [data-group='{label}']")
            assert {int(t.split()[0]) for t in box.locator("button").all_inner_texts()} == members
            n_right = sum(right[i] for i in members)
            assert f", {n_right} right" in box.locator("h4").inner_text()
        page.locator("#overview summary").click()
        page.wait_for_selector("#problems tbody tr")
        strong = next(r for r in made.rows if r.cell.method == "strong" and r.cell.keep == KEEP)
        assert column(page, "#problems", "A avg %") == [
            f"{100 * r.avg.mean():.1f}" for r in strong.results
        ]


@pytest.mark.browser
def test_a_bar_marks_the_checkpoint_and_ends_there_for_dropped_paths(
    browser: Any, small: tuple[Case, Path]
):
    with opened(browser, small[1]) as page:
        bars = page.evaluate(
            """[...document.querySelectorAll("#paths tbody tr")].map((row) => {
              const [whole, used] = row.querySelectorAll(".length i");
              const tick = row.querySelector(".length b");
              const number = (style) => parseFloat(style) / 100;
              return [row.textContent.includes("● kept"), number(whole.style.width),
                number(used.style.width), number(tick.style.left)];
            })"""
        )
        a = [mark == "● kept" for mark in column(page, "#paths", "A")]
        lengths = [int(text) for text in column(page, "#paths", "tokens")]
    for kept, n, (_, whole, used, tick) in zip(a, lengths, bars, strict=True):
        assert whole == pytest.approx(n / max(lengths), abs=1e-3)
        assert tick == pytest.approx(L / max(lengths), abs=1e-3)
        assert used == pytest.approx((n if kept else min(n, L)) / max(lengths), abs=1e-3)


@pytest.mark.browser
def test_the_checkpoint_stands_at_its_character_and_every_token_has_its_colour(
    browser: Any, small: tuple[Case, Path]
):
    made, file = small
    edges = [0.1, 0.3, 0.5, 0.7, 0.9]
    with opened(browser, file) as page:
        for i in (0, 5):  # the sixth begins with characters of two UTF-16 units
            row = made.traced[i]
            open_text(page, i)
            before = page.evaluate(
                """(() => {
                  const range = document.createRange();
                  range.setStart(document.getElementById("text"), 0);
                  range.setEndBefore(document.querySelector(".mark"));
                  return range.toString();
                })()"""
            )
            assert before == row["text"][: sum(row["pieces"][:L])]
            tokens = page.evaluate(
                "[...document.querySelectorAll('.chunk span:not(.mark)')]"
                ".map((s) => [s.textContent, s.className])"
            )
            ends = np.cumsum(row["pieces"])
            assert [t for t, _ in tokens] == [
                row["text"][end - n : end] for end, n in zip(ends, row["pieces"], strict=True)
            ]
            bins = [sum(c / 255 >= edge for edge in edges) for c in row["confidence"]]
            assert [name for _, name in tokens] == ["" if b == 5 else f"c{b}" for b in bins]
            assert page.locator("#scale span").count() == 6
        assert open_text(page, 1) == made.traced[1]["text"]  # ends before the checkpoint
        assert page.locator(".mark").count() == 0
        assert "complete at the checkpoint" in page.locator("#scale").inner_text()


CONTRAST = """[...document.querySelectorAll("#scale span")].map((span) => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let back = channels(getComputedStyle(span).backgroundColor);
  if (back[3] === 0) back = channels(getComputedStyle(document.body).backgroundColor);
  const fore = channels(getComputedStyle(document.getElementById("text")).color);
  const [low, high] = [light(back), light(fore)].sort((x, y) => x - y);
  return [light(back), (high + 0.05) / (low + 0.05)];
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stays_readable_on_every_colour_and_colours_differ_in_grey(
    browser: Any, small: tuple[Case, Path], scheme: str
):
    with opened(browser, small[1], color_scheme=scheme) as page:
        open_text(page, 0)
        lights, contrasts = zip(*page.evaluate(CONTRAST), strict=True)
    assert min(contrasts) >= 4.5
    assert list(lights) == sorted(lights, reverse=scheme == "dark")  # one direction, by lightness


@pytest.mark.browser
def test_every_checkpoint_of_a_schedule_is_marked(browser: Any, tmp_path: Path):
    made = case(tmp_path)
    rules = {"strong": "16→8→4 at 16, 24, 32", "twin": "threshold 0.5"}
    made.rows = [
        replace(row, cell=replace(row.cell, rule=rules.get(row.cell.method, "")))
        for row in made.rows
    ]
    with opened(browser, made.write(tmp_path)) as page:
        page.select_option("#rowA", label="strong [16→8→4 at 16, 24, 32]")
        page.select_option("#rowB", label="twin [threshold 0.5]")
        wait_until(page, "document.querySelectorAll('#paths tr:last-child .length b').length == 3")
        open_text(page, 0)
        labels = "[...document.querySelectorAll('.mark')].map((mark) => mark.ariaLabel)"
        assert page.evaluate(labels) == [f"checkpoint, {n} tokens" for n in (16, 24, 32)]


@pytest.mark.browser
def test_everything_works_from_the_keyboard(browser: Any, small: tuple[Case, Path]):
    with opened(browser, small[1]) as page:
        focused = "document.activeElement.id || document.activeElement.textContent"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(focused))
            style = "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])"
            shown = page.evaluate(f"{style}(getComputedStyle(document.activeElement))")
            what = page.evaluate("document.activeElement.outerHTML")[:200]
            assert shown[0] != "none" and shown[1] != "0px", what  # noqa: PT018
            if page.evaluate("document.activeElement.closest('#paths tbody') !== null"):
                break
        assert {"block", "rowA", "rowB", "problem"} <= reached
        assert page.evaluate(focused) == "0"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowDown")
        assert page.evaluate(focused) == "2"
        page.keyboard.press("Enter")
        page.wait_for_selector("#text[data-ready='2']")
        assert page.evaluate(focused) == "text"
        page.keyboard.press("Escape")
        assert page.locator("#viewer").is_hidden()
        assert page.evaluate(focused) == "2"
        page.keyboard.press("End")
        assert page.evaluate(focused) == str(N - 1)
        page.keyboard.press("Home")
        assert page.evaluate(focused) == "0"
        page.keyboard.press("Tab")  # one stop for the whole list
        assert page.evaluate("document.activeElement.closest('#paths tbody')") is None


@pytest.mark.browser
def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, small: tuple[Case, Path]):
    with opened(browser, small[1], width=375, height=700) as page:
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) <= 375
        page.locator("#overview summary").click()
        page.wait_for_selector("#problems tbody tr")
        box = "document.querySelector('#table .scroll')"
        assert page.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
        assert page.evaluate(width) <= 375
        open_text(page, 0)
        assert page.evaluate(width) <= 375
        place = page.locator("#text").bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 375
        assert place["height"] > 300
        for _ in range(20):  # the text covers the page: what lies below it is not reached
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.closest('#viewer') !== null")
        page.keyboard.press("Escape")
        assert page.locator("#viewer").is_hidden()


@pytest.mark.browser
def test_texts_that_are_not_there_and_pools_larger_than_n(browser: Any, tmp_path: Path):
    made = case(tmp_path, n_paths=8, pool=12, n_tokens=2000)
    made.traced[0] |= {"text": None, "pieces": None, "confidence": None}
    made.traced[1] |= {"pieces": None, "confidence": None}
    made.traced[2] |= {"confidence": None}
    made.traced[3] |= {"pieces": None, "text": "no line end " * 5000}
    meta = {"bank": BANK, "model": "tiny", "dataset": "arithmetic"}
    pieces.write_traces(made.traces[0], made.traced, meta)
    with opened(browser, made.write(tmp_path)) as page:
        open_text(page, 0)
        assert page.locator("#text").inner_text() == "Text not recorded."
        assert open_text(page, 1) == made.traced[1]["text"]
        assert "tokens of this text are not recorded" in page.locator("#scale").inner_text()
        assert open_text(page, 2) == made.traced[2]["text"]
        assert page.locator(".mark").count() == 1
        assert "probabilities of the tokens are not recorded" in page.locator("#scale").inner_text()
        assert open_text(page, 3) == made.traced[3]["text"]
        assert set(column(page, "#paths", "A")) == {"● kept", "○ not kept"}
    with opened(browser, made.write(tmp_path, max_mb=0.05)) as page:
        assert "larger than 0.05 MB" in page.locator("#bank-note").inner_text()
        open_text(page, 1)
        assert "left out" in page.locator("#text").inner_text()
    made.paths, made.traces = pd.DataFrame(), []
    with opened(browser, made.write(tmp_path)) as page:
        assert "No scored paths are recorded" in page.locator("#paths").inner_text()


@contextmanager
def traced(browser: Any, page: Any) -> Iterator[list[float]]:
    """Milliseconds of processor time of the tasks of the page's main thread, the longest first.

    Time on the clock would measure what else the machine does.
    """
    import json

    tasks: list[float] = []
    browser.start_tracing(page=page, categories=["disabled-by-default-devtools.timeline"])
    yield tasks
    page.wait_for_timeout(150)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    main = {
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
    }
    tasks += sorted(
        (
            e.get("tdur", e["dur"]) / 1000
            for e in events
            if e["name"] == "RunTask" and e["ph"] == "X" and (e["pid"], e["tid"]) in main
        ),
        reverse=True,
    )


@pytest.mark.slow
@pytest.mark.browser
def test_nothing_blocks_with_64_paths_of_32000_tokens(browser: Any, tmp_path: Path):
    made = case(tmp_path, n_problems=1, n_paths=64, n_tokens=32_000)
    file = made.write(tmp_path)

    def ready(index: int) -> None:
        page.wait_for_selector(f"#text[data-ready='{index}']")

    def open_path(index: int) -> None:
        page.locator("#paths tbody th button").nth(index).click()
        ready(index)

    def wheel() -> None:
        page.mouse.move(1000, 600)
        for _ in range(30):
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(10)

    with opened(browser, file) as page:
        with traced(browser, page) as tasks:  # what a blocked page looks like
            page.evaluate(
                "(() => { const t = performance.now(); while (performance.now() < t + 600); })()"
            )
        assert tasks[0] > 200
        actions = {
            "load": [lambda: (page.reload(), page.wait_for_selector("#paths tbody tr"))],
            "sort": [
                lambda: head(page, "#paths", "tokens").locator("button").click(),
                lambda: head(page, "#paths", "path").locator("button").press("Enter"),
                lambda: head(page, "#paths", "path").locator("button").press("Enter"),
            ],
            "open and scroll": [
                lambda: open_path(0),
                wheel,
                lambda: page.locator("#to-end").click(),
                lambda: page.locator("#to-mark").click(),
            ],
            "open others and close": [
                lambda: (page.locator("#later").click(), ready(1)),
                lambda: open_path(2),
                lambda: page.keyboard.press("Escape"),
            ],
        }
        for name, acts in actions.items():
            with traced(browser, page) as tasks:
                for act in acts:
                    act()
            assert tasks, name
            assert tasks[0] < 200, f"{name} blocked for {tasks[0]:.0f} ms of processor time"
        assert open_text(page, 0) == made.traced[0]["text"]
        page.locator("#to-end").click()
        page.locator("#to-mark").click()
        page.wait_for_timeout(300)
        mark, place = (page.locator(s).bounding_box() for s in (".mark", "#text"))
        assert place["y"] <= mark["y"] <= place["y"] + place["height"]
        # only what is near is split into tokens
        assert page.evaluate("document.querySelectorAll('#text span').length") < 6000
