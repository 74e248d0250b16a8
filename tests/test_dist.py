"""Who a rank is, from the variables that torchrun or the supervisor sets."""

import pytest

from nmoe.config import ConfigError
from nmoe.dist import World, read_world


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
