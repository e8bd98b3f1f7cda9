"""What an app prints, its exit status, and how it ends."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

import jaxval.main
from jaxval import errors
from jaxval.cli import apps, frame


def python(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_app(body, *arguments):
    """Runs an app with this body as a process."""
    script = "import os, signal, sys, time\n"
    script += "from jaxval.cli import apps, frame\n"
    script += "def main(flags):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    script += "\nframe.run(main, apps.CONVERT)\n"
    return python("-c", script, *arguments)


def call(main, *arguments):
    return frame.call(main, apps.VALIDATE.parse(["jaxval", *arguments]))


# In process: output and status


def raising(error):
    def main(flags):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UserError, 2),
        (errors.DataError, 2),
        (errors.MismatchError, 2),
        (errors.CheckpointError, 1),
        (errors.JaxvalError, 1),
    ],
)
def test_expected_error_is_one_line_and_a_status(capsys, error, status):
    assert call(raising(error("corpus.jsonl:3: `depth=7` is too low"))) == status
    assert capsys.readouterr() == ("", "jaxval: corpus.jsonl:3: --depth=7 is too low\n")


def test_notes_of_an_error_are_printed(capsys):
    error = errors.UserError("what happened")
    error.add_note("see `model`")
    assert call(raising(error)) == 2
    assert capsys.readouterr().err == "jaxval: what happened\nsee --model\n"


def test_full_disk_is_one_line(capsys):
    assert call(raising(OSError(errno.ENOSPC, "No space left", "/out"))) == 1
    assert "make room, then start again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("ours"), OSError(errno.EACCES, "denied")])
def test_unexpected_error_is_raised(error):
    with pytest.raises(type(error)):
        call(raising(error))


@pytest.mark.parametrize("status", [0, 1, 7])
def test_status_of_the_app_is_returned(status):
    assert call(lambda flags: status) == status


def test_app_prints_settings_as_flags(capsys):
    def main(flags):
        print("see `keep_best=2`, `train_complete` and", end=" ", flush=True)
        print("`depth`")
        return 0

    call(main)
    assert capsys.readouterr().out == "see --keep_best=2, `train_complete` and --depth\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`depth`", "--depth"),
        ("`depth=10`: too low", "--depth=10: too low"),
        ("`depth` and `top`", "--depth and `top`"),
        ("`depth=a b`", "--depth=a b"),
        ("`` `Depth` depth", "`` `Depth` depth"),
        ("--depth", "--depth"),
    ],
)
def test_settings_in_backticks_are_written_as_flags(text, shown):
    assert frame.as_flags(text, {"depth"}) == shown


# jaxval.main, in process


@pytest.fixture
def usable(beir, tmp_path, monkeypatch):
    """Flags that can be combined, by name. Changes of the environment end with the test."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
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
        ({"devices": "gpu;1"}, "--devices=gpu;1: write cpu, tpu, gpu"),
        ({"measures": "RR@10,foo"}, "--measures: 'foo' is no measure"),
        ({"measures": "R@10,P(rel=2)@500"}, "P(rel=2)@500 needs 500 hits and --depth=100"),
        ({"measures": ","}, "--measures is empty"),
        (
            {"passage_template": "{title}"},
            "--passage_template='{title}': it has no field {text}",
        ),
        ({"encoder": "not.there:at_all"}, "--encoder=not.there:at_all"),
    ],
)
def test_validation_with_a_wrong_setting_ends_with_2(usable, tmp_path, capsys, change, message):
    flags = [f"--{name}={value}" for name, value in (usable | change).items()]
    assert call(jaxval.main.main, *flags) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("jaxval: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert not (tmp_path / "checkpoints").exists()


# As a process


def test_help_takes_precedence_over_other_flags():
    ran = python("-m", "jaxval.main", "--depth=0", "--nope", "-h")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == apps.VALIDATE.help() + "\n"


def test_wrong_flag_ends_with_2_and_one_line():
    ran = python("-m", "jaxval.main", "--depth=0")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("jaxval: ")
    assert ran.stderr.count("\n") == 1
    assert "--depth=0: " in ran.stderr


def test_process_ends_with_the_status_of_the_app_and_logs_flags():
    ran = run_app(
        """
        import logging
        logging.getLogger("jaxval.somewhere").info("see `model=%s`", flags.model)
        logging.getLogger("elsewhere").info("not shown")
        print("`step`")
        return 7
        """,
        "--model=m",
    )
    assert (ran.returncode, ran.stdout) == (7, "--step\n")
    assert ran.stderr.endswith(" see --model=m\n")
    assert ran.stderr.count("\n") == 1


def test_module_that_an_app_imports_reads_its_own_flag_of_the_same_name():
    ran = run_app(
        """
        from absl import flags as absl_flags
        theirs = absl_flags.DEFINE_string("model", "theirs", "")
        print(flags.model, theirs.value)
        return 0
        """,
        "--model=ours",
    )
    assert ran.stdout == "ours theirs\n", ran.stderr


def test_interruption_is_one_line():
    ran = run_app("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == (
        "jaxval: interrupted; finished work is kept, start again to continue\n"
    )


def test_termination_runs_finally_blocks():
    ran = run_app(
        """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            print("cleaned up")
        """
    )
    assert (ran.returncode, ran.stdout) == (143, "cleaned up\n")


def test_unexpected_error_keeps_its_traceback():
    ran = run_app("raise KeyError('ours')")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "KeyError: 'ours'" in ran.stderr
