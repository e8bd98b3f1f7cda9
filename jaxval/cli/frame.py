"""The frame of every app: grouped help, one line for a fault, its status, clean ends."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from jaxval.errors import JaxvalError

Topics = Mapping[str, Sequence[flags.FlagHolder[Any]]]
"""Title of a group of flags -> the flags in it."""

_REPEAT = re.compile(r";\s+repeat this option.*")  # absl adds it to a repeated flag's help
_SETTING = re.compile(r"`([a-z_]+)(=[^`]*)?`")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


def run(main: Callable[[], int], topics: Topics, summary: str) -> NoReturn:
    """Runs an app and exits with its status.

    Args:
      main: the app; returns its exit status.
      topics: its flags, as --help shall group them.
      summary: what --help says first.
    """
    if {"--help", "-help", "-h"}.intersection(sys.argv[1:]):
        print(_help(topics, summary))
        sys.exit(0)
    _log_to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    app.run(lambda _: _framed(main), flags_parser=_parse)


def _framed(main: Callable[[], int]) -> int:
    _quiet()
    try:
        return main()
    except JaxvalError as error:
        notes = getattr(error, "__notes__", ())
        return _fault("\n".join((str(error), *notes)), error.status)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return _fault(f"{error}: make room, then start again; what is done is kept", 1)
    except KeyboardInterrupt:
        return _fault("interrupted; what is done is kept, start again to go on", _INTERRUPTED)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, OSError) as error:
        sys.exit(_fault(f"{error} (see --help)".replace("\n", " "), 2))
    if rest[1:]:
        sys.exit(_fault(f"{rest[1]!r} is no flag: flags begin with -- (see --help)", 2))
    return rest


def as_flags(text: str) -> str:
    """Writes each setting that stands in backticks as the flag of that name.

    `depth=10` becomes --depth=10. A name that is no flag stays as it is.
    """
    return _SETTING.sub(lambda match: _flag(*match.groups()), text)


def _flag(name: str, value: str | None) -> str:
    setting = f"{name}{value or ''}"
    return f"--{setting}" if name in flags.FLAGS else f"`{setting}`"


def _fault(message: str, status: int) -> int:
    print(f"jaxval: {as_flags(message)}", file=sys.stderr, flush=True)
    return status


class _Formatter(logging.Formatter):
    """Writes settings as flags."""

    def format(self, record: logging.LogRecord) -> str:
        return as_flags(super().format(record))


def _log_to_stderr() -> None:
    """jaxval's own messages, in a form of their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("jaxval")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _quiet() -> None:
    """Keeps the libraries' notes to themselves; warnings still come through."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    # Of a read that failed, tensorstore's callbacks come too late for Orbax's event loop.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unless_too_late
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # PyTorch is not needed


def _unless_too_late(unraisable: sys.UnraisableHookArgs) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _help(topics: Topics, summary: str) -> str:
    lines = [summary.strip(), ""]
    for title, holders in topics.items():
        lines.append(f"{title}:")
        for holder in holders:
            flag = flags.FLAGS[holder.name]
            text = f"{_REPEAT.sub('', flag.help)} (default: {_default(flag)})"
            lines.append(f"  --{flag.name}")
            lines.append(flags.text_wrap(text, 92, indent="      ", firstline_indent="      "))
        lines.append("")
    lines.append("Any flag can stand in a file, a line each: --flagfile=val.flags")
    return "\n".join(lines)


def _default(flag: flags.Flag[Any]) -> str:
    return (
        str(flag.default_as_str or "").strip("'")
        if flag.default not in (None, "", [])
        else "none"
    )
