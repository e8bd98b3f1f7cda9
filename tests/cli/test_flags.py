"""Every flag file in configs/ can be read, and means what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = """
import sys
from absl import flags as absl_flags
from jaxval.cli import flags
from jaxval.records import DatasetFiles
flags.datasets.parse_all = lambda specs: tuple(specs)  # their paths are examples
absl_flags.FLAGS(["jaxval", *sys.argv[1:]])
print(flags.config())
"""


def config(*arguments):
    command = [sys.executable, "-c", SHOW, *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.flags")), ids=lambda p: p.name
)
def test_it_makes_a_config_and_begins_with_when_to_use_it(path):
    made = config(f"--flagfile={path}")
    assert made.returncode == 0, made.stderr
    assert path.read_text().startswith("# ")


def test_quotes_in_a_flag_file_keep_the_blank_of_a_prefix():
    made = config(f"--flagfile={ROOT / 'configs' / 'e5.flags'}")
    assert "query_prefix='query: '" in made.stdout
    assert "passage_prefix='passage: '" in made.stdout


def test_measures_are_split_at_commas_outside_their_parentheses(tmp_path):
    made = config(
        "--output_dir=o",
        "--checkpoint_dir=c",
        "--model=m",
        "--dataset=d",
        "--measures=RR@10, nDCG(dcg='exp-log2')@5,ERR(a=1,b=2)@20",
    )
    assert """measures=('RR@10', "nDCG(dcg='exp-log2')@5", 'ERR(a=1,b=2)@20')""" in made.stdout
