"""Fetch the scripts that the site carries with it, so that it needs no network.

KaTeX typesets the formulas; the shim of iframe-worker lets the search work from disk.
"""

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

REGISTRY = "https://registry.npmjs.org"
FOLDER = Path(__file__).parent / "assets" / "fetched"
# Of each archive: sha256, the folder within, the ends of the names that are wanted.
ARCHIVES = {
    "katex/-/katex-0.19.1.tgz": (
        "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd",
        "package/dist/",
        (".woff2", "/katex.min.css", "/katex.min.js"),
    ),
    "iframe-worker/-/iframe-worker-1.0.4.tgz": (
        "e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb",
        "package/",
        ("/shim/index.js",),
    ),
}


def fetch(name: str, sha256: str, root: str, endings: tuple[str, ...]) -> None:
    """Write the wanted files of one archive below the folder of fetched scripts."""
    with urllib.request.urlopen(f"{REGISTRY}/{name}", timeout=60) as response:
        archive = response.read()
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        sys.exit(f"error: {name} has sha256 {found}; {sha256} was expected")
    package = FOLDER / name.split("/")[0]
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            content = files.extractfile(member)
            if content and member.name.startswith(root) and ".." not in member.name:
                if member.name.endswith(endings) and "/contrib/" not in member.name:
                    path = package / member.name.removeprefix(root)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())


if __name__ == "__main__":
    for name, wanted in ARCHIVES.items():
        fetch(name, *wanted)
