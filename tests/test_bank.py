"""The trace bank: nothing is redone, lost or doubled, whatever happens to the processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from crash_bank import StandIn, assert_same, data_of, filled, make_key, make_problems

import prunebench.storage
from prunebench.bank import Bank, fill
from prunebench.errors import BankMismatch, ConfigError
from prunebench.storage import NotWritable
from prunebench.types import Problem, Trace

SCRIPT = Path(__file__).with_name("crash_bank.py")


# -- growing ----------------------------------------------------------------------------------


def test_growing_adds_paths_and_never_redoes_them(tmp_path: Path) -> None:
    problems = make_problems(4)
    log = tmp_path / "log"
    bank = Bank.at(tmp_path / "bank", make_key())
    assert bank.missing(problems[0], 3) == [0, 1, 2]
    fill(bank, StandIn(), problems, 3, group=4)
    before = {p.id: bank.read(p) for p in problems}
    assert fill(bank, StandIn(log=log), problems, 2, group=4).n_generated == 0
    assert not log.exists()
    assert bank.missing(problems[0], 5) == [3, 4]
    assert fill(bank, StandIn(log=log), problems, 5, group=4).n_generated == 4
    assert len(log.read_text().split()) == 4
    for problem in problems:
        after = bank.read(problem)
        assert after is not None
        assert [trace.index for trace in after[1]] == [0, 1, 2, 3, 4]
        for trace, expected in zip(after[1][:3], before[problem.id][1], strict=True):
            assert_same(trace, expected)


def test_a_path_that_is_there_already_stays(tmp_path: Path) -> None:
    bank = filled(tmp_path, 1, 3)
    problem = make_problems(1)[0]
    before = data_of(tmp_path / "problems" / "p000.parquet")
    stored = bank.read(problem)
    assert stored is not None
    other = StandIn().trace(problem, 1, noise=0.5)
    assert bank.append(problem, stored[0], [other]) == 0
    assert data_of(tmp_path / "problems" / "p000.parquet") == before


def test_another_prompt_for_the_same_problem_is_refused(tmp_path: Path) -> None:
    bank = filled(tmp_path, 1, 3)
    problem = make_problems(1)[0]
    with pytest.raises(BankMismatch, match="another prompt"):
        bank.append(problem, np.array([1]), [StandIn().trace(problem, 9, 0.0)])


def test_an_interrupted_group_is_completed_bit_by_bit(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", 8, 4, group=4)
    bank = filled(tmp_path / "torn", 8, 4, group=4)
    for problem_id in ("p001", "p002", "p007"):
        (bank.folder / "problems" / f"{problem_id}.parquet").unlink()
    log = tmp_path / "log"
    report = fill(bank, StandIn(log=log), make_problems(8), 4, group=4)
    assert report.n_generated == 3
    for problem in make_problems(8):
        name = f"problems/{problem.id}.parquet"
        assert data_of(bank.folder / name) == data_of(whole.folder / name)


def test_members_that_miss_different_paths(tmp_path: Path) -> None:
    problems = make_problems(3)
    bank = Bank.at(tmp_path, make_key())
    fill(bank, StandIn(), problems[:1], 4, group=1)
    fill(bank, StandIn(), problems[1:2], 2, group=1)
    calls: list[int] = []
    report = fill(bank, StandIn(), problems, 4, group=3, progress=calls.append)
    assert report.n_generated == 2
    assert sum(calls) == 3
    assert all(bank.missing(problem, 4) == [] for problem in problems)


# -- failures ---------------------------------------------------------------------------------


class Failing(StandIn):
    error: BaseException = RuntimeError("out of luck")

    def trace(self, problem: Problem, index: int, noise: float) -> Trace:
        if problem.id == "p003":
            raise self.error
        return super().trace(problem, index, noise)


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    bank = Bank.at(tmp_path, make_key())
    calls: list[int] = []
    report = fill(bank, Failing(), make_problems(9), 2, group=3, progress=calls.append)
    assert dict(report.failures) == dict.fromkeys(
        ["p003", "p004", "p005"], "RuntimeError: out of luck"
    )
    assert report.n_generated == 6
    assert sum(calls) == 9
    assert fill(bank, StandIn(), make_problems(9), 2, group=3).failures == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigError("no such model")])
def test_an_interrupt_and_a_wrong_request_are_not_swallowed(
    tmp_path: Path, error: BaseException
) -> None:
    bank = Bank.at(tmp_path, make_key())
    backend = Failing()
    backend.error = error
    with pytest.raises(type(error)):
        fill(bank, backend, make_problems(9), 2, group=3)
    assert fill(bank, StandIn(), make_problems(9), 2, group=3).n_generated == 6


def test_paths_that_the_engine_did_not_return_are_a_failure(tmp_path: Path) -> None:
    class Lossy(StandIn):
        def generate(self, problems, indices):
            for problem, prompt_ids, traces in super().generate(problems, indices):
                yield problem, prompt_ids, traces[:-1]

    report = fill(Bank.at(tmp_path, make_key()), Lossy(), make_problems(1), 3, group=1)
    assert report.failures == [("p000", "the backend returned no path with index [2]")]


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank.at(tmp_path, make_key())
    n_synced = 0

    def full(descriptor: int) -> None:
        nonlocal n_synced
        n_synced += 1
        if n_synced > 6:  # the file and the folder of three problems
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prunebench.storage.os, "fsync", full)
        with pytest.raises(NotWritable) as caught:
            fill(bank, StandIn(), make_problems(8), 2, group=4)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "No space left on device" in message
    assert "3 problems are safely stored" in message
    assert "continues" in message
    assert not list((tmp_path / "problems").glob(".*"))
    assert fill(bank, StandIn(), make_problems(8), 2, group=4).n_generated == 5
    assert bank.warnings == []


# -- several processes ------------------------------------------------------------------------


def test_a_claim_excludes_others_until_it_ends(tmp_path: Path) -> None:
    first, second, third = make_problems(3)
    bank, other = Bank.at(tmp_path, make_key()), Bank.at(tmp_path, make_key())
    with bank.claim(first, second) as mine:
        assert mine
        with bank.claim(first) as again, other.claim(second, third) as theirs:
            assert (again, theirs) == (True, False)
        with other.claim(third) as free:
            assert free
    with other.claim(first, second) as free:
        assert free


def test_two_processes_fill_one_bank_without_doubling_work(tmp_path: Path) -> None:
    start, log, folder = tmp_path / "start", tmp_path / "log", tmp_path / "bank"
    command = [sys.executable, str(SCRIPT), "fill", str(folder), "--start", str(start),
               "--log", str(log), "--delay", "0.01"]  # fmt: skip
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    time.sleep(1.5)  # both wait at the start by then
    start.touch()
    counts = [int(run.communicate(timeout=60)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(log.read_text().split()) == [problem.id for problem in make_problems(40)]
    assert sum(counts) == 40
    assert min(counts) >= 8, f"one process did nearly everything: {counts}"
    whole = filled(tmp_path / "whole", 40, 6, group=4)
    for path in sorted((whole.folder / "problems").iterdir()):
        assert data_of(folder / "problems" / path.name) == data_of(path)


def test_ten_kills_leave_the_data_as_if_never_interrupted(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "bank"
    command = [sys.executable, str(SCRIPT), "crash", str(folder), "--problems", "100",
               "--paths", "6", "--log", str(log), "--delay", "0.01"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    n_generated, n_last = len(log.read_text().split()), int(run.stdout)
    print(f"{n_generated} problems generated for 100, {n_last} stored by the last run")
    assert 0 < n_last < 100, "the kills must fall into the work"
    assert n_generated <= 100 + 10 * 4, "more was redone than what was in flight"
    whole = filled(tmp_path / "whole", 100, 6, group=4)
    stored = sorted((folder / "problems").glob("[!.]*"))
    assert len(stored) == 100
    for path in stored:
        assert data_of(path) == data_of(whole.folder / "problems" / path.name)
    assert not (folder / "damaged").exists()


# ------------------------------------------------------------------------------- several GPUs


def test_every_engine_has_gpus_of_its_own():
    from prunebench.filling import gpus_of_engines

    assert gpus_of_engines(1, 2, "0") == [""]
    assert gpus_of_engines(2, 1, "3,5") == ["3", "5"]
    assert gpus_of_engines(2, 2, "0,1,2,3") == ["0,1", "2,3"]
    with pytest.raises(ConfigError, match=r"'workers=3' needs 6 GPUs.*sees 4"):
        gpus_of_engines(3, 2, "0,1,2,3")
    with pytest.raises(ConfigError, match=r"backend\.device.*cuda:1"):
        gpus_of_engines(2, 1, "0,1", device="cuda:1")
