"""An ordinary trainer with Flax, optax and Orbax's CheckpointManager.

python -m jaxval.demo.trainer --data=… --tokenizer=… --checkpoint_dir=… --steps=200

It does not depend on jaxval, unless --jaxval_output_dir is set: see `read_signals`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags
from flax.training.train_state import TrainState
from tokenizers import Tokenizer

from jaxval.demo.model import Model

_DATA = flags.DEFINE_string("data", None, "Folder with train.jsonl.", required=True)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Folder with tokenizer.json.", required=True
)
_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", None, "Folder to save checkpoints in.", required=True
)
_STEPS = flags.DEFINE_integer("steps", 200, "Number of optimizer steps.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 25, "Number of steps between checkpoints.")
_BATCH = flags.DEFINE_integer(
    "batch",
    128,
    "Number of pairs per step. The passages of the others are each query's negatives.",
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1.5e-3, "Peak learning rate, between warm-up and cosine decay."
)
_QUERY_LEN = flags.DEFINE_integer("query_len", 24, "Length of a query, in word pieces.")
_PASSAGE_LEN = flags.DEFINE_integer("passage_len", 64, "Length of a passage, in word pieces.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the parameters and of the order of the pairs.")
_JAXVAL_OUTPUT_DIR = flags.DEFINE_string(
    "jaxval_output_dir",
    "",
    "Output folder of jaxval, to read its signals from. If empty, trains without them.",
)

TEMPERATURE = 0.05
Tokens = tuple[np.ndarray, np.ndarray]
"""Token ids and mask, each [texts, length]."""


def load_pairs(
    data: Path, folder: Path, query_len: int, passage_len: int
) -> tuple[Tokens, Tokens]:
    """Returns the tokens of the training queries and of their passages, row by row.

    Args:
      data: Folder with train.jsonl.
      folder: Folder with tokenizer.json.
      query_len: Length of a query, in word pieces.
      passage_len: Length of a passage, in word pieces.
    """
    lines = (data / "train.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    queries = [pair["query"] for pair in pairs]
    passages = [f"{pair['title']} {pair['passage']}" for pair in pairs]
    return tokenize(tokenizer, queries, query_len), tokenize(tokenizer, passages, passage_len)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Tokens:
    """Returns ids int32 and mask bool, [texts, length], truncated and padded to `length`."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(texts)
    ids = np.array([text.ids for text in encoded], np.int32)
    return ids, np.array([text.attention_mask for text in encoded], bool)


def batches(rows: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields row numbers [size] without end, in a new random order for each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows - size + 1, size):
            yield order[start : start + size]


def new_state(steps: int, learning_rate: float, seed: int) -> TrainState:
    """Returns a new model with AdamW: warm-up over a tenth of the steps, then cosine decay."""
    model = Model()
    ids = jnp.zeros((1, 8), jnp.int32)
    params = model.init(jax.random.key(seed), ids, ids == 0)["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(schedule))


@jax.jit
def train_step(state: TrainState, queries: Tokens, passages: Tokens) -> tuple[TrainState, Any]:
    """Trains one step with in-batch negatives, and returns the new state and the loss."""

    def loss_of(params: Any) -> Any:
        q = state.apply_fn({"params": params}, *queries)
        p = state.apply_fn({"params": params}, *passages)
        labels = jnp.arange(len(q))
        logits = q @ p.T / TEMPERATURE
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def read_signals(output_dir: str) -> tuple[dict[str, Any], Callable[[], bool]]:
    """Returns options of the CheckpointManager, and a function that returns whether to stop.

    With jaxval's signals, the manager keeps the checkpoints that are still to be validated,
    the best and the newest. Without them, it keeps the last three, and training never stops
    early.

    Args:
      output_dir: Output folder of jaxval, or "" to train without its signals.
    """
    if not output_dir:
        return {"max_to_keep": 3}, lambda: False
    from jaxval.signals import Signals

    signals = Signals(output_dir)
    return {"preservation_policy": signals.preservation_policy()}, signals.should_stop


def train(
    state: TrainState,
    pairs: tuple[Tokens, Tokens],
    manager: Any,
    should_stop: Callable[[], bool],
) -> None:
    """Trains and saves checkpoints; a save is written while training continues.

    Args:
      state: The initial state, which is saved as step 0.
      pairs: Tokens of the queries and of their passages, as `load_pairs` returns them.
      manager: Orbax's CheckpointManager.
      should_stop: Called after each save.
    """
    save(manager, 0, state, None)
    order = batches(len(pairs[0][0]), _BATCH.value, _SEED.value)
    for step, rows in zip(range(1, _STEPS.value + 1), order, strict=False):
        queries, passages = ((ids[rows], mask[rows]) for ids, mask in pairs)
        state, loss = train_step(state, queries, passages)
        if step % _SAVE_EVERY.value == 0:
            save(manager, step, state, float(loss))
            if should_stop():
                print(f"step {step}: retrieval no longer improves, stopping", flush=True)
                return


def save(manager: Any, step: int, state: TrainState, loss: float | None) -> None:
    """Starts an asynchronous save; `loss` is None before the first step."""
    manager.save(step, args=ocp.args.StandardSave(state))
    status = "untrained" if loss is None else f"loss {loss:.3f}"
    print(f"step {step}: {status}, saving", flush=True)


def main(_: Sequence[str]) -> None:
    """Trains as the flags say, then creates `train_complete`."""
    folder = Path(_CHECKPOINT_DIR.value).resolve()
    pairs = load_pairs(
        Path(_DATA.value), Path(_TOKENIZER.value), _QUERY_LEN.value, _PASSAGE_LEN.value
    )
    kept, should_stop = read_signals(_JAXVAL_OUTPUT_DIR.value)
    options = ocp.CheckpointManagerOptions(create=True, **kept)
    state = new_state(_STEPS.value, _LEARNING_RATE.value, _SEED.value)
    with ocp.CheckpointManager(folder, options=options) as manager:
        train(state, pairs, manager, should_stop)
        manager.wait_until_finished()
    (folder / "train_complete").touch()


if __name__ == "__main__":
    app.run(main)
