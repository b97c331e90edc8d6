"""What each launcher says, and who waits for whom: in environments made up here. Real processes: test_cluster.py."""

from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import distributed, launcher, slurm
from engine.launcher import LauncherError, Placement, placement

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
JOB = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


def test_torchrun_and_deepspeed_say_the_same_in_their_own_names() -> None:
    expected = Placement(3, 1, 4, 2, "node1", 29500)
    assert placement(TORCHRUN) == expected
    deepspeed = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"}
    assert placement({**deepspeed, "LOCAL_SIZE": "2"}) == expected


def test_a_step_of_slurm_is_read_and_its_first_host_leads() -> None:
    assert placement(STEP) == Placement(2, 0, 4, 2, "node01", 20_000 + 2423)
    given_address = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7000", "WORLD_SIZE": "4"}
    assert placement(given_address) == Placement(2, 0, 4, 2, "10.0.0.1", 7000)
    uneven = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_PROCID": "3"}
    assert placement(uneven) == Placement(3, 0, 4, 1, "node01", 20_000 + 2423)
    old = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP_") or name == "SLURM_STEP_ID"}
    assert placement({**old, "SLURM_NTASKS_PER_NODE": "2"}) == Placement(2, 0, 4, 2, "node01", 20_000 + 2423)


def test_torchrun_within_a_step_goes_before_slurm() -> None:
    assert placement({**STEP, **TORCHRUN}) == Placement(3, 1, 4, 2, "node1", 29500)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        JOB,  # the script of a job, or a shell after salloc
        {**JOB, "MASTER_ADDR": "node01", "MASTER_PORT": "7000"},  # set by the script, for its steps
        {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
        {"WORLD_SIZE": "1"},
    ],
)
def test_nobody_says_that_there_are_others(environment: dict[str, str]) -> None:
    assert placement(environment) is None


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused_by_the_name_of_the_other_half(missing: str) -> None:
    said = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(LauncherError, match=f"but not {missing}: start with torchrun"):
        placement(said)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MASTER_ADDR": "node1", "MASTER_PORT": "1"}, "but not RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "8"}, "but not RANK, MASTER_ADDR, MASTER_PORT"),
        ({**JOB, "WORLD_SIZE": "8"}, "but not RANK, MASTER_ADDR, MASTER_PORT"),  # srun was forgotten
        ({**TORCHRUN, "RANK": "4"}, "RANK is '4', but must be a whole number from 0 to 3"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one'"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK is '2', but must be a whole number from 0 to 1"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, "LOCAL_RANK is missing"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
        ({**STEP, "WORLD_SIZE": "8"}, "WORLD_SIZE is 8, but srun started 4"),
        ({**STEP, "SLURM_STEP_NODELIST": "node[1"}, "no list of hosts"),
        ({name: value for name, value in STEP.items() if name != "SLURM_PROCID"}, "but not SLURM_PROCID"),
    ],
)
def test_what_cannot_be_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(LauncherError, match=said):
        placement(environment)


def test_one_process_a_host_needs_no_local_rank() -> None:
    pod = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "train-0.train", "MASTER_PORT": "29500"}
    assert placement(pod) == Placement(2, 0, 4, 1, "train-0.train", 29500)


def test_restarts_of_torchrun_need_a_store_of_their_own() -> None:
    elastic = {**TORCHRUN, "TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with pytest.raises(LauncherError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        placement(elastic)
    assert placement({**elastic, "TORCHELASTIC_USE_AGENT_STORE": "False"}) is not None
    assert placement({**elastic, "TORCHELASTIC_MAX_RESTARTS": "0"}) is not None


def test_restarts_of_either_kind_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = distributed.alone(torch.device("cpu"))
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.restarts(ranks) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert distributed.restarts(ranks) == 3


WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=4)


@st.composite
def range_(draw: st.DrawFn) -> tuple[str, list[str]]:
    first, more, width = draw(st.integers(0, 120)), draw(st.integers(0, 12)), draw(st.integers(1, 4))
    numbers = [f"{number:0{width}}" for number in range(first, first + more + 1)]
    # SLURM writes a range of one number without a dash; others write both ends.
    text = numbers[0] if more == 0 and draw(st.booleans()) else f"{numbers[0]}-{numbers[-1]}"
    return text, numbers


@st.composite
def name(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A name with one or two brackets, or none, and the hosts that it stands for."""
    text = draw(WORDS)
    found = [text]
    for _ in range(draw(st.integers(0, 2))):
        ranges = draw(st.lists(range_(), min_size=1, max_size=3))
        after = draw(st.sampled_from(["", "-x"]))
        text += "[" + ",".join(text for text, _ in ranges) + "]" + after
        found = [host + number + after for host in found for _, numbers in ranges for number in numbers]
    return text, found


@given(st.lists(name(), min_size=1, max_size=4))
def test_a_list_of_hosts_is_expanded_in_its_order(names: list[tuple[str, list[str]]]) -> None:
    assert slurm.hosts(",".join(text for text, _ in names)) == [host for _, found in names for host in found]


def test_a_list_of_hosts_as_slurm_writes_it() -> None:
    assert slurm.hosts("node[01-03,07],other5") == ["node01", "node02", "node03", "node07", "other5"]
    assert slurm.hosts("rack[1-2]-n[09-10].site") == [
        "rack1-n09.site",
        "rack1-n10.site",
        "rack2-n09.site",
        "rack2-n10.site",
    ]


@given(st.text("an0-9[],12 ", max_size=12))
def test_any_other_text_is_hosts_or_a_clear_error(text: str) -> None:
    try:
        found = slurm.hosts(text)
    except ValueError as error:
        assert "list of hosts" in str(error)
    else:
        assert all(host and not set(host) & set("[], ") for host in found)


def test_initialize_stops_at_half_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in launcher.NEEDED:
        monkeypatch.delenv(missing, raising=False)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(LauncherError, match="WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        distributed.initialize()
    with pytest.raises(LauncherError, match="WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        distributed.join()


def test_each_process_takes_its_share_of_the_cores_or_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    assert distributed._device_of(Placement(3, 1, 4, 2, "node1", 1)) == torch.device("cuda", 1)
    with pytest.raises(LauncherError, match="LOCAL_RANK is 2, but this host shows 2"):
        distributed._device_of(Placement(2, 2, 4, 4, "node1", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LauncherError, match="LOCAL_RANK is 1, but this host shows 1"):
        distributed._device_of(Placement(1, 1, 2, 2, "node1", 1))
    monkeypatch.setenv("SLURM_LOCALID", "1")  # --gpus-per-task=1
    assert distributed._device_of(Placement(1, 1, 2, 2, "node1", 1)) == torch.device("cuda", 0)
