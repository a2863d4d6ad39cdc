r"""The spellings of people and models -> Python's: `2x^2 + π·|x|`, `\frac{x^2}{2}`, `sin^2 x` -> text that `ast` reads.

Only a change of notation: what is not known is left as it is, and refused later by `ladder_lite.expressions`.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final

from ladder_lite.functions import is_function

CONSTANTS: Final = frozenset({"pi", "Pi", "E", "e", "I", "i", "EulerGamma", "Catalan", "GoldenRatio", "oo"})

_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿ", "0123456789+-()xtn")
_SUPERSCRIPT: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿ]+")
_SIGNS: Final = str.maketrans(
    dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}", "-")
    | dict.fromkeys("·⋅∙\N{MULTIPLICATION SIGN}\N{ASTERISK OPERATOR}", "*")
    | dict.fromkeys("\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}", "")
    | {"÷": "/", "π": " pi ", "∞": " oo ", "√": " sqrt ", "∛": " cbrt "}
    | {"\N{DOUBLE-STRUCK ITALIC SMALL E}": "e", "\N{DOUBLE-STRUCK ITALIC SMALL I}": "I"}
)
_WORDS_BEHIND: Final = re.compile(
    r"[,;]?(?:\\quad)?\s+(?:(?:where|with)\s+(?:the\s+)?(?:[CcKk]|constant)\b|\(?[CcKk]\s*(?:∈|\\in\b)).*", re.DOTALL
)
_TOKEN: Final = re.compile(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[A-Za-z_]\w*|\*\*|\S)", re.ASCII)
MAX_NESTING: Final = 100


def plain(text: str, variable: str) -> str:
    """`text` in Python's notation of arithmetic."""
    text = text.strip()
    if text.isascii() and not _needs_reading(variable).search(text):
        return text
    text = _unicode(_latex(_bare(text)))
    tokens = _tokens(text, variable)
    return _join(tokens, variable) if _nesting(tokens) <= MAX_NESTING else text


@lru_cache(maxsize=64)
def _needs_reading(variable: str) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted({variable, *CONSTANTS}))
    return re.compile(
        r"[^\w+\-*/(). ,]|\.\s*$"  # other signs than Python's
        r"|\d\s*[A-Za-z_(]|\)\s*[\w(]|\w\s+[\w(]"  # a product without its sign, or `sin x`
        rf"|\b(?:{names})\s*\(|\b{re.escape(variable)}[A-Za-z]"  # x(x+1), xsin(x)
        rf"|\b[iI]{re.escape(variable)}\b",  # exp(ix)
        re.ASCII,
    )


def _bare(text: str) -> str:
    """Without the signs around a formula, without `F(x) =`, and without words on the constant behind it."""
    text = _WORDS_BEHIND.sub("", text)
    if text.startswith(("`", "**")):
        text = text.strip("`*")
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    left, equals, right = text.rpartition("=")
    if equals and right.strip() and left[-1:] not in ("=", "<", ">", "!", ":") and left.count("(") == left.count(")"):
        text = right
    return text.strip().rstrip(".,;").strip()


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda found: f"**({found[0].translate(_SUPERSCRIPTS)})", text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).replace("\N{FRACTION SLASH}", "/")


@lru_cache(maxsize=32)
def _constants_of_integration(variable: str) -> frozenset[str]:
    return frozenset({"C", "c", "K", "k", "C1", "C_1", "C0", "C_0", "const", "constant"} - {variable})


def without_constant(tree: ast.expr, variable: str) -> ast.expr:
    """`tree` without the terms that are a constant of integration added (or subtracted) at the top."""
    names = _constants_of_integration(variable)
    if isinstance(tree, ast.Name) and tree.id in names:
        return ast.Constant(0)
    spine: list[ast.BinOp] = []
    node: ast.expr = tree
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        spine.append(node)
        node = node.left
    if isinstance(node, ast.Name) and node.id in names:
        node = ast.Constant(0)
    for term in reversed(spine):
        if not (isinstance(term.right, ast.Name) and term.right.id in names):
            node = ast.BinOp(node, term.op, term.right)
    return node


