"""The devices that a run may use, set by environment variables before JAX is imported."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxval.errors import UserError

if TYPE_CHECKING:
    import jax

Opener = Callable[[], "list[jax.Device]"]
"""Imports JAX and returns the devices."""

_MEMORY_FRACTION = "0.75"
"""The fraction of a GPU's memory that JAX allocates. FAISS uses the rest."""
_MEMORY_FRACTION_NAMES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

_CPU_DEVICES = "2"
"""With two, the matrix products of one overlap with the single-threaded work of the other
(benchmarks/NOTES.md)."""

_DEVICE = re.compile(r"(cpu|gpu|tpu)(?::(\d+))?")


def environment(devices: str, current: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables to set so that JAX and FAISS see only these devices.

    Args:
      devices: `cpu`, `tpu`, `gpu`, `gpu:1` or `gpu:2,gpu:3`. Empty for what JAX selects.
      current: The environment. Numbers of GPUs count within its CUDA_VISIBLE_DEVICES. What
        the user has set is not changed.

    Raises:
      UserError: The text has another form.
    """
    platform, numbers = parse(devices)
    variables = {}
    if not any(name in current for name in _MEMORY_FRACTION_NAMES):
        variables[_MEMORY_FRACTION_NAMES[0]] = _MEMORY_FRACTION
    if "CUDA_DEVICE_ORDER" not in current:
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi
    counted = "host_platform_device_count" in current.get("XLA_FLAGS", "")
    if not counted and "JAX_NUM_CPU_DEVICES" not in current:
        variables["JAX_NUM_CPU_DEVICES"] = _CPU_DEVICES
    if platform:
        variables["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(platform, platform)
    if platform == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if platform == "gpu" and numbers:
        variables["CUDA_VISIBLE_DEVICES"] = _visible(numbers, current)
    return variables


def parse(devices: str) -> tuple[str, tuple[int, ...]]:
    """Returns the platform, empty for any, and the devices' numbers, none for all.

    Raises:
      UserError: The text has another form.
    """
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    matches = [_DEVICE.fullmatch(part) for part in parts]
    platforms = {match[1] for match in matches if match}
    numbers = [match[2] for match in matches if match]
    mixed = len(platforms) > 1 or (None in numbers and len(parts) > 1)
    if None in matches or mixed or len(set(numbers)) < len(numbers):
        raise UserError(f"--devices={devices}: write cpu, tpu, gpu, gpu:1 or gpu:2,gpu:3")
    if platforms and platforms != {"gpu"} and numbers != [None]:
        raise UserError(f"--devices={devices}: only GPUs are numbered; write cpu or tpu")
    return next(iter(platforms), ""), tuple(int(number) for number in numbers if number)


def _visible(numbers: tuple[int, ...], current: Mapping[str, str]) -> str:
    """Returns the value of CUDA_VISIBLE_DEVICES for these numbers within the current one."""
    if "CUDA_VISIBLE_DEVICES" not in current:
        return ",".join(map(str, numbers))
    visible = [name for name in current["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if max(numbers) >= len(visible):
        raise UserError(
            f"--devices names gpu:{max(numbers)}, but CUDA_VISIBLE_DEVICES="
            f"{','.join(visible) or '(empty)'} has {len(visible)} GPUs: count from 0 within it"
        )
    return ",".join(visible[number] for number in numbers)


def open_devices(devices: str) -> list[jax.Device]:
    """Imports JAX and returns its devices. Call `apply` before.

    Raises:
      UserError: JAX finds no such device.
    """
    import jax

    try:
        return list(jax.local_devices())
    except Exception as error:  # JAX without CUDA raises an AssertionError without a message
        raise UserError(
            f"--devices={devices or '(any)'}: JAX finds no such device:"
            f" {_cause(devices, error)}"
        ) from error


def _cause(devices: str, error: Exception) -> str:
    """Returns why JAX finds no device, and what to do."""
    platform, _ = parse(devices)
    if platform == "gpu" and not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
        return "its CUDA plugin is not installed: pip install 'jaxval[cuda12]'"
    if platform == "gpu" and not _NVIDIA_DRIVER.exists():
        return f"there is no NVIDIA driver on this machine ({_NVIDIA_DRIVER} does not exist)"
    if platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: pip install 'jax[tpu]'"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{reason[:200]}; check with: python -c 'import jax; print(jax.devices())'"


def apply(devices: str, compilation_cache: Path | None = None) -> None:
    """Sets the environment variables of this process.

    Args:
      devices: As for `environment`.
      compilation_cache: Directory in which JAX keeps compiled programs, so that a restart
        need not compile them. None keeps none. JAX_COMPILATION_CACHE_DIR overrides it.
    """
    os.environ.update(environment(devices, os.environ))
    if compilation_cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
