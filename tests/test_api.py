"""The public API: what a notebook or a trainer calls."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxval
from jaxval.errors import MismatchError, UserError
from tests.e2e import world


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    world.write_texts(root / "texts")
    world.write_tokenizer(root / "tokenizer")
    world.save(root / "checkpoints", [3, 4], complete=False)
    return root


@pytest.fixture
def asked(place):
    return {
        "dataset": f"tiny:{place / 'texts'}",
        "measures": ["RR@10", "nDCG@10"],
        "tokenizer": str(place / "tokenizer"),
    }


def test_importing_jaxval_imports_neither_jax_nor_numpy():
    script = (
        "import sys, time; start = time.perf_counter(); import jaxval;"
        "print(*sorted({'jax', 'flax', 'numpy', 'orbax', 'scipy'} & sys.modules.keys()));"
        "print(*(name for name in jaxval.__all__ if name not in dir(jaxval)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("\n\n", "")


@pytest.mark.parametrize("name", jaxval.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(jaxval, name).__doc__


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxval' has no attribute 'nothing'"):
        jaxval.nothing  # noqa: B018


def test_a_checkpoint_is_validated_by_its_path(place, asked):
    result = jaxval.validate(world.encoder(), place / "checkpoints" / "3", **asked)
    assert result.per_query["RR@10"] == pytest.approx(world.expected(3))
    assert result.measures["RR@10"] == pytest.approx(np.mean(world.expected(3)))
    assert list(result.measures) == ["RR@10", "nDCG@10"]
    assert result.query_ids == tuple(world.QUERIES)
    assert (result.step, result.dataset) == (3, "tiny")
    assert result.checkpoint == str(place / "checkpoints" / "3")
    low, high = result.intervals["RR@10"]
    assert low <= result.measures["RR@10"] <= high
    assert set(result.seconds) == {"restore", "queries", "passages", "search", "measures"}


def test_parameters_in_memory_are_validated_also_inside_a_train_state(asked):
    params = {"words": {"embedding": world.table(5)}}
    for tree in (params, {"params": params, "step": np.int64(5)}):
        result = jaxval.validate(world.encoder(), tree, **asked)
        assert result.per_query["RR@10"] == pytest.approx(world.expected(5))
        assert (result.step, result.checkpoint) == (None, "")


def test_it_needs_no_directory_and_leaves_none(place, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(place.rglob("*"))
    jaxval.validate(world.encoder(), place / "checkpoints" / "3", **asked)
    assert list(tmp_path.iterdir()) == []
    assert sorted(place.rglob("*")) == before


def test_it_gives_the_values_that_the_app_gives(place, asked, tmp_path):
    flags = {
        "checkpoint_dir": place / "checkpoints",
        "output_dir": tmp_path / "out",
        "encoder": "tests.e2e.world:encoder",
        "devices": "cpu",
        "idle_timeout": 0.1,
        "similarity": "cosine",
        "passage_max_len": 4,
        **asked,
        "measures": "RR@10,nDCG@10",
    }
    listed = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", "jaxval.main", *listed]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    run = jaxval.open_run(tmp_path / "out")
    for recorded in run.results:
        result = jaxval.validate(
            world.encoder(),
            recorded.checkpoint,
            similarity="cosine",
            passage_max_len=4,
            **asked,
        )
        assert result.measures == recorded.measures
        assert result.intervals == recorded.intervals
        assert result.step == recorded.step
        assert result.per_query["RR@10"].tolist() == run.per_query().loc[recorded.step].tolist()


def test_it_runs_on_the_devices_that_are_named(place, asked):
    devices = jax.devices()[:2]
    result = jaxval.validate(
        world.encoder(), place / "checkpoints" / "3", devices=devices, **asked
    )
    assert result.per_query["RR@10"] == pytest.approx(world.expected(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"query_maxlen": 8},
            "`query_maxlen` is not a setting of validate",
        ),
        ({"tokenizer": None}, "`encoder` needs `tokenizer=FOLDER`"),
        ({"dataset": "tiny:/nowhere"}, "`dataset=tiny:/nowhere`: there is no '/nowhere'"),
        ({"measures": ["Nonsense"]}, "`measures`: 'Nonsense' is"),
        ({"depth": 5}, "`depth=10` or more"),
        ({"pooling": "mean"}, "`pooling`, `normalize` and `dim` apply to `model` only"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(asked, settings, message):
    params = {"words": {"embedding": world.table(5)}}
    with pytest.raises(UserError, match=message):
        jaxval.validate(world.encoder(), params, **(asked | settings))


def test_parameters_of_another_shape_do_not_fit(asked):
    with pytest.raises(MismatchError, match="words/embedding"):
        jaxval.validate(world.encoder(), {"words": {"embedding": np.zeros((2, 2))}}, **asked)


def test_one_measure_needs_no_list(asked):
    params = {"words": {"embedding": world.table(5)}}
    result = jaxval.validate(world.encoder(), params, **(asked | {"measures": "RR@10"}))
    assert list(result.measures) == ["RR@10"]


def test_a_directory_of_checkpoints_is_not_one(place, asked):
    directory = place / "checkpoints"
    for call in (
        lambda: jaxval.validate(world.encoder(), directory, **asked),
        lambda: jaxval.load_params(directory, world.encoder()),
    ):
        with pytest.raises(UserError) as caught:
            call()
        said = "a directory of checkpoints (steps 3, 4): name one, e.g."
        assert str(caught.value) == f"{directory} is {said} {directory}/4"


def test_a_factory_in_place_of_its_encoder(asked):
    for call in (
        lambda: jaxval.validate(world.encoder, {}, **asked),
        lambda: jaxval.load_params("/nowhere", world.encoder),
    ):
        with pytest.raises(UserError, match="a function without .*; call the function, or"):
            call()


def test_load_params_gives_the_tree_that_the_encoder_expects(place):
    params = jaxval.load_params(place / "checkpoints" / "4", world.encoder())
    assert jax.tree.structure(params) == jax.tree.structure(world.encoder().abstract_params())
    assert (params["words"]["embedding"] == world.table(4)).all()


def test_load_params_takes_the_subtree_that_is_named(place):
    with pytest.raises(MismatchError, match="`params_path=default/ema` is not in it"):
        jaxval.load_params(
            place / "checkpoints" / "4", world.encoder(), params_path="default/ema"
        )
