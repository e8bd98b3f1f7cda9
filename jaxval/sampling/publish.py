"""Publishes samples: each folder appears as a whole, with its manifest."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxval.atomic import make_partial, publish_folder, sweep
from jaxval.corpus import manifest
from jaxval.corpus.manifest import Origin
from jaxval.corpus.readers import digest
from jaxval.errors import UserError
from jaxval.records import DatasetFiles
from jaxval.sampling import bm25
from jaxval.sampling.strategies import Strategy


def origin(
    files: DatasetFiles,
    strategy: Strategy,
    runs: Sequence[Path],
    seed: int,
    dense: Mapping[str, Any] | None = None,
) -> Origin:
    """Returns the origin of a sample. Reads every file for its digest.

    Args:
      files: The validation set.
      strategy: Which passages are kept.
      runs: The run files of the strategy's run part.
      seed: The seed of the strategy's random part.
      dense: The checkpoint that ranks for the strategy's dense part, and how it encodes.

    Raises:
      DataError: A file cannot be read.
    """
    inputs: dict[str, str | list[str]] = {
        "corpus": digest(files.corpus),
        "queries": digest(files.queries),
        "qrels": digest(files.qrels),
        "runs": sorted(map(digest, runs)),
    }
    stemmer = bm25.STEMMER if strategy.bm25 else None
    return Origin(str(strategy), seed, stemmer, inputs, dense)


def publish(
    folder: Path, origin: Origin, fill: Callable[[Path], dict[str, int]]
) -> dict[str, int]:
    """Fills a folder under a temporary name, adds the manifest, and renames it.

    Args:
      folder: The sample's folder; it does not exist, or is empty.
      origin: The sample's origin, for the manifest.
      fill: Fills an empty folder and returns counts for the manifest.

    Returns:
      The counts.

    Raises:
      UserError: The folder cannot be written, or has been filled with something else in the
        meantime.
    """
    sweep(folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"))
    try:
        partial = make_partial(folder)
    except OSError as error:
        raise UserError(f"`output_dir={folder}` cannot be written: {error}") from error
    try:
        counts = fill(partial)
        manifest.write(partial, origin, counts)
        publish_folder(partial, folder, taken=lambda: manifest.holds(folder, origin))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts
