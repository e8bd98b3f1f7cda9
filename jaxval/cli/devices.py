"""Which devices a run may touch. Decided by environment variables, before JAX is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxval.errors import UserError

if TYPE_CHECKING:
    import jax

_JAX_SHARE = "0.75"
"""The share of a GPU's memory that JAX may take; the rest is for FAISS."""
_SHARES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")

_CPU_DEVICES = "2"
"""One's matrix products run beside what the other does on one core (benchmarks/NOTES.md)."""

_FORM = re.compile(r"(cpu|gpu|tpu)(?::(\d+))?")


def environment(devices: str, current: Mapping[str, str]) -> dict[str, str]:
    """The variables to set so that JAX and FAISS see these devices and no others.

    Args:
      devices: `cpu`, `tpu`, `gpu`, `gpu:1` or `gpu:2,gpu:3`; empty for what JAX finds.
      current: the environment as it is. A CUDA_VISIBLE_DEVICES in it is what `gpu:1`
        counts in; settings of the user's own win.

    Raises:
      UserError: the text has another form.
    """
    platform, numbers = parse(devices)
    chosen = {}
    if not any(name in current for name in _SHARES):
        chosen[_SHARES[0]] = _JAX_SHARE
    if "CUDA_DEVICE_ORDER" not in current:
        chosen["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # gpu:1 is then nvidia-smi's GPU 1
    counted = "host_platform_device_count" in current.get("XLA_FLAGS", "")
    if not counted and "JAX_NUM_CPU_DEVICES" not in current:
        chosen["JAX_NUM_CPU_DEVICES"] = _CPU_DEVICES
    if platform:
        chosen["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(platform, platform)
    if platform == "cpu":
        chosen["CUDA_VISIBLE_DEVICES"] = ""
    if platform == "gpu" and numbers:
        chosen["CUDA_VISIBLE_DEVICES"] = _visible(numbers, current)
    return chosen


def parse(devices: str) -> tuple[str, tuple[int, ...]]:
    """Platform ('' for any) and numbers (none for all)."""
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    matches = [_FORM.fullmatch(part) for part in parts]
    platforms = {match[1] for match in matches if match}
    numbers = [match[2] for match in matches if match]
    mixed = len(platforms) > 1 or (None in numbers and len(parts) > 1)
    if None in matches or mixed or len(set(numbers)) < len(numbers):
        raise UserError(f"--devices={devices}: write cpu, tpu, gpu, gpu:1 or gpu:2,gpu:3")
    if platforms and platforms != {"gpu"} and numbers != [None]:
        raise UserError(f"--devices={devices}: only GPUs are numbered; write cpu or tpu")
    return next(iter(platforms), ""), tuple(int(number) for number in numbers if number)


def _visible(numbers: tuple[int, ...], current: Mapping[str, str]) -> str:
    if "CUDA_VISIBLE_DEVICES" not in current:
        return ",".join(map(str, numbers))
    listed = [name for name in current["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if max(numbers) >= len(listed):
        raise UserError(
            f"--devices names gpu:{max(numbers)}, and CUDA_VISIBLE_DEVICES="
            f"{','.join(listed) or '(empty)'} leaves {len(listed)}: they are numbered from 0"
            " within it"
        )
    return ",".join(listed[number] for number in numbers)


def open_devices(devices: str) -> list[jax.Device]:
    """The devices themselves; call after `environment` has been applied.

    Raises:
      UserError: JAX finds no such device.
    """
    import jax

    try:
        return list(jax.local_devices())
    except Exception as error:  # JAX without CUDA raises a bare AssertionError
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--devices={devices or '(any)'}: JAX finds no such device ({first[:200]})."
            " For GPUs install jaxval[cuda12]; check with: python -c 'import jax;"
            " print(jax.devices())'"
        ) from error


def apply(devices: str, compiled: Path | None = None) -> None:
    """Sets the variables in this process.

    Args:
      devices: as for `environment`.
      compiled: where JAX keeps what it compiles, so that a restart compiles nothing; None
        for nowhere. The user's own JAX_COMPILATION_CACHE_DIR wins.
    """
    os.environ.update(environment(devices, os.environ))
    if compiled is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