# --- LaTeX: groups rewritten from the innermost outwards -------------------------------------------------------------

_LATEX_SIGNS: Final = {
    r"\cdot": "*",
    r"\times": "*",
    r"\div": "/",
    r"\infty": " oo ",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\mid": "|",
}
_LATEX_DROPPED: Final = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|limits|quad|qquad|,|;|!|:|\s)(?![A-Za-z])"
)
_LATEX_GROUPS: Final = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\s*\[([^\[\]{}]*)\]\s*\{([^{}]*)\}"), r"((\2)**(1/(\1)))"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r" sqrt(\1)"),
    (re.compile(r"\\(?:operatorname|mathrm|text|mathit)\*?\s*\{\s*([A-Za-z]*)\s*\}"), r" \1 "),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r"(\1)"),
    (re.compile(r"_\s*\{(\w*)\}"), r"_\1"),
)
_LATEX_SHORT: Final = (
    (re.compile(r"\\[dt]?frac\s*([A-Za-z\d])\s*([A-Za-z\d])"), r"(\1/\2)"),
    (re.compile(r"\\log\s*_\s*\{?\s*(\w+)\s*\}?"), r" log_\1 "),
    (re.compile(r"\\sqrt\s*(\w)"), r" sqrt(\1)"),
)
_GROUP: Final = re.compile(r"(?<!frac)\{([^{}]*)\}")  # a numerator waits for its denominator


def _latex(text: str) -> str:
    if "\\" not in text and "{" not in text:
        return text
    text = _LATEX_DROPPED.sub(" ", text)
    for pattern, replacement in _LATEX_SHORT:
        text = pattern.sub(replacement, text)
    for _ in range(60):  # nesting beyond this is left, and refused
        before = text
        for pattern, replacement in _LATEX_GROUPS:
            text = pattern.sub(replacement, text)
        if text == before:
            # No command takes the innermost groups any more: they are plain ones, exponents for instance. One at a
            # time, because the next may now be the argument of a command.
            text = _GROUP.sub(r"(\1)", text, count=1)
        if text == before or len(text) > 20_000:
            break
    return re.sub(r"\\[A-Za-z]+", lambda found: _LATEX_SIGNS.get(found[0], f" {found[0][1:]} "), text)


# --- Products without a sign, absolute bars, functions without parentheses ------------------------------------------


def _tokens(text: str, variable: str) -> list[str]:
    """Numbers, names and signs, with `^` as `**`, brackets as parentheses and bars as calls of Abs."""
    tokens: list[str] = []
    bars = 0
    for token in _TOKEN.findall(text.replace("^", "**")):
        if token in "[{":
            tokens.append("(")
        elif token in "]}":
            tokens.append(")")
        elif token == "|":
            if bars and tokens and _is_operand(tokens[-1][-1], ")"):
                bars -= 1
                tokens.append(")")
            else:
                bars += 1
                tokens += ["Abs", "("]
        elif token == "j" != variable and tokens and tokens[-1][0].isdigit():  # 1j, as Python writes it
            tokens.append("I")
        elif token[0].isalpha() and not _is_known(token, variable):
            tokens += _split_name(token, variable)
        else:
            tokens.append(token)
    return tokens


def _is_known(name: str, variable: str) -> bool:
    return name == variable or name in CONSTANTS or is_function(name)


def _split_name(name: str, variable: str) -> list[str]:
    """`xsin` is x sin, `cos3x` cos 3 x and `ix` i x, where the rest is known; any other unknown name stays whole."""
    rest = name.removeprefix(variable)
    if rest != name and _is_known(rest, variable):
        return [variable, rest]
    if name in (f"i{variable}", f"I{variable}"):
        return ["I", variable]
    function = name.removesuffix(variable)
    digits = function[len(function.rstrip("0123456789")) :]
    function = function.removesuffix(digits)
    if name.endswith(variable) and is_function(function):
        return [part for part in (function, digits, variable) if part]
    return [name]


