"""The values of flags, as settings."""

from pathlib import Path

import pytest

from jaxval.cli import apps, frame, settings
from jaxval.corpus import datasets
from jaxval.errors import UserError

ROOT = Path(__file__).parents[2]
REQUIRED = ("--output_dir=o", "--checkpoint_dir=c", "--model=m", "--dataset=d")


def values(*arguments, app=apps.VALIDATE):
    return app.parse(["jaxval", *arguments])


@pytest.fixture
def config(monkeypatch):
    """Makes the Config of flags whose paths need not exist."""
    monkeypatch.setattr(datasets, "parse_all", tuple)
    return lambda *arguments: settings.config(values(*arguments))


# Flag files


FLAG_FILES = [*sorted((ROOT / "configs").glob("*.flags")), ROOT / "jaxval/demo/demo.flags"]


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.name)
def test_flag_file_makes_a_config(config, path):
    assert config(f"--flagfile={path}").output.directory
    assert path.read_text().startswith("# ")


def test_quotes_in_a_flag_file_keep_a_trailing_space(config):
    texts = config(f"--flagfile={ROOT / 'configs' / 'e5.flags'}").evaluation.texts
    assert (texts.query_prefix, texts.passage_prefix) == ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("flag", "prefix"),
    [("'a: '", "a: "), ('"a: "', "a: "), ("", ""), ("'", "'"), ("'a\"", "'a\""), ("''", "")],
)
def test_only_a_pair_of_quotes_is_removed(config, flag, prefix):
    texts = config(*REQUIRED, f"--query_prefix={flag}").evaluation.texts
    assert texts.query_prefix == prefix


# Values


def test_measures_are_split_at_commas_outside_parentheses(config):
    flag = "--measures=RR@10, nDCG(dcg='exp-log2')@5,ERR(a=1,b=2)@20"
    measures = config(*REQUIRED, flag).evaluation.search.measures
    assert measures == ("RR@10", "nDCG(dcg='exp-log2')@5", "ERR(a=1,b=2)@20")


def test_directories_are_inside_output_dir_by_default(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settled = config(*REQUIRED)
    assert settled.output.directory == tmp_path / "o"
    assert settled.watching.pin_dir == tmp_path / "o" / "pins"
    assert settled.evaluation.texts.token_dir == tmp_path / "o" / "tokens"
    assert settled.watching.checkpoint_dir == str(tmp_path / "c")


def test_runs_that_share_pin_dir_have_their_own_directories_in_it(config, tmp_path):
    pin_dirs = [
        config(*REQUIRED, f"--pin_dir={tmp_path}", f"--output_dir={name}").watching.pin_dir
        for name in ("first", "second")
    ]
    assert [pin_dir.parent for pin_dir in pin_dirs] == [tmp_path, tmp_path]
    assert len(set(pin_dirs)) == 2


def test_url_of_an_object_store_stays(config):
    watching = config(*REQUIRED, "--checkpoint_dir=gs://bucket/run").watching
    assert watching.checkpoint_dir == "gs://bucket/run"


def test_home_directory_is_expanded(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    flags = ("--checkpoint_dir=~/c", "--output_dir=~/o", "--rerank=~/run.trec")
    settled = config(*REQUIRED, *flags)
    assert settled.watching.checkpoint_dir == "/home/someone/c"
    assert settled.output.directory == Path("/home/someone/o")
    assert settled.evaluation.search.rerank == Path("/home/someone/run.trec")


def test_size_of_pins_is_given_in_gib(config):
    limit = config(*REQUIRED, "--max_pinned_gib=1.5", "--max_pins=3").watching.pin_limit
    assert (limit.count, limit.bytes) == (3, 3 * 2**29)


def test_tokens_have_no_directory_by_default_outside_a_run(monkeypatch):
    monkeypatch.setattr(datasets, "parse_all", tuple)
    flags = values("--dataset=d", "--model=m", app=apps.SAMPLE)
    assert settings.evaluation(flags).texts.token_dir is None


def test_steps_are_numbers():
    flags = values("--steps=0, 200,100", app=apps.FIDELITY)
    assert settings.steps(flags) == {0, 100, 200}
    flags = values("--steps=0,last", app=apps.FIDELITY)
    with pytest.raises(UserError, match="--steps: 'last' is not a step"):
        settings.steps(flags)


# Combinations


@pytest.fixture
def usable(beir, tmp_path):
    """Flags that can be combined, by name."""
    return {
        "output_dir": tmp_path / "out",
        "checkpoint_dir": tmp_path / "checkpoints",
        "dataset": f"tiny:{beir()}",
        "encoder": "a.b:c",
        "tokenizer": tmp_path / "tokenizer",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dir": None}, "--output_dir is not set: "),
        ({"checkpoint_dir": None}, "--checkpoint_dir is not set: "),
        ({"dataset": None}, "--dataset is not set: "),
        ({"dataset": "tiny"}, "--dataset=tiny: no path: "),
        ({"dataset": "tiny:/not/there"}, "--dataset=tiny:/not/there: there is no '/not/there'"),
        ({"encoder": None}, "set one of --model=FOLDER"),
        ({"model": "folder"}, "set one of --model=FOLDER"),
        ({"tokenizer": None}, "--encoder needs --tokenizer"),
        ({"pooling": "mean"}, "--pooling, --normalize and --dim apply to --model"),
        ({"normalize": "false"}, "--pooling, --normalize and --dim apply to --model"),
        ({"dim": "8"}, "--pooling, --normalize and --dim apply to --model"),
        ({"base_params": "base"}, "set --base_params and --lora_alpha together"),
        ({"lora_alpha": 3}, "set --base_params and --lora_alpha together"),
        (
            {"query_params_path": "a"},
            "set --query_params_path and --passage_params_path",
        ),
        (
            {"params_path": "a", "query_params_path": "a", "passage_params_path": "b"},
            "without --params_path",
        ),
        ({"pin_dir": "{checkpoint_dir}/pins"}, "is inside --checkpoint_dir"),
        ({"confirm": "best"}, "--confirm=best needs two --dataset"),
        ({"confirm": "best", "rerank": "a"}, "--confirm and --rerank cannot be combined"),
    ],
)
def test_flags_that_cannot_be_combined(usable, change, message):
    given = {name: str(value) for name, value in (usable | change).items() if value is not None}
    if "pin_dir" in given:
        given["pin_dir"] = given["pin_dir"].format(**given)
    flags = values(*(f"--{name}={value}" for name, value in given.items()))
    with pytest.raises(UserError) as caught:
        settings.config(flags)
    assert message in frame.as_flags(str(caught.value), set(flags))


def test_checkpoint_dir_is_not_made(usable, tmp_path):
    settings.config(values(*(f"--{name}={value}" for name, value in usable.items())))
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "out").exists()


def test_app_of_one_set_takes_only_one(beir):
    flags = values(f"--dataset=a:{beir()}", "--dataset=b:c", app=apps.SAMPLE)
    with pytest.raises(UserError, match="--dataset is repeated"):
        settings.dataset(flags)
