"""Tests of the demo's runner, which starts the trainer and jaxval."""

import signal
import subprocess
import sys

from jaxval.demo import __main__ as demo

SLEEP = "import time; time.sleep(60)"


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_returns_the_validators_status():
    trainer = python("")
    trainer.wait()
    assert demo.follow(trainer, python("raise SystemExit(7)")) == 7


def test_a_failed_trainer_ends_the_validator(tmp_path, monkeypatch, capsys):
    log = tmp_path / "trainer.log"
    log.write_text("step 0\nout of memory\n")
    monkeypatch.setattr(demo, "LOG", log)
    validator = python(SLEEP)
    assert demo.follow(python("raise SystemExit(3)"), validator) == 1
    assert validator.poll() is not None
    errors = capsys.readouterr().err
    assert "failed with status 3" in errors
    assert "out of memory" in errors


def test_end_interrupts():
    assert demo.end(python(SLEEP)) in (-signal.SIGINT, 1, 130)


def test_end_kills_a_process_that_ignores_the_interrupt():
    code = f"import signal; signal.signal(2, signal.SIG_IGN); print(flush=True); {SLEEP}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert demo.end(process, patience=0.1) == -signal.SIGKILL
    process.stdout.close()


def test_the_flag_file_names_the_paths_that_the_demo_writes():
    lines = demo.FLAGS.read_text("utf-8").splitlines()
    flags = dict(line.split("=", 1) for line in lines if line.startswith("--"))
    assert flags["--checkpoint_dir"] == str(demo.CHECKPOINTS)
    assert flags["--output_dir"] == str(demo.OUTPUT)
    assert flags["--dataset"] == f"docstrings:{demo.DATA}"
    assert flags["--tokenizer"] == str(demo.TOKENIZER)


def test_a_missing_package_is_reported_in_one_line():
    advice = demo.missing({"json": "base", "no_optax": "demo", "no_faiss": "cpu"})
    assert advice == "The demo needs no_optax and no_faiss: pip install 'jaxval[demo,cpu]'"
    assert demo.missing() == ""


def test_without_optax_it_fails_before_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optax", None)
    assert demo.main() == 2
    assert capsys.readouterr().err == "The demo needs optax: pip install 'jaxval[demo]'\n"
    assert not list(tmp_path.iterdir())