def _nesting(tokens: list[str]) -> int:
    """Bound on how deep `_join` can recurse: parentheses, and functions without them."""
    bare = sum(token[0].isalpha() and after != "(" for token, after in pairwise([*tokens, ""]) if is_function(token))
    depths = list(accumulate(((token == "(") - (token == ")") for token in tokens), initial=0))
    return bare + max(depths) - min(depths)


def _join(tokens: list[str], variable: str) -> str:
    """The tokens as text, with `*` between operands that stand side by side."""
    out: list[str] = []
    at = 0
    while at < len(tokens):
        piece, at = _operand(tokens, at, variable)
        if out and _is_operand(piece[0], "(") and _is_operand(out[-1][-1], ")"):
            out.append("*")
        out.append(piece)
    return "".join(out)


def _is_operand(character: str, bracket: str) -> bool:
    return character == bracket or character.isalnum() or character in "_."


def _operand(tokens: list[str], at: int, variable: str) -> tuple[str, int]:
    """The group, call, name, number or sign at `at`, and where the next one begins."""
    token, at = tokens[at], at + 1
    if token == "(":
        return _group(tokens, at, variable)
    if not token[0].isalpha() or token == variable or token in CONSTANTS:
        return token, at
    if not is_function(token):
        return token, at  # refused later
    power, at_argument = _power(tokens, at)
    if power == "-1" and is_function(f"a{token}"):
        token, power = f"a{token}", ""
    argument, end = _argument(tokens, at_argument, variable, short=token in ("sqrt", "cbrt"))
    if end == at_argument:
        return token, at
    call = token + argument if argument[0] == "(" else f"{token}({argument})"
    return (f"({call})**{power}" if power else call), end


def _group(tokens: list[str], at: int, variable: str) -> tuple[str, int]:
    depth = 1
    for end in range(at, len(tokens)):
        depth += (tokens[end] == "(") - (tokens[end] == ")")
        if depth == 0:
            return f"({_join(tokens[at:end], variable)})", end + 1
    return "(", at


def _power(tokens: list[str], at: int) -> tuple[str, int]:
    """The 2 of sin^2 x, the -1 of tan^(-1) x."""
    for sign, exponent in ((["**"], 1), (["**", "("], 2), (["**", "(", "-"], 3)):
        if tokens[at : at + exponent] == sign and tokens[at + exponent : at + exponent + 1]:
            digits, closed = (
                tokens[at + exponent],
                exponent == 1 or tokens[at + exponent + 1 : at + exponent + 2] == [")"],
            )
            if digits.isdigit() and closed:
                return "-" * (exponent == 3) + digits, at + exponent + 1 + (exponent > 1)
    return "", at


def _argument(tokens: list[str], at: int, variable: str, *, short: bool) -> tuple[str, int]:
    """A function's argument: a group, a call, or without parentheses a number and names with a power (`sin 2x`)."""
    if at >= len(tokens):
        return "", at
    token = tokens[at]
    if token == "(" or (token[0].isalpha() and token != variable and token not in CONSTANTS and is_function(token)):
        return _operand(tokens, at, variable)
    end = at
    while end < len(tokens) and not (short and end > at):
        name = tokens[end] == variable or tokens[end] in CONSTANTS
        if not name and not (end == at and tokens[end][0].isdigit()):
            break
        end += 1
    if at < end < len(tokens) - 1 and tokens[end] == "**" and not short:
        exponent, after = _operand(tokens, end + 1, variable)
        if _is_operand(exponent[0], "("):
            return f"{_join(tokens[at:end], variable)}**{exponent}", after
    return _join(tokens[at:end], variable), end
