"""Score tables: exact scores and costs, nothing stale, nothing lost but a torn line."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunebench.scores
from prunebench.cost import COST_FIELDS, Cost
from prunebench.errors import ContractViolation, DamagedFile
from prunebench.scores import ScoredBatch, ScoreTable, score_key, source_hash
from prunebench.storage import NotWritable, content_hash
from prunebench.types import Capability


def make_key(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "bank_hash": "abc",
        "method_name": "deepconf",
        "method_config": {"window": 16},
        "source_hash": "s",
        "checkpoint_hash": None,
        "prefix_length": 64,
        "seed": 0,
    }
    return score_key(**{**settings, **changes})


def batch(indices: tuple[int, ...], scores: list[float], problem: str = "p", **facts: Any):
    cost = Cost(**{name: facts.pop(name) for name in COST_FIELDS if name in facts})
    return ScoredBatch(
        problem=problem, indices=indices, scores=np.array(scores), cost=cost, **facts
    )


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    return ScoreTable.open(tmp_path, make_key())


def test_scores_and_costs_come_back_exactly(table: ScoreTable, tmp_path: Path) -> None:
    scores = [0.1 + 0.2, -0.0, 5e-324, np.inf, -np.inf, np.nan, 1.7976931348623157e308]
    table.put(
        batch(
            (4, 0, 9, 2, 7, 1, 3),
            scores,
            verifier_tokens=41,
            seconds=0.1,
            calls=3,
            money=np.nan,
            reencode_seconds=1 / 3,
            reason="judge timed out",
        )
    )
    for reader in (table, ScoreTable.open(tmp_path, make_key())):
        for joint in (True, False):
            stored = reader.get("p", [4, 0, 9, 2, 7, 1, 3], joint=joint)
            assert stored is not None
            assert stored.scores.tobytes() == np.array(scores).tobytes()
            assert (stored.cost.verifier_tokens, stored.cost.seconds) == (41, 0.1)
            assert stored.cost.calls == 3
            assert np.isnan(stored.cost.money)
            assert (stored.reencode_seconds, stored.reason) == (1 / 3, "judge timed out")
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    assert table.path.name == f"deepconf-L64-{content_hash(make_key())}.jsonl"
    assert lines[0]["key"] == make_key()
    assert lines[1]["scores"][3:6] == ["inf", "-inf", None]


def test_a_nan_without_a_reason_gets_one(table: ScoreTable) -> None:
    table.put(batch((0, 1), [1.0, np.nan]))
    table.put(batch((2,), [1.0]))
    stored = table.get("p", [0, 1, 2], joint=False)
    assert stored is not None
    assert stored.reason == "the method returned NaN"
    clean = table.get("p", [0, 2], joint=False)
    assert clean is not None
    assert clean.reason is None


def test_joint_scores_need_the_same_set_in_any_order(table: ScoreTable) -> None:
    table.put(batch((0, 1, 2), [10.0, 11.0, 12.0], verifier_tokens=6))
    stored = table.get("p", [2, 0, 1], joint=True)
    assert stored is not None
    assert stored.indices == (2, 0, 1)
    assert stored.scores.tolist() == [12.0, 10.0, 11.0]
    assert stored.cost.verifier_tokens == 6
    assert table.get("p", [0, 1], joint=True) is None
    assert table.get("q", [0, 1, 2], joint=True) is None
    assert table.missing("p", [0, 1], joint=True) == [0, 1]


def test_scores_by_path_are_combined_with_their_share_of_the_cost(table: ScoreTable) -> None:
    table.put(batch((0, 1, 2, 3), [10.0, 11.0, 12.0, 13.0], verifier_tokens=8, seconds=4.0))
    table.put(batch((5, 4), [15.0, 14.0], verifier_tokens=10, seconds=1.0, reencode_seconds=2.0))
    table.put(batch((3, 4), [-1.0, -1.0], verifier_tokens=99))  # the first score of a path counts
    stored = table.get("p", [5, 0, 3], joint=False)
    assert stored is not None
    assert stored.scores.tolist() == [15.0, 10.0, 13.0]
    assert stored.cost.verifier_tokens == 10 / 2 + 2 * 8 / 4
    assert stored.cost.seconds == 1.0 / 2 + 2 * 4.0 / 4
    assert stored.reencode_seconds == 1.0
    assert table.get("p", [0, 6], joint=False) is None
    assert table.missing("p", [0, 6, 5, 7], joint=False) == [6, 7]


def test_a_batch_that_is_there_already_is_not_stored_twice(table: ScoreTable) -> None:
    table.put(batch((0, 1), [1.0, 2.0], verifier_tokens=5))
    size = table.path.stat().st_size
    table.put(batch((1, 0), [3.0, 4.0], verifier_tokens=5))
    assert table.path.stat().st_size == size
    stored = table.get("p", [0, 1], joint=True)
    assert stored is not None
    assert stored.cost.verifier_tokens == 5


def test_a_torn_last_line_is_owed_again(table: ScoreTable, tmp_path: Path) -> None:
    table.put(batch((0,), [1.0]))
    table.put(batch((1,), [2.0]))
    table.path.write_bytes(table.path.read_bytes()[:-20])
    again = ScoreTable.open(tmp_path, make_key())
    assert again.missing("p", [0, 1], joint=False) == [1]
    again.put(batch((1,), [2.0]))
    again.put(batch((2,), [3.0]))
    reader = ScoreTable.open(tmp_path, make_key())
    stored = reader.get("p", [0, 1, 2], joint=False)
    assert stored is not None
    assert stored.scores.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("cut", [1, 10, None])
def test_a_torn_header_makes_its_lines_void(table: ScoreTable, tmp_path: Path, cut: int) -> None:
    table.put(batch((0,), [1.0]))
    header, line = table.path.read_bytes().splitlines(keepends=True)
    table.path.write_bytes(header[:-cut] if cut else b"{\n" + line)
    again = ScoreTable.open(tmp_path, make_key())
    assert again.get("p", [0], joint=False) is None
    again.put(batch((0,), [5.0]))
    stored = ScoreTable.open(tmp_path, make_key()).get("p", [0], joint=False)
    assert stored is not None
    assert stored.scores.tolist() == [5.0]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b"7", b'{"problem": "p"}', b'{"key": 1}',
     b'{"problem": "p", "indices": [0, 0], "scores": [1, 1], "cost": {}, '
     b'"reencode_seconds": 0, "reason": null}'],
)  # fmt: skip
def test_a_damaged_line_is_reported_and_skipped(
    table: ScoreTable, tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    table.put(batch((0,), [1.0]))
    with table.path.open("ab") as file:
        file.write(line + b"\n")
    table.put(batch((1,), [2.0]))
    reader = ScoreTable.open(tmp_path, make_key())
    assert reader.get("p", [0, 1], joint=False) is not None
    assert "damaged line" in caplog.text


def test_a_table_of_another_key_is_not_served(table: ScoreTable, tmp_path: Path) -> None:
    table.put(batch((0,), [1.0]))
    table.path.write_text(table.path.read_text().replace('"window": 16', '"window": 32'))
    with pytest.raises(DamagedFile, match=r"config\.window is 32 there and 16 here.*Delete it"):
        ScoreTable.open(tmp_path, make_key())


def test_every_part_of_the_key_separates_tables(tmp_path: Path) -> None:
    keys = [
        make_key(),
        make_key(bank_hash="x"),
        make_key(method_name="entropy"),
        make_key(method_config={"window": 17}),
        make_key(source_hash="t"),
        make_key(checkpoint_hash="c"),
        make_key(prefix_length=65),
        make_key(seed=1),
        make_key(granted=[Capability.ENTROPY]),
    ]
    assert len({ScoreTable.open(tmp_path, key).path for key in keys}) == len(keys)
    granted = [Capability.LOGPROBS, Capability.ENTROPY]
    assert make_key(granted=frozenset(granted)) == make_key(granted=granted[::-1])


def test_editing_a_method_changes_its_source_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(text: str) -> type:
        (tmp_path / "mine.py").write_text(text)
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)  # where inspect looks for the file
        exec(text, module.__dict__)
        return module.Mine

    base = "from prunebench.method import PathSignal\nclass Mine(PathSignal):\n    a = {}\n"
    first = source_hash(load(base.format(1)))
    assert source_hash(load(base.format(1))) == first
    assert source_hash(load(base.format(2))) != first


@pytest.mark.parametrize("scores", [[1.0], [[1.0, 2.0]], []])
def test_scores_of_another_shape_are_refused(scores: list[Any]) -> None:
    with pytest.raises(ContractViolation, match="one per distinct path"):
        batch((0, 1), scores)


def test_a_full_disk_is_one_sentence(table: ScoreTable, monkeypatch: pytest.MonkeyPatch) -> None:
    table.put(batch((0,), [1.0]))
    real_write = os.write

    def short(descriptor: int, data: bytes) -> int:  # what a disk does that fills up on the way
        return real_write(descriptor, data[:15])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write in (short, full):
        with monkeypatch.context() as patch:
            patch.setattr(prunebench.scores.os, "write", write)
            with pytest.raises(NotWritable, match=r"No space left.*1 batches are safely stored"):
                table.put(batch((1,), [2.0]))
        assert table.missing("p", [0, 1], joint=False) == [1]
    table.put(batch((1,), [2.0]))
    assert table.missing("p", [0, 1], joint=False) == []


def append_many(folder: Path, name: str, barrier: Any) -> None:
    table = ScoreTable.open(folder, make_key())
    barrier.wait()
    for i in range(200):
        table.put(batch((i, i + 1), [i, np.nan], problem=f"{name}{i}", verifier_tokens=1))


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=append_many, args=(tmp_path, n, barrier)) for n in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0]
    table = ScoreTable.open(tmp_path, make_key())
    assert all(table.get(f"{n}{i}", [i, i + 1], joint=True) for n in "ab" for i in range(200))


def test_a_reader_sees_what_another_process_adds(table: ScoreTable, tmp_path: Path) -> None:
    assert table.get("p", [0], joint=True) is None
    ScoreTable.open(tmp_path, make_key()).put(batch((0,), [1.0]))
    assert table.get("p", [0], joint=True) is not None
