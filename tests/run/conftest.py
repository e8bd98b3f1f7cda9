import os
import shutil
import subprocess

import pytest

from tests.run.runner import Runner


@pytest.fixture
def place(tmp_path):
    return Runner(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
