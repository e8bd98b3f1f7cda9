"""Conversion of the arrays of PyTorch and Flax models to parameter trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from jaxval.encoders.adapter import from_linen
from jaxval.errors import EncoderError
from jaxval.records import Params

_OTHER_NAMES = {
    "LayerNorm.gamma": "LayerNorm.weight",  # in models converted from TensorFlow
    "LayerNorm.beta": "LayerNorm.bias",
    "encoder.embed_tokens.": "shared.",  # T5's word table; files contain one of both names
}
"""Other names of parameters -> the usual ones."""


def from_torch(
    state: Mapping[str, np.ndarray], backbone: Any, words: str
) -> tuple[Params, list[str]]:
    """Converts the state dict of a PyTorch model to the parameter tree of `backbone`.

    All names may have a common prefix (`bert.`, `model.`), and layer norms may have their old
    names (`gamma`, `beta`). Dtypes do not change.

    Args:
      state: Arrays by name.
      backbone: A linen module whose nodes have the names of the PyTorch model.
      words: The name of the word table in PyTorch, from which the prefix is known.

    Returns:
      The tree of arrays, and the names in `state` that are not in it: pooler, heads, decoder,
      buffers.

    Raises:
      EncoderError: An array is missing, or does not have the shape that the config implies.
    """
    sources = {_usual(name): name for name in state}
    prefix = _prefix(sources, words)
    shapes = _shapes(backbone)
    names = {path: prefix + _torch_name(path) for path in shapes}
    _require_all([name for name in names.values() if name not in sources])
    leaves = {path: _oriented(path, state[sources[name]]) for path, name in names.items()}
    for path, leaf in leaves.items():
        _require_shape(names[path], leaf.shape, shapes[path])
    taken = {sources[name] for name in names.values()}
    return traverse_util.unflatten_dict(leaves), [name for name in state if name not in taken]


def from_flax(
    state: Mapping[str, np.ndarray], backbone: Any, words: str
) -> tuple[Params, list[str]]:
    """Converts the arrays of a Flax model to the parameter tree of `backbone`.

    Args:
      state: Arrays by name, the parts of which are joined by dots.
      backbone: A linen module with the names of the Flax model.
      words: The name of the word table in PyTorch, from which the prefix is known.

    Returns:
      The tree of arrays, and the names in `state` that are not in it.

    Raises:
      EncoderError: An array is missing, or does not have the shape that the config implies.
    """
    prefix = _prefix(state, _flax_name(words))
    shapes = _shapes(backbone)
    names = {path: prefix + ".".join(path) for path in shapes}
    _require_all([name for name in names.values() if name not in state])
    leaves = {path: state[name] for path, name in names.items()}
    for path, leaf in leaves.items():
        _require_shape(names[path], leaf.shape, shapes[path])
    taken = set(names.values())
    return traverse_util.unflatten_dict(leaves), [name for name in state if name not in taken]


def is_flax(state: Mapping[str, np.ndarray], words: str) -> bool:
    """Returns whether the word table has its name in Flax.

    Args:
      state: Arrays by name.
      words: The name of the word table in PyTorch.
    """
    return any(f".{name}".endswith(f".{_flax_name(words)}") for name in state)


def _flax_name(words: str) -> str:
    return words.removesuffix("weight") + "embedding"


def _shapes(backbone: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    tree = traverse_util.flatten_dict(from_linen(backbone).abstract_params())
    return {path: leaf.shape for path, leaf in tree.items()}


def _usual(name: str) -> str:
    for other, usual in _OTHER_NAMES.items():
        name = name.replace(other, usual)
    return name


def _prefix(names: Iterable[str], words: str) -> str:
    """Returns what precedes the name of the word table.

    Raises:
      EncoderError: There are several word tables, or none.
    """
    prefixes = [name.removesuffix(words) for name in names if f".{name}".endswith(f".{words}")]
    if len(prefixes) != 1:
        raise EncoderError(
            f"the weights contain {len(prefixes)} arrays named {words}, instead of one; save a"
            " single model with save_pretrained"
        )
    return prefixes[0]


def _torch_name(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))


def _oriented(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    # The weight of torch.nn.Linear is [out, in], the kernel of nn.Dense is [in, out].
    return array.T if path[-1] == "kernel" else array


def _require_all(missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise EncoderError(
            f"the weights lack {', '.join(missing[:3])}{more}, which config.json implies; use"
            " the config.json that was saved with them"
        )


def _require_shape(name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if actual != expected:
        raise EncoderError(
            f"{name} has shape {actual} as a kernel or table, and config.json implies"
            f" {expected}; use the config.json that was saved with the weights"
        )
