"""Runs whose processes torchrun or SLURM's srun start, on one machine or several."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from lightning_fabric.accelerators import cuda
from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core import rank_zero
from safetensors.torch import load_file

from detect.running import together
from detect.running.devices import Launcher, launched_rank, make_fabric
from detect.running.state import WEIGHTS
from detect.training import train
from dpipe.errors import InputError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_PROCID": "4", "SLURM_LOCALID": "1"}
NAMES = {*TORCHRUN, *SRUN, "SLURM_JOB_NAME", "SLURM_NODEID", "SLURM_NNODES", "SLURM_JOB_ID", "SLURM_NODELIST"}
NAMES |= {"MASTER_ADDR", "MASTER_PORT"}
# What one process does with batches of two, two do with one each: the gradient is a mean over images.
RUN = ("train.epochs=2", "train.sync_bn=true", "data.train.repeat=2", "train.eval_every=2", "schedule.warmup_iters=0")


@pytest.fixture
def variables(monkeypatch):
    """A function that sets the environment's variables of launchers, and no others of theirs."""

    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which Fabric sets, and goes by when it tells something

    def arm(values: dict[str, str]) -> None:
        for name in NAMES:
            monkeypatch.setenv(name, "")  # so that what Fabric sets is taken back as well
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return arm


class TestLauncher:
    def test_torchrun_and_srun_tell_rank_and_machines(self, variables):
        variables(TORCHRUN)
        assert Launcher.found() == Launcher("torchrun", rank=5, devices=4, nodes=2)
        assert launched_rank() == 5
        variables(SRUN)
        assert Launcher.found() == Launcher("srun", rank=4, devices=3, nodes=2)
        assert launched_rank() == 4
        variables({**SRUN, **TORCHRUN})  # torchrun within a job
        assert Launcher.found() == Launcher("torchrun", rank=5, devices=4, nodes=2)

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
            {**SRUN, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0"},
        ],
        ids=["nothing", "a job of one task", "a shell"],
    )
    def test_elsewhere_devices_start_processes(self, variables, values):
        variables(values)
        assert Launcher.found() is None
        assert launched_rank() == 0
        variables({**values, "LOCAL_RANK": "1"})  # as Fabric tells those that it starts
        assert launched_rank() == 1

    def test_mistakes_are_told(self, variables):
        variables({**TORCHRUN, "WORLD_SIZE": "7"})
        with pytest.raises(InputError, match="torchrun: has started 4 processes on this machine of 7 in all"):
            Launcher.found()
        variables({"SLURM_NTASKS": "6", "SLURM_PROCID": "0"})
        with pytest.raises(InputError, match="srun: expected --ntasks-per-node"):
            Launcher.found()
        variables(TORCHRUN)
        with pytest.raises(InputError, match=r"--devices 2: torchrun has started 4 processes on this machine; leave"):
            make_fabric(2, "cpu", "32-true")

    @pytest.mark.parametrize("devices", [1, 4])
    def test_fabric_takes_what_torchrun_has_started(self, variables, devices):
        variables(TORCHRUN)
        fabric = make_fabric(devices, "cpu", "32-true")
        assert (fabric.world_size, fabric.global_rank, fabric.local_rank) == (8, 5, 1)

    @pytest.mark.parametrize("devices", [1, 3])
    def test_fabric_takes_what_srun_has_started(self, variables, devices):
        job = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1234567", "SLURM_NODEID": "1", "SLURM_NNODES": "2"}
        variables({**SRUN, **job, "SLURM_NODELIST": "gpu[07-08]"})
        fabric = make_fabric(devices, "cpu", "32-true")
        assert (fabric.world_size, fabric.global_rank, fabric.local_rank) == (6, 4, 1)
        # Where they meet: the first machine, at a port that all processes of a job choose alike.
        met = fabric.strategy.cluster_environment
        assert (met.main_address, met.main_port, met.creates_processes_externally) == ("gpu07", 19567, True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_what_only_programmers_can_do_is_not_told(monkeypatch):
    """On most GPUs Fabric advises a call of PyTorch's, which no command makes."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.Logger("that of Fabric or of Lightning, whichever was imported last")
    logger.addHandler(handler)
    monkeypatch.setattr(rank_zero, "log", logger)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda device: True)
    cuda._check_cuda_matmul_precision(torch.device("cuda", 0))
    assert len(told) == 1  # without us
    for _ in range(2):
        make_fabric(1, "cpu", "32-true")
        cuda._check_cuda_matmul_precision(torch.device("cuda", 0))
    logger.info("something else")
    assert told[1:] == ["something else"]
    assert len(logger.filters) == 1


def test_two_machines_train_as_one_process_does_with_twice_the_batch(shapes, tiny, tmp_path):
    alone = train(shapes.config(tiny, *RUN, "data.batch_size=2"), tmp_path / "alone")
    words = ["-m", "detect", "train", str(shapes.recipe), tiny, *RUN, "data.batch_size=1", "--accelerator", "cpu"]
    words += ["--work-dir", str(tmp_path / "two")]
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    start += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    processes = [
        subprocess.Popen(
            [*start, "--node_rank", str(rank), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for name, weight in load_file(alone / WEIGHTS).items():
        two = load_file(Path(tmp_path / "two" / "checkpoints" / "last" / WEIGHTS))
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)


def test_other_processes_wait_for_the_end_of_the_first_one(monkeypatch):
    watch = object.__new__(together._Watch)
    watch.link, first = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch._wait_for_the_first)
        assert not wait([waiting], timeout=0.3).done
        first.close()
        waiting.result(timeout=5)
        monkeypatch.setattr(together, "PATIENCE_S", 0.01)
        watch.link.close()
        watch.link, first = socket.socketpair()
        pool.submit(watch._wait_for_the_first).result(timeout=5)
    watch.link.close()
    first.close()


@pytest.mark.parametrize("early", [False, True])
def test_a_process_that_fabric_has_started_ends_with_the_first_one(tmp_path, early):
    said = "print('ready', flush=True)\n"
    other = (
        "import time\n"
        "from detect.running import together\n"
        "from detect.running.devices import make_fabric\n"
        "together.PATIENCE_S = 0\n"
        f"{said + 'time.sleep(1)' if early else ''}\n"
        "make_fabric(2, 'cpu', '32-true')\n"
        f"{'' if early else said}"
        "time.sleep(100)  # as it would wait for a connection\n"
    )
    first = (
        "import os, subprocess, sys, time\n"
        "from detect.running.together import end_with_first_process\n"
        "end_with_first_process(0)\n"
        f"subprocess.Popen([sys.executable, '-c', {other!r}], env={{**os.environ, 'LOCAL_RANK': '1'}})\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", first], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The pipe has its end when the other process, which inherited it, is gone as well.
    began = time.monotonic()
    assert process.stdout.read() == ""
    assert time.monotonic() - began < 30
    process.stdout.close()
    process.wait()


SLOW_TO_SEE = """
import os, time
from types import SimpleNamespace
from detect.running import together
from dpipe.errors import InputError

os.environ["MASTER_ADDR"] = "127.0.0.1"
together.GRACE_S = 0.2
ports, port_told = os.pipe()
rank = next((rank for rank in (1, 2) if os.fork() == 0), 0)

def broadcast(port):
    if rank == 0:
        os.write(port_told, b"%5d" % port * 2)
        return port
    return int(os.read(ports, 5))

if rank == 2:
    together.POLL_S = 2.0  # as on a machine that is too busy to run it
fabric = SimpleNamespace(global_rank=rank, world_size=3, broadcast=broadcast)
try:
    with together.failing_together(fabric):
        time.sleep(0.5 if rank == 1 else 60)
        raise InputError("this one fails")
except InputError as error:
    print(error, flush=True)
    raise SystemExit(2)
"""


def test_a_process_that_sees_a_failure_late_does_not_lose_the_first_one() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_TO_SEE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "this one fails\n")
    assert "c10d" not in done.stderr  # PyTorch's page on a connection that has ended
