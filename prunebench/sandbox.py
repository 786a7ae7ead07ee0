"""Runs Python that a model wrote, in a process with limits.

Every run gets a new process and a new, empty folder as its working directory. What holds, where
the kernel is Linux:

- time: seconds of CPU (RLIMIT_CPU) and of wall clock, after which the whole process group is
  killed; memory: RLIMIT_AS; written files: RLIMIT_FSIZE; open files: RLIMIT_NOFILE.
- no environment variables, no standard input, Python's isolated mode (-I).
- no new processes and no threads: RLIMIT_NPROC (root becomes the user `nobody` first, for whom
  the limit holds), and an audit hook.
- writing: Landlock (kernel 5.13 and later) refuses to write, make, rename or remove any file
  outside the folder, and to run any program. Without it only file permissions protect files.
- network: a new network namespace without any device, where the kernel lets us make one, and the
  audit hook.

What does not hold: the code can READ every file that the user (or, as root, anyone) can read, and
what it prints comes back into the judge's reply, so keep secrets out of readable files. The audit
hook stops honest mistakes and plain attempts, not code that attacks the interpreter. There is no
system-call filter: a hole in the kernel is a hole here. `protections` says what is in force on
this machine. For code you have reason to fear, run the whole program in a virtual machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prunebench.errors import ConfigError

_LIMITER = r"""
import ctypes, json, os, resource, struct, sys
options = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
on = ["limits"]

def landlock(folder):
    # System calls 444 to 446 on every architecture. Rights are bits: 0 executes, 1 writes, 4 and 5
    # remove, 6 to 12 make; 13 (move) and 14 (truncate) came with versions 2 and 3.
    abi = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = 2 | sum(1 << bit for bit in range(4, 13 + (abi >= 2) + (abi >= 3)))
    handle = libc.syscall(444, struct.pack("Q", rights | 1), ctypes.c_size_t(8), 0)
    if handle < 0:
        return False
    target = os.open(folder, os.O_PATH)
    rule = struct.pack("=Qi", rights, target)
    added = libc.syscall(445, handle, 1, rule, 0) == 0
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges
    done = added and libc.syscall(446, handle, 0) == 0
    os.close(handle), os.close(target)
    return done

NEWNET, NEWUSER = 0x40000000, 0x10000000
if libc.unshare(NEWNET if os.geteuid() == 0 else NEWNET | NEWUSER) == 0:
    on.append("network")
try:
    if landlock(os.getcwd()):
        on.append("writing")
except (AttributeError, OSError):
    pass
kept = 0  # of the capabilities
if os.geteuid() == 0:
    libc.prctl(8, 1, 0, 0, 0)  # keep them for a moment
    try:
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        open(os.__file__).close()
    except PermissionError:  # or this root may not change its user
        kept = 1 << 2  # CAP_DAC_READ_SEARCH: Python itself lies in a folder of root's
libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0))
if os.geteuid() != 0:
    on.append("processes")
for name, value in options["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
with open("code.py") as file:
    code = compile(file.read(), "code.py", "exec")
del sys.argv[1:], ctypes, libc, landlock, file
sys.path[:] = [entry for entry in sys.path if entry]

def refuse(event, args, _no=("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
           "os.system", "os.kill", "subprocess.Popen", "socket.connect", "socket.bind",
           "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
           "ctypes.dlopen")):
    if event in _no:
        raise PermissionError(f"{event} is not allowed here")

sys.addaudithook(refuse)
exec(code, {"__name__": "__main__", "__builtins__": __builtins__, "PROTECTIONS": on})
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes
    ----------
    output : what the code printed, errors included, cut to the limit.
    ok : it ended by itself, without an error.
    timed_out : it was ended for its wall time.
    """

    output: str
    ok: bool
    timed_out: bool


def run_python(
    code: str, *, seconds: int = 5, memory_mb: int = 1024, output_chars: int = 2000
) -> Outcome:
    """Run Python code in a new process with limits; see the top of this file.

    Parameters
    ----------
    code : a whole program.
    seconds : of CPU; the wall clock gets twice that.
    memory_mb : address space of the process.
    output_chars : of the output that is kept.
    """
    if sys.platform != "linux":
        raise ConfigError("Code that a model wrote is run on Linux only: the limits need it.")
    megabyte = 1 << 20
    limits = {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": memory_mb * megabyte,
        "RLIMIT_FSIZE": megabyte,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    command = [sys.executable, "-I", "-c", _LIMITER, json.dumps({"limits": limits})]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "code.py").write_text(code, encoding="utf-8", errors="replace")
        folder.chmod(0o777)  # the code may run as another user than we
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                status = process.wait(2 * seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
            output.seek(0)
            text = output.read(4 * output_chars).decode("utf-8", errors="replace")
    if len(text) > output_chars:
        text = text[:output_chars] + "..."
    return Outcome(output=text, ok=status == 0, timed_out=status is None)


@cache
def protections() -> frozenset[str]:
    """What is in force on this machine of `limits`, `network`, `writing` and `processes`, found out
    by a run."""
    return frozenset(run_python("print(*PROTECTIONS)").output.split())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
