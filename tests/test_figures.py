"""Figures: the numbers of the table, drawn so that they can be told apart, or a reason why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recordsmaker import METHODS, made

from prunebench import calibration, guideline
from prunebench.cells import NONE, ORACLE, RANDOM
from prunebench.report import figures, published, records, style, tables
from prunebench.report.figures import common, compute, cost, law, outcomes, signalfigures
from prunebench.report.figures.common import NotDrawn, groups

pytestmark = pytest.mark.pictures

MANY = {f"m{i:02}": (("I", "II", "III", "IV")[i % 4], 0.1 * i) for i in range(14)}


def group_of(*args, **options) -> common.Group:
    frame, paths = made(*args, **options)
    (group,) = groups(records.analyse(frame), paths)
    return group


@pytest.fixture(scope="module")
def sweep() -> common.Group:
    return group_of(keeps=(2, 4, 8), checkpoints=(16, 32, 48))


@pytest.fixture(scope="module")
def budgets() -> common.Group:
    return group_of(n_paths=(4, 8, 16), keeps=(1, 2, 4, 8), checkpoints=(16, 32), n_problems=6)


def drawn_line(axis, label: str):
    return next(c for c in axis.containers if c.get_label() == label).lines[0]


def legend_names(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


CODE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from recordsmaker import METHODS, made
from prunebench.report import figures, records
frame, paths = made({{"stop": METHODS["stop"]}})
figures.write_figures(records.analyse(frame), paths, Path({folder!r}))
"""


def test_a_single_run_draws_what_it_can_says_why_not_the_rest_and_always_the_same_bytes(
    tmp_path: Path,
):
    """The same bytes whatever the process, its hash seed and the user's settings of matplotlib."""
    from matplotlib.image import imread

    settings, there, here = (tmp_path / name for name in ("matplotlibrc", "there", "here"))
    settings.write_text("font.size: 20\naxes.facecolor: black\n")
    code = CODE.format(tests=str(Path(__file__).parent), folder=str(there))
    env = {**os.environ, "PYTHONHASHSEED": "77", "MATPLOTLIBRC": str(settings)}
    other = subprocess.Popen([sys.executable, "-c", code], env=env)
    frame, paths = made({"stop": METHODS["stop"]})
    written, skipped = figures.write_figures(records.analyse(frame), paths, here)
    names = {p.stem for p in written}
    assert {"accuracy_vs_tokens", "killed_and_flipped", "score_distributions"} <= names
    assert names | set(skipped) == {*figures.FIGURES, figures.LAW}
    assert not names & set(skipped)
    assert skipped["auroc_vs_prefix"] == "needs a method with two checkpoints"
    assert "cannot identify the retention law" in skipped["retention_law"]
    assert sorted(p.suffix for p in written) == [".pdf"] * len(names) + [".png"] * len(names)
    assert sorted(here.iterdir()) == sorted(written)
    assert other.wait() == 0
    assert len(list(there.iterdir())) == len(written)
    for path in written:
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name
        if path.suffix == ".png":
            assert imread(path)[..., :3].std() > 0.03
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_without_scores_of_paths_their_figures_are_left_out(tmp_path: Path):
    frame, paths = made({"stop": METHODS["stop"]})
    for none in (None, paths[:0], paths.assign(score=np.nan), paths.assign(correct=None)):
        (group,) = groups(records.analyse(frame), none)
        for draw in (signalfigures.score_distributions, signalfigures.calibration):
            with pytest.raises(NotDrawn, match="no scores were recorded"):
                draw(group)


def test_the_user_s_matplotlib_is_left_alone(sweep: common.Group):
    import matplotlib

    before = dict(matplotlib.rcParams)
    signalfigures.auroc_vs_prefix(sweep)
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, prunebench.report.figures as f, prunebench.report.style as s\n"
        "assert 'matplotlib' not in sys.modules\n"
        "s.panels(1, 1, width='one')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_accuracy_against_tokens_shows_the_numbers_of_the_table(sweep: common.Group):
    figure = compute.accuracy_vs_tokens(sweep)
    for row, measure in zip(np.reshape(figure.axes, (2, 3)), ("avg", "cons"), strict=True):
        for axis, checkpoint in zip(row, (16, 32, 48), strict=True):
            lines = sweep.lines("deepconf", prefix_length=checkpoint)
            drawn = drawn_line(axis, "deepconf")
            assert drawn.get_ydata() == pytest.approx([100 * getattr(n, measure) for n in lines])
            assert drawn.get_xdata() == pytest.approx([n.total_tokens for n in lines], rel=0.02)
    names = [*METHODS, "random", "oracle", "no pruning"]
    assert sorted(legend_names(figure)) == sorted(names)
    assert "16 to" not in figure.axes[0].get_title()
    assert figure.axes[1].get_title().startswith("checkpoint 32\nno pruning: 1.")


