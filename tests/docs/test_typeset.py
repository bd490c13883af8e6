"""Equations of docstrings become TeX that says the same, or are refused."""

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import vae_jax
from docs import typeset
from docs.typeset import is_equation, to_tex, typeset_docstring

# From the library's docstrings, each followed by TeX that was compared by eye.
TABLE = Path(__file__).with_name("equations.txt").read_text().strip().split("\n\n")
DISPLAYED = re.compile(r"\$\$\n(.*?)\n\$\$", re.S)


def documented(module):
    """The module, and the functions, classes, methods and properties it defines."""
    found, queue = [], [module]
    while queue:
        parent = queue.pop()
        found.append(parent)
        for value in vars(parent).values():
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if (
                inspect.isclass(value) or inspect.isfunction(value)
            ) and value.__module__ == module.__name__:
                queue.append(value) if inspect.isclass(value) else found.append(value)
    return found


def test_no_equation_is_all_that_follows_the_summary():
    # Common indentation is removed, so that it would be a paragraph.
    for path in Path(vae_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                lines = (ast.get_docstring(node, clean=False) or "").split("\n")[1:]
                indents = [re.match(" *", line)[0] for line in lines if line.strip()]
                expected = " " * (node.col_offset + 4)
                assert not indents or min(indents) == expected, (path, node.name)


def displayed_equations():
    """TeX of each displayed equation of the library, by where it stands."""
    packages = pkgutil.walk_packages(vae_jax.__path__, "vae_jax.")
    equations = {}
    for name in ["vae_jax", *(package.name for package in packages)]:
        for value in documented(importlib.import_module(name)):
            text = typeset_docstring(inspect.cleandoc(value.__doc__ or ""))
            for i, tex in enumerate(DISPLAYED.findall(text)):
                equations[name, value.__name__, i] = tex
    return equations


@pytest.mark.parametrize("pair", TABLE)
def test_equation_of_the_library(pair):
    plain, tex = pair.split("\n")
    assert to_tex(plain) == tex


def test_table_is_large():
    assert len(TABLE) >= 25


def test_examples_run():
    failed, attempted = doctest.testmod(typeset)
    assert attempted >= 4 and not failed


@pytest.mark.parametrize(
    ("plain", "tex"),
    [
        ("x_(t - 1) != A'^-1", r"x_{t - 1} \ne {A^{\top}}^{-1}"),
        ("kl_weight = 2e-4", r"\mathtt{kl\_weight} = 2 \times 10^{-4}"),
        ("KL_bj < 1e9", r"\mathrm{KL}_{bj} < 10^{9}"),
        ("c_k = k mod n", r"c_{k} = k \text{ mod } n"),
        ("log_var_d -> 2 eps", r"\mathtt{log\_var}_{d} \to 2 \varepsilon"),
        ("y = a b / c d", r"y = a \frac{b}{c} d"),
        ("p(x) = integral p(x|z) dz", r"p(x) = \int p(x|z) \, \mathrm{d} z"),
        ("x_1 + ... + x_n <= n!", r"x_{1} + \dots + x_{n} \le n!"),
        ("f(x) = |x| if x != 0", r"f(x) = \lvert x\rvert \text{ if } x \ne 0"),
        ("u in {0, 1}", r"u \text{ in } \{0, 1\}"),
        ("log2p = s1", r"\mathrm{log2p} = s_{1}"),
    ],
)
def test_notation(plain, tex):
    assert to_tex(plain) == tex


@pytest.mark.parametrize(
    ("plain", "match"),
    [
        ("y = log a / b", "two things"),
        ("y = log 2 a / b", "two things"),
        ("y = d/d x f / g", "two things"),
        ("y = x^2/2", "two things"),
        ("y = w / sum_t w_t", "brackets are missing"),
        ("y = w / log w", "brackets are missing"),
        ("y = (a + b]", "not closed"),
        ("y = (a + b", "not closed"),
        ("y = a + b)", "closes nothing"),
        ("y = / b", "missing before '/'"),
        ("y = a /", "missing at the end"),
        ("y = ^2", "missing before '\\^'"),
        ("y = x^", "script is missing"),
        ("y = x_d_(t)", "two subscripts"),
        ("y = jnp.sum(x)", "expected plain text"),
        (r"y = \log x", "expected plain text"),
        ("", "is empty"),
    ],
)
def test_refused(plain, match):
    with pytest.raises(ValueError, match=match):
        to_tex(plain)


def test_blocks_of_a_docstring():
    text = """Bound.

    a = b
      + c
    d <= e

Code and a listing:

    sampler = partial(nuts, num_samples=10)

    from vae_jax import elbo

    step.json    x = 1

Args:
  x: data, of which

    x = y

Example:
  >>> x = 1

    x = z

After it.

    x = u"""
    done = typeset_docstring(text)
    assert DISPLAYED.findall(done) == [
        "\\begin{aligned}\na &= b \\\\\n&\\quad + c \\\\\nd &\\le e\n\\end{aligned}",
        "x = u",
    ]
    untouched = re.sub(r"\n    (a = b|  \+ c|d <= e)|\n    x = u", "", text)
    assert DISPLAYED.sub("", done).split() == untouched.split()
    assert typeset_docstring(done) == done


def test_line_without_relation_is_no_equation():
    assert not is_equation(["    x y z"])
    assert not is_equation(["    x = y", "    z"])


def test_every_equation_of_the_library_is_read():
    equations = displayed_equations()
    assert len(equations) >= 80
    assert ("vae_jax.objectives", "elbo", 0) in equations


def test_markdown_keeps_the_tex():
    pytest.importorskip("pymdownx", reason="needs the packages of the site")
    from markdown import markdown

    text = typeset_docstring("Sum.\n\n    E[x_d] = |a| * b < c\n\nEnd.")
    options = {"pymdownx.arithmatex": {"generic": True}}
    html = markdown(text, extensions=list(options), extension_configs=options)
    tex = to_tex("E[x_d] = |a| * b < c").replace("<", "&lt;")
    assert f'<div class="arithmatex">\\[\n{tex}\n\\]</div>' in html


def test_griffe_typesets_each_object_once(tmp_path):
    griffe = pytest.importorskip("griffe", reason="needs the packages of the site")
    source = 'def f():\n    """F.\n\n        f = 1/2\n\n    Constant.\n    """\n'
    (tmp_path / "part.py").write_text(source)
    (tmp_path / "whole.py").write_text("from part import f\n")
    extensions = griffe.load_extensions(typeset.__file__)
    loader = griffe.GriffeLoader(extensions=extensions, search_paths=[tmp_path])
    loader.load("whole")
    value = loader.load("part")["f"].docstring.value
    assert value == "F.\n\n$$\nf = \\tfrac{1}{2}\n$$\n\nConstant."


KATEX = """
const katex = require(process.argv[1]);
for (const [where, tex] of JSON.parse(require("fs").readFileSync(0))) {
  try {
    katex.renderToString(tex, {displayMode: true, throwOnError: true, strict: "error"});
  } catch (error) { console.log(where, tex, error.message); }
}
"""


@pytest.fixture
def katex(tmp_path) -> Path:
    """KaTeX's script: the site's, or one that npm can get."""
    fetched = Path(typeset.__file__).parent / "assets/fetched/katex/katex.min.js"
    if not shutil.which("node"):
        pytest.skip("needs node")
    if fetched.exists():
        return fetched
    command = [shutil.which("npm") or "false", "pack", "katex"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("needs KaTeX: `make docs` fetches it, and npm cannot get it")
    shutil.unpack_archive(next(tmp_path.glob("katex-*.tgz")), tmp_path, filter="data")
    return tmp_path / "package/dist/katex.js"


def errors_of(katex, equations):
    return subprocess.run(
        ["node", "-e", KATEX, str(katex)],
        input=json.dumps(equations),
        capture_output=True,
        check=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_katex_renders_every_equation(katex):
    pairs = [pair.split("\n") for pair in TABLE]
    shown = [[".".join(map(str, k)), tex] for k, tex in displayed_equations().items()]
    assert errors_of(katex, pairs + shown) == ""
    assert "broken" in errors_of(katex, [["broken", r"\frac{1}"]])


def formulas(text):
    """TeX between dollars, outside of code."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)
    displayed = r"\$\$(.*?)\$\$"
    inline = re.sub(displayed, "", text, flags=re.S)
    return re.findall(displayed, text, re.S) + re.findall(r"\$([^$]+)\$", inline)


@pytest.mark.slow
def test_katex_renders_the_formulas_of_every_page(katex):
    pages = Path(typeset.__file__).parent.rglob("*.md")
    found = [[p.name, tex] for p in pages for tex in formulas(p.read_text())]
    assert len(found) > 100
    assert errors_of(katex, found) == ""
