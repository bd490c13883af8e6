"""Fetch KaTeX, which typesets the formulas, into the site: once, and verified."""

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

URL = "https://registry.npmjs.org/katex/-/katex-0.19.1.tgz"
SHA256 = "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd"
FOLDER = Path(__file__).parent / "assets" / "katex"
WANTED = ("katex.min.js", "katex.min.css", ".woff2")


def main() -> None:
    """Write the script, the style sheet and the fonts below `docs/assets/katex`."""
    with urllib.request.urlopen(URL, timeout=60) as response:
        archive = response.read()
    found = hashlib.sha256(archive).hexdigest()
    if found != SHA256:
        sys.exit(f"error: {URL} has sha256 {found}; {SHA256} was expected")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            name = Path(member.name)
            if name.parts[:2] != ("package", "dist") or "contrib" in name.parts:
                continue
            if (content := files.extractfile(member)) and name.name.endswith(WANTED):
                path = FOLDER.joinpath(*name.parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


if __name__ == "__main__":
    main()
