"""The study's trainer: fine-tunes an encoder with in-batch negatives.

python -m benchmarks.fidelity.train --pairs=… --model=… --checkpoint_dir=…

It keeps all checkpoints. The learning rate stays constant after warm-up, so that late
checkpoints still differ in quality, as during a training that has not ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from tokenizers import Tokenizer

from jaxval.demo.trainer import Tokens, batches, tokenize
from jaxval.encoders import folder

TEMPERATURE = 0.05


def load(pairs: Path, model: Path, query_len: int, passage_len: int) -> tuple[Tokens, Tokens]:
    """Returns the tokens of the training queries and of their passages, row by row."""
    lines = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    queries = tokenize(tokenizer, [line["query"] for line in lines], query_len)
    return queries, tokenize(tokenizer, [line["passage"] for line in lines], passage_len)


def step_of(encoder: Any, optimizer: optax.GradientTransformation) -> Any:
    """Returns a jitted training step: (params, state, queries, passages) -> with the loss."""

    def loss_of(params: Any, queries: Tokens, passages: Tokens) -> Any:
        q = encoder.encode_queries(params, *queries)
        p = encoder.encode_passages(params, *passages)
        labels = jnp.arange(len(q))
        return optax.softmax_cross_entropy_with_integer_labels(
            q @ p.T / TEMPERATURE, labels
        ).mean()

    @jax.jit
    def step(params: Any, state: Any, queries: Tokens, passages: Tokens) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, queries, passages)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def main() -> None:
    """Trains, then creates `train_complete`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    paths = {
        "pairs": "file of training pairs",
        "model": "folder of the model to fine-tune",
        "checkpoint_dir": "folder for the checkpoints",
    }
    for name, meaning in paths.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--steps", type=int, default=600, help="number of training steps")
    parser.add_argument("--save_every", type=int, default=40, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=64, help="pairs per step")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="after warm-up")
    parser.add_argument(
        "--query_len", type=int, default=24, help="length of a query, in tokens"
    )
    parser.add_argument(
        "--passage_len", type=int, default=64, help="length of a passage, in tokens"
    )
    args = parser.parse_args()
    queries, passages = load(args.pairs, args.model, args.query_len, args.passage_len)
    model = folder.read(str(args.model), weights=True)
    params, _ = folder.load_weights(model)
    warm_up = optax.linear_schedule(0.0, args.learning_rate, args.steps // 20)
    optimizer = optax.adamw(warm_up)
    state = optimizer.init(params)
    step = step_of(folder.build(model), optimizer)
    order = batches(len(queries[0]), args.batch, seed=0)
    with ocp.CheckpointManager(args.checkpoint_dir.resolve()) as manager:
        for number in range(args.steps + 1):
            if number % args.save_every == 0:
                manager.save(number, args=ocp.args.StandardSave({"params": params}))
            rows = next(order)
            batch = [
                tuple(np.ascontiguousarray(part[rows]) for part in texts)
                for texts in (queries, passages)
            ]
            params, state, loss = step(params, state, *batch)
            if number % 10 == 0:
                print(f"step {number}: loss {float(loss):.3f}", flush=True)
    (args.checkpoint_dir / "train_complete").touch()


if __name__ == "__main__":
    main()
