"""Two trainings in one work directory: the second one is refused, and changes nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from detect.running.locking import LOCK_NAME, locked
from detect.running.run import Run
from detect.training import train
from dpipe.errors import InputError

RUN = ("train.epochs=2", "train.eval_every=0")
HOLD = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from detect.running.locking import locked\n"
    "with locked(Path(sys.argv[1]), print):\n"
    "    if 'fork' not in sys.argv or os.fork() == 0:\n"
    "        print(os.getpid(), flush=True)\n"  # of a child that has left the lock to its parent
    "    time.sleep(100)\n"
)


def silent(line: str) -> None:
    pytest.fail(line)


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_while_the_first_one_goes_on(shapes, tiny, tmp_path, monkeypatch, capsys, resume):
    work_dir, save = tmp_path / "run", Run.save
    refused = []

    def second_run(run):
        save(run)
        before = files_of(work_dir)
        assert LOCK_NAME in {Path(path).name for path in before}
        with pytest.raises(InputError) as caught:
            train(shapes.config(tiny, *RUN, "optimizer.lr=0.5"), work_dir, resume=resume)
        assert files_of(work_dir) == before
        refused.append(str(caught.value))

    monkeypatch.setattr(Run, "save", second_run)
    train(shapes.config(tiny, *RUN), work_dir)
    line = f"{work_dir}: is being trained by another process (pid {os.getpid()}); wait for its end, or give another "
    assert refused == [f"{line}--work-dir"] * 2
    assert not (work_dir / LOCK_NAME).exists()
    monkeypatch.setattr(Run, "save", save)
    train(shapes.config(tiny, "train.epochs=3", "train.eval_every=0"), work_dir, resume=True)


@pytest.mark.parametrize("words", [[], ["fork"]], ids=["alone", "with a forked child"])
def test_a_process_that_is_killed_leaves_no_lock(tmp_path, words):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), *words], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(InputError, match=rf"\(pid {process.pid}\)"), locked(tmp_path, silent):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()  # which locks nothing
        with locked(tmp_path, silent):
            assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        assert not (tmp_path / LOCK_NAME).exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if words:
            os.kill(child, signal.SIGKILL)


def test_programs_that_are_started_do_not_inherit_the_lock(tmp_path):
    with locked(tmp_path, silent):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with locked(tmp_path, silent):
            pass
    finally:
        child.communicate(b"\n")


def test_a_lock_that_was_removed_in_between_is_taken_anew(tmp_path, monkeypatch):
    flock, path = fcntl.flock, tmp_path / LOCK_NAME

    def late(descriptor, operation):
        flock(descriptor, operation)
        if not others:
            path.unlink()  # by the one that held it until now; a third one has taken it again
            others.append(os.open(path, os.O_RDWR | os.O_CREAT))
            flock(others[0], operation)

    others: list[int] = []
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="by another process; wait"), locked(tmp_path, silent):
        pass
    os.close(others[0])


def test_the_holder_on_another_machine_is_told_with_its_name(tmp_path):
    with locked(tmp_path, silent):
        (tmp_path / LOCK_NAME).write_text("12 node7\n")
        with pytest.raises(InputError, match=r"\(pid 12 on node7\)"), locked(tmp_path, silent):
            pass


def test_what_a_killed_holder_left_says_nothing_of_the_next(tmp_path):
    (tmp_path / LOCK_NAME).write_text(f"{'9' * 200} {'node' * 200}\n")
    with locked(tmp_path, silent):
        line = rf"another process \(pid {os.getpid()}\); wait for"
        with pytest.raises(InputError, match=line), locked(tmp_path, silent):
            pass


def test_a_file_system_without_locks_is_told_and_the_run_goes_on(shapes, tiny, tmp_path, monkeypatch, capsys):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    train(shapes.config(tiny, *RUN), tmp_path / "run")
    line = f"{tmp_path / 'run'}: the file system has no locks (No locks available); see to it that no other run "
    assert line in capsys.readouterr().out
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_without_fcntl_there_is_no_lock(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path, silent), locked(tmp_path, silent):
        assert not list(tmp_path.iterdir())


def test_all_processes_of_a_refused_run_end(shapes, tiny, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1"}
    job |= {"SLURM_JOB_NAME": "train", "SLURM_LOCALID": "0", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "detect", "train", str(shapes.recipe), tiny, *RUN, "data.batch_size=1"]
    words += ["--accelerator", "cpu", "--resume", "--work-dir", str(tmp_path)]
    with locked(tmp_path, silent):
        processes = [
            subprocess.Popen(
                words,
                env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    told = [[line for line in errors.splitlines() if line.startswith("error: ")] for _, errors in outputs]
    line = f"{tmp_path}: is being trained by another process (pid {os.getpid()}); wait for its end, or give another "
    assert told == [[f"error: {line}--work-dir"], []]
    assert not any("Traceback" in errors for _, errors in outputs)
