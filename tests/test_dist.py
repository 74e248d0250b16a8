"""Who a rank is, from the variables that torchrun or the supervisor sets; whether others live."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nmoe.config import ConfigError
from nmoe.dist import World, read_world, start_time
from tests import tiny

WATCHED = """
import os, sys, time
from nmoe import dist

def on_lost(why):
    print(why, flush=True)
    os._exit(5)

world = dist.read_world()
dist.start(world)
with dist.watched(on_lost):
    print("in", flush=True)
    if world.rank == 1:
        sys.stdin.read()  # as long as the test likes
    elif sys.argv[1] == "dies":
        time.sleep(60)  # inside CUDA, say, where nothing is raised
print("left", flush=True)
"""


def start_watched(how: str, tmp_path: Path) -> list[subprocess.Popen[str]]:
    port = tiny.free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WATCHED, how],
            env=tiny.rank_env(tmp_path, rank=rank, world=2, port=port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.stdout.readline() for rank in ranks if rank.stdout] == ["in\n"] * 2
    return ranks


def test_rank_is_told_when_the_process_of_another_is_gone(tmp_path: Path) -> None:
    first, second = start_watched("dies", tmp_path)
    second.kill()
    second.wait()
    said, _ = first.communicate(timeout=30)
    assert first.returncode == 5
    assert said == f"rank 1 (pid {second.pid}) died: its process is gone.\n"


def test_nobody_is_told_when_ranks_end_one_after_the_other(tmp_path: Path) -> None:
    first, second = start_watched("leaves", tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(timeout=3)  # it waits for the other at the end of the block
    said, _ = second.communicate(timeout=60)
    assert said == "left\n"
    assert first.communicate(timeout=30)[0] == "left\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_world_is_one_rank_when_nothing_is_set() -> None:
    assert read_world({}) == World(rank=0, size=1)


def test_world_is_what_torchrun_says() -> None:
    env = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    assert read_world(env) == World(rank=3, size=4)


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"},
    ],
)
def test_world_refuses_more_than_one_host_with_the_command_to_use(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"torchrun --standalone --nproc_per_node="):
        read_world(env)


def test_world_refuses_more_ranks_than_a_host_has_gpus() -> None:
    with pytest.raises(ConfigError, match="at most 8"):
        read_world({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "16"})


def test_process_counts_as_gone_when_it_is_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, nobody has reaped it
    assert os.path.exists(f"/proc/{child.pid}/stat")
    assert start_time(child.pid) == -1
    child.wait()
    assert start_time(child.pid) == -1


def test_process_is_known_by_its_start_time_when_it_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        mine, theirs = start_time(os.getpid()), start_time(child.pid)
        assert 0 < mine <= theirs
