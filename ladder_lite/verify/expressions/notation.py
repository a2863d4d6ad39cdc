r"""Rewrite the notation of people and models in Python's: `2x^2 + π·|x|`, `\frac{x^2}{2}`, `sin^2 x`.

This only changes the notation. Unknown text is left as it is, and `parse` refuses it later. The text is cut into
tokens, words around the formula are dropped, and a small grammar rewrites the rest in one pass, all in linear time.
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

MAX_CHARS: Final = 16_000  # after Unicode normalization, which turns a few characters into eighteen letters each


def to_python(text: str, variable: str) -> str:
    """Return `text` in Python's notation, unchanged if it is in that notation already."""
    text = text.strip()
    return text if text.isascii() and not _needs_reading(variable).search(text) else respell(text, variable)


def respell(text: str, variable: str) -> str:
    """Return `text` in Python's notation, also normalizing text that is Python already."""
    text = _unicode(text)
    if len(text) > MAX_CHARS:
        return text
    try:
        return Writer(_formula(_tokens(text, variable), variable), variable).write()
    except RecursionError:  # nested too deeply
        return text


@lru_cache(maxsize=64)
def _needs_reading(variable: str) -> re.Pattern[str]:
    """Return a pattern that finds anything that is not Python's notation."""
    names = "|".join(re.escape(name) for name in sorted({variable, *SYMBOLS}))
    return re.compile(
        r"[^\w+\-*/(). ,]|\.\s*$"  # signs that are not Python's, and a full stop
        r"|\d\s*[A-Za-z_(]|\)\s*[\w(]|\w\s+[\w(]|[A-Za-z]\."  # a product without its sign, `sin x`, or `np.sin`
        rf"|\b(?:{names})\s*\(|\b{re.escape(variable)}[A-Za-z]"  # x(x+1), xsin(x)
        rf"|\b[iI]{re.escape(variable)}\b",  # exp(ix)
        re.ASCII,
    )


# --- Characters -------------------------------------------------------------------------------------------------------

_SUPERSCRIPT: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿᐟ]+")
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ˣᵗⁿᐟ", "0123456789+-()xtn/")
_VULGAR: Final = re.compile(r"(?<!\d)(\d*+)([¼-¾⅐-⅞↉])")  # ½, or 2½
# Characters that NFKC normalization does not map to what is meant.
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
    # ½ -> \frac{1}{2}, 2½ -> (2+\frac{1}{2}). NFKC turns ½ into 1, Unicode's fraction slash and 2.
    fraction = r"\frac{" + unicodedata.normalize("NFKC", found[2]).replace("\N{FRACTION SLASH}", "}{") + "}"
    return f"({found[1]}+{fraction})" if found[1] else fraction


def _unicode(text: str) -> str:
    """Replace HTML entities and mathematical characters."""
    if "&" in text and ";" in text:
        text = html.unescape(text)
    if text.isascii():
        return text
    # Fractions and superscripts first: NFKC alone would turn 2½ into 21/2, and x² into x2.
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPERSCRIPT.sub(lambda found: f"**({found[0].translate(_SUPERSCRIPTS)})", text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).replace("\N{FRACTION SLASH}", "/")


# --- Tokens: numbers, names and signs. Commands that are structure, such as \frac, keep their backslash --------------

# Only the group is a token. What the first three lines match has an empty group and is dropped: sizes of brackets,
# colours and environments, and prefixes of Python modules.
_TOKEN: Final = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])(?:\s*\.(?!\d))?"
    r"|\\(?:color|textcolor|begin|end|tag|label|hspace)\s*\{[^{}]*\}|\\operatorname\*|<br ?/?>"
    r"|(?:np|numpy|sp|sympy|math|mpmath|mp|scipy|special|torch|cmath)\.(?=[A-Za-z])"
    r"|([1-9]\d{0,2}(?:(?:\{,\}|\\[,;: ]|[ ~])\d{3})+(?!\d)"  # 1\,000 and 1 000
    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
    r"|\\[A-Za-z]+|\\.|[A-Za-z][A-Za-z0-9]*|```(?:[a-z]+$)?|\*\*|\$\$?|[<>=!~:]=|</?sup>|\S|\n)",
    re.ASCII | re.MULTILINE,
)
_THOUSANDS: Final = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?![\w,])", re.ASCII)  # 1,234,567
_LINE: Final = "\n"  # a token that separates formulas
# Token -> what stands for it; "" drops it.
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
# Names of functions, longest first, so that "sinh" is found before "sin".
_SEGMENT: Final = re.compile("|".join(sorted((name for name in NAMES if name.isalnum()), key=len, reverse=True)))
_DIGITS: Final = re.compile(r"\d+|pi", re.ASCII)


