r"""Equations of docstrings, from plain text to TeX, for the documentation site.

A docstring shows equations as an indented block, one a line, each with a relation
between spaces; a deeper line continues the one above. Prompts, imports, keyword
arguments and columns make an indented block code, which stays as it is.

    log p(x) = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)) + KL(q(z|x) || p(z|x))

The notation: `x_d` and `x^2` are scripts, `x_(t - 1)` and `x^(a - 1)` longer ones.
Greek letters are spelled out, other names of several letters are upright, and those
made of words (`log_var`) are code. Brackets that touch a name are its arguments. `/`
divides the factor on its left by the one on its right, so that `a b / c d` is
a (b / c) d; what might be read in two ways, as `log a / b` and `x^1/2`, is refused.
`d/d phi`, `sum_(k = 1)^n`, `sqrt(x)`, `1[x > 0]`, `|x|`, `p(x|z)`, `||`, `n!` and `...`
are what they look like. A prime after a capital letter or a bracket is a transpose.
"""

import re
from collections import deque
from typing import NamedTuple

try:
    from griffe import Extension  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:  # The site has it; the functions do without.
    Extension = object

GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
    "sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon "
    "Phi Psi Omega".split()
)
SUMS = {
    **{name: rf"\{name}" for name in "sum prod max min sup".split()},
    "argmax": r"\operatorname*{arg\,max}",
    "argmin": r"\operatorname*{arg\,min}",
    "integral": r"\int",
}
# With a subscript, these and single letters are symbols; longer names may be code.
SYMBOLS = {
    **{name: rf"\{name}" for name in GREEK},
    **SUMS,
    "eps": r"\varepsilon",
    "grad": r"\nabla",
    "infinity": r"\infty",
    "E": r"\mathbb{E}",
}
FUNCTIONS = set("log exp det dim sin cos tanh sinh cosh coth".split())
WORDS = set("and at for every if in mod of or otherwise over where with".split())
RELATIONS = {
    "=": "=",
    "~": r"\sim",
    "<": "<",
    ">": ">",
    "<=": r"\le",
    ">=": r"\ge",
    "!=": r"\ne",
    "~=": r"\approx",
    "->": r"\to",
}
OPERATORS = {
    "+": "+",
    "-": "-",
    "*": r"\cdot",
    "+-": r"\pm",
    "||": r"\,\|\,",
    "...": r"\dots",
    ":": ":",
}
PUNCTUATION = {",": ", ", ";": "; ", "|": "|"}
BRACKETS = {"(": ")", "[": "]", "{": "}", "|(": ")|"}
DELIMITERS = {"{": r"\{", "}": r"\}", "|(": r"\lvert ", ")|": r"\rvert"}
TOKEN = re.compile(
    r"( *)(d/d(?= )|\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*"
    r"|\.\.\.|\|\||<=|>=|!=|~=|->|\+-(?= )|[-+*/^_=<>~|,;:!'()\[\]{}])(?=( *))"
)
TALL = re.compile(r"\\(?:frac|sum|prod|int)(?![a-z])")
SECTION = re.compile(r"[A-Z][a-z]+:$")
RELATION = re.compile(r" (?:<=|>=|!=|~=|->|[=~<>]) ")
CODE = re.compile(r">>>|^\s*(?:import|from)\b|[^\s<>!~]=|=[^\s=]|\S  +\S")


class Token(NamedTuple):
    """Piece of an equation, and whether a space comes before it."""

    text: str
    spaced: bool


class Item(NamedTuple):
    """TeX of a factor or an operator; `inner` is that of a group without brackets."""

    tex: str
    kind: str = "factor"
    inner: str = ""


def to_tex(equation: str) -> str:
    r"""TeX of an equation in plain text, without delimiters.

    Args:
      equation: one equation, in the notation of the module's docstring.

    Returns:
      TeX that KaTeX and MathJax read.

    Raises:
      ValueError: a character without a meaning, or brackets that do not match.

    Example:
      >>> print(to_tex("log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))"))
      \log p(x) \ge \mathbb{E}_{q}[\log p(x|z)] - \operatorname{KL}(q(z|x) \,\|\, p(z))
      >>> print(to_tex("log_var = 1/2 sum_d x_d^2"))
      \mathtt{log\_var} = \tfrac{1}{2} \sum_{d} x_{d}^{2}
    """
    return _joined(_parse(equation))


