r"""The spellings of people and models -> Python's: `2x^2 + π·|x|`, `\frac{x^2}{2}`, `sin^2 x` -> text that `ast` reads.

Only a change of notation: what is not known is left as it is, and refused later by `parse`. The text is cut into
tokens, the words around the formula are dropped, and one pass with a small grammar rewrites it; all of it takes linear
time.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import Final

from ladder_lite.verify.expressions.functions import NAMES, SYMBOLS
from ladder_lite.verify.expressions.grammar import CLOSING, CONSTANT, OPENING, Writer
from ladder_lite.verify.expressions.operations import words

MAX_CHARS: Final = 16_000  # after the change; compatibility forms of a few signs are eighteen letters long


def to_python(text: str, variable: str) -> str:
    """`text` in Python's notation of arithmetic; as it is where it is that already."""
    text = text.strip()
    return text if text.isascii() and not _needs_reading(variable).search(text) else respell(text, variable)


def respell(text: str, variable: str) -> str:
    """`text` in Python's notation, whatever it looks like."""
    text = _unicode(text)
    if len(text) > MAX_CHARS:
        return text
    try:
        return Writer(_formula(_tokens(text, variable), variable), variable).write()
    except RecursionError:  # nested too deeply
        return text


@lru_cache(maxsize=64)
def _needs_reading(variable: str) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted({variable, *SYMBOLS}))
    return re.compile(
        r"[^\w+\-*/(). ,]|\.\s*$"  # other signs than Python's
        r"|\d\s*[A-Za-z_(]|\)\s*[\w(]|\w\s+[\w(]|[A-Za-z]\."  # a product without its sign, `sin x`, or `np.sin`
        rf"|\b(?:{names})\s*\(|\b{re.escape(variable)}[A-Za-z]"  # x(x+1), xsin(x)
        rf"|\b[iI]{re.escape(variable)}\b",  # exp(ix)
        re.ASCII,
    )


# --- Signs ------------------------------------------------------------------------------------------------------------

_SUPERSCRIPT: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿᐟ]+")
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿᐟ", "0123456789+-()xtn/")
_VULGAR: Final = re.compile(r"(?<!\d)(\d*+)([¼-¾⅐-⅞↉])")
_SIGNS: Final = str.maketrans(
    dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}", "-")
    | dict.fromkeys("·⋅∙\N{MULTIPLICATION SIGN}\N{ASTERISK OPERATOR}", "*")
    | dict.fromkeys("\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}\N{INVISIBLE TIMES}\N{FUNCTION APPLICATION}", "")
    | dict.fromkeys("÷\N{DIVISION SLASH}", "/")
    | dict.fromkeys("\N{PRIME}\N{RIGHT SINGLE QUOTATION MARK}", "'")
    | {"π": " pi ", "∞": " oo ", "√": " sqrt ", "∛": " cbrt ", "Γ": " gamma ", "ψ": " psi ", "∈": r"\in "}
    | {"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "\N{DIVIDES}": "|"}
    | {"≅": "≈", "≃": "≈", "≤": "<=", "≥": ">=", "≠": "!="}
    | {"\N{DOUBLE-STRUCK ITALIC SMALL E}": "e", "\N{DOUBLE-STRUCK ITALIC SMALL I}": "I"}
)


def _vulgar(found: re.Match[str]) -> str:
    fraction = r"\frac{" + unicodedata.normalize("NFKC", found[2]).replace("\N{FRACTION SLASH}", "}{") + "}"
    return f"({found[1]}+{fraction})" if found[1] else fraction


def _unicode(text: str) -> str:
    if "&" in text and ";" in text:
        text = html.unescape(text)
    if text.isascii():
        return text
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPERSCRIPT.sub(lambda found: f"**({found[0].translate(_SUPERSCRIPTS)})", text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).replace("\N{FRACTION SLASH}", "/")


# --- Tokens: numbers, names and signs; the commands that are structure keep their backslash ---------------------------

