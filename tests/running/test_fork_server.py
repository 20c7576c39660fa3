"""A forked stage behaves as a stage that starts plainly. Only its start is faster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from processes import within

from changepair.flows.running.fork_client import SERVER, SWITCH, fork_server
from changepair.flows.running.fork_server import ALWAYS, NEEDED

PROBE = "import sys\n\nif __name__ == '__main__':\n    exec(sys.argv[1])\n"
STATE = """
import json, os, resource, signal, threading
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": list(sys.flags), "environment": dict(os.environ),
    "folder": os.getcwd(), "umask": os.umask(0), "group": [os.getpgrp(), os.getsid(0)], "nice": os.nice(0),
    "handlers": {n: str(signal.getsignal(n)) for n in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "pending": sorted(signal.sigpending()),
    "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")),
    "main": [__name__, __spec__.name, __file__, __package__, sys.modules["__main__"].__spec__.name],
    "streams": [[one.name, one.encoding, one.errors, one.line_buffering, one.fileno()] for one in (sys.stdin, sys.stdout, sys.stderr)],
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))], "main thread": threading.current_thread().name,
}))
"""
LOADED = "assert 'prefect' in sys.modules, 'a plain start'\n"
HEAVY = """
import hashlib, json, torch
from torch.utils.data import DataLoader
torch.manual_seed(0)
a = torch.randn(700, 700)
digest = lambda tensor: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
if torch.cuda.is_available():
    torch.zeros(1, device="cuda")
one = digest(a @ a) + digest(torch.from_numpy(a.numpy() @ a.numpy()))
torch.set_num_threads(2)
two = digest(torch.nn.functional.conv2d(a.view(1, 1, 700, 700), torch.ones(8, 1, 5, 5)))
batches = [batch.tolist() for batch in DataLoader(list(range(20)), batch_size=4, num_workers=2)]
spawned = [batch.tolist() for batch in DataLoader(list(range(8)), batch_size=4, num_workers=1, multiprocessing_context="spawn")]
print(json.dumps([one, two, batches, spawned, torch.get_num_threads()]))
"""
FLOW = """
import json
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

@task(persist_result=False)
def square(number):
    return number**2

def run(runner):
    @flow(task_runner=runner)
    def squares():
        return [one.result() for one in [square.submit(number) for number in range(3)]]
    return squares()

with prefect_test_harness():
    print(json.dumps(run(ThreadPoolTaskRunner(max_workers=2))))
