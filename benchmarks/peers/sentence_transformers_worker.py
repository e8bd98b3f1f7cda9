"""Encodes texts with sentence-transformers, once for each line of stdin.

    python sentence_transformers_worker.py MODEL_FOLDER TEXTS.json DEVICE VECTORS.npy

Each line of stdin is a dtype, `float32` or `bfloat16`. The answer is a line of JSON with the
seconds of `encode`, the seconds of its tokenization alone, and the batch size. Several batch
sizes are tried when a dtype is first used; the fastest is kept. The vectors of the first
float32 run are written to VECTORS.npy.
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
"""Number of texts to choose the batch size with. They are those of medium length."""


def main() -> None:
    """Answers each line of stdin."""
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
    """Returns the model after a warm-up, and its fastest batch size."""
    kind = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(folder, device=device, model_kwargs=kind)
    sample = sorted(texts, key=len)[max(0, len(texts) // 2 - TRIED // 2) :][:TRIED]
    encode(model, sample, BATCHES[device][0])
    seconds = {}
    for batch in BATCHES[device]:
        start = time.perf_counter()
        encode(model, sample if device == "cpu" else texts, batch)
        seconds[batch] = time.perf_counter() - start
    return model, min(seconds, key=seconds.__getitem__)


def encode(model: Any, texts: Sequence[str], batch: int) -> np.ndarray:
    """Returns the vectors of the texts, [texts, dim] float32."""
    vectors = model.encode(list(texts), batch_size=batch, convert_to_tensor=True)
    return vectors.float().cpu().numpy()  # type: ignore[no-any-return]


def tokenizing(model: Any, texts: Sequence[str], batch: int) -> float:
    """Returns the seconds that tokenizing takes, in the same batches as in `encode`."""
    ordered = sorted(texts, key=len, reverse=True)
    start = time.perf_counter()
    for first in range(0, len(ordered), batch):
        model.tokenizer(
            ordered[first : first + batch],
            padding=True,
            truncation=True,
            max_length=model.max_seq_length,
            return_tensors="pt",
        )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
