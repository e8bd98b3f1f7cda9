"""A device with too little memory: the batch is halved until it fits."""

import pytest

from jaxval.errors import UserError
from tests.e2e.small_memory import ROOM
from tests.run.runner import Runner


@pytest.fixture
def place(tmp_path):
    place = Runner(tmp_path)
    place.settings["factory"] = "tests.e2e.small_memory:encoder"
    place.put(3, 4)
    return place


def test_the_batch_is_halved_until_it_fits_and_stays_so(place, monkeypatch):
    monkeypatch.setenv(ROOM, "100")
    assert (
        place.run(devices=1, batch_tokens=1024) == 0
    )  # one device could hold all in one batch
    lines = [line for line in place.log.splitlines() if "the device is out of memory" in line]
    tokens = [int(line.partition("from now on ")[2].split()[0]) for line in lines]
    assert tokens == [512, 256, 128, 64]  # once each: the second checkpoint starts with 64
    assert "2 validated" in place.out
    place.check(3, 4)


def test_too_little_memory_for_any_batch_ends_the_run_and_keeps_the_pins(place, monkeypatch):
    monkeypatch.setenv(ROOM, "20")  # the encoder is tried with 16 tokens
    with pytest.raises(UserError) as raised:
        place.watch(devices=4, batch_tokens=256)
    message = str(raised.value)
    assert "too little memory for the smallest batch" in message
    assert "`dtype=bfloat16`" in message
    assert (place.steps(), place.steps("failure")) == ([], [])
    assert len(place.pins()) == 2
