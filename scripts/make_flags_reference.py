"""Writes docs/reference/flags.md from the definitions of the flags.

python scripts/make_flags_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxval.cli import apps
from jaxval.cli.app import App, Flag, Values

PAGE = Path(__file__).parents[1] / "docs/reference/flags.md"

COMMANDS: Mapping[str, App] = {
    "main": apps.VALIDATE,
    "sample": apps.SAMPLE,
    "fidelity": apps.FIDELITY,
    "convert": apps.CONVERT,
}
"""Module of jaxval -> the command that it is."""

_MAIN = tuple(apps.VALIDATE.all_flags())

_HEAD = """\
# Flags

<!-- Written by scripts/make_flags_reference.py. Do not edit. -->

Write a flag as `--name=value`. A Boolean flag can also be written as `--name` or `--noname`.
Flags can be put in a file, one flag per line; name the file with `--flagfile=val.flags`. A
flag on the command line after `--flagfile` overrides the file.
"""


def page() -> str:
    """Returns the whole page."""
    sections = ["\n".join(_section(module, app)) for module, app in COMMANDS.items()]
    return "\n".join([_HEAD, *sections])


def _section(module: str, app: App) -> Iterator[str]:
    """Yields the lines about a command."""
    yield f"## `python -m jaxval.{module}` {{ #{module} }}\n"
    yield _escaped(app.page.strip()) + "\n"
    values = app.define()
    for title, flags in app.topics.items():
        yield f"### {title} {{ #{module}-{_slug(title)} }}\n"
        shared = [flag for flag in flags if module != "main" and flag in _MAIN]
        own = [flag for flag in flags if flag not in shared]
        if shared:
            names = ", ".join(f"`--{flag.name}`" for flag in shared)
            yield f"As for [`jaxval.main`](#main): {names}.\n"
        if own:
            yield from _table(own, values)


def _table(flags: Sequence[Flag], values: Values) -> Iterator[str]:
    yield "| flag | default | |\n|--|--|--|"
    for flag in flags:
        yield f"| `--{flag.name}` | {_default(values[flag.name])} | {_help(flag)} |"
    yield ""


def _default(flag: Any) -> str:
    """Returns the default of a flag of absl; empty if it has none."""
    if flag.default in (None, "", []):
        return ""
    return f"`{str(flag.default_as_str).strip(chr(39))}`"


def _help(flag: Flag) -> str:
    choices = ", ".join(f"`{choice}`" for choice in flag.options.get("enum_values", ()))
    return _escaped(flag.help).replace("|", "\\|") + f" One of {choices}." * bool(choices)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
