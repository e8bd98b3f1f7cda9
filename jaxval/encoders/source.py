"""Python source reduced to what it does, for the digest of a plug-in."""

from __future__ import annotations

import io
import tokenize

_IGNORED = (tokenize.ENCODING, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def without_comments(source: str) -> str:
    """Returns Python source without its comments, docstrings and blank lines.

    A docstring is here any string that is a statement by itself. All other text stays as it
    is written, so the result does not depend on the version of Python.

    Args:
      source: A whole module, its lines separated by newlines.
    """
    lines = source.split("\n")
    removed: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start[0] - 1, token.start[1]
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][:column].rstrip()
        elif token.type == tokenize.NL:
            if not lines[row].strip():
                removed.add(row)
        elif token.type == tokenize.NEWLINE:
            if statement and all(map(_is_plain_string, statement)):
                removed.update(range(statement[0].start[0] - 1, row + 1))
            statement = []
        elif token.type not in _IGNORED:
            statement.append(token)
    return "\n".join(line for row, line in enumerate(lines) if row not in removed).strip("\n")


def _is_plain_string(token: tokenize.TokenInfo) -> bool:
    """Returns whether a token is a string that evaluates nothing, unlike an f-string."""
    return token.type == tokenize.STRING and token.string.lower().lstrip("rbu")[0] in "'\""
