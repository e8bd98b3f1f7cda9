import pytest

from jaxval.encoders.source import without_comments

SOURCE = '''"""A module.

Its description.
"""

# A comment.
import os  # another


class Model:
    """A class."""

    width: int = 3
    """An attribute."""

    def text(self, name):
        r"""A method."""  # with a comment
        table = [
            1,  # the first

            2,
        ]
        return f"{name} # kept {table!r:#>8}", """kept

            # kept
        """
'''

STRIPPED = '''import os
class Model:
    width: int = 3
    def text(self, name):
        table = [
            1,
            2,
        ]
        return f"{name} # kept {table!r:#>8}", """kept

            # kept
        """'''


def test_comments_docstrings_and_blank_lines_are_removed():
    assert without_comments(SOURCE) == STRIPPED


@pytest.mark.parametrize("source", ["", "\n\n", "# a comment", '"""A docstring."""'])
def test_a_module_without_code_is_empty(source):
    assert without_comments(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "x = 1  ;  y = 2",  # spacing is code
        "x = '# no comment'",
        "f'{print()}'",  # runs code, so it is no docstring
        "if x:\n    'in one branch'.strip()",
        "x = \\\n    'a string in an assignment'",
    ],
)
def test_all_other_code_stays_as_it_is(source):
    assert without_comments(source) == source