"""


@pytest.fixture(scope="module", autouse=True)
def heard_hangups() -> Iterator[None]:
    """Reset SIGHUP, which `nohup` ignores in this process and in the processes that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, with a stage `probe` that executes its argument."""
    folder = tmp_path_factory.mktemp("forking") / "checkout"
    for name in ("changepair", "flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", folder / "requirements.lock")
    (folder / "flows/probe.py").write_text(PROBE)
    time.sleep(0.2)  # a file that was just written could change while it is imported
    return folder


class Stages:
    """Start the stage `probe` as DVC does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, {**os.environ, "DVC_STAGE": "probe"}

    def command(self, code: str) -> list[str]:
        return ["python", "-m", "changepair.flows.probe", code]

    def start(self, code: str, *, fork: bool = True, **options: Any) -> subprocess.Popen[str]:
        environment = {**self.environment, **options.pop("environment", {})}
        if not fork:
            environment.pop(SERVER, None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE, **options}
        return subprocess.Popen(self.command(code), env=environment, text=True, **pipes)

    def run(self, code: str, *, fork: bool = True, text: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(code, fork=fork, **options)
        output, errors = process.communicate(text, timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="module")
def stages(checkout: Path) -> Iterator[Stages]:
    """A fork server in the copy."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _served(checkout, patch)


@pytest.fixture
def own(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    """A fork server in a copy that the test may change."""
    yield from _served(Path(shutil.copytree(checkout, tmp_path / "own", symlinks=True)), monkeypatch)


def _served(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Stages]:
    patch.chdir(folder)
    patch.delenv(SWITCH, raising=False)
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", str(folder))
    patch.setenv("CHANGEPAIR_CONSOLE", "verbose")  # prints why a stage starts plainly
    time.sleep(0.2)
    with fork_server():
        stages = Stages(folder)
        assert stages.run(LOADED).returncode == 0, stages.run(LOADED).stderr
        yield stages


def server_of(stages: Stages, parent: int | None = None) -> psutil.Process:
    """Return the fork server in the folder of the stages."""
    found = []
    for one in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if "changepair.flows.running.fork_server" in one.cmdline()[:3] and one.cwd() == str(stages.folder):
                found.append(one)
    [server] = found
    return server


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_fork_has_what_a_plain_start_has(own: Stages) -> None:
    """The server has also imported the modules of later stages, while an earlier one ran."""
    (own.folder / "dvc.yaml").write_text("".join(f"    cmd: python -m changepair.flows.{kind} small\n" for kind in ("probe", *NEEDED)))
    within(60, lambda: own.run(LOADED + "assert 'matplotlib' in sys.modules").returncode == 0, "the import of all modules")
    forked, plain = (json.loads(own.run(STATE, fork=fork, text="x").stdout) for fork in (True, False))
    pipes = [one.pop("files") for one in (forked, plain)]
    assert forked == plain
    assert [len(one) for one in pipes] == [len(pipes[1])] * 2  # each pipe has its own number


def test_a_fork_takes_over_the_standard_streams(stages: Stages, tmp_path: Path) -> None:
    code = LOADED + "print(sys.stdin.read()[::-1]); print('oh', file=sys.stderr)"
    done = stages.run(code, text="abc")
    assert (done.stdout, done.stderr, done.returncode) == ("cba\n", "oh\n", 0)
    written = []
    for fork in (True, False):
        with (tmp_path / "out").open("w") as file:
            assert stages.run("print('x'); import os; os.write(1, b'y')", fork=fork, stdout=file).returncode == 0
        written.append((tmp_path / "out").read_text())
    assert written[0] == written[1] and sorted(written[0]) == ["\n", "x", "y"]


def test_a_stage_without_a_standard_stream_starts_plainly(stages: Stages) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *stages.command("print(sys.stdin, 'prefect' in sys.modules)")]
    done = subprocess.run(command, env=stages.environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None False\n"), done.stderr


def test_a_file_that_a_stage_leaves_open_is_written(stages: Stages, tmp_path: Path) -> None:
    code = f"import pathlib; left = [pathlib.Path({str(tmp_path / 'left')!r}).open('w')]; left[0].write('abc'); left.append(left)"
    assert stages.run(LOADED + code).returncode == 0
    assert (tmp_path / "left").read_text() == "abc"


def test_no_stage_sees_the_memory_of_another(stages: Stages) -> None:
    first = stages.run(
        LOADED + "import os, prefect, torch; prefect.seen = torch.seen = 1; os.environ['SEEN'] = '1'; torch.set_num_threads(3)"
    )
    assert first.returncode == 0
    later = stages.run(
        LOADED
        + "import os, prefect, torch; assert not hasattr(prefect, 'seen') and not hasattr(torch, 'seen') and 'SEEN' not in os.environ"
    )
    assert later.returncode == 0, later.stderr


def test_each_fork_draws_random_numbers_of_its_own(stages: Stages) -> None:
    code = LOADED + "import random, uuid, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item(), uuid.uuid4())"
    drawn = [stages.run(code).stdout.split() for _ in range(2)]
    assert all(one != other for one, other in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit(3)",
        "sys.exit(300)",
        "sys.exit('why')",
        "1 / 0",
        "raise KeyboardInterrupt",
        "import os; os._exit(7)",
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start(); print('main')",
    ],
)
def test_a_stage_ends_as_its_fork_ends(stages: Stages, end: str) -> None:
    forked, plain = (stages.run(end, fork=fork) for fork in (True, False))
    assert (forked.returncode, forked.stdout) == (plain.returncode, plain.stdout)
    assert forked.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


SLEEPING = LOADED + "import os, signal, time\n"


def started(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the fork of a stage that prints its process id."""
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("handled", [True, False])
def test_a_signal_to_the_command_reaches_the_fork_once(stages: Stages, number: signal.Signals, handled: bool) -> None:
    code = f"got = []\nsignal.signal({int(number)}, lambda *_: got.append(1))\n" if handled else ""
    wait = "while not got: time.sleep(0.05)\ntime.sleep(0.3); sys.exit(40 + len(got))" if handled else "time.sleep(60)"
    process = stages.start(f"{SLEEPING}{code}print(os.getpid(), flush=True)\n{wait}")
    fork = started(process)
    process.send_signal(number)
    assert process.wait(timeout=20) == (41 if handled else -number)
    assert gone(fork)


def test_ctrl_c_of_a_terminal_reaches_the_fork_once(stages: Stages) -> None:
    code = f"{SLEEPING}got = []\nsignal.signal(2, lambda *_: got.append(1)); signal.pthread_sigmask(signal.SIG_UNBLOCK, [2])\n"
    process = stages.start(
        code + "print(os.getpid(), flush=True)\nwhile not got: time.sleep(0.05)\ntime.sleep(0.3); sys.exit(40 + len(got))"
    )
    fork = started(process)
    for one in (process.pid, fork.pid):  # to its process group
        os.kill(one, signal.SIGINT)
    assert process.wait(timeout=20) == 41


def test_a_fork_ends_with_a_command_that_is_killed(stages: Stages) -> None:
    process = stages.start(f"{SLEEPING}signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)")
    fork = started(process)
    process.kill()
    within(10, lambda: gone(fork), "the fork's end")
    assert stages.run(LOADED).returncode == 0


RUN = """
import os, subprocess, sys
from changepair.flows.running.fork_client import fork_server
import changepair.tasks
with fork_server():
    subprocess.run(sys.argv[1:])
"""


@pytest.mark.parametrize("polite", [True, False], ids=["stops", "does not stop"])
def test_forks_and_server_end_with_a_run_that_is_killed(stages: Stages, polite: bool) -> None:
    """The fork gets SIGTERM, so that it can save."""
    how = "signal.signal(15, lambda *_: sys.exit(0))" if polite else "pass"
    command = stages.command(f"{SLEEPING}{how}\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", RUN, *command], env=stages.environment, stdout=subprocess.PIPE, text=True)
    fork = started(run)
    server = server_of(stages, run.pid)
    assert fork.parent() == server
    run.kill()
    within(10, lambda: gone(fork) and gone(server), "the end of all")