def test_sizes_are_those_of_one_and_two_columns(sweep: common.Group):
    for draw in (*figures.FIGURES.values(),):
        for width, inches in style.WIDTHS.items():
            try:
                figure = draw(sweep, width)
            except NotDrawn:
                continue
            assert figure.get_figwidth() == inches
            assert max(len(row) for row in _rows(figure)) <= style.ACROSS[width]
            sizes = {t.get_fontsize() for axis in figure.axes for t in axis.texts}
            sizes |= {t.get_fontsize() for axis in figure.axes for t in axis.get_xticklabels()}
            assert all(6 <= size <= 8 for size in sizes)


def _rows(figure) -> Iterator[list]:
    tops = {}
    for axis in figure.axes:
        tops.setdefault(axis.get_subplotspec().rowspan.start, []).append(axis)
    yield from tops.values()


def test_at_most_twelve_methods_are_shown_and_told_apart_without_colour():
    group = group_of(MANY, n_problems=6)
    assert len(group.names) == style.MAX_METHODS
    assert group.note == "12 of 14 methods: the best by within-problem AUROC"
    auroc = {n: group.lines(n)[0].auroc_within for n in group.names}
    frame, _ = made(MANY, n_problems=6)
    everyone = {r.cell.method: r.line.auroc_within for r in records.analyse(frame)}
    left_out = [everyone[name] for name in MANY if name not in group.names]
    assert max(left_out) <= min(auroc.values())
    looks = [group.looks[name] for name in group.names]
    assert len({look.marker for look in looks}) == 12
    assert len({(look.colour, str(look.linestyle)) for look in looks}) == 12
    assert len({(look.colour, look.hatch) for look in looks}) == 12
    figure = compute.accuracy_vs_tokens(group)
    assert "12 of 14 methods" in figure.get_suptitle()


def test_no_legend_covers_data():
    group = group_of(MANY, keeps=(2, 4), checkpoints=(16, 32), n_problems=6)
    for width in ("one", "two"):
        for draw in (compute.accuracy_vs_tokens, compute.pareto):
            figure = draw(group, width)
            with style.applied():
                figure.draw_without_rendering()
                legend = figure.legends[0].get_window_extent()
                for axis in figure.axes:
                    assert not legend.overlaps(axis.get_window_extent())
                    assert not legend.overlaps(axis.xaxis.label.get_window_extent())
                assert legend.x0 >= 0
                assert legend.x1 <= figure.bbox.x1
                heading = figure._suptitle.get_window_extent()  # pyright: ignore
                assert heading.x0 >= 0
                titles = [a.title for a in figure.axes if a.get_title()]
                assert not any(heading.overlaps(t.get_window_extent()) for t in titles)


def test_accuracy_against_the_number_of_paths(budgets: common.Group):
    figure = compute.accuracy_vs_budget(budgets)
    assert "keep 1/4, N = 4, 8, 16" in figure.get_suptitle() or "keep 1/2" in figure.get_suptitle()
    ratio = 4 if "1/4" in figure.get_suptitle() else 2
    for axis, checkpoint in zip(figure.axes, (16, 32), strict=True):
        lines = [
            n for n in budgets.lines("stop", prefix_length=checkpoint)
            if n.n_paths == ratio * n.keep
        ]  # fmt: skip
        drawn = drawn_line(axis, "stop")
        assert drawn.get_xdata().tolist() == [n.total_tokens for n in lines]
        assert drawn.get_ydata().tolist() == pytest.approx([100 * n.cons for n in lines])
    with pytest.raises(NotDrawn, match="two values of n_paths"):
        compute.accuracy_vs_budget(group_of(n_problems=4))


