"""Two nodes of two processes, under every launcher that can be had here, and what becomes of them when one is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine import annotate, prepare
from engine.config import Config, save_config
from engine.stopping import RESUME

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster_process.py")
BIN = Path(sys.executable).parent
NODES = ("127.0.0.1", "127.0.0.2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.is_available(), reason="four processes need four GPUs, or none"),
]

Command = list[str | Path]


class Cluster:
    """Launchers of a test; none of their processes outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.launchers: list[subprocess.Popen[bytes]] = []

    def start(self, command: Command, **environment: str) -> None:
        with (self.folder / f"node{len(self.launchers)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                    **environment,
                },
            )
        self.launchers.append(process)

    def statuses(self, seconds: float = 300) -> list[int]:
        """Exit statuses of the launchers, which end within so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            return [launcher.wait(max(0.1, deadline - time.monotonic())) for launcher in self.launchers]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there after {seconds} s\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("node*.log")))

    def seen(self, attempt: int = 0) -> list[dict]:
        """What the processes of an attempt saw, in the order of their ranks."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"*.{attempt}.json"))]

    def stepping(self, rank: int, attempt: int = 0) -> int:
        """The process id of a rank, once it steps."""
        path = self.folder / f"{rank}.{attempt}.pid"
        deadline = time.monotonic() + 300
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < deadline and any(one.poll() is None for one in self.launchers), self.logs()
            time.sleep(0.05)
        return int(path.read_text())

    def alive(self, attempt: int = 0) -> list[int]:
        """Ranks whose process is still there."""
        files = sorted(self.folder.glob(f"*.{attempt}.pid"))
        return [int(file.name.split(".")[0]) for file in files if running(int(file.read_text()))]

    def end(self) -> None:
        for launcher in self.launchers:
            for process in psutil.process_iter():
                try:
                    if os.getsid(process.pid) == launcher.pid:
                        process.kill()
                except (ProcessLookupError, psutil.Error):
                    continue
            launcher.wait()


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.end()


def start_deepspeed(cluster: Cluster, *arguments: str, **environment: str) -> None:
    hostfile = cluster.folder / "hostfile"
    hostfile.write_text("".join(f"{node} slots=2\n" for node in NODES))
    for number in range(len(NODES)):
        where = ["--no_ssh", "--node_rank", str(number), "--master_addr", NODES[0], "--master_port", str(cluster.port)]
        cluster.start(
            [BIN / "deepspeed", "--hostfile", hostfile, *where, SCRIPT, cluster.folder, *arguments], **environment
        )


def start_torchrun(cluster: Cluster, *arguments: str, restarts: int = 0, **environment: str) -> None:
    for number, node in enumerate(NODES):
        # Only the node that says so serves the meeting: both are one machine here.
        meeting = f"--rdzv-backend c10d --rdzv-endpoint {NODES[0]}:{cluster.port} --rdzv-id test"
        meeting += f" --rdzv-conf is_host={int(number == 0)} --local-addr {node}"
        nodes = f"--nnodes 2 --nproc-per-node 2 --max-restarts {restarts}"
        cluster.start(
            [BIN / "torchrun", *nodes.split(), *meeting.split(), SCRIPT, cluster.folder, *arguments], **environment
        )


def slurm_step(rank: int, job: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % 2),
        "SLURM_NODEID": str(rank // 2),
    }


def start_slurm(cluster: Cluster, *arguments: str, **environment: str) -> None:
    """What srun would: every process by itself."""
    for rank in range(4):
        step = {**slurm_step(rank, job=os.getpid()), **environment}
        cluster.start([sys.executable, SCRIPT, cluster.folder, *arguments], **step)


LAUNCHERS = {"deepspeed": start_deepspeed, "torchrun": start_torchrun, "slurm": start_slurm}
Start = Callable[..., None]


@pytest.fixture(params=LAUNCHERS)
def start(request: pytest.FixtureRequest) -> Start:
    return LAUNCHERS[request.param]


def check_whole(cluster: Cluster, attempt: int = 0) -> None:
    seen = cluster.seen(attempt)
    assert [process["rank"] for process in seen] == [0, 1, 2, 3]
    assert [process["local_rank"] for process in seen] == [0, 1, 0, 1]
    for process in seen:
        assert process["world_size"] == 4 and process["total"] == 0 + 1 + 2 + 3 and process["attempt"] == attempt
        # Of every step the flag of rank 3, one step later.
        assert process["agreed"] == [0, *(10 * step + 13 for step in range(19))]


def test_two_nodes_of_two_processes(cluster: Cluster, start: Start) -> None:
    start(cluster)
    assert set(cluster.statuses()) == {0}, cluster.logs()
    check_whole(cluster)


