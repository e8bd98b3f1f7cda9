"""The demo: builds the task, then runs the trainer and jaxval side by side, as two processes.

python -m jaxval.demo
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxval.demo import task

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("runs/demo")
DATA, TOKENIZER, LOG = RUN / "data", RUN / "model", RUN / "trainer.log"
CHECKPOINTS, OUTPUT = RUN / "checkpoints", RUN / "jaxval"

TRAINER = (
    "jaxval.demo.trainer",
    f"--data={DATA}",
    f"--tokenizer={TOKENIZER}",
    f"--checkpoint_dir={CHECKPOINTS}",
    "--verbosity=-1",  # Orbax tells much about each save
)
VALIDATOR = ("jaxval.main", "--flagfile=configs/demo.flags")

Process = subprocess.Popen[bytes]


def start(arguments: Sequence[str], log: Path | None = None) -> Process:
    """Starts a module of this Python; its output goes to `log`, or where ours goes."""
    command = [sys.executable, "-m", *arguments]
    # A session of its own: Ctrl-C reaches us alone, and `end` hands it on, once.
    if log is None:
        return subprocess.Popen(command, start_new_session=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: Process, patience: float = 5.0) -> int:
    """Interrupts a process that still runs, and returns its status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def follow(trainer: Process, validator: Process) -> int:
    """Waits for the validator's status; ends it at once if the trainer fails."""
    while (status := validator.poll()) is None:
        if failed := trainer.poll():
            end(validator)
            print(
                f"The trainer failed with status {failed}. The end of {LOG}:", file=sys.stderr
            )
            print(
                *LOG.read_text(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr
            )
            return 1
        time.sleep(0.2)
    return status


def clear() -> None:
    """Removes what an earlier run of the demo left, but for the task."""
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    LOG.unlink(missing_ok=True)
    CHECKPOINTS.mkdir(parents=True)  # jaxval may look before the trainer has made it


def main() -> int:
    """Runs the demo; returns the validator's status."""
    os.chdir(ROOT)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch: none needed
    clear()
    task.build(DATA, TOKENIZER, task.Settings(), task.source_roots())
    print(f"Training and validating, side by side. The trainer writes to {LOG}.", flush=True)
    trainer = start(TRAINER, LOG)
    validator = start(VALIDATOR)
    try:
        return follow(trainer, validator)
    except KeyboardInterrupt:
        print("The demo begins anew at the next start.", file=sys.stderr)
        return end(validator)
    finally:
        end(trainer)


if __name__ == "__main__":
    # Also where a shell started us in the background, with Ctrl-C ignored, and on `kill`.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
