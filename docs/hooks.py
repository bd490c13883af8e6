"""Hooks of the site's build: notebooks become pages, the network is not needed."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parents[1]
EXECUTED = ROOT / "build" / "notebooks"
SHIM = "https://unpkg.com/iframe-worker/shim"
LOCAL_SHIM = "assets/fetched/iframe-worker/shim/index.js"


def sources() -> str:
    """A digest of the modules on which the output of every notebook depends."""
    digest = hashlib.sha256()
    figures = ROOT / "docs" / "notebooks" / "figures.py"
    for path in [figures, *sorted((ROOT / "vae_jax").rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def executed(path: Path, library: str) -> Any:
    """A percent script's notebook with outputs, from the last build where equal."""
    digest = hashlib.sha256(path.read_bytes() + library.encode()).hexdigest()
    kept = EXECUTED / f"{path.stem}-{digest[:16]}.ipynb"
    if not kept.exists():
        notebook = jupytext.read(path)
        run = ExecutePreprocessor(timeout=600, kernel_name="python3")
        run.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_name("draft.ipynb")
        jupytext.write(notebook, draft, fmt="ipynb")
        os.replace(draft, kept)
    return jupytext.read(kept, fmt="ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page, its pictures and the notebook to download for each percent script."""
    library = sources()
    for path in sorted(Path(config.docs_dir, "notebooks").glob("[0-9]*.py")):
        notebook = executed(path, library)
        text, resources = MarkdownExporter().from_notebook_node(notebook)
        outputs = resources["outputs"]
        for name in outputs:
            text = text.replace(f"({name})", f"({path.stem}/{name})")
        title, _, rest = text.lstrip().partition("\n")
        page = (
            f"{title}\n\n[Download this notebook]({path.stem}.ipynb){{ download }} and "
            f"the [module that draws its figures](figures.py){{ download }}.\n{rest}"
        )
        generated = {
            f"{path.stem}.md": page,
            f"{path.stem}.ipynb": json.dumps(notebook),
        } | {f"{path.stem}/{name}": data for name, data in outputs.items()}
        for name, content in generated.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Mark the words of code in tables, which a browser breaks after any hyphen."""
    return re.sub(r"<td\b.*?</td>", _with_words, html, flags=re.DOTALL)


def _with_words(cell: re.Match[str]) -> str:
    def mark(code: re.Match[str]) -> str:
        return "<code>" + re.sub(r"\S+", r"<span>\g<0></span>", code[1]) + "</code>"

    return re.sub(r"<code>([^<]*)</code>", mark, cell[0])


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Take the shim that lets a page opened from disk search from the site itself."""
    return output.replace(SHIM, get_relative_url(LOCAL_SHIM, page.url))


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """Do so in `404.html`, whose links are absolute."""
    return output_content.replace(SHIM, f"/{LOCAL_SHIM}")