def typeset_docstring(text: str) -> str:
    r"""The docstring with its equations between `$$`, for Markdown.

    Several lines become an aligned environment. Sections (Args, Example, ...), code
    and listings stay as they are.

    Args:
      text: a docstring without its common indentation, as `inspect.getdoc` gives it.

    Returns:
      Markdown for `pymdownx.arithmatex`.

    Raises:
      ValueError: an equation that `to_tex` refuses.

    Example:
      >>> print(typeset_docstring("Bound.\n\n    log p(x) >= ELBO\n\nIn nats."))
      Bound.
      <BLANKLINE>
      $$
      \log p(x) \ge \mathrm{ELBO}
      $$
      <BLANKLINE>
      In nats.
    """
    blocks = re.split(r"\n[ ]*\n", text)
    in_section = False
    for i, block in enumerate(blocks):
        lines = block.split("\n")
        flush = [line for line in lines if not line.startswith(" ")]
        if flush:
            in_section = SECTION.match(flush[-1]) is not None
        elif not in_section and is_equation(lines):
            blocks[i] = f"$$\n{_display(lines)}\n$$"
    return "\n\n".join(blocks)


def is_equation(lines: list[str]) -> bool:
    """Whether an indented block is equations, as the module's docstring says.

    Args:
      lines: the block's lines, with their indentation.

    Returns:
      True if each line has a relation between spaces or is deeper than the first, and
      none is a prompt, an import, a keyword argument or a row of columns.

    Example:
      >>> is_equation(["    x = y / 2"]), is_equation(["    x = f(y, n=2)"])
      (True, False)
    """
    return not any(CODE.search(line.strip()) for line in lines) and all(
        RELATION.search(line) or _continues(line, lines) for line in lines
    )


class Equations(Extension):
    """Extension of griffe that typesets the equations of all docstrings."""

    def on_object(self, *, obj, **kwargs) -> None:
        """Typeset the docstring of an object, if it has one."""
        if obj.docstring:
            obj.docstring.value = typeset_docstring(obj.docstring.value)


def _continues(line: str, lines: list[str]) -> bool:
    """Whether a line is deeper than the first."""
    return line.startswith(re.match(" *", lines[0])[0] + " ")


def _display(lines: list[str]) -> str:
    """TeX of a block; several lines are aligned at the first relation of each."""
    if len(lines) == 1:
        return to_tex(lines[0])
    rows = []
    for line in lines:
        items = _parse(line)
        if _continues(line, lines):
            rows.append(rf"&\quad {_joined(items)}")
        else:
            i = [item.kind for item in items].index("relation")
            rows.append(f"{_joined(items[:i])} &{_joined(items[i:])}")
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def _joined(items: list[Item]) -> str:
    """TeX of a sequence, with a thin space beside upright words."""
    tex = ""
    for last, item in zip([Item("", "bracket"), *items], items, strict=False):
        kinds = {last.kind, item.kind}
        if kinds & {"bracket", "punctuation"}:
            tex += item.tex
        elif "word" in kinds and kinds <= {"word", "factor"}:
            tex += rf" \, {item.tex}"
        else:
            tex += f" {item.tex}"
    return tex


def _parse(equation: str) -> list[Item]:
    """Factors and operators of an equation; raise ValueError if there is no reading."""
    try:
        tokens = _tokens(equation.strip())
        items = _sequence(tokens)
        if tokens or not items:
            what = f"{tokens[0].text!r} closes nothing" if tokens else "is empty"
            raise ValueError(what)
    except ValueError as error:
        raise ValueError(f"equation {equation.strip()!r}: {error}") from None
    return items