def test_a_wide_range_of_tokens_has_a_logarithmic_axis():
    group = group_of(n_paths=(2, 8, 32), keeps=(1, 4, 16), n_pool=40, n_problems=4)
    assert compute.accuracy_vs_budget(group).axes[0].get_xscale() == "log"
    near = group_of(n_paths=(8, 16), keeps=(4, 8), n_problems=4)
    assert compute.accuracy_vs_budget(near).axes[0].get_xscale() == "linear"


def test_retention_surfaces(sweep: common.Group, budgets: common.Group):
    figure = compute.retention_surfaces(sweep)
    lines = sweep.lines("stop", prefix_length=32)
    drawn = drawn_line(figure.axes[1], "stop")
    assert drawn.get_ydata().tolist() == pytest.approx([100 * n.cons for n in lines])
    over_n = compute.retention_surfaces(budgets)
    assert legend_names(over_n) == ["keep 1/2", "keep 1/4", "keep 1/8", "keep 1/16"]
    assert len(over_n.axes) == 3 * 2
    with pytest.raises(NotDrawn, match="two retentions"):
        compute.retention_surfaces(group_of(n_problems=4))


def test_the_pareto_front_is_what_no_cheaper_row_reaches(sweep: common.Group):
    figure = compute.pareto(sweep)
    (axis,) = figure.axes
    front = next(line for line in axis.lines if line.get_label() == "Pareto front")
    x, y = front.get_xdata()[:-1], front.get_ydata()[:-1]
    points = [
        (n.total_tokens, 100 * n.cons)
        for of in (*sweep.names, RANDOM, NONE)
        for n in sweep.lines(of)
    ]
    by_hand = {
        p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)
    }
    assert set(zip(x, y, strict=True)) == by_hand
    online = compute.pareto(group_of(online=True, keeps=(2, 4), n_problems=4))
    assert [a.get_xlabel() for a in online.axes][1] == "seconds per problem"


def test_bars_of_killed_paths_and_turned_votes(sweep: common.Group):
    figure = outcomes.killed_and_flipped(sweep)
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == [*sweep.names, "random", "oracle"]
    assert "keep 2 of 16, checkpoint 48" in figure.get_suptitle()
    for axis, (column, scale) in zip(
        figure.axes, (("killed_pct", 1), ("lost_votes", 100), ("won_votes", 100)), strict=True
    ):
        for of, bar in zip((*sweep.names, RANDOM, ORACLE), axis.patches, strict=True):
            (line,) = sweep.lines(of, keep=2, prefix_length=48)
            assert bar.get_width() == pytest.approx(scale * getattr(line, column))


def test_auroc_by_checkpoint(sweep: common.Group):
    (axis,) = signalfigures.auroc_vs_prefix(sweep).axes
    for of in sweep.names:
        at = {n.prefix_length: n.auroc_within for n in sweep.lines(of)}
        assert drawn_line(axis, of).get_ydata().tolist() == [at[16], at[32], at[48]]


def test_a_schedule_s_auroc_is_not_drawn_at_its_last_checkpoint():
    frame, paths = made(checkpoints=(16, 32), n_problems=4)
    two = frame[(frame["method"] == "stop") & (frame["prefix_length"] == 32)]
    staged = two.assign(rule="16→8→4 at 16, 32", run_id="s")
    rows = records.analyse(pd.concat([frame, staged], ignore_index=True))
    (group,) = groups(rows, paths)
    assert "stop [16→8→4 at 16, 32]" in group.names
    assert set(legend_names(signalfigures.auroc_vs_prefix(group))) == set(METHODS)
    longer = staged.assign(rule="16→8→4 at 32, 48", prefix_length=48)
    (group,) = groups(records.analyse(pd.concat([staged, longer], ignore_index=True)), paths)
    with pytest.raises(NotDrawn, match="two checkpoints"):
        signalfigures.auroc_vs_prefix(group)


def test_distributions_are_standardised_within_each_problem(sweep: common.Group):
    from scipy.stats import zscore

    scores = sweep.scores["deepconf"][48]
    z, right = signalfigures._standardised(scores)  # pyright: ignore
    expected, labels = [], []
    for problem in np.unique(scores.problem):
        own = scores.problem == problem
        if 0 < scores.right[own].sum() < own.sum():
            expected += zscore(scores.score[own]).tolist()
            labels += scores.right[own].tolist()
    assert z.tolist() == pytest.approx(expected)
    assert right.tolist() == labels
    figure = signalfigures.score_distributions(sweep)
    assert [a.get_title() for a in figure.axes if a.get_visible()] == sweep.names
    for axis in figure.axes:
        for step in axis.patches:
            heights, edges, _ = step.get_data()
            assert (heights * np.diff(edges)).sum() == pytest.approx(1)


