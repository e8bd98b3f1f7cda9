import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

WRITER = Path(__file__).with_name("writer.py")
FIXTURES = Path(__file__).with_name("fixtures")


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """All layouts in all shardings, written by a process with eight devices."""
    root = tmp_path_factory.mktemp("layouts")
    subprocess.run([sys.executable, str(WRITER), str(root)], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory):
    """Checkpoints of older libraries (scripts/make_fixtures.py), extracted."""
    root = tmp_path_factory.mktemp("fixtures")
    for archive in FIXTURES.glob("*/*.tar.gz"):
        target = root / archive.parent.name / archive.name.removesuffix(".tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    return root