def _tokens(equation: str) -> deque[Token]:
    """Tokens of an equation; a bar becomes `|(`, `)|` or, between x and z, `|`."""
    tokens: deque[Token] = deque()
    position = 0
    while position < len(equation):
        match = TOKEN.match(equation, position)
        if match is None:
            raise ValueError(f"expected plain text, got {equation[position:]!r}")
        before, text, after = match.groups()
        position = match.end()
        if text == "|":
            left, right = equation[: match.start(2)], equation[position:]
            if not after and re.search(r"(^|[-+*/=<>~,;(\[{ ])$", left):
                text = "|("
            elif not before and re.match(r"[-+*/=<>~,;)\]}^ ]|$", right):
                text = ")|"
        tokens.append(Token(text, bool(before)))
    return tokens


def _sequence(tokens: deque[Token], *, inline: bool = False) -> list[Item]:
    """Items up to a closing bracket, which stays, or the end; no fractions inline."""
    items: list[Item] = []
    while tokens and tokens[0].text not in BRACKETS.values():
        text = tokens[0].text
        if text == "/":
            tokens.popleft()
            over, under = _numerator(items), _factor(tokens, inline=inline)
            if under.kind in ("function", "sum"):
                raise ValueError(f"brackets are missing after '/', got {under.tex}")
            if inline:
                items.append(Item(f"{over.tex}/{under.tex}"))
            else:
                size = "t" if (over.tex + under.tex).isdigit() else ""
                over, under = over.inner or over.tex, under.inner or under.tex
                items.append(Item(rf"\{size}frac{{{over}}}{{{under}}}"))
        elif text in RELATIONS:
            items.append(Item(RELATIONS[tokens.popleft().text], "relation"))
        elif text in OPERATORS:
            items.append(Item(OPERATORS[tokens.popleft().text], "operator"))
        elif text in PUNCTUATION:
            items.append(Item(PUNCTUATION[tokens.popleft().text], "punctuation"))
        elif text in WORDS:
            items.append(Item(rf"\text{{ {tokens.popleft().text} }}", "operator"))
        else:
            items.append(_factor(tokens, inline=inline))
    return items


def _numerator(items: list[Item]) -> Item:
    """Take the last factor, of a term without a function that might end after it."""
    if not items or items[-1].kind not in ("factor", "word"):
        raise ValueError("a factor is missing before '/'")
    for item in reversed(items):
        if item.kind == "function":
            raise ValueError(f"{item.tex} f / g may be two things: add brackets")
        if item.kind not in ("factor", "word", "sum"):
            break
    return items.pop()


def _factor(tokens: deque[Token], *, inline: bool) -> Item:
    """A number, name or group, with its scripts and, for a name, its arguments."""
    if not tokens:
        raise ValueError("a factor is missing at the end")
    text = tokens[0].text
    if text in BRACKETS:
        return _with_scripts(_group(tokens, inline=inline), text, tokens)
    tokens.popleft()
    if text == "d/d":
        under = _factor(tokens, inline=True).tex
        return Item(rf"\frac{{\mathrm{{d}}}}{{\mathrm{{d}} {under}}}", "function")
    if text == "sqrt":
        operand = _factor(tokens, inline=inline)
        return Item(rf"\sqrt{{{operand.inner or operand.tex}}}")
    if text[0].isdigit():
        item = _number(text, indicator=_touches(tokens, "(["))
    elif text[0].isalpha():
        item = _name(text, called=_touches(tokens, "(["))
    else:
        raise ValueError(f"a factor is missing before {text!r}")
    item = _with_scripts(item, text, tokens)
    if not text[0].isdigit() or text == "1":
        while _touches(tokens, "(["):
            group = _group(tokens, inline=inline)
            if text.startswith("E_") and _touches(tokens, "["):
                # E_q(z|x)[f]: the distribution, with its arguments, is the subscript.
                item = Item(rf"{item.tex[:-1]}{group.tex}}}")
            else:
                item = Item(item.tex + group.tex)
            item = _with_scripts(item, ")", tokens)
    return item


def _number(text: str, *, indicator: bool) -> Item:
    mantissa, _, exponent = text.partition("e")
    if text == "1" and indicator:
        return Item(r"\mathbf{1}")
    factor = "" if mantissa == "1" else rf"{mantissa} \times "
    return Item(f"{factor}10^{{{exponent}}}" if exponent else mantissa)