def test_calibration_is_for_probabilities_and_risk_for_every_signal(sweep: common.Group):
    reliability, risk = signalfigures.calibration(sweep).axes
    assert [c.get_label() for c in reliability.containers] == ["stop"]
    scores = sweep.scores["stop"][48]
    inside = (scores.score > 0.8) & (scores.score <= 0.9)
    drawn = drawn_line(reliability, "stop")
    at = int(np.argmin(np.abs(drawn.get_xdata() - scores.score[inside].mean())))
    assert drawn.get_ydata()[at] == pytest.approx(scores.right[inside].mean())
    for of in sweep.names:
        line = next(n for n in risk.lines if n.get_label() == of)
        scores = sweep.scores[of][48]
        order = np.argsort(-scores.score)
        wrong = 100 * (~scores.right[order]).mean()
        assert line.get_ydata()[-1] == pytest.approx(wrong)
        first = 100 * (~scores.right[order[:10]]).mean()
        assert line.get_ydata()[0] == pytest.approx(first)
    frame, paths = made()
    loud = paths.assign(score=paths["score"] + 1)  # no probabilities any more
    (group,) = groups(records.analyse(frame), loud)
    assert len(signalfigures.calibration(group).axes) == 1
    assert calibration.aurc(scores.score, scores.right) >= 0


def test_overhead_in_seconds_online_and_in_tokens_in_replay(sweep: common.Group):
    (axis,) = cost.overhead(sweep).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == sweep.names
    (line,) = sweep.lines("stop", keep=2, prefix_length=48)
    widths = [p.get_width() for p in axis.patches if p.get_width() > 0]
    assert widths == pytest.approx([100 * line.verifier_tokens / line.total_tokens])
    assert line.verifier_tokens > 0
    online = group_of(online=True, n_problems=4)
    figure = cost.overhead(online)
    assert legend_names(figure) == ["launch", "check", "resume"]
    (line,) = online.lines("stop")
    ends = [p.get_x() + p.get_width() for p in figure.axes[0].patches]
    assert max(ends) == pytest.approx(line.wall_seconds)
    frame, paths = made(online=True, n_problems=4)
    at = frame["method"] == "random"
    spent = {"launch_seconds": 2.0, "check_seconds": 0.0, "resume_seconds": 1.5}
    timed = pd.concat([frame[~at], frame[at].assign(**spent)], ignore_index=True)
    (group,) = groups(records.analyse(timed), paths)
    (axis,) = cost.overhead(group).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["random", *group.names]
    assert sum(p.get_width() for p in axis.patches if p.get_y() > 2) == pytest.approx(3.5)
    with pytest.raises(NotDrawn, match="no method spends tokens"):
        cost.overhead(group_of({m: METHODS[m] for m in ("slim_sc", "deepconf")}, n_problems=4))
    with pytest.raises(NotDrawn, match="needs two methods"):
        cost.overhead(group_of({"stop": METHODS["stop"]}, n_problems=4))


def test_the_law_of_a_sweep_that_holds_it_is_the_diagonal():
    rng = np.random.default_rng(3)
    points = pd.DataFrame(
        {
            "model": "m",
            "dataset": np.where(np.arange(24) % 2 == 0, "short", "long"),
            "method": "stop",
            "n_paths": 64,
            "C": rng.uniform(5e4, 5e5, 24),
            "L_prefix": rng.choice([512, 1024, 2048], 24),
            "L_task": np.where(np.arange(24) % 2 == 0, 6000.0, 9000.0),
            "at_edge": np.arange(24) == 5,
            "tied": False,
        }
    )
    points["best"] = guideline.inverse_retention(points["C"], points["L_prefix"], points["L_task"])
    (axis,) = law.law_figure(guideline.fit(points)).axes
    dots = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in dots) == 24
    for line in dots:
        assert np.asarray(line.get_xdata()) == pytest.approx(np.asarray(line.get_ydata()), rel=1e-6)
    hollow = [line for line in dots if line.get_markerfacecolor() == "white"]
    assert sum(len(line.get_xdata()) for line in hollow) == 1


