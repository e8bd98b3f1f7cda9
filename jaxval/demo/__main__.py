"""The demo: builds the task, then runs the trainer and jaxval side by side, as two processes.

python -m jaxval.demo

Everything is written to runs/demo in the current directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from jaxval.demo import task

# demo.flags names the same paths.
RUN = Path("runs/demo")
DATA, TOKENIZER, LOG = RUN / "data", RUN / "model", RUN / "trainer.log"
CHECKPOINTS, OUTPUT = RUN / "checkpoints", RUN / "jaxval"
FLAGS = Path(__file__).with_name("demo.flags")

TRAINER = (
    "jaxval.demo.trainer",
    f"--data={DATA}",
    f"--tokenizer={TOKENIZER}",
    f"--checkpoint_dir={CHECKPOINTS}",
    "--verbosity=-1",  # Orbax logs many lines about each save
)
VALIDATOR = ("jaxval.main", f"--flagfile={FLAGS}")

# Module -> the extra that installs it.
EXTRAS = {"optax": "demo", "faiss": "cpu"}

Process = subprocess.Popen[bytes]


def missing(extras: Mapping[str, str] = EXTRAS) -> str:
    """Returns one line that says what to install, or "" if nothing is missing."""
    absent = [module for module in extras if find_spec(module) is None]
    if not absent:
        return ""
    names = ",".join(extras[module] for module in absent)
    return f"The demo needs {' and '.join(absent)}: pip install 'jaxval[{names}]'"


def start(arguments: Sequence[str], log: Path | None = None) -> Process:
    """Starts a module with this Python.

    Args:
      arguments: The module's name and its command line.
      log: File for the module's output; None shares this process's output.
    """
    command = [sys.executable, "-m", *arguments]
    # In a new session Ctrl-C reaches only this process; `end` passes it on, once.
    if log is None:
        return subprocess.Popen(command, start_new_session=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: Process, patience: float = 5.0) -> int:
    """Interrupts a process if it is running, and returns its exit status.

    Args:
      process: A child of this process.
      patience: Seconds to wait after the interrupt before the process is killed.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def follow(trainer: Process, validator: Process) -> int:
    """Waits for the validator and returns its exit status.

    If the trainer fails first, ends the validator, prints the end of the trainer's log and
    returns 1.
    """
    while (status := validator.poll()) is None:
        if trainer_status := trainer.poll():
            end(validator)
            log = LOG.read_text(errors="replace").splitlines()
            print(
                f"The trainer failed with status {trainer_status}. The end of {LOG}:",
                *log[-20:],
                sep="\n",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.2)
    return status


def clear() -> None:
    """Removes what an earlier run of the demo wrote, except for the task."""
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    LOG.unlink(missing_ok=True)
    CHECKPOINTS.mkdir(parents=True)  # jaxval may start before the trainer creates it


def main() -> int:
    """Runs the demo and returns the validator's exit status."""
    if advice := missing():
        print(advice, file=sys.stderr)
        return 2
    # transformers would report that PyTorch is missing; the demo does not need it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    clear()
    task.build(DATA, TOKENIZER, task.Settings(), task.source_roots())
    print(f"Training and validating, side by side. The trainer writes to {LOG}.", flush=True)
    trainer = start(TRAINER, LOG)
    validator = start(VALIDATOR)
    try:
        return follow(trainer, validator)
    except KeyboardInterrupt:
        print("Interrupted. The next start begins a new training.", file=sys.stderr)
        return end(validator)
    finally:
        end(trainer)


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored; `kill` sends SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