def _name(name: str, *, called: bool = False) -> Item:
    """A name: a symbol with subscripts, a word or function, or code."""
    head, *parts = name.split("_")
    if numbered := re.fullmatch(r"([A-Za-z]|[a-z]+(?=\d))(\d+)", head):
        letter, number = numbered.groups()
        if len(letter) == 1 or letter in SYMBOLS:
            head, parts = letter, [number, *parts]
    if len(head) == 1 or head in SYMBOLS:
        symbol = r"\mathcal{N}" if head == "N" and called else SYMBOLS.get(head, head)
        subscript = ",".join(map(_subscript, parts))
        kind = "sum" if head in SUMS else "function" if head == "grad" else "factor"
        return Item(f"{symbol}_{{{subscript}}}" if parts else symbol, kind)
    # Code is in lower case, so that KL_bj has two indices and kl_weight two words.
    longest = 1 if head.islower() else 2
    indices = []
    while parts and (len(parts[-1]) <= longest or _is_index(parts[-1])):
        indices.insert(0, _subscript(parts.pop()))
    if indices:
        item = _name("_".join([head, *parts]), called=called)
        return Item(f"{item.tex}_{{{','.join(indices)}}}", item.kind)
    if parts:
        return Item(r"\mathtt{" + name.replace("_", r"\_") + "}", "word")
    if re.fullmatch("d[a-z]", name) and not called:
        return Item(rf"\, \mathrm{{d}} {name[1]}")
    if name in FUNCTIONS:
        return Item(rf"\{name}", "function")
    command = "operatorname" if called else "mathrm"
    return Item(rf"\{command}{{{name}}}", "word")


def _is_index(part: str) -> bool:
    return part.isdigit() or part in SYMBOLS


def _subscript(part: str) -> str:
    """TeX of a subscript: indices of a letter each, a symbol, or a word."""
    if _is_index(part):
        return SYMBOLS.get(part, part)
    return part if len(part) <= 2 else rf"\mathrm{{{part}}}"


def _group(tokens: deque[Token], *, inline: bool) -> Item:
    """A bracket and all up to the one that closes it."""
    opening = tokens.popleft().text
    closing = BRACKETS[opening]
    inner = _joined(_sequence(tokens, inline=inline))
    if not tokens or tokens.popleft().text != closing:
        raise ValueError(f"{opening[0]!r} is not closed by {closing[-1]!r}")
    left, right = (DELIMITERS.get(bracket, bracket) for bracket in (opening, closing))
    if TALL.search(inner):
        left, right = rf"\left{left}", rf"\right{right}"
    return Item(f"{left}{inner}{right}", inner="" if opening == "|(" else inner)


def _with_scripts(item: Item, text: str, tokens: deque[Token]) -> Item:
    """The item with the powers, primes, subscripts and factorials that touch it."""
    tex, raised = item.tex, False
    while _touches(tokens, "^'!_"):
        script = tokens.popleft().text
        if script == "!":
            tex += "!"
            continue
        if raised and script != "_":
            tex = f"{{{tex}}}"
        raised |= script != "_"
        if script == "_" and "_{" in tex:
            raise ValueError(f"two subscripts of {text!r}")
        if script != "'":
            tex += f"{script}{{{_script(tokens)}}}"
        elif text in ("(", "[", ")") or text.isupper():
            tex += r"^{\top}"
        else:
            tex += r"^{\prime}"
    return item if tex == item.tex else Item(tex, item.kind)


def _script(tokens: deque[Token]) -> str:
    """TeX of a script: a bracket without its brackets, or a signed number or name."""
    if _touches(tokens, "("):
        return _group(tokens, inline=True).inner
    sign = tokens.popleft().text if _touches(tokens, "-") else ""
    if not tokens or not tokens[0].text[0].isalnum():
        raise ValueError("a script is missing")
    text = tokens.popleft().text
    if text == "T":
        return rf"{sign}\top"
    if _touches(tokens, "/"):
        raise ValueError(f"^{sign}{text}/ may be two things: add brackets or a space")
    tex = _name(text).tex if text[0].isalpha() else text
    return sign + _with_scripts(Item(tex), text, tokens).tex


def _touches(tokens: deque[Token], texts: str) -> bool:
    """Whether the next token is one of these and no space comes before it."""
    return bool(tokens) and not tokens[0].spaced and tokens[0].text in tuple(texts)