def test_a_server_that_is_killed_ends_its_stage_and_later_ones_start_plainly(own: Stages) -> None:
    process = own.start(f"{SLEEPING}print(os.getpid(), flush=True)\ntime.sleep(60)")
    fork = started(process)
    server_of(own).kill()
    assert process.wait(timeout=20) == 1 and process.stderr is not None
    assert "the fork server was killed; run the command again" in process.stderr.read()
    within(10, lambda: gone(fork), "the fork's end")
    later = own.run("print('prefect' in sys.modules)")
    assert later.returncode == 0 and later.stdout == "False\n"


def append(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).open("a").write("\n")


def rewrite(file: str) -> Callable[[Path], None]:
    """Write the same bytes with the same time."""

    def write(folder: Path) -> None:
        state, content = (folder / file).stat(), (folder / file).read_bytes()
        (folder / file).write_bytes(content)
        os.utime(folder / file, ns=(state.st_atime_ns, state.st_mtime_ns))

    return write


EDITS: dict[str, Callable[[Path], object]] = {
    "a module that is imported": append("tasks/common/stopping.py"),
    "a module that is not": append("tasks/reporting/report.py"),
    "a data file": append("tasks/reporting/report.html"),
    "the stage": append("flows/probe.py"),
    "a time alone": rewrite("tasks/common/stopping.py"),
    "a new module": lambda folder: (folder / "tasks/new.py").write_text(""),
    "a module that is deleted": lambda folder: (folder / "tasks/reporting/report.py").unlink(),
    "the lock": append("requirements.lock"),
    "settings of Prefect": lambda folder: (folder / "prefect.toml").write_text("[client]\nmax_retries = 3\n"),
    "a module that hides an installed one": lambda folder: (folder / "prefect.py").write_text(""),
    "an installed package": lambda folder: (folder / "new-1.0.dist-info").mkdir(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_a_stage_starts_plainly(own: Stages, edit: str) -> None:
    EDITS[edit](own.folder)
    done = own.run("print('prefect' in sys.modules)")
    assert done.stdout == "False\n" and " has changed" in done.stderr, done.stderr


def test_the_code_that_runs_is_that_of_the_start_of_the_stage(own: Stages) -> None:
    code = "from changepair.tasks.common import stopping; print(stopping.POLL)"
    assert own.run(LOADED + code).stdout == "0.2\n"
    file = own.folder / "tasks/common/stopping.py"
    file.write_text(file.read_text().replace("POLL = 0.2", "POLL = 0.3"))
    assert own.run(code).stdout == "0.3\n"


DIFFERENCES: dict[str, dict[str, Any]] = {
    "OMP_NUM_THREADS": {"environment": {"OMP_NUM_THREADS": "7"}},
    "PYTHONPATH": {"environment": {"PYTHONPATH": "/"}},
    "THP_MEM_ALLOC_ENABLE": {"environment": {"THP_MEM_ALLOC_ENABLE": "0"}},
    "PREFECT_LOGGING_LEVEL": {"environment": {"PREFECT_LOGGING_LEVEL": "DEBUG"}},
    "UNKNOWN": {"environment": {"UNKNOWN": "1"}},
    "umask": {"umask": 0o007},
    "priority": {"preexec_fn": lambda: os.nice(1)},
    "limits": {"preexec_fn": lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_CORE, (0, 0))},
    "ignored signals": {"preexec_fn": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)},
    "blocked signals": {"preexec_fn": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})},
    "working directory": {"cwd": "/", "environment": {"PYTHONPATH": ""}},
}


