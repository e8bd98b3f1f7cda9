"""A hook of MkDocs: adds pages and images to the site that live elsewhere in the repository.

- docs/tutorial/notebook.ipynb becomes the page tutorial/notebook.md.
- The picture of the study in benchmarks/fidelity becomes images/fidelity.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tutorial/notebook.ipynb"
PICTURE = ROOT / "benchmarks/fidelity/fidelity.png"


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated files. MkDocs calls this once for each build."""
    from mkdocs.structure.files import File

    page = markdown(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    files.append(File.generated(config, "tutorial/notebook.md", content=page))
    files.append(File.generated(config, "images/fidelity.png", abs_src_path=str(PICTURE)))
    return files


def markdown(notebook: dict[str, Any]) -> str:
    """Returns a notebook as Markdown: texts, code, and what the code printed or drew."""
    return "\n\n".join(_cell(cell) for cell in notebook["cells"]) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    outputs = [_output(output) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *filter(None, outputs)])


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Figure](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
