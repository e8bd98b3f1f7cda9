"""Runs an app: its messages, its exit status, and a clean end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TextIO, cast

from absl import app as absl_app
from absl import flags
from absl import logging as absl_logging

from jaxval.cli.app import HELP_FLAGS, App, Values
from jaxval.errors import JaxvalError, UserError

Main = Callable[[Values], int]
"""An app's function: the values of its flags -> exit status."""

_SETTING = re.compile(r"`([a-z_]+)(=[^`]*)?`")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


def run(main: Main, app: App) -> NoReturn:
    """Runs an app with the command line's flags, and exits with its status."""
    if HELP_FLAGS.intersection(sys.argv[1:]):
        print(app.help())
        sys.exit(0)
    _log_to_stderr({flag.name for flag in app.all_flags()})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))

    def parse(argv: list[str]) -> Values:
        try:
            values = app.parse(argv)
        except UserError as error:
            sys.exit(_report(str(error), error.status))
        flags.FLAGS.mark_as_parsed()  # absl.logging and others read the flags that they define
        return values

    def call_quietly(values: Values) -> int:
        _quiet_libraries()
        return call(main, values)

    absl_app.run(call_quietly, flags_parser=parse)
    raise AssertionError("absl.app.run exits")


def call(main: Main, values: Values) -> int:
    """Returns the status of an app; prints an expected error as one line."""
    names = set(values)
    try:
        with contextlib.redirect_stdout(cast(TextIO, _FlagWriter(sys.stdout, names))):
            return main(values)
    except JaxvalError as error:
        lines = [str(error), *getattr(error, "__notes__", ())]
        return _report(as_flags("\n".join(lines), names), error.status)
    except BrokenPipeError:  # the reader of the output has ended, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        return _report(f"{error}: make room, then start again; finished work is kept", 1)
    except KeyboardInterrupt:
        return _report(
            "interrupted; finished work is kept, start again to continue", _INTERRUPTED
        )


def as_flags(text: str, names: Collection[str]) -> str:
    """Writes each setting in backticks as a flag: `depth=10` becomes --depth=10.

    Args:
      text: A message.
      names: The names of the app's flags. Other words in backticks stay as they are.
    """

    def write(match: re.Match[str]) -> str:
        return f"--{match[0].strip('`')}" if match[1] in names else match[0]

    return _SETTING.sub(write, text)


def _report(message: str, status: int) -> int:
    print(f"jaxval: {message}", file=sys.stderr, flush=True)
    return status


class _FlagWriter:
    """A text stream that writes settings in backticks as flags."""

    def __init__(self, stream: TextIO, names: Collection[str]):
        self._stream = stream
        self._names = names

    def write(self, text: str) -> int:
        return self._stream.write(as_flags(text, self._names))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _FlagFormatter(logging.Formatter):
    """Formats log records, with settings in backticks as flags."""

    def __init__(self, names: Collection[str]):
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")
        self._names = names

    def format(self, record: logging.LogRecord) -> str:
        return as_flags(super().format(record), self._names)


def _log_to_stderr(names: Collection[str]) -> None:
    """Shows the log messages of jaxval, apart from those of libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FlagFormatter(names))
    logger = logging.getLogger("jaxval")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _quiet_libraries() -> None:
    """Hides the informational messages of libraries; their warnings are shown."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    # After a failed read, tensorstore calls back when Orbax has closed its event loop.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