def _tokens(text: str, variable: str) -> Iterator[str]:
    """Yield the tokens of a text: numbers, names, signs, and _LINE."""
    # & and ~ are layout in LaTeX; &, ~ and | are logical operators in a Piecewise.
    tex, piecewise = "\\" in text, "Piecewise" in text
    if "(" not in text:  # in a call, commas separate arguments: Max(1,200)
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    for token in _TOKEN.findall(text):
        token = _COMMANDS.get(token, token)
        if not token or (token == "&" and tex) or (token == "~" and not piecewise):
            continue
        first = token[0]
        if first.isdigit():  # without separators: 1\,000 -> 1000
            yield re.sub(r"[^\w.+-]", "", token) if token[-1].isdigit() else token
        elif token == "**(":
            yield from ("**", "(")
        elif first.isalpha() or (first == "\\" and token not in _COMMANDS and len(token) > 1):
            yield from _names(token.removeprefix("\\"), variable)
        elif token == "|" and piecewise:
            yield " | "
        else:
            yield _LINE if first == "`" else token  # a fence of code


def _names(name: str, variable: str) -> list[str]:
    """Return a name as [name], or its parts if all of them are known: xsin -> [x, sin], cos3x -> [cos, 3, x]."""
    if name == variable or name in SYMBOLS or name in NAMES:
        return [name]
    if name.lower() in NAMES and len(name) > 1:  # Sin, ArcTan: Mathematica's and Maple's
        return [name.lower()]
    if name[1:] == variable and name[0] in "iICcKk":  # exp(ix), ln|Cx|
        return ["I" if name[0] in "iI" else name[0], variable]
    parts: list[str] = []
    at = 0
    while at < len(name) <= 40:  # longer names are not split, which bounds the time
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

# Words before a formula that end the introduction: "The final answer is".
_LEAD: Final = frozenset(
    words(
        "answer ans result solution antiderivative integral value therefore thus hence so get have obtain gives"
        " yields ≈ about"
    )
)
# Words behind a formula that may belong to a remark: "where C is an arbitrary constant".
_TAIL: Final = frozenset(
    words(
        "where with for here any some all the an a is are be being denotes represents arbitrary real constant constants"
        " const of integration number numbers in r unit units square squared cubic sq"
    )
)
# At least one of these must occur in the remark, or the words are left in place and refused.
_DECISIVE: Final = frozenset(words("where constant constants const arbitrary integration number numbers r unit units"))
# Words that make a reply ambiguous: "sin(x) or cos(x)". They are never dropped.
_HEDGES: Final = frozenset(words("or either alternatively maybe perhaps otherwise else not"))
_CLAUSES: Final = _HEDGES.union(words(", ; where with when if for and"))
_OPERATORS: Final = frozenset(["+", "-", "*", "/", "**", "=", "≈", ",", "<", ">", "<=", ">=", "&"])


