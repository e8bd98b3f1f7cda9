"""Writes tests/encoders/goldens/flax_trees.json: the parameters of transformers' Flax models.

Needs a separate environment, because transformers 5 has no Flax models:
    pip install 'transformers==4.57.6' flax && python scripts/make_trees.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import transformers
from flax import traverse_util

GOLDENS = Path(__file__).parent.parent / "tests" / "encoders" / "goldens"
KINDS = {
    "roberta": "FlaxRobertaModel",
    "xlm-roberta": "FlaxXLMRobertaModel",
    "distilbert": "FlaxDistilBertModel",
    "t5": "FlaxT5EncoderModel",
    "t5-gated": "FlaxT5EncoderModel",
    "llama": "FlaxLlamaModel",
    "mistral": "FlaxMistralModel",
}


def old_clip(clip: Any) -> Any:
    """Calls jnp.clip with the argument names that transformers' T5 uses."""
    return lambda array, *rest, a_max=None: clip(array, *(rest or (None, a_max)))


def tree(name: str) -> dict[str, list[int]]:
    """Returns the shape of each parameter, by path, of the model that config.json describes."""
    config = transformers.AutoConfig.from_pretrained(GOLDENS / name)
    made = getattr(transformers, KINDS[name])(config, _do_init=False)
    shapes = jax.eval_shape(lambda: made.init_weights(jax.random.key(0), (1, 4)))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    return {path: list(leaf.shape) for path, leaf in sorted(flat.items())}


def main() -> None:
    """Writes the file, with one line for each model."""
    jnp.clip = old_clip(jnp.clip)
    lines = [f'"{name}": {json.dumps(tree(name))}' for name in KINDS]
    (GOLDENS / "flax_trees.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
