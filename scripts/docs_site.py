"""A hook of MkDocs: adds pages and images to the site that live elsewhere in the repository.

- docs/tutorial/notebook.ipynb becomes the page tutorial/notebook.md.
- CONTRIBUTING.md becomes the page contributing.md.
- The picture of the study in benchmarks/fidelity becomes images/fidelity.png.
- A link from a page to a file outside docs/ becomes a link to the repository.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
REPOSITORY = "https://github.com/jaxval/jaxval"
NOTEBOOK = ROOT / "docs/tutorial/notebook.ipynb"
PICTURE = ROOT / "benchmarks/fidelity/fidelity.png"


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated files. MkDocs calls this once for each build."""
    from mkdocs.structure.files import File

    page = markdown(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    files.append(File.generated(config, "tutorial/notebook.md", content=page))
    files.append(
        File.generated(config, "contributing.md", content=CONTRIBUTING.read_text("utf-8"))
    )
    files.append(File.generated(config, "images/fidelity.png", abs_src_path=str(PICTURE)))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of a page. MkDocs calls this for each page."""
    name = page.file.src_uri
    source = CONTRIBUTING if name == "contributing.md" else DOCS / name
    return relinked(text, source.parent, (DOCS / name).parent)


def relinked(text: str, source: Path, page: Path) -> str:
    """Returns a page with links that are right on the site.

    Args:
      text: The page as Markdown.
      source: The folder of the file that the text is from.
      page: The folder of docs/ that the page is in on the site.
    """

    def link(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        if not path or ":" in path:  # a heading of the page, or a URL
            return match[0]
        target = (source / path).resolve()
        if target == CONTRIBUTING:
            target = DOCS / "contributing.md"
        if target.is_relative_to(DOCS):
            path = Path(os.path.relpath(target, page)).as_posix()
        else:
            path = f"{REPOSITORY}/blob/main/{target.relative_to(ROOT).as_posix()}"
        return f"]({path}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


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