def test_two_nodes_in_networks_of_their_own(cluster: Cluster) -> None:
    """The host's own name leads nowhere there: gloo is told the interface that leads to the first host."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    spaces = [f"sgdm{os.getpid()}{letter}" for letter in "ab"]
    pair = [f"sg{os.getpid()}{letter}" for letter in "ab"]

    def ip(*arguments: str) -> bool:
        return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0

    try:
        if not (all(ip("netns", "add", space) for space in spaces) and ip("link", "add", pair[0], "type", "veth", "peer", "name", pair[1])):  # fmt: skip # noqa: E501
            pytest.skip("ip can make no network namespaces here")
        for number, (space, link) in enumerate(zip(spaces, pair, strict=True)):
            assert ip("link", "set", link, "netns", space)
            assert ip("-n", space, "addr", "add", f"10.213.0.{number + 1}/24", "dev", link)
            assert ip("-n", space, "link", "set", link, "up") and ip("-n", space, "link", "set", "lo", "up")
        for number, space in enumerate(spaces):
            where = ["--node-rank", str(number), "--master-addr", "10.213.0.1", "--master-port", str(cluster.port)]
            torchrun: Command = [BIN / "torchrun", "--nnodes", "2", "--nproc-per-node", "2", *where]
            cluster.start(["ip", "netns", "exec", space, *torchrun, SCRIPT, cluster.folder])
        assert set(cluster.statuses()) == {0}, cluster.logs()
        check_whole(cluster)
    finally:
        cluster.end()
        for space in spaces:  # the links go with them
            ip("netns", "del", space)


@pytest.mark.parametrize("fault", ["kill", "raise"])
def test_a_lost_process_takes_the_others_down(cluster: Cluster, start: Start, fault: str) -> None:
    start(cluster, "1000", fault, "3")
    for rank in range(4):
        cluster.stepping(rank)
    began = time.monotonic()
    while cluster.alive() and time.monotonic() - began < 60:
        time.sleep(0.1)
    print(f"all gone after {time.monotonic() - began:.1f} s")
    assert not cluster.alive(), cluster.logs()
    assert 0 not in cluster.statuses(60), cluster.logs()
    assert not cluster.seen()
    # Whom the launcher did not end before says what happened.
    assert "has lost another one" in cluster.logs() or start is start_torchrun
    if fault == "raise":
        assert "train: this process has an error of its own" in cluster.logs()


def test_processes_that_wait_for_the_device_end_with_the_lost_one(cluster: Cluster) -> None:
    start_slurm(cluster, "1000", "kill", "3", BLOCKED="1")
    statuses = cluster.statuses()
    assert statuses == [RESUME, RESUME, RESUME, -signal.SIGKILL], cluster.logs()
    assert cluster.logs().count("has lost another one") == 3


def test_a_process_that_hangs_is_found(cluster: Cluster) -> None:
    start_slurm(cluster, "1000", "hang", "3")
    victim = cluster.stepping(3)
    began = time.monotonic()
    while cluster.alive() != [3] and time.monotonic() - began < 60:
        time.sleep(0.1)
    print(f"the others are gone after {time.monotonic() - began:.1f} s")
    assert cluster.alive() == [3], cluster.logs()
    assert [launcher.wait() for launcher in cluster.launchers[:3]] == [RESUME] * 3
    os.kill(victim, signal.SIGKILL)


def test_torchrun_starts_again_and_the_second_attempt_knows(cluster: Cluster) -> None:
    start_torchrun(cluster, "20", "kill", "3", restarts=2, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert set(cluster.statuses(600)) == {0}, cluster.logs()
    assert not cluster.seen(0)
    check_whole(cluster, attempt=1)


def test_one_signalled_process_stops_all_at_the_same_step(cluster: Cluster) -> None:
    start_slurm(cluster, "100000")
    pids = [cluster.stepping(rank) for rank in range(4)]
    os.kill(pids[2], signal.SIGUSR1)
    assert cluster.statuses() == [RESUME] * 4, cluster.logs()
    assert len({len(process["agreed"]) for process in cluster.seen()}) == 1
    assert cluster.logs().count("train: stopped as asked") == 4


def test_training_on_two_nodes_has_the_loss_curve_of_one_process(cluster: Cluster, config: Config) -> None:
    training = dataclasses.replace(config.training, learning_rate=1e-3, images=320, precision="fp32")
    config = dataclasses.replace(config, training=training)
    prepare.run(config)
    annotate.run(config)
    path = cluster.folder / "config.yaml"
    save_config(config, path)
    hostfile = cluster.folder / "hostfile"
    hostfile.write_text("".join(f"{node} slots=2\n" for node in NODES))
    script = Path(__file__).with_name("scenarios.py")
    for number in range(len(NODES)):
        where = ["--no_ssh", "--node_rank", str(number), "--master_addr", NODES[0], "--master_port", str(cluster.port)]
        launcher = [BIN / "deepspeed", "--hostfile", hostfile, *where]
        cluster.start([*launcher, script, path, json.dumps({"nodes": {"zero_stage": 2}})])
    assert cluster.statuses() == [0, 0], cluster.logs()
    cluster.start([sys.executable, script, path, json.dumps({"alone": {}})])
    assert cluster.statuses()[-1] == 0, cluster.logs()
    curves = []
    for name in ("nodes", "alone"):
        lines = (config.run.with_name(name) / "log.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert len(curves[0]) == 20
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