_TOKEN: Final = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])(?:\s*\.(?!\d))?"  # dropped: sizes, colours, modules
    r"|\\(?:color|textcolor|begin|end|tag|label|hspace)\s*\{[^{}]*\}|\\operatorname\*|<br ?/?>"
    r"|(?:np|numpy|sp|sympy|math|mpmath|mp|scipy|special|torch|cmath)\.(?=[A-Za-z])"
    r"|([1-9]\d{0,2}(?:(?:\{,\}|\\[,;: ]|[ ~])\d{3})+(?!\d)"  # 1\,000
    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
    r"|\\[A-Za-z]+|\\.|[A-Za-z][A-Za-z0-9]*|```(?:[a-z]+$)?|\*\*|\$\$?|[<>=!~:]=|</?sup>|\S|\n)",
    re.ASCII | re.MULTILINE,
)
_THOUSANDS: Final = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?![\w,])", re.ASCII)
_LINE: Final = "\n"
_COMMANDS: Final = {
    **dict.fromkeys(words(r"\, \; \: \! \> \/ \- \quad \qquad \displaystyle \textstyle \limits \nolimits \rm \bf"), ""),
    **dict.fromkeys(words(r"\text \textbf \textit \textrm \mbox \mathrm \mathbf \mathit \mathsf \mathcal \mathbb"), ""),
    **dict.fromkeys(words(r"\operatorname \boldsymbol \boxed \fbox \tilde \bar \hat \ensuremath"), ""),
    **dict.fromkeys(words(r"\( \) \[ \] \\ \newline ` $ $$"), _LINE),
    **dict.fromkeys(words(r"\frac \dfrac \tfrac \cfrac \nicefrac \sfrac"), r"\frac"),
    **dict.fromkeys(words(r"\lvert \rvert \vert \mid \|"), "|"),
    **dict.fromkeys(words(r"\cdot \times \ast"), "*"),
    **dict.fromkeys(words(r"\approx \simeq \cong \doteq ~= approximately approx"), "≈"),
    **dict.fromkeys(words(r"\le \leq \leqslant"), "<="),
    **dict.fromkeys(words(r"\ge \geq \geqslant"), ">="),
    **{structure: structure for structure in (r"\lfloor", r"\rfloor", r"\lceil", r"\rceil", r"\over")},
    r"\ ": "",
    r"\{": "{",
    r"\}": "}",
    r"\div": "/",
    r"\infty": "oo",
    r"\prime": "'",
    r"\^": "**",
    "^": "**",
    ":=": "=",
    "<sup>": "**(",
    "</sup>": ")",
}
_SEGMENT: Final = re.compile("|".join(sorted((name for name in NAMES if name.isalnum()), key=len, reverse=True)))
_DIGITS: Final = re.compile(r"\d+|pi", re.ASCII)


def _tokens(text: str, variable: str) -> Iterator[str]:
    tex, piecewise = "\\" in text, "Piecewise" in text
    if "(" not in text:
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    for token in _TOKEN.findall(text):
        token = _COMMANDS.get(token, token)
        if not token or (token == "&" and tex) or (token == "~" and not piecewise):
            continue
        first = token[0]
        if first.isdigit():
            yield re.sub(r"[^\w.+-]", "", token) if token[-1].isdigit() else token
        elif token == "**(":
            yield from ("**", "(")
        elif first.isalpha() or (first == "\\" and token not in _COMMANDS and len(token) > 1):
            yield from _names(token.removeprefix("\\"), variable)
        elif token == "|" and piecewise:
            yield " | "
        else:
            yield _LINE if first == "`" else token


def _names(name: str, variable: str) -> list[str]:
    """A name as it is called here; `xsin`, `cos3x`, `xlnx` and `ix` are their parts where all of these are known."""
    if name == variable or name in SYMBOLS or name in NAMES:
        return [name]
    if name.lower() in NAMES and len(name) > 1:  # Mathematica's and Maple's
        return [name.lower()]
    if name[1:] == variable and name[0] in "iICcKk":
        return ["I" if name[0] in "iI" else name[0], variable]
    parts: list[str] = []
    at = 0
    while at < len(name) <= 40:
        if found := _SEGMENT.match(name, at):
            part = found[0]
        elif name.startswith(variable, at):
            part = variable
        elif parts and parts[-1] != variable and (found := _DIGITS.match(name, at)):  # ln2x
            part = found[0]
        elif parts and parts[-1] == variable and name.startswith("e", at):  # xe^x
            part = "e"
        else:
            return [name]
        parts.append(part)
        at += len(part)
    return parts or [name]


# --- Words around a formula -------------------------------------------------------------------------------------------

