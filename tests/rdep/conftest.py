"""Worlds of 1, 2 and 4 rank processes, started once for all tests of the transport."""

from collections.abc import Callable, Iterator

import pytest

from tests.rdep.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    worlds: dict[int, Ranks] = {}

    def world(size: int) -> Ranks:
        if size not in worlds:
            worlds[size] = Ranks(size)
        return worlds[size]

    yield world
    for each in worlds.values():
        each.close()
