"""Encodes texts with sentence-transformers, a line of stdin at a time.

    python sentence_transformers_worker.py MODEL_FOLDER TEXTS.json DEVICE VECTORS.npy

Each line of stdin is a dtype, `float32` or `bfloat16`; each answer a line of JSON with the
seconds of the whole `encode` and of its tokenizing alone. Vectors of the first float32 run
are written to VECTORS.npy. The batch size is the fastest of several, tried at the start.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

BATCHES = {"cpu": (8, 16, 32, 64), "cuda": (128, 512, 2048)}
TRIED = 256
"""Texts by which a batch size is chosen; those in the middle, of the usual lengths."""


def main() -> None:
    folder, texts_file, device, vectors_file = sys.argv[1:]
    texts = json.loads(Path(texts_file).read_text())
    kept = Path(vectors_file)
    models: dict[str, tuple[Any, int]] = {}
    for line in sys.stdin:
        dtype = line.strip()
        if dtype not in models:
            models[dtype] = prepared(folder, dtype, device, texts)
        model, batch = models[dtype]
        start = time.perf_counter()
        vectors = encode(model, texts, batch)
        seconds = time.perf_counter() - start
        if dtype == "float32" and not kept.exists():
            np.save(kept, vectors.astype(np.float32))
        answer = {"seconds": seconds, "tokenizing": tokenizing(model, texts, batch)}
        print(json.dumps(answer | {"batch": batch}), flush=True)


def prepared(folder: str, dtype: str, device: str, texts: Sequence[str]) -> tuple[Any, int]:
    """The model, warm, and its fastest batch size."""
    kind = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(folder, device=device, model_kwargs=kind)
    some = sorted(texts, key=len)[max(0, len(texts) // 2 - TRIED // 2) :][:TRIED]
    encode(model, some, BATCHES[device][0])
    seconds = {}
    for batch in BATCHES[device]:
        start = time.perf_counter()
        encode(model, some if device == "cpu" else texts, batch)
        seconds[batch] = time.perf_counter() - start
    return model, min(seconds, key=seconds.__getitem__)


def encode(model: Any, texts: Sequence[str], batch: int) -> np.ndarray:
    vectors = model.encode(list(texts), batch_size=batch, convert_to_tensor=True)
    return vectors.float().cpu().numpy()  # type: ignore[no-any-return]


def tokenizing(model: Any, texts: Sequence[str], batch: int) -> float:
    """Seconds that its tokenizer takes for these texts, in the order in which it takes them."""
    ordered = sorted(texts, key=len, reverse=True)
    start = time.perf_counter()
    for at in range(0, len(ordered), batch):
        model.tokenizer(
            ordered[at : at + batch],
            padding=True,
            truncation=True,
            max_length=model.max_seq_length,
            return_tensors="pt",
        )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
