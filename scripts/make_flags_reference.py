"""Writes docs/reference/flags.md from what each command prints for --help.

python scripts/make_flags_reference.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/flags.md"
PACKAGE = ROOT / "jaxval"

_HEAD = """\
# Flags

<!-- Written by scripts/make_flags_reference.py. Do not edit. -->

Write a flag as `--name=value`. A Boolean flag can also be written as `--name` or `--noname`.
Any flag can stand in a file, one flag per line; name the file with `--flagfile=val.flags`. A
flag on the command line after `--flagfile` overrides the file.
"""

_TOPIC = re.compile(r"^(\S.*):$")
_FLAG = re.compile(r"^  --(\w+)$")
_TEXT = re.compile(r"(?:<(?P<choices>[^>]*)>: )?(?P<help>.*) \(default: (?P<default>.*)\)")


@dataclass(frozen=True)
class Flag:
    """A flag as --help prints it.

    Attributes:
      name: without the dashes.
      topic: the title of its group.
      help: what it does.
      choices: the values that it accepts; empty for any.
      default: its default, `none` if it has none.
    """

    name: str
    topic: str
    help: str
    choices: tuple[str, ...]
    default: str


@dataclass(frozen=True)
class Command:
    """A command, such as `main`: its module, its first line of help, and its flags."""

    module: str
    summary: str
    flags: tuple[Flag, ...]


def commands() -> list[str]:
    """Returns the modules of jaxval that are commands, `main` first."""
    modules = [
        path.stem
        for path in sorted(PACKAGE.glob("*.py"))
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    return sorted(modules, key=lambda module: (module != "main", module))


def read(module: str) -> Command:
    """Returns a command as its --help describes it."""
    arguments = [sys.executable, "-m", f"jaxval.{module}", "--help"]
    shown = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    summary = shown.stdout.partition("\n")[0]
    return Command(module, summary, tuple(_flags(shown.stdout)))


def page() -> str:
    """Returns the whole page."""
    with ThreadPoolExecutor() as pool:
        read_commands = list(pool.map(read, commands()))
    return "\n".join([_HEAD, *map(_section, read_commands)])


def _flags(text: str) -> Iterator[Flag]:
    topic, name, words = "", "", list[str]()
    for line in [*text.splitlines(), "end:"]:
        heading, flag = _TOPIC.match(line), _FLAG.match(line)
        if (heading or flag) and name:
            yield _flag(name, topic, " ".join(words))
        if heading:
            topic, name, words = heading[1], "", []
        elif flag:
            name, words = flag[1], []
        elif name and line.startswith("      "):
            words.append(line.strip())


def _flag(name: str, topic: str, text: str) -> Flag:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"--{name}: its help does not end with its default: {text!r}")
    choices = tuple(match["choices"].split("|")) if match["choices"] else ()
    return Flag(name, topic, match["help"], choices, match["default"])


def _section(command: Command) -> str:
    heading = f"## `python -m jaxval.{command.module}` {{ #{command.module} }}"
    lines = [heading, "", command.summary]
    topic = ""
    for flag in command.flags:
        if flag.topic != topic:
            topic = flag.topic
            lines += ["", f"### {topic}", "", "| flag | default | |", "|--|--|--|"]
        lines.append(f"| `--{flag.name}` | {_default(flag)} | {_help(flag)} |")
    return "\n".join([*lines, ""])


def _default(flag: Flag) -> str:
    return "" if flag.default == "none" else f"`{_cell(flag.default)}`"


def _help(flag: Flag) -> str:
    choices = ", ".join(f"`{choice}`" for choice in flag.choices)
    return _cell(flag.help) + f" One of {choices}." * bool(choices)


def _cell(text: str) -> str:
    """Returns text as a cell of a table: no line breaks, no bars, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
