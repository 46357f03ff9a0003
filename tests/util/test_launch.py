"""Rank, world size and meeting place from the environment of each launcher."""

import os

import pytest

from util.errors import UserError
from util.flags import get_args_parser
from util.launch import FIRST_PORT, PORTS, Place, find_place, first_host

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12],login", "SLURM_JOB_NODELIST": "gpu[01-12]",
}  # fmt: skip
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "5"}


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3,5],m2", "n1"),
        ("n[5,1-3]", "n5"),
        ("gpu[007-012]", "gpu007"),
        ("rack[02-04]b", "rack02b"),
        ("rack[1-2]node[03,05-06],x", "rack1node03"),
        ("a-b.c[1]", "a-b.c1"),
        ("", ""),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_process_alone_needs_nothing() -> None:
    assert find_place("env://", 1, {}) is None
    assert find_place("env://", 1, SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_torchrun_comes_first_inside_slurm_too() -> None:
    env = SLURM | TORCHRUN
    assert find_place("env://", 1, env) == Place(3, 4, 1, "env://")


def test_srun() -> None:
    place = find_place("env://", 1, SLURM)
    assert place is not None and place[:3] == (5, 16, 1)
    host, _, port = place.url.removeprefix("tcp://").partition(":")
    assert host == "gpu07" and FIRST_PORT <= int(port) < FIRST_PORT + PORTS
    assert find_place("env://", 1, SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == Place(
        0, 16, 0, place.url
    )
    later = find_place("env://", 1, SLURM | {"SLURM_STEP_ID": "1"})
    assert later is not None and later.url != place.url, "two steps of a job may run side by side"


def test_srun_with_a_master_of_the_users_own() -> None:
    place = find_place("env://", 1, SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "999"})
    assert place is not None and place.url == "tcp://10.0.0.1:999"


def test_srun_without_a_node_list() -> None:
    env = {name: value for name, value in SLURM.items() if "NODELIST" not in name}
    with pytest.raises(UserError, match="MASTER_ADDR"):
        find_place("env://", 1, env)


def test_a_command_of_a_batch_script_is_there_once() -> None:
    env = SLURM | {"ENVIRONMENT": "BATCH", "SLURM_PROCID": "0"}
    del env["SLURM_STEP_ID"]
    assert find_place("env://", 1, env) is None
    assert find_place("env://", 1, env | {"SLURM_STEP_ID": "0"}) is not None, "what srun starts there"


def test_the_shell_of_an_allocation_is_there_once() -> None:
    salloc = SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_JOB_NAME": "interactive"}
    assert find_place("env://", 1, salloc) is None
    assert find_place("env://", 1, salloc | {"SLURM_STEP_ID": "0"}) is not None, "what srun starts there"
    on_login_node = {
        name: value for name, value in SLURM.items() if name not in ("SLURM_PROCID", "SLURM_STEP_ID")
    }
    assert find_place("env://", 1, on_login_node) is None
    pty = SLURM | {"SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000"}
    typed, started = ({"SLURM_TASK_PID": pid} for pid in ("1", str(os.getpid())))
    assert find_place("env://", 1, pty | typed) is None, "a command typed into srun --pty bash"
    assert find_place("env://", 1, pty | started) is not None, "srun --pty python"


def test_variables_that_another_command_left() -> None:
    assert find_place("env://", 1, {"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert find_place("env://", 1, {"RANK": "3"}) is None
    assert find_place("env://", 1, {"WORLD_SIZE": "2"}) is None
    assert find_place("env://", 1, {"LOCAL_RANK": "none", "MASTER_PORT": "none"}) is None


@pytest.mark.parametrize(
    "change, named",
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set, so rank 3 of 4 cannot find the others.*torchrun"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT is 'tcp://10.0.0.1:80' in the environment"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four' in the environment, not a whole number"),
        ({"RANK": "-1"}, "RANK is '-1' in the environment"),
        ({"LOCAL_RANK": "$i"}, "LOCAL_RANK is '\\$i' in the environment"),
        ({"RANK": "4"}, "rank 4 of 4 processes"),
        ({"WORLD_SIZE": "0"}, "rank 3 of 0 processes"),
    ],
)
def test_an_environment_that_is_wrong_is_one_line(change: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        find_place("env://", 1, TORCHRUN | change)


@pytest.mark.parametrize("flag", ["--local-rank=1", "--local_rank=1"])
def test_the_argument_of_torch_distributed_launch_is_taken(flag: str) -> None:
    args = get_args_parser().parse_args([flag])
    assert args.local_rank == 1
    assert "local" not in get_args_parser().format_help()
    assert not hasattr(get_args_parser().parse_args([]), "local_rank")


def test_submitits_local_cluster() -> None:
    env = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_LOCALID": "1"}
    assert find_place("file:///shared/x", 1, env) == Place(1, 2, 1, "file:///shared/x")


def test_a_url_and_a_world_size() -> None:
    expected = Place(1, 2, 1, "tcp://host:5")
    assert find_place("tcp://host:5?rank=1", 2, {}) == expected
    assert find_place("tcp://host:5?rank=1&world_size=2", 1, {}) == expected
    assert find_place("tcp://host:5", 2, {"RANK": "1"}) == expected
    assert find_place("file:///shared/x", 1, SLURM) == Place(5, 16, 1, "file:///shared/x")


@pytest.mark.parametrize(
    "url, size, named",
    [
        ("tcp://host:5", 2, "--world_size 2"),
        ("tcp://host:5?rank=2", 2, "rank 2"),
        ("host:5?rank=0", 2, "--dist_url host:5"),
    ],
)
def test_what_is_missing_is_named(url: str, size: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        find_place(url, size, {})
