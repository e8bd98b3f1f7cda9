"""The manifest beside a sampled corpus."""

from __future__ import annotations

import json
from pathlib import Path

MANIFEST = "manifest.json"
"""The name of the manifest's file, beside the sample's corpus."""


def drawn_from(corpus: Path) -> str | None:
    """`readers.digest` of the corpus that a sample's corpus was drawn from; None if there is no
    manifest of a sample beside it.
    """
    try:
        manifest = json.loads((corpus.parent / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["inputs"]["corpus"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
