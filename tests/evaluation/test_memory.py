"""A device with too little memory. Its stand-in refuses, as XLA does, what is too large."""

import os

import jax
import numpy as np
import pytest

from jaxval.encoders.adapter import FunctionEncoder
from tests.e2e import world
from tests.e2e.app import App

ROOM = "JAXVAL_TEST_ROOM"
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."


def encoder():
    """The tiny world's, on a device with room for so many tokens a batch."""
    plenty = world.encoder()

    def within_room(function):
        def encode(params, ids, mask):
            if ids.size > int(os.environ[ROOM]):
                raise jax.errors.JaxRuntimeError(FULL)
            return function(params, ids, mask)

        return encode

    return FunctionEncoder(
        within_room(plenty.encode_queries),
        within_room(plenty.encode_passages),
        plenty.abstract_params,
    )


@pytest.fixture
def run(tmp_path):
    made = App(tmp_path)
    made.flags["encoder"] = "tests.evaluation.test_memory:encoder"
    world.save(made.checkpoints, [3, 4])
    return made


def test_the_batch_is_halved_until_it_fits_and_for_the_whole_run(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, so that one batch could hold all
    monkeypatch.setenv(ROOM, "100")
    status, out, err = run.finish(batch_tokens=1024)
    assert status == 0, err
    said = [line for line in err.splitlines() if "the device is out of memory" in line]
    tokens = [int(line.partition("from now on ")[2].split()[0]) for line in said]
    assert tokens == [512, 256, 128, 64]  # each once: the second checkpoint begins with 64
    assert "2 validated" in out
    for line in run.lines():
        wanted = np.mean(world.expected(line["step"]))
        assert line["measures"]["RR@10"] == pytest.approx(wanted)


def test_too_little_for_anything_is_one_line_and_status_2_and_keeps_the_pins(run, monkeypatch):
    monkeypatch.setenv(ROOM, "20")  # the factory is tried with 16
    status, _, err = run.finish(batch_tokens=256)
    assert status == 2
    (fault,) = [line for line in err.splitlines() if line.startswith("jaxval: ")]
    assert "too little memory for the smallest batch" in fault
    assert "--dtype=bfloat16" in fault
    assert "Traceback" not in err
    assert run.query("SELECT count(*) FROM validation") == [(0,)]
    assert run.query("SELECT count(*) FROM failure") == [(0,)]
    assert len(list((run.output / "pins").iterdir())) == 2