def _formula(tokens: Iterator[str], variable: str) -> list[str]:
    """Return the tokens of the formula, without words, lines of prose, a left side and an approximation."""
    lines = [list(line) for ends, line in groupby(tokens, lambda token: token == _LINE) if not ends]
    lines = [line for line in (_without_words(line, variable) for line in lines) if line]
    if len(lines) > 1:
        lines = [line for line in lines if not _is_prose(line, variable)]
    # Lines are joined if one continues the other. Otherwise they are two formulas, and _LINE makes `parse` refuse them.
    formula: list[str] = []
    for line in lines:
        if formula and formula[-1] not in _OPERATORS | OPENING and line[0] not in _OPERATORS | CLOSING:
            formula.append(_LINE)
        formula += line
    formula = _without_words(formula, variable) if len(lines) > 1 else formula
    # Take what follows the last "=" or "is", and stop before an approximation: F(x) = pi/4 ≈ 0.785 -> pi/4.
    depth = start = 0
    in_words = is_integral = False
    for i, token in enumerate(formula[:-1]):
        depth += (token in OPENING) - (token in CLOSING)
        in_words = in_words or (depth == 0 and token in _CLAUSES)
        is_integral = is_integral or token in ("int", "∫")
        if token in ("=", "is", "equals") and depth == 0 and not in_words:
            start, is_integral = i + 1, False
        elif token == "≈" and "".join(formula[i + 1 : i + 4]).lstrip("+-.")[:1].isdigit():
            behind_bracket = i > 0 and formula[i - 1] in ("(", ",")  # pi/4 (≈ 0.785)
            if i == start or is_integral:  # no exact value precedes it
                start = i + 1
            elif depth == behind_bracket or depth == 0:
                return formula[start : i - behind_bracket]
    return formula[start:]


def _is_word(token: str, variable: str) -> bool:
    return token.isalpha() and len(token) > 1 and token != variable and token not in SYMBOLS and token not in NAMES


def _is_constant(token: str, variable: str) -> bool:
    return token != variable and CONSTANT.fullmatch(token) is not None


def _is_prose(line: list[str], variable: str) -> bool:
    """Return True if a line begins with a word and contains no hedge, so that it can be dropped."""
    first = next((token for token in line if token not in ("(", "**", "#")), "")
    is_sentence = _is_word(first, variable) and first not in ("is", "equals")
    return is_sentence and _HEDGES.isdisjoint(map(str.lower, line))


def _without_words(tokens: list[str], variable: str) -> list[str]:
    """Drop introductions (`Answer:`) and remarks (`where C is a constant`) around a formula, and Markdown's signs."""
    start = 0
    for i, token in enumerate(tokens):
        word = token.lower()
        if (word in _LEAD and token != variable) or (token == ":" and start):
            start = i + 1
        elif word in _HEDGES or not (_is_word(token, variable) or word in (",", ":", "#", "**", "a")):
            break
    # After an introduction, or between two "**", the asterisks are Markdown's bold face and not a power.
    marked = start > 0 or (len(tokens) > 2 and tokens[0] == tokens[-1] == "**")
    end = len(tokens)
    while start < end and (tokens[start] in (",", ":") or (marked and tokens[start] in ("**", "."))):
        start += 1
    while start < end and (tokens[end - 1] in (".", ",", ";") or (marked and tokens[end - 1] == "**")):
        end -= 1
    # Find the remark, from the end backwards: words of _TAIL, names of constants, and brackets around these. `cut` is
    # where it begins. Brackets belong to it only if they contain a decisive word: (where C is a constant), but not (C).
    cut, depth, n_decisive, n_decisive_before = end, 0, 0, 0
    for i in range(end - 1, start - 1, -1):
        token = tokens[i]
        if token.lower() in _TAIL and token != variable:
            n_decisive += token.lower() in _DECISIVE
        elif token in CLOSING:
            n_decisive_before = n_decisive if depth == 0 else n_decisive_before
            depth += 1
        elif token in OPENING and depth and (depth > 1 or n_decisive > n_decisive_before):
            depth -= 1
        elif token not in (",", ";", ".") and not _is_constant(token, variable) and tokens[i : i + 2] != ["=", "const"]:
            break
        if depth == 0:
            cut = i
    if not n_decisive:
        return tokens[start:end]
    # If the remark is itself a term, as in "x^3/3 + an arbitrary constant C", a C stands for it.
    is_term = cut == start or tokens[cut - 1] in ("+", "-", "*", "/")
    is_named = is_term and any(_is_constant(token, variable) for token in tokens[cut:end])
    return tokens[start:cut] + ["C"] * is_named
