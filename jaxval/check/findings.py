"""What looks wrong, each as a line that says what, why and the remedy.

An Error is what makes a validation fail or its values worthless; all else is a warning. Each
function gives at most what it is named after, and an empty list if all is well.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxval.check.footprint import Device, Host
from jaxval.check.newest import Newest
from jaxval.check.probe import MEASURE, Ranking
from jaxval.checkpoints.restore import Restored
from jaxval.encoders.folder import ModelFolder
from jaxval.metrics.significance import LEVEL, p_value

QUERIES_CUT, PASSAGES_CUT = 0.02, 0.2
"""The shares above which it is a warning that texts are cut."""

ALIKE = 0.99
"""The mean cosine of two texts above which vectors tell nothing apart."""

_E5 = re.compile(r"(^|[-_/])e5([-_]|$)", re.IGNORECASE)
_INSTRUCTED = re.compile(r"mistral|instruct", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """A line, and whether it is an error: a validation would fail, or be worth nothing."""

    text: str
    error: bool = False

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.text}"


def unread(newest: Newest) -> list[Finding]:
    """That there is no checkpoint to look at, or none that can be read."""
    if isinstance(newest.fault, OSError):
        where = newest.checkpoint.path if newest.checkpoint else newest.place
        text = f"{where} cannot be read: {newest.fault}: check who may read it"
        return [Finding(text, error=True)]
    if newest.fault is not None:
        return [Finding(str(newest.fault), error=True)]
    if newest.checkpoint is not None:
        return []
    return [
        Finding(
            f"no checkpoint is committed in {newest.place}, so the parameters, the vectors and"
            " their ranking were not looked at: start the training, then check again",
            error=True,
        )
    ]


def cut(kind: str, dataset: str, count: int, of: int, max_len: int) -> list[Finding]:
    """That many texts of a kind, `query` or `passage`, are longer than may be."""
    most = {"query": QUERIES_CUT, "passage": PASSAGES_CUT}[kind]
    if count <= most * of:
        return []
    kinds = {"query": "queries are cut off", "passage": "passages reach the limit"}[kind]
    return [
        Finding(
            f"{dataset}: {count:,} of {of:,} {kinds} at {max_len} tokens, and what follows is"
            f" not seen: set `{kind}_max_len` to what the training had, or choose more"
        )
    ]


def prefixes(
    model: ModelFolder | None, name: str, query_prefix: str, passage_prefix: str
) -> list[Finding]:
    """Prefixes that the model's folder, or its family, asks for and that are empty.

    Args:
      model: the folder, if there is one.
      name: how the user calls it.
      query_prefix, passage_prefix: what stands before each text.
    """
    if model is None:
        return []
    stands = {"query": query_prefix, "passage": passage_prefix}
    says = {"query": model.query_prefix, "passage": model.passage_prefix}
    found = []
    for kind, family in _of_family(model, name).items():
        wanted = says[kind] or family  # sentence-transformers writes empty prompts unasked
        if wanted and not stands[kind]:
            source = "its prompts say" if says[kind] else "E5 models are trained with"
            found.append(
                f"no prefix stands before each {kind}, and {source} {wanted!r}: unless your"
                f' training left it out, set `{kind}_prefix="{wanted}"`'
            )
    return [Finding(text) for text in found]


def _of_family(model: ModelFolder, name: str) -> dict[str, str]:
    """What the model was trained with, by its name or that of the one it was made from."""
    try:
        config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
        names = [Path(name).name, str(config.get("_name_or_path", ""))]
    except (OSError, ValueError):
        names = [Path(name).name]
    e5 = any(_E5.search(each) and not _INSTRUCTED.search(each) for each in names)
    return {"query": "query: ", "passage": "passage: "} if e5 else {"query": "", "passage": ""}


def towers(restored: Restored) -> list[Finding]:
    """Two towers that are the same."""
    if not restored.untied:
        return []
    pairs = zip(
        *(jax.tree.leaves(restored.params[t]) for t in ("query", "passage")), strict=True
    )
    if not all(np.array_equal(one, other) for one, other in pairs):
        return []
    return [
        Finding(
            f"the two towers are the same ({restored.found_at}): an untrained pair, or one of"
            " them saved twice? If they are meant to be one, `params_path` names it"
        )
    ]


def alike(kind: str, dataset: str, vectors: np.ndarray) -> list[Finding]:
    """Vectors [n, dim] that are all nearly the same, or zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        zeros = int((norms == 0).sum())
        text = f"{dataset}: {zeros} of {len(vectors)} vectors of {kind} are all zeros"
        return [
            Finding(f"{text}: the encoder makes nothing of them; is it trained?", error=True)
        ]
    mean = likeness(vectors)
    if mean <= ALIKE:
        return []
    return [
        Finding(
            f"{dataset}: the vectors of {len(vectors)} {kind} are all alike (their mean cosine"
            f" is {mean:.4f}), so that the search tells nothing apart: wrong `pooling`,"
            " another tokenizer than in training, or parameters that are not trained",
            error=True,
        )
    ]