_LEAD: Final = frozenset(
    words(
        "answer ans result solution antiderivative integral value therefore thus hence so get have obtain gives"
        " yields ≈ about"
    )
)
_TAIL: Final = frozenset(
    words(
        "where with for here any some all the an a is are be being denotes represents arbitrary real constant constants"
        " const of integration number numbers in r unit units square squared cubic sq"
    )
)
_TELLING: Final = frozenset(words("where constant constants const arbitrary integration number numbers r unit units"))
_HEDGES: Final = frozenset(words("or either alternatively maybe perhaps otherwise else not"))
_CLAUSES: Final = _HEDGES.union(words(", ; where with when if for and"))
_OPERATORS: Final = frozenset(["+", "-", "*", "/", "**", "=", "≈", ",", "<", ">", "<=", ">=", "&"])


def _formula(tokens: Iterator[str], variable: str) -> list[str]:
    """The tokens of the one formula: without words, lines of comment, a left side and an approximation."""
    lines = [list(line) for ends, line in groupby(tokens, lambda token: token == _LINE) if not ends]
    lines = [line for line in (_without_words(line, variable) for line in lines) if line]
    if len(lines) > 1:
        lines = [line for line in lines if not _is_prose(line, variable)]
    formula: list[str] = []
    for line in lines:
        if formula and formula[-1] not in _OPERATORS | OPENING and line[0] not in _OPERATORS | CLOSING:
            formula.append(_LINE)  # two formulas
        formula += line
    formula = _without_words(formula, variable) if len(lines) > 1 else formula
    depth = start = 0
    in_words = is_integral = False
    for i, token in enumerate(formula[:-1]):
        depth += (token in OPENING) - (token in CLOSING)
        in_words = in_words or (depth == 0 and token in _CLAUSES)
        is_integral = is_integral or token in ("int", "∫")
        if token in ("=", "is", "equals") and depth == 0 and not in_words:
            start, is_integral = i + 1, False
        elif token == "≈" and "".join(formula[i + 1 : i + 4]).lstrip("+-.")[:1].isdigit():
            behind_bracket = i > 0 and formula[i - 1] in ("(", ",")
            if i == start or is_integral:
                start = i + 1
            elif depth == behind_bracket or depth == 0:
                return formula[start : i - behind_bracket]
    return formula[start:]


def _is_word(token: str, variable: str) -> bool:
    return token.isalpha() and len(token) > 1 and token != variable and token not in SYMBOLS and token not in NAMES


def _is_constant(token: str, variable: str) -> bool:
    return token != variable and CONSTANT.fullmatch(token) is not None


def _is_prose(line: list[str], variable: str) -> bool:
    first = next((token for token in line if token not in ("(", "**", "#")), "")
    is_sentence = _is_word(first, variable) and first not in ("is", "equals")
    return is_sentence and _HEDGES.isdisjoint(map(str.lower, line))


def _without_words(tokens: list[str], variable: str) -> list[str]:
    """Without `Answer:` before the formula, `where C is a constant` and the like behind it, and the signs around it."""
    start = 0
    for i, token in enumerate(tokens):
        word = token.lower()
        if (word in _LEAD and token != variable) or (token == ":" and start):
            start = i + 1
        elif word in _HEDGES or not (_is_word(token, variable) or word in (",", ":", "#", "**", "a")):
            break
    marked = start > 0 or (len(tokens) > 2 and tokens[0] == tokens[-1] == "**")
    end = len(tokens)
    while start < end and (tokens[start] in (",", ":") or (marked and tokens[start] in ("**", "."))):
        start += 1
    while start < end and (tokens[end - 1] in (".", ",", ";") or (marked and tokens[end - 1] == "**")):
        end -= 1
    cut, depth, told, told_before = end, 0, 0, 0
    for i in range(end - 1, start - 1, -1):
        token = tokens[i]
        if token.lower() in _TAIL and token != variable:
            told += token.lower() in _TELLING
        elif token in CLOSING:
            told_before = told if depth == 0 else told_before
            depth += 1
        elif token in OPENING and depth and (depth > 1 or told > told_before):
            depth -= 1
        elif token not in (",", ";", ".") and not _is_constant(token, variable) and tokens[i : i + 2] != ["=", "const"]:
            break
        if depth == 0:
            cut = i
    if not told:
        return tokens[start:end]
    is_term = cut == start or tokens[cut - 1] in ("+", "-", "*", "/")
    is_named = is_term and any(_is_constant(token, variable) for token in tokens[cut:end])
    return tokens[start:cut] + ["C"] * is_named
