"""A PyTorch or Flax model's arrays under the names of our trees, which are transformers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from jaxval.encoders.adapter import from_linen
from jaxval.errors import EncoderError
from jaxval.records import Params

_OTHER_NAMES = {
    "LayerNorm.gamma": "LayerNorm.weight",  # of TensorFlow's time
    "LayerNorm.beta": "LayerNorm.bias",
    "encoder.embed_tokens.": "shared.",  # T5's word table has both names, in files either
}


def from_torch(
    state: Mapping[str, np.ndarray], backbone: Any, words: str
) -> tuple[Params, list[str]]:
    """Renames a PyTorch model's state dict to the tree of `backbone`.

    The model may stand under any one prefix (`bert.`, `model.`), and layer norms may bear
    their old names (`gamma`, `beta`). Dtypes stay as they are.

    Args:
      state: arrays by name.
      backbone: a linen module whose tree has PyTorch's names but for the leaves'.
      words: the word table's name in PyTorch, by which a prefix is found.

    Returns:
      The tree, nested dictionaries of arrays, and the names in `state` that it does not
      take: pooler, heads, decoder, buffers.

    Raises:
      EncoderError: names are missing, or a shape is not the one that config implies.
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
    """The same of a Flax model, whose names are ours, joined by dots.

    Raises:
      EncoderError: names are missing, or a shape is not the one that config implies.
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
    """Whether the word table has the name that it has in Flax.

    Args:
      state: arrays by name.
      words: the word table's name in PyTorch.
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
    found = [name.removesuffix(words) for name in names if f".{name}".endswith(f".{words}")]
    if len(found) != 1:
        raise EncoderError(
            f"the weights hold {len(found)} arrays named {words}, and should hold one: "
            "save a single model with save_pretrained"
        )
    return found[0]


def _torch_name(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))


def _oriented(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    # torch.nn.Linear keeps [out, in], a Dense kernel is [in, out].
    return array.T if path[-1] == "kernel" else array


def _require_all(missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise EncoderError(
            f"the weights lack {', '.join(missing[:3])}{more}, which config.json implies: "
            "take the config.json that was saved with them"
        )


def _require_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise EncoderError(
            f"{name} has shape {found} as a kernel or table, and config.json implies "
            f"{expected}: take the config.json that was saved with the weights"
        )