@pytest.mark.parametrize("name", [name for name in DIFFERENCES if name != "working directory"])
def test_a_stage_that_differs_from_the_run_starts_plainly(stages: Stages, name: str) -> None:
    done = stages.run("print('prefect' in sys.modules)", **DIFFERENCES[name])
    assert done.stdout == "False\n" and name in done.stderr.partition("differs from the run")[2], done.stderr


def test_code_that_python_runs_at_its_start_runs_for_each_stage(own: Stages) -> None:
    (own.folder / "sitecustomize.py").write_text("print('start')")
    assert own.run("print('prefect' in sys.modules)").stdout == "start\nFalse\n"


def test_the_environment_variable_turns_forks_off(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    before = psutil.Process().children()
    with fork_server():
        assert SERVER not in os.environ and not set(psutil.Process().children()) - set(before)


def test_a_run_without_a_server_starts_its_stages_plainly(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of the socket is longer than a socket's may be."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    with fork_server():
        done = Stages(checkout).run("print('prefect' in sys.modules)")
    assert done.stdout == "False\n" and done.returncode == 0 and not list(folder.iterdir())


def test_a_server_imports_nothing_before_the_first_stage(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Path(shutil.copytree(checkout, tmp_path / "own", symlinks=True))
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    with fork_server():
        time.sleep(1.5)
        assert sum(server_of(Stages(checkout)).cpu_times()[:2]) < 0.5
    assert SERVER not in os.environ


def test_imports_of_the_server_start_no_thread_and_open_no_file_or_gpu() -> None:
    """A fork keeps only one thread, and cannot use a GPU that was initialised before."""
    code = f"""
import importlib, os, threading
before = set(os.listdir("/proc/self/fd"))
for name in {[*ALWAYS, *sum(NEEDED.values(), ())]}:
    importlib.import_module(name)
import torch
assert threading.active_count() == 1 and set(os.listdir("/proc/self/fd")) == before
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [HEAVY, pytest.param(FLOW, marks=pytest.mark.slow)], ids=["torch", "prefect"])
def test_threads_workers_and_flows_work_in_a_fork(stages: Stages, code: str) -> None:
    forked, plain = stages.run(LOADED + code), stages.run(code, fork=False)
    assert forked.returncode == plain.returncode == 0, forked.stderr + plain.stderr
    assert json.loads(forked.stdout) == json.loads(plain.stdout)
