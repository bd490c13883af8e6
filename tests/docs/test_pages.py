"""README and the pages of the site: their Python runs, what they name exists."""

import importlib
import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from experiments import evaluate, figures, sweep
from experiments.mnist import Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
COMMAND = PAGES["docs/guide/command.md"]


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name for name, text in PAGES.items() if python_blocks(text)]
)
def test_every_python_block_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Drawing takes seconds and has tests of its own.
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    namespace = {"__name__": "page"}
    for block in python_blocks(PAGES[name]):
        exec(compile(block, name, "exec"), namespace)


def test_there_are_python_blocks_to_run():
    assert sum(len(python_blocks(text)) for text in PAGES.values()) >= 16


def links(text):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"https?:|mailto:|#", link)]


@pytest.mark.parametrize("name", PAGES)
def test_linked_files_exist(name):
    for link in links(PAGES[name]):
        target = (ROOT / name).parent / link.split("#")[0]
        made = DOCS / "notebooks" in target.resolve().parents  # from the script
        assert (target.with_suffix(".py") if made else target).exists(), link


def test_every_page_is_in_the_navigation_and_the_reverse():
    def leaves(node):
        if isinstance(node, str):
            yield node
        else:
            children = node if isinstance(node, list) else node.values()
            for child in children:
                yield from leaves(child)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{p.stem}.md" for p in DOCS.glob("notebooks/[0-9]*.py")}
    assert Counter(leaves(nav)) == Counter(pages | notebooks)


def test_mapped_files_exist():
    text = PAGES["docs/guide/map.md"]
    rows = re.findall(r"^\| (`vae_jax/.*?|`experiments/.*?) \|", text, re.M)
    assert len(rows) >= 8
    for row in rows:
        folder = None
        for name in re.findall(r"`([^`]*)`", row):
            path = ROOT / name if "/" in name else folder / name
            folder = path.parent
            assert path.exists(), name


def test_every_flag_that_is_named_exists():
    flags = set(re.findall(r"`--(\w+)", COMMAND)) - {"help"}
    assert len(flags) >= 10
    assert flags <= set(Config.__dataclass_fields__)


@pytest.mark.parametrize(
    "name", ["docs/index.md", "docs/faq.md", *(n for n in PAGES if "/guide/" in n)]
)
def test_every_flag_of_a_guide_is_one_of_a_command(name):
    text = re.sub("^#SBATCH.*", "", PAGES[name], flags=re.M)
    flags = set(re.findall(r"(?<![\w-])--([a-z]\w*)", text))
    commands = Config, sweep.Config, evaluate.Config
    known = {field for command in commands for field in command.__dataclass_fields__}
    assert flags <= known | {"help", "part"}  # --part is of gradient_variance


def cells(text, headings):
    """Cells of the columns with one of these headings, of every table."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()]
        for column, heading in enumerate(rows[0]):
            if heading.strip() in headings:
                yield from (row[column] for row in rows[2:])


HEADINGS = "name|in the library|likelihood|posterior|prior|objective|family".split("|")
NAMED = {
    (page, name)
    for page, text in PAGES.items()
    for cell in cells(text, HEADINGS)
    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", cell)
}


def exists(name):
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(
            importlib.import_module(name)
        )
    except ImportError:
        return False


def test_every_name_of_the_library_in_a_table_exists():
    assert len(NAMED) > 120
    shown = {(page, n if n.startswith("jax.") else f"vae_jax.{n}") for page, n in NAMED}
    assert not {(page, name) for page, name in shown if not exists(name)}
    assert not exists("vae_jax.no_such_name")


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_targets_of_the_makefile(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", PAGES[name], re.M)
    assert {first or second for first, second in named} <= targets


PACKAGES = [
    "vae_jax",
    *(
        f"vae_jax.{name}"
        for name in (
            "annealing contracts data distributions estimators families mcmc "
            "networks priors"
        ).split()
    ),
]


DOCUMENTED = [
    name
    for page, text in PAGES.items()
    if page.startswith("docs/api/")
    for name in re.findall(r"^::: (\S+)$", text, re.M)
]


def resolved(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    shown = {id(resolved(name)) for name in DOCUMENTED}
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    missing = {
        name
        for name, value in public.items()
        if not inspect.ismodule(value) and id(value) not in shown
    }
    assert not missing


def test_the_reference_shows_each_name_once():
    assert len(DOCUMENTED) == len({id(resolved(name)) for name in DOCUMENTED})


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_the_reference_shows_is_public_and_has_a_docstring(name):
    assert not any(part.startswith("_") for part in name.split("."))
    assert name not in sys.modules, "the generator would show the module"
    value = resolved(name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