def likeness(vectors: np.ndarray) -> float:
    """The mean cosine of two of these vectors, [n, dim]; 0 of a single one."""
    if (n := len(vectors)) < 2:
        return 0.0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def by_chance(dataset: str, ranking: Ranking, passages: int) -> list[Finding]:
    """A ranking that is no better than a random one."""
    if ranking.luck >= 1 or ranking.mean > ranking.luck:
        return []
    return [
        Finding(
            f"{dataset}: {MEASURE} is {ranking.mean:.3f} on {len(ranking.values)} queries and"
            f" {passages} passages, and shuffling gives up to {ranking.luck:.3f}: wrong"
            " `pooling` or prefixes, towers in the wrong order, another tokenizer than in"
            " training, or parameters that are not trained yet",
            error=True,
        )
    ]


def similarity(dataset: str, chosen: str, ranking: Ranking, other: Ranking) -> list[Finding]:
    """That the other similarity ranks significantly better."""
    better = other.mean > ranking.mean
    if not better or p_value(other.values, ranking.values) >= LEVEL:
        return []
    name = "cosine" if chosen == "dot" else "dot"
    return [
        Finding(
            f"{dataset}: the vectors are not of unit length, and `similarity={name}` ranks"
            f" better than {chosen} ({MEASURE} {other.mean:.3f} against {ranking.mean:.3f}):"
            " choose the one of the training"
        )
    ]


def normalization(model: ModelFolder | None, asked: bool | None, chosen: str) -> list[Finding]:
    """Vectors that the folder gives unit length, and the flags do not."""
    if model is None or not model.normalize or asked is not False or chosen == "cosine":
        return []
    return [
        Finding(
            "`normalize=false` leaves the vectors as long as they are, the model's folder"
            " normalizes them, and `similarity=dot` compares lengths too: drop it, or set"
            " `similarity=cosine`"
        )
    ]


def pins(checkpoint_dir: str, pin_dir: Path) -> list[Finding]:
    """Pins that cannot be made, since no hard link leads from one file system to another."""
    if "://" in checkpoint_dir or _device(Path(checkpoint_dir)) == _device(pin_dir):
        return []
    return [
        Finding(
            f"`pin_dir={pin_dir}` is on another file system than the checkpoints, so that none"
            " can be kept from being deleted: choose one beside `checkpoint_dir`"
        )
    ]


def _device(path: Path) -> int:
    """The file system of a path that may not be there yet."""
    return next(one for one in (path, *path.parents) if one.exists()).stat().st_dev


def memory(device: Device, host: Host) -> list[Finding]:
    """Memory that will not do."""
    found = []
    if device.short:
        found.append(
            "a device has too little memory for the parameters and a batch: lower"
            " `batch_tokens`, or set `dtype=bfloat16`"
        )
    if host.short:
        found.append(
            "the machine has too little memory left for what is restored ahead and the"
            " vectors: lower `host_checkpoints`, or choose another machine"
        )
    return [Finding(text) for text in found]


def halved(asked: int, now: int) -> list[Finding]:
    """Batches that were too large for the device."""
    if now == asked:
        return []
    return [
        Finding(
            f"a batch of {asked:,} tokens does not fit into the device's memory, one of"
            f" {now:,} does: set `batch_tokens={now}`, so that no validation has to find out"
        )
    ]