def test_groups_get_files_of_their_own_with_the_parts_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = {"accuracy_vs_tokens": compute.accuracy_vs_tokens}
    monkeypatch.setattr(figures, "FIGURES", one)
    frame, _ = made({"stop": METHODS["stop"]}, n_problems=4)
    both = pd.concat([frame, frame.assign(dataset="hard/er")], ignore_index=True)
    found = groups(records.analyse(both), None)
    assert [g.suffix for g in found] == ["arithmetic", "hard/er"]
    written, _ = figures.write_figures(records.analyse(both), None, tmp_path)
    names = {p.name for p in written}
    assert "accuracy_vs_tokens_hard-er.png" in names
    assert "accuracy_vs_tokens_arithmetic.pdf" in names
    seeds = pd.concat([frame, frame.assign(seed=1, bank="c")], ignore_index=True)
    assert [g.suffix for g in groups(records.analyse(seeds), None)] == ["0", "1"]


def test_rows_of_one_method_under_several_rules_have_lines_of_their_own():
    frame, paths = made({"stop": METHODS["stop"]}, n_problems=4)
    staged = frame[frame["method"] == "stop"].assign(rule="16→8→4 at 16, 32", run_id="r")
    (group,) = groups(records.analyse(pd.concat([frame, staged], ignore_index=True)), paths)
    assert group.names == ["stop", "stop [16→8→4 at 16, 32]"]
    assert set(group.scores) == set(group.names)  # both pruned by the same scores
    assert "stop [16→8→4 at 16, 32]" in legend_names(compute.accuracy_vs_tokens(group))


def test_a_rule_that_decides_how_many_paths_stay(tmp_path: Path):
    """Such rows have no k: figures of a fixed share leave them out, the others show them."""
    frame, paths = made({"stop": METHODS["stop"]}, keeps=(2, 4), checkpoints=(16, 32), n_problems=4)
    two = frame[frame["keep"] == 2]
    own = two[two["method"] == "stop"].assign(rule="threshold 0.5", keep=0, run_id="t")
    control = two[two["method"] == "random"].assign(rule="threshold 0.5, as many as stop", keep=0)
    rows = records.analyse(pd.concat([frame, own, control], ignore_index=True))
    (group,) = groups(rows, paths)
    assert group.names == ["stop", "stop [threshold 0.5]"]
    assert not any(line.rule for line in group.lines(RANDOM))
    assert "stop [threshold 0.5]" in legend_names(compute.accuracy_vs_tokens(group))
    assert "stop [threshold 0.5]" not in legend_names(compute.retention_surfaces(group))
    assert "keep 2 of 16" in outcomes.killed_and_flipped(group).get_suptitle()
    alone = pd.concat([own, control], ignore_index=True)
    (group,) = groups(records.analyse(alone), paths)
    title = outcomes.killed_and_flipped(group).get_suptitle()
    assert "keep what the rule says of 16" in title
    assert legend_names(compute.accuracy_vs_tokens(group)) == ["stop [threshold 0.5]", "random"]
    tables.write(rows, tmp_path)
    assert "keep what the rule says of 16" in (tmp_path / "main_table.md").read_text()


def test_published_numbers_stand_beside_ours(sweep: common.Group):
    group = group_of(
        {**METHODS, "prm_qwen25_math_7b": ("II", 0.4)},
        model="qwen1.5b",
        dataset="aime24",
        n_paths=(64,),
        keeps=(8,),
        checkpoints=(2048,),
        n_pool=70,
        length=11000,
        n_problems=4,
    )
    figure = outcomes.published_and_ours(group)
    (axis,) = figure.axes
    hollow = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axis.lines
        if line.get_markerfacecolor() == "white"
    }
    assert {(204300.0, 37.92), (782300.0, 30.10), (325900.0, 32.50)} <= hollow
    assert len(hollow) == len(published.main_facts("qwen1.5b", "aime24")) == 6
    (line,) = group.lines("stop")
    filled = {(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axis.containers}
    assert (line.total_tokens, 100 * line.avg) in filled
    assert len(filled) == 4  # none, slim_sc, prm, stop; deepconf was not published
    assert "prm_labor; prm_qwen25_math_7b" in legend_names(figure)
    with pytest.raises(NotDrawn, match="do not stand in the published tables"):
        outcomes.published_and_ours(sweep)
