import re
import subprocess
import sys
import textwrap

import pytest

GROUPS = (
    "Before the first run:",
    "Which checkpoints, and until when:",
    "What they are put to:",
    "The encoder:",
    "Texts:",
    "Devices:",
    "Output:",
    "Which is best, and what the trainer hears:",
)


def python(*arguments, cwd=None):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def main(*arguments):
    return python("-m", "jaxval.main", *arguments)


def framed(body, *arguments):
    """Runs an app of these lines in the frame."""
    script = "from jaxval.cli import frame as app\nfrom jaxval import errors\n"
    script += "import os, signal, sys, time\n"
    script += "def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    script += "\napp.run(main, {}, 'An app.')\n"
    return python("-c", script, *arguments)


def refused(ran, status=2):
    """The one line that stderr has, without its `jaxval: `."""
    assert ran.stdout == ""
    assert ran.returncode == status, ran.stderr
    # The watching begins before all is checked, so that no checkpoint is lost meanwhile.
    (line,) = [line for line in ran.stderr.splitlines() if " watching /" not in line]
    assert line.startswith("jaxval: ")
    return line.removeprefix("jaxval: ")


# --help


@pytest.fixture(scope="module")
def help_text():
    ran = main("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_help_groups_the_flags(help_text):
    heads = [line for line in help_text.splitlines() if re.fullmatch(r"\S.*:", line)]
    assert tuple(heads) == GROUPS
    assert help_text.startswith("Validates every Orbax checkpoint")
    groups = dict(zip(heads, re.split("|".join(GROUPS), help_text)[1:], strict=True))
    assert "--checkpoint_dir\n" in groups["Which checkpoints, and until when:"]
    assert "--dataset\n" in groups["What they are put to:"]
    assert "--devices\n" in groups["Devices:"]


def test_help_gives_each_flag_one_default(help_text):
    flags = re.split(r"\n  --", help_text.partition("\nAny flag")[0])[1:]
    assert len(flags) > 20
    for flag in flags:
        text = " ".join(flag.split())
        assert len(re.findall(r"\(default: [^)]+\)", text)) == 1, text
        assert "repeat this option" not in text
    assert any(text.startswith("depth\n") and "(default: 100)" in text for text in flags)


def test_help_shows_jaxvals_flags_alone(help_text):
    assert "--verbosity" not in help_text
    assert "--helpfull" not in help_text


def test_help_wins_over_whatever_stands_beside_it():
    ran = main("--depth=0", "--nope", "-h")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert GROUPS[0] in ran.stdout


# Flags that cannot be used


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope=1"], "'nope'"),
        (["--depht=10"], "'depht'"),
        (["stray"], "'stray' is no flag"),
        (["--depth=10", "--dim=3", "stray"], "'stray' is no flag"),
        (["--depth"], "Missing value for flag --depth"),
        (["--depth=0"], r"--depth=0: .* range \[1, 100000\]"),
        (["--depth=100001"], r"--depth=100001: .* range \[1, 100000\]"),
        (["--depth=ten"], "--depth=ten: "),
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
def test_a_flag_that_cannot_be_used(arguments, message):
    line = refused(main(*arguments))
    assert re.search(message, line)
    assert line.endswith("(see --help)")


@pytest.fixture
def given(beir, tmp_path):
    """Flags that would do, by name."""
    return {
        "output_dir": tmp_path / "out",
        "checkpoint_dir": tmp_path / "checkpoints",
        "dataset": f"tiny:{beir()}",
        "encoder": "a.b:c",
        "tokenizer": tmp_path / "tokenizer",
        "devices": "cpu",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dir": None}, "--output_dir is not set: "),
        ({"checkpoint_dir": None}, "--checkpoint_dir is not set: "),
        ({"dataset": None}, "--dataset: none is given: "),
        ({"dataset": "tiny"}, "--dataset=tiny: no path: "),
        ({"dataset": "tiny:/not/there"}, "--dataset=tiny:/not/there: there is no '/not/there'"),
        ({"encoder": None}, "set one of --model=FOLDER"),
        ({"model": "folder"}, "set one of --model=FOLDER"),
        ({"tokenizer": None}, "--encoder needs --tokenizer"),
        ({"pooling": "mean"}, "--pooling, --normalize and --dim belong to --model"),
        ({"dim": 0}, "--dim=0: "),
        ({"base_params": "base"}, "--base_params and --lora_alpha belong together"),
        ({"lora_alpha": 3}, "--base_params and --lora_alpha belong together"),
        ({"query_params_path": "a"}, "set --query_params_path and --passage_params_path both"),
        (
            {"params_path": "a", "query_params_path": "a", "passage_params_path": "b"},
            "and not --params_path",
        ),
        ({"pin_dir": "{checkpoint_dir}/pins"}, "lies in the trainer's directory"),
        ({"devices": "gpu;1"}, "--devices=gpu;1: write cpu, tpu, gpu"),
        ({"measures": "RR@10,foo"}, "--measures: 'foo' is no measure"),
        ({"measures": "R@10,P(rel=2)@500"}, "P(rel=2)@500 needs 500 hits and --depth=100"),
        ({"measures": ","}, "--measures is empty"),
        ({"passage_template": "{title}"}, "--passage_template='{title}': no {text}"),
        ({"encoder": "not.there:at_all"}, "--encoder=not.there:at_all"),
    ],
)
def test_flags_that_do_not_go_together(given, tmp_path, change, message):
    flags = {name: value for name, value in (given | change).items() if value is not None}
    values = {name: str(value) for name, value in flags.items()}
    if "pin_dir" in values:
        values["pin_dir"] = values["pin_dir"].format(**values)
    line = refused(main(*(f"--{name}={value}" for name, value in values.items())))
    assert message in line
    assert not (tmp_path / "checkpoints").exists()


def test_flags_stand_in_a_file(given, tmp_path):
    lines = [f"--{name}={value}" for name, value in (given | {"depth": 0}).items()]
    (tmp_path / "val.flags").write_text("\n".join(["# a comment", *lines]) + "\n")
    line = refused(main(f"--flagfile={tmp_path / 'val.flags'}"))
    assert "--depth=0: " in line


# The frame


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("UserError", 2),
        ("DataError", 2),
        ("MismatchError", 2),
        ("CheckpointError", 1),
        ("JaxvalError", 1),
    ],
)
def test_a_fault_is_its_line_and_its_status(error, status):
    ran = framed(f"raise errors.{error}('corpus.jsonl:3: why: what to do')")
    assert refused(ran, status) == "corpus.jsonl:3: why: what to do"


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_apps_own_status(status):
    ran = framed(f"print('done')\nreturn {status}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "done\n", "")


def test_an_interruption_is_one_line():
    ran = framed("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert "start again to go on" in refused(ran, status=130)


def test_termination_runs_what_must_be_run():
    ran = framed(
        """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            print("tidied")
        """
    )
    assert (ran.returncode, ran.stdout) == (143, "tidied\n")


def test_a_fault_of_ours_keeps_its_traceback():
    ran = framed("raise KeyError('ours')")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "KeyError: 'ours'" in ran.stderr
