"""Parsing and help of the apps, in process."""

import importlib
import re
import sys

import pytest
from absl import flags as absl_flags

from jaxval.cli import apps
from jaxval.errors import UserError

APPS = {
    "main": apps.VALIDATE,
    "sample": apps.SAMPLE,
    "fidelity": apps.FIDELITY,
    "convert": apps.CONVERT,
}


def parse(*arguments, app=apps.VALIDATE):
    return app.parse(["jaxval", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope=1"], "'nope'"),
        (["--depht=10"], "'depht'"),
        (["stray"], "'stray' is not a flag"),
        (["--depth=10", "--dim=3", "stray"], "'stray' is not a flag"),
        (["--depth"], "Missing value for flag --depth"),
        (["--depth=0"], r"--depth=0: .* range \[1, 100000\]"),
        (["--depth=100001"], r"--depth=100001: .* range \[1, 100000\]"),
        (["--depth=ten"], "--depth=ten: "),
        (["--dim=0"], "--dim=0: "),
        (["--max_validations=0"], "--max_validations=0: "),
        (["--idle_timeout=-1"], "--idle_timeout=-1"),
        (["--poll_interval=0"], "--poll_interval=0"),
        (["--batch_tokens=0"], "--batch_tokens=0: "),
        (["--query_max_len=2"], r"--query_max_len=2: .* range \[3, 32768\]"),
        (["--passage_max_len=40000"], r"--passage_max_len=40000: .* range \[3, 32768\]"),
        (["--similarity=l2"], r"--similarity=l2: .*dot\|cosine"),
        (["--dtype=float16"], r"--dtype=float16: .*float32\|bfloat16"),
        (["--write_run=csv"], r"--write_run=csv: .*trec\|msmarco"),
        (["--normalize=maybe"], "--normalize=maybe: "),
        (["--flagfile=/not/there"], "/not/there"),
    ],
)
def test_unusable_flag_is_an_error_of_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert str(caught.value).endswith("(see --help)")
    assert "\n" not in str(caught.value)


def test_flags_are_read_from_a_file(tmp_path):
    (tmp_path / "val.flags").write_text("# a comment\n\n--depth=7\n--normalize\n")
    values = parse(f"--flagfile={tmp_path / 'val.flags'}", "--nonormalize")
    assert (values.depth, values.normalize) == (7, False)


def test_flags_of_absl_are_accepted():
    assert parse("--verbosity=-1").verbosity == -1


def test_each_parse_has_its_own_values():
    first, second = parse("--depth=3"), parse()
    assert (first.depth, second.depth) == (3, 100)


def test_commands_are_imported_into_one_process():
    for name in APPS:
        importlib.import_module(f"jaxval.{name}")
    values = [parse("--checkpoint_dir=c", app=app) for app in APPS.values()]
    assert [value.checkpoint_dir for value in values] == ["c"] * 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_plugin_may_define_a_flag_of_the_same_name(tmp_path, monkeypatch, when):
    source = "from absl import flags\nMODEL = flags.DEFINE_string('model', 'theirs', '')\n"
    (tmp_path / f"plugin_{when}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    values = parse("--model=ours") if when == "after" else None
    plugin = importlib.import_module(f"plugin_{when}")
    try:
        values = values or parse("--model=ours")
        assert (values.model, plugin.MODEL.default) == ("ours", "theirs")
    finally:
        delattr(absl_flags.FLAGS, "model")
        del sys.modules[plugin.__name__]


@pytest.mark.parametrize("app", [apps.SAMPLE, apps.FIDELITY])
def test_flag_file_of_a_validation_is_accepted_by_the_other_apps(app):
    values = parse("--idle_timeout=3", "--patience=2", "--dtype=bfloat16", app=app)
    assert values.dtype == "bfloat16"


# --help


@pytest.mark.parametrize("name", APPS)
def test_help_has_each_shown_flag_with_one_default(name):
    app = APPS[name]
    descriptions = re.split(r"\n  --", app.help().partition("\nAny flag")[0])[1:]
    shown = [flag.name for topic in app.topics.values() for flag in topic]
    assert [text.partition("\n")[0] for text in descriptions] == shown
    assert len(set(shown)) == len(shown)
    for description in descriptions:
        text = " ".join(description.split())
        assert len(re.findall(r"\(default: [^)]+\)", text)) == 1, text
        assert "repeat this option" not in text


@pytest.mark.parametrize("name", APPS)
def test_help_groups_flags_by_topic(name):
    app = APPS[name]
    lines = app.help().splitlines()
    assert [line[:-1] for line in lines if re.fullmatch(r"\S.*:", line)] == list(app.topics)
    assert f"python -m jaxval.{name} " in app.page
    assert lines[0] == app.page.partition("\n")[0]


def test_help_shows_defaults_of_values():
    text = " ".join(apps.VALIDATE.help().split())
    assert "--depth Number of passages kept for each query. (default: 100)" in text
    assert "(default: RR@10,nDCG@10,R@100)" in text


def test_help_shows_no_flags_of_absl_and_no_ignored_flags():
    assert "--verbosity" not in apps.VALIDATE.help()
    assert "--patience" not in apps.SAMPLE.help()
    assert "--patience" not in apps.FIDELITY.help()
