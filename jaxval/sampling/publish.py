"""Samples on disk: a folder in BEIR's form, and a manifest that says how it was made."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxval.atomic import make_partial, publish_folder, sweep
from jaxval.corpus.manifest import MANIFEST
from jaxval.corpus.readers import digest
from jaxval.errors import UserError
from jaxval.records import DatasetFiles
from jaxval.sampling import bm25
from jaxval.sampling.strategies import Strategy


@dataclass(frozen=True)
class Origin:
    """What makes a sample this one and no other.

    Attributes:
      strategy: with its arguments, as `sampling.parse` reads it.
      seed: of its random part.
      stemmer: of its bm25 part; None if it has none.
      dense: of its dense part, the checkpoint and how it encodes; None if it has none.
      inputs: corpus, queries, qrels -> `readers.digest`; runs -> those of the runs, sorted.
    """

    strategy: str
    seed: int
    stemmer: str | None
    inputs: Mapping[str, str | list[str]]
    dense: Mapping[str, Any] | None = None


def origin(
    files: DatasetFiles,
    strategy: Strategy,
    runs: Sequence[Path],
    seed: int,
    dense: Mapping[str, Any] | None = None,
) -> Origin:
    """The origin of a sample; every file is read for its digest.

    Raises:
      DataError: a file cannot be read.
    """
    inputs: dict[str, str | list[str]] = {
        "corpus": digest(files.corpus),
        "queries": digest(files.queries),
        "qrels": digest(files.qrels),
        "runs": sorted(map(digest, runs)),
    }
    stemmer = bm25.STEMMER if strategy.bm25 else None
    return Origin(str(strategy), seed, stemmer, inputs, dense)


def holds(folder: Path, wanted: Origin) -> bool:
    """Whether the folder holds the sample of this origin; False if it is not there or empty.

    Raises:
      UserError: it holds anything else.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        others = _others(manifest, asdict(wanted))
    except (FileNotFoundError, NotADirectoryError):
        return _is_something(folder)
    except (OSError, ValueError, AttributeError) as error:
        what = f"{MANIFEST} cannot be read ({error})"
        raise UserError(f"`output_dir={folder}`: {what}: remove it, or name another") from error
    if others:
        what = f"holds another sample ({', '.join(others)})"
        raise UserError(f"`output_dir={folder}` {what}: name a new one, or remove it")
    return True


def publish(
    folder: Path, made: Origin, fill: Callable[[Path], dict[str, int]]
) -> dict[str, int]:
    """Has a folder filled under another name, adds its manifest, and renames it.

    Args:
      folder: not there, or empty.
      made: goes into the manifest.
      fill: fills an empty folder and returns counts, which go into the manifest too.

    Returns:
      The counts.

    Raises:
      UserError: it cannot be written, or something else came there meanwhile.
    """
    sweep(folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"))
    try:
        partial = make_partial(folder)
    except OSError as error:
        raise UserError(f"`output_dir={folder}` cannot be written: {error}") from error
    try:
        counts = fill(partial)
        manifest = json.dumps(asdict(made) | {"counts": counts}, indent=2)
        (partial / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        publish_folder(partial, folder, taken=lambda: holds(folder, made))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _is_something(folder: Path) -> bool:
    """False; raises UserError if there is anything."""
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if folder.exists():
        raise UserError(f"`output_dir={folder}` is there and no sample: name a new folder")
    return False


def _others(manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In which of its origins the manifest's sample is another."""
    plain = [
        f"{name} {manifest.get(name)}, not {wanted[name]}"
        for name in ("strategy", "seed", "stemmer")
        if manifest.get(name) != wanted[name]
    ]
    had = manifest.get("inputs", {})
    files = [
        f"other {name}" for name, value in wanted["inputs"].items() if had.get(name) != value
    ]
    other = manifest.get("dense") != wanted["dense"]
    return plain + files + ["another checkpoint or encoder"] * other
