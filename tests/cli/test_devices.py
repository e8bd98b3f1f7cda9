import os

import jax
import pytest

from jaxval.cli import devices
from jaxval.errors import UserError

ALWAYS = {
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.75",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "JAX_NUM_CPU_DEVICES": "2",
}


@pytest.mark.parametrize(
    ("flag", "variables"),
    [
        ("", ALWAYS),
        ("cpu", ALWAYS | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}),
        ("tpu", ALWAYS | {"JAX_PLATFORMS": "tpu"}),
        ("gpu", ALWAYS | {"JAX_PLATFORMS": "cuda"}),
        ("gpu:1", ALWAYS | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "1"}),
        ("gpu:3, gpu:2", ALWAYS | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "3,2"}),
    ],
)
def test_variables_in_an_empty_environment(flag, variables):
    assert devices.environment(flag, {}) == variables


def test_gpus_are_numbered_within_the_visible_ones():
    visible = {"CUDA_VISIBLE_DEVICES": "4,6,GPU-8f2"}
    assert devices.environment("gpu:1", visible)["CUDA_VISIBLE_DEVICES"] == "6"
    assert devices.environment("gpu:2,gpu:0", visible)["CUDA_VISIBLE_DEVICES"] == "GPU-8f2,4"
    assert "CUDA_VISIBLE_DEVICES" not in devices.environment("gpu", visible)
    assert "CUDA_VISIBLE_DEVICES" not in devices.environment("", visible)


def test_number_beyond_the_visible_gpus_is_an_error():
    with pytest.raises(
        UserError, match=r"names gpu:2, but CUDA_VISIBLE_DEVICES=4,6 has 2 GPUs"
    ):
        devices.environment("gpu:0,gpu:2", {"CUDA_VISIBLE_DEVICES": "4,6"})


@pytest.mark.parametrize("name", ["XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"])
def test_variables_of_the_user_are_kept(name):
    current = {
        name: ".3",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    assert devices.environment("", current) == {}


def test_no_gpu_is_used_if_none_is_visible():
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=\(empty\) has 0 GPUs"):
        devices.environment("gpu:1", {"CUDA_VISIBLE_DEVICES": ""})


def test_flag_overrides_the_platform_of_the_environment():
    assert devices.environment("cpu", {"JAX_PLATFORMS": "cuda"})["JAX_PLATFORMS"] == "cpu"
    assert "JAX_PLATFORMS" not in devices.environment("", {"JAX_PLATFORMS": "cuda"})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("cuda", "write cpu, tpu"),
        ("gpu1", "write cpu, tpu"),
        ("gpu:", "write cpu, tpu"),
        ("gpu:-1", "write cpu, tpu"),
        ("gpu:0;gpu:1", "write cpu, tpu"),
        ("gpu,gpu:1", "write cpu, tpu"),
        ("cpu,gpu:1", "write cpu, tpu"),
        ("gpu:1,gpu:1", "write cpu, tpu"),
        ("cpu,cpu", "write cpu, tpu"),
        ("cpu:0", "only GPUs are numbered"),
        ("tpu:0,tpu:1", "only GPUs are numbered"),
    ],
)
def test_another_form(flag, message):
    with pytest.raises(UserError, match=message) as caught:
        devices.environment(flag, {})
    assert str(caught.value).startswith(f"--devices={flag}: ")


def test_apply_sets_the_variables_of_this_process(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "7,5"})
    devices.apply("gpu:1", tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["JAX_PLATFORMS"] == "cuda"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


def test_compilation_cache_of_the_user_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"JAX_COMPILATION_CACHE_DIR": "/mine"})
    devices.apply("", tmp_path)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"


def test_open_devices_returns_the_devices_of_jax():
    assert devices.open_devices("cpu") == jax.local_devices()
    assert len(devices.open_devices("")) == 4


@pytest.mark.parametrize(
    ("flag", "installed", "cause"),
    [
        ("gpu:1", (), "its CUDA plugin is not installed: pip install 'jaxval[cuda12]'"),
        ("gpu", ("jax_cuda12_plugin",), "there is no NVIDIA driver on this machine"),
        ("tpu", (), "libtpu is not installed: pip install 'jax[tpu]'"),
        ("tpu", ("libtpu",), "Unable to initialize backend; check with: python -c"),
    ],
)
def test_without_such_a_device_the_cause_is_named(
    monkeypatch, tmp_path, flag, installed, cause
):
    def fail():
        raise RuntimeError("Unable to initialize backend\nand more")

    monkeypatch.setattr(jax, "local_devices", fail)
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(
        devices.importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    with pytest.raises(UserError) as caught:
        devices.open_devices(flag)
    start = f"--devices={flag}: JAX finds no such device: "
    assert str(caught.value).startswith(start + cause)
    assert "\n" not in str(caught.value)
