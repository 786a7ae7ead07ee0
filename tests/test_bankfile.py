"""The files of a trace bank: what goes in comes out bit by bit, or is reported as damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from crash_bank import StandIn, assert_same, data_of, filled, make_key, make_problems

from prunebench.backend import Sampling
from prunebench.bank import Bank, StatsDtype, bank_key, content_hash, fill
from prunebench.errors import BankMismatch, ConfigError, DamagedFile
from prunebench.types import Problem, TokenStats, Trace

# -- what is stored ---------------------------------------------------------------------------


def test_what_goes_in_comes_out_bit_by_bit(tmp_path: Path) -> None:
    problems = make_problems(4)
    bank = filled(tmp_path, 4)
    for problem, prompt_ids, traces in StandIn().generate(problems[:3], range(5)):
        stored = Bank.at(tmp_path, make_key()).read(problem)
        assert stored is not None
        np.testing.assert_array_equal(stored[0], prompt_ids)
        assert len(stored[1]) == 5
        for trace, expected in zip(stored[1], traces, strict=True):
            assert_same(trace, expected)
            with pytest.raises(ValueError, match="read-only"):
                trace.token_ids[0] = 0
            with pytest.raises(ValueError, match="read-only"):
                trace.stats.entropy[0] = 0  # type: ignore[index]
    assert bank.warnings == []


def test_odd_traces_survive(tmp_path: Path) -> None:
    problem = Problem(id="odd", question="ü {x}\n", answer="½")
    odd = np.array([-0.0, np.nan, -np.inf, 1e-45], dtype=np.float32)
    empty = np.array([], dtype=np.int32)
    traces = [
        Trace(index=7, token_ids=empty, text="", stats=TokenStats(logprobs=empty.astype("f4")),
              stopped=True, answer=None, correct=False),
        Trace(index=2, token_ids=np.arange(4, dtype=np.int64), text="a\0\r\n漢😀", answer="",
              stats=TokenStats(logprobs=odd, sum_logprobs=-1e6 * np.ones(4, "f4"), vocab_size=9),
              stopped=False, correct=True),
    ]  # fmt: skip
    bank = Bank.at(tmp_path, make_key())
    assert bank.append(problem, empty, traces) == 2
    stored = bank.read(problem)
    assert stored is not None
    assert [trace.index for trace in stored[1]] == [2, 7]
    assert_same(stored[1][0], traces[1])
    assert stored[1][1].stats.logprobs is not None
    assert stored[1][1].stats.logprobs.shape == (0,)
    assert stored[1][1].stats.entropy is None


def test_float16_rounds_statistics_but_not_the_sum(tmp_path: Path) -> None:
    key = bank_key({}, Sampling(), {}, {}, 0, StatsDtype.float16)
    assert content_hash(key) != content_hash(bank_key({}, Sampling(), {}, {}, 0))
    bank = Bank.open(tmp_path, key, "half")
    logprobs = np.array([-0.123456, -19.87654], dtype=np.float32)
    sums = np.array([-3.1e6, -2.9e6], dtype=np.float32)  # below the range of float16
    stats = TokenStats(logprobs=logprobs, sum_logprobs=sums, vocab_size=150_000)
    trace = Trace(index=0, token_ids=np.array([1, 2]), text="", stats=stats, stopped=True,
                  answer=None, correct=False)  # fmt: skip
    problem = make_problems(1)[0]
    bank.append(problem, np.array([1]), [trace])
    stored = bank.read(problem)
    assert stored is not None
    np.testing.assert_array_equal(stored[1][0].stats.sum_logprobs, sums)
    read = stored[1][0].stats.logprobs
    assert read is not None
    np.testing.assert_array_equal(read, logprobs.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(read, logprobs, rtol=2**-11)


def test_anyone_can_read_the_files(tmp_path: Path) -> None:
    bank = filled(tmp_path, 1, 3)
    problem = make_problems(1)[0]
    table = pq.read_table(tmp_path / "problems" / "p000.parquet")
    stored = bank.read(problem)
    assert stored is not None
    for row, trace in zip(table.to_pylist(), stored[1], strict=True):
        assert row["token_ids"] == trace.token_ids.tolist()
        assert row["entropy"] == trace.stats.entropy.tolist()  # type: ignore[union-attr]
        assert (row["index"], row["text"]) == (trace.index, trace.text)
    meta = json.loads(table.schema.metadata[b"prunebench"])
    assert (meta["question"], meta["answer"], meta["vocab_size"]) == ("0+0=?", "0", 26)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["key"]["sampling"]["temperature"] == 0.6
    assert set(manifest["columns"]) == set(table.column_names)


def test_statistics_of_another_length_than_the_tokens_are_refused(tmp_path: Path) -> None:
    class Short(StandIn):
        def trace(self, problem: Problem, index: int, noise: float) -> Trace:
            trace = super().trace(problem, index, noise)
            if problem.id != "p001":
                return trace
            return Trace(**{**vars(trace), "token_ids": trace.token_ids[:-1]})

    bank = Bank.at(tmp_path, make_key())
    report = fill(bank, Short(), make_problems(3), 2, group=3)
    assert [problem_id for problem_id, _ in report.failures] == ["p001"]
    assert "tokens of path 0 of problem 'p001'" in report.failures[0][1]
    assert report.n_generated == 2


# -- damage -----------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
    elif kind == "garbage":
        path.write_bytes(b"PAR1" + bytes(range(256)) * 4 + b"PAR1")
    elif kind == "other problem":
        path.write_bytes(path.with_name("p000.parquet").read_bytes())
    elif kind == "other bank":
        other = Bank.at(path.parent.parent / "other", make_key(seed=1))
        fill(other, StandIn(), make_problems(2), 4, group=2)
        path.write_bytes((other.folder / "problems" / path.name).read_bytes())


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "flipped", "garbage", "other problem", "other bank"]
)
def test_a_damaged_file_is_reported_and_regenerated(tmp_path: Path, kind: str) -> None:
    folder = filled(tmp_path / "bank", 2, 4, group=2).folder
    path = folder / "problems" / "p001.parquet"
    before = data_of(path)
    damage(path, kind)
    bank = Bank.at(folder, make_key())
    problem = make_problems(2)[1]
    assert bank.read(problem) is None
    assert not path.exists()
    assert "p001" in bank.warnings[0]
    assert [file.name[:4] for file in (folder / "damaged").iterdir()] == ["p001"]
    assert bank.missing(problem, 4) == [0, 1, 2, 3]
    assert fill(bank, StandIn(), make_problems(2), 4, group=2).n_generated == 1
    assert data_of(path) == before
    assert len(bank.warnings) == 1


def test_no_flipped_bit_and_no_cut_is_ever_used_silently(tmp_path: Path) -> None:
    bank = filled(tmp_path, 1, 3)
    problem = make_problems(1)[0]
    path = tmp_path / "problems" / "p000.parquet"
    sound = path.read_bytes()
    expected = bank.read(problem)
    assert expected is not None
    rng = np.random.default_rng(0)
    n_noticed = 0
    for trial in range(200):
        data = bytearray(sound)
        if trial % 10 == 0:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        stored = bank.read(problem)
        if stored is None:
            n_noticed += 1
            continue
        np.testing.assert_array_equal(stored[0], expected[0])  # a bit nobody reads
        for trace, wanted in zip(stored[1], expected[1], strict=True):
            assert_same(trace, wanted)
    assert n_noticed == len(bank.warnings)
    assert n_noticed > 100


def test_damage_after_a_file_was_verified_is_noticed(tmp_path: Path) -> None:
    bank = filled(tmp_path, 2, 3)
    problem = make_problems(2)[1]
    assert bank.missing(problem, 3) == []
    damage(tmp_path / "problems" / "p001.parquet", "flipped")
    assert bank.missing(problem, 3) == [0, 1, 2]


# -- keys and manifests -----------------------------------------------------------------------


def test_equal_settings_have_equal_keys() -> None:
    key = bank_key({"b": (1, 2), "a": None}, Sampling(temperature=1), {}, {}, 0)
    same = bank_key({"a": None, "b": [1, 2]}, Sampling(temperature=1.0), {}, {}, 0)
    assert content_hash(key) == content_hash(same)
    assert content_hash(key) == content_hash(json.loads(json.dumps(key)))
    assert content_hash(key) != content_hash({**key, "seed": 1})
    with pytest.raises(ConfigError, match="set"):
        bank_key({"a": {1}}, Sampling(), {}, {}, 0)


def test_open_finds_the_bank_of_the_key(tmp_path: Path) -> None:
    first = Bank.open(tmp_path, make_key(0), "tiny arithmetic/x")
    assert first.folder.name == f"tiny_arithmetic_x-{first.hash}"
    assert Bank.open(tmp_path, make_key(0), "tiny arithmetic/x").folder == first.folder
    assert Bank.open(tmp_path, make_key(1), "tiny arithmetic/x").folder != first.folder


def test_a_mismatch_names_the_keys_and_both_values(tmp_path: Path) -> None:
    filled(tmp_path, 1, 1)
    key = bank_key({"engine": "stand-in", "dtype": "f4"}, Sampling(temperature=0.7),
                   {"template": "{question}"}, {"name": "sums"}, 0)  # fmt: skip
    with pytest.raises(BankMismatch) as caught:
        Bank.at(tmp_path, key)
    message = str(caught.value)
    assert "sampling.temperature is 0.6 there and 0.7 here" in message
    assert "identity.dtype is absent there and 'f4' here" in message
    assert "seed" not in message
    assert "top_k" not in message


@pytest.mark.parametrize("text", ["", '{"format": 1, "key": {', "[]", '{"key": {}, "hash": "x"}'])
def test_a_torn_manifest_is_reported_with_the_remedy(tmp_path: Path, text: str) -> None:
    filled(tmp_path, 1, 1)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"manifest\.json.*delete the folder"):
        Bank.at(tmp_path, make_key())


def test_a_changed_manifest_is_reported(tmp_path: Path) -> None:
    filled(tmp_path, 1, 1)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedFile, match="was changed"):
        Bank.at(tmp_path, make_key(1))


def test_a_lost_manifest_is_reported(tmp_path: Path) -> None:
    filled(tmp_path, 1, 1)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DamagedFile, match=r"no manifest\.json"):
        Bank.at(tmp_path, make_key())


def test_a_manifest_that_was_never_finished_is_written_again(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.tmp").write_text('{"format": 1, "ke')
    bank = filled(tmp_path, 1, 1)
    assert json.loads((tmp_path / "manifest.json").read_text())["hash"] == bank.hash
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_bank_of_another_format_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1, 1)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 99', 1))
    with pytest.raises(ConfigError, match="format 99"):
        Bank.at(tmp_path, make_key())


def test_a_problem_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    bank = Bank.at(tmp_path, make_key())
    with pytest.raises(ConfigError, match="not a file name"):
        bank.read(Problem(id="../x", question="", answer=""))
