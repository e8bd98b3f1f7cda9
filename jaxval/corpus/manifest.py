"""The manifest of a sampled corpus: a file beside it about how the sample was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxval.errors import UserError

MANIFEST = "manifest.json"
"""The manifest's file name, in the folder of the sample's corpus."""


@dataclass(frozen=True)
class Origin:
    """Identifies a sample: two samples of the same origin have the same content.

    Attributes:
      strategy: The strategy and its arguments, as `strategies.parse` reads them.
      seed: The seed of the strategy's random part.
      stemmer: The stemmer of the strategy's BM25 part. None if it has none.
      inputs: `corpus`, `queries` and `qrels` -> `readers.digest` of each; `runs` -> the
        sorted digests of the runs.
      dense: The checkpoint that ranks for the strategy's dense part, and how it encodes.
        None if the strategy has no such part.
    """

    strategy: str
    seed: int
    stemmer: str | None
    inputs: Mapping[str, str | list[str]]
    dense: Mapping[str, Any] | None = None


def write(folder: Path, origin: Origin, counts: Mapping[str, int]) -> None:
    """Writes the manifest of a sample.

    Args:
      folder: The sample's folder.
      origin: What identifies the sample.
      counts: Numbers of passages, queries and judgments, by name.
    """
    text = json.dumps(asdict(origin) | {"counts": counts}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def holds(folder: Path, origin: Origin) -> bool:
    """Returns whether `folder` holds the sample of this origin.

    Returns:
      True if it does. False if the folder is empty or does not exist.

    Raises:
      UserError: The folder holds anything else.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        differences = _differences(manifest, origin)
    except (FileNotFoundError, NotADirectoryError):
        _check_free(folder)
        return False
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{MANIFEST} cannot be read ({error})"
        raise UserError(
            f"`output_dir={folder}`: {problem}: remove the folder, or name another"
        ) from error
    if differences:
        problem = f"holds another sample ({', '.join(differences)})"
        raise UserError(f"`output_dir={folder}` {problem}: name a new folder, or remove this")
    return True


def drawn_from(corpus: Path) -> str | None:
    """Returns `readers.digest` of the corpus that a sample was drawn from.

    Args:
      corpus: The sample's corpus.

    Returns:
      The digest of the whole corpus; None if no manifest of a sample is beside `corpus`.
    """
    try:
        manifest = json.loads((corpus.parent / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["inputs"]["corpus"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_free(folder: Path) -> None:
    """Raises UserError unless the folder is empty or does not exist."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty:
        raise UserError(f"`output_dir={folder}` exists and is not a sample: name a new folder")


def _differences(manifest: Mapping[str, Any], origin: Origin) -> list[str]:
    """Describes how the sample of a manifest differs from the one of an origin."""
    wanted = asdict(origin)
    settings = [
        f"{name} {manifest.get(name)}, not {wanted[name]}"
        for name in ("strategy", "seed", "stemmer")
        if manifest.get(name) != wanted[name]
    ]
    inputs = manifest.get("inputs", {})
    files = [
        f"other {name}" for name, digest in origin.inputs.items() if inputs.get(name) != digest
    ]
    other_ranker = manifest.get("dense") != wanted["dense"]
    return settings + files + ["another checkpoint or encoder"] * other_ranker
