"""The built site: strict, every internal link and anchor leads somewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None
        or not (ROOT / "docs" / "assets" / "fetched").exists(),
        reason="make docs installs what builds the site",
    ),
]


class Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        for name in ("href", "src"):
            link = attributes.get(name)
            if link and not re.match(r"[a-z]+:", link) and not link.startswith("//"):
                self.links.append(link)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path: Page(path.read_text()) for path in folder.rglob("*.html")}
    return folder, pages


def test_every_internal_link_leads_to_a_file_and_an_anchor(site):
    folder, pages = site
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute
            continue
        for link in page.links:
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.split("?")[0]).resolve() if name else path
            found = target.exists() and (
                not anchor
                or target not in pages
                or anchor in pages[target].anchors
                or anchor.startswith("__")
            )
            if not found:
                broken.append(f"{path.relative_to(folder)}: {link}")
    assert not broken


def test_nothing_is_loaded_from_another_host(site):
    folder, _ = site
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=[\"']?(?:https?:)?//"
        r"|<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?(?:https?:)?//"
    )
    for path in folder.rglob("*.html"):
        assert not loaded.search(path.read_text()), path


def test_search_finds_a_public_function(site):
    folder, _ = site
    text = (folder / "search" / "search_index.js").read_text()
    entries = json.loads(text[text.index("{") : text.rindex("}") + 1])["docs"]
    assert any("log_evidence" in entry["location"] for entry in entries)
