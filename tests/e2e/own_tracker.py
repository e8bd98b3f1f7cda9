"""A user's script that starts the app with a tracker of the user's."""

import pathlib
import sys

from jaxval.main import app


class Lines:
    """Writes a line for each call, and fails at step 2."""

    def __init__(self, path):
        self._path = path

    def _write(self, line):
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    def begin(self, past, failures):
        self._write(f"begin {len(past)} {len(failures)}")

    def record(self, ranked):
        step = ranked.validation.checkpoint.step
        if step == 2:
            raise RuntimeError("the service is away")
        self._write(f"record {step} {ranked.is_best}")

    def fail(self, failure):
        self._write(f"fail {failure.checkpoint.step} {failure.reason}")

    def end(self):
        self._write("end")


if __name__ == "__main__":
    app(Lines(pathlib.Path(sys.argv.pop(1))))
