"""The app as a process."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.place import Place

ROOT = Path(__file__).parents[2]


class App(Place):
    """A place where the app runs, as a process, with these flags.

    Attributes:
      flags: Name -> value of each flag.
    """

    def __init__(self, root):
        super().__init__(root)
        self.flags = {
            "checkpoint_dir": self.checkpoints,
            "output_dir": self.output,
            "dataset": f"tiny:{self.texts}",
            "encoder": "tests.e2e.world:encoder",
            "tokenizer": self.tokenizer,
            "devices": "cpu",
            "measures": "RR@10,nDCG@10",
            "poll_interval": 0.05,
        }

    def start(self, *extra, **flags):
        """Starts the app. Its output is read through pipes."""
        return subprocess.Popen(
            self._command(extra, flags),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, *extra, **flags):
        """Runs the app to its end and returns its status, stdout and stderr."""
        process = self.start(*extra, **flags)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def refused(self, *extra, **flags):
        """Runs the app, which must end with status 2, and returns its error line."""
        status, out, err = self.finish(*extra, **flags)
        assert (status, out) == (2, ""), err
        assert "Traceback" not in err
        (fault,) = [line for line in err.splitlines() if line.startswith("jaxval: ")]
        return fault

    def launch(self, *extra, prefix=(), **flags):
        """Starts the app. Its output goes to a file, which `log` reads."""
        with (self.root / "log").open("w") as log:
            command = [*prefix, *self._command(extra, flags)]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    @property
    def log(self):
        return (self.root / "log").read_text()

    def _command(self, extra, flags):
        listed = [f"--{name}={value}" for name, value in (self.flags | flags).items()]
        return [sys.executable, "-m", "jaxval.main", *listed, *extra]
