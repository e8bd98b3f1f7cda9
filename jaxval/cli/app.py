"""The definition of an app: its flags by topic, and its help page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from jaxval.errors import UserError

HELP_FLAGS = frozenset({"-h", "-help", "--help", "--helpshort", "--helpfull"})
"""Each of these prints the help page."""

Values = flags.FlagValues
"""The values of an app's flags, each an attribute."""

_REPEAT = re.compile(r";\s+repeat this option.*")  # absl adds it to a repeated flag's help


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Flag:
    """A flag, and the setting that it gives.

    Attributes:
      name: The name, without dashes.
      help: What the flag does, its unit, and what None means.
      define: The function of absl.flags that defines it, e.g. `flags.DEFINE_integer`.
      default: The value if the flag is not given.
      options: Further arguments of `define`, such as bounds.
      record: The record of jaxval.config whose field the flag sets. None if the flag sets
        no field.
      field: The name of that field.
      convert: Returns the field's value for the flag's.
    """

    name: str
    help: str
    define: Callable[..., Any] = flags.DEFINE_string
    default: Any = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record: type | None = None
    field: str = ""
    convert: Callable[[Any], Any] = _unchanged

    def add_to(self, values: Values) -> None:
        """Defines the flag in `values`."""
        self.define(
            name=self.name,
            default=self.default,
            help=self.help,
            flag_values=values,
            **self.options,
        )


Topics = Mapping[str, Sequence[Flag]]
"""Title of a group of flags -> its flags."""


def setting(
    record: type,
    field: str,
    define: Callable[..., Any],
    help: str,
    *,
    name: str = "",
    convert: Callable[[Any], Any] = _unchanged,
    show: Callable[[Any], Any] = _unchanged,
    **options: Any,
) -> Flag:
    """Returns the flag that sets a field of a record, with the field's default.

    Args:
      record: A record of jaxval.config.
      field: The name of the field.
      define: The function of absl.flags that defines the flag.
      help: What the flag does, its unit, and what None means.
      name: The flag's name. Empty takes the field's.
      convert: Returns the field's value for the flag's.
      show: Returns the flag's value for the field's default.
      **options: Further arguments of `define`, such as bounds.
    """
    default = {item.name: item.default for item in dataclasses.fields(record)}[field]
    return Flag(
        name=name or field,
        help=help,
        define=define,
        default=None if default is dataclasses.MISSING else show(default),
        options=options,
        record=record,
        field=field,
        convert=convert,
    )


@dataclass(frozen=True)
class App:
    """A command, e.g. `python -m jaxval.main`.

    Attributes:
      page: What --help prints first.
      topics: The flags, as --help groups them.
      ignored: Flags that the app accepts without using them, so that it can read the flag
        file of a validation. --help does not print them.
    """

    page: str
    topics: Topics
    ignored: Sequence[Flag] = ()

    def all_flags(self) -> Iterator[Flag]:
        """Yields each flag that the app accepts."""
        shown = {flag.name: flag for topic in self.topics.values() for flag in topic}
        yield from ({flag.name: flag for flag in self.ignored} | shown).values()

    def define(self) -> Values:
        """Returns the app's flags and those of absl itself, e.g. --verbosity, not yet parsed.

        A flag of the same name that another module defines in absl's global `FLAGS`, e.g. the
        module of --encoder, is another flag.
        """
        values = Values()  # type: ignore[no-untyped-call]
        for flag in self.all_flags():
            flag.add_to(values)
        for module, shared in flags.FLAGS.flags_by_module_dict().items():
            if module.partition(".")[0] == "absl":
                for absl_flag in shared:
                    values[absl_flag.name] = absl_flag
        return values

    def parse(self, argv: Sequence[str]) -> Values:
        """Returns the values of the app's flags.

        Args:
          argv: The command line, including the program's name.

        Raises:
          UserError: A flag is unknown or has a wrong value, or an argument is not a flag.
        """
        values = self.define()
        try:
            _, *arguments = values(list(argv))
        except (flags.Error, OSError) as error:
            raise UserError(f"{_plain(str(error))} (see --help)") from error
        if arguments:
            raise UserError(f"{arguments[0]!r} is not a flag: flags begin with -- (see --help)")
        return values

    def help(self) -> str:
        """Returns what --help prints."""
        values = self.define()
        lines = [self.page.strip(), ""]
        for title, topic in self.topics.items():
            lines.append(f"{title}:")
            for flag in topic:
                lines += _describe(values[flag.name])
            lines.append("")
        lines.append("Any flag can be in a file, one per line: --flagfile=val.flags")
        return "\n".join(lines)


def _plain(message: str) -> str:
    """Returns absl's message about a command line as one line, with flags as --flag."""
    line = " ".join(message.split())
    line = re.sub(r"ERROR:: Unable to open flagfile: (\[.*?\] )?", "--flagfile: ", line)
    return re.sub(r"Did you mean: (.*) \?", r"Did you mean --\1?", line)


def _describe(flag: flags.Flag[Any]) -> list[str]:
    text = f"{_REPEAT.sub('', flag.help or '')} (default: {_default(flag)})"
    wrapped = flags.text_wrap(text, 92, indent="      ", firstline_indent="      ")
    return [f"  --{flag.name}", wrapped]


def _default(flag: flags.Flag[Any]) -> str:
    if flag.default in (None, "", []):
        return "none"
    return str(flag.default_as_str).strip("'")
