"""What a launcher says to its processes, and what is refused of it."""

import pytest

from compiler.contracts.errors import RunError
from compiler.ranks.world import World, check_world, current_world

TOLD = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_torchrun_s_environment(monkeypatch: pytest.MonkeyPatch):
    for name, text in TOLD.items():
        monkeypatch.setenv(name, text)
    assert current_world() == World(rank=3, size=4, local=2)
    monkeypatch.delenv("MASTER_PORT")
    assert current_world() is None


@pytest.mark.parametrize(("size", "ways"), [(2, 4), (1, 2), (2, 1)])
def test_another_number_of_processes(size: int, ways: int):
    with pytest.raises(RunError) as caught:
        check_world(World(0, size, size), ways)
    assert caught.value.code == "world-size"
    assert f"the bundle has {ways} rank" in caught.value.message
    assert f"and {size} process" in caught.value.message


def test_the_right_number_or_no_launcher():
    check_world(World(1, 2, 2), 2)
    check_world(None, 4)
