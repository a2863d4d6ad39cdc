r"""The spellings of people and models -> Python's: `2x^2 + π·|x|`, `\frac{x^2}{2}`, `sin^2 x` -> text that `ast` reads.

Only a change of notation: what is not known is left as it is, and refused later by `parse`. The text is cut into
tokens, the words around the formula are dropped, and one pass with a small grammar rewrites it; all of it takes linear
time.
"""

from __future__ import annotations

import ast
import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from ladder_lite.verify.expressions.functions import NAMES, words

CONSTANTS: Final = frozenset({"pi", "Pi", "E", "e", "I", "i", "EulerGamma", "Catalan", "GoldenRatio", "oo"})
MAX_NESTING: Final = 100
MAX_CHARS: Final = 16_000  # after the change; compatibility forms of a few signs are eighteen letters long

_CONSTANT: Final = re.compile(r"[CcKkD](?:_?\d{1,2})?|[Cc]onst(?:ant)?")
HAS_CONSTANT: Final = re.compile(r"[CcKkD](?<!\w.)(?:_?\d{1,2}|onst(?:ant)?)?\b", re.ASCII | re.DOTALL)


def plain(text: str, variable: str) -> str:
    """`text` in Python's notation of arithmetic; as it is where it is that already."""
    text = text.strip()
    return text if text.isascii() and not _needs_reading(variable).search(text) else respell(text, variable)


def respell(text: str, variable: str) -> str:
    """`text` in Python's notation, whatever it looks like."""
    text = _unicode(text)
    if len(text) > MAX_CHARS:
        return text
    try:
        return _Writer(_formula(_tokens(text, variable), variable), variable).write()
    except RecursionError:  # nested too deeply
        return text


@lru_cache(maxsize=64)
def _needs_reading(variable: str) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted({variable, *CONSTANTS}))
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
    if name == variable or name in CONSTANTS or name in NAMES:
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
_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")
_OPERATORS: Final = frozenset(["+", "-", "*", "/", "**", "=", "≈", ",", "<", ">", "<=", ">=", "&"])


def _formula(tokens: Iterator[str], variable: str) -> list[str]:
    """The tokens of the one formula: without words, lines of comment, a left side and an approximation."""
    lines: list[list[str]] = [[]]
    for token in tokens:
        if token == _LINE:
            lines.append([])
        else:
            lines[-1].append(token)
    lines = [line for line in (_without_words(line, variable) for line in lines) if line]
    if len(lines) > 1:
        lines = [line for line in lines if not _is_prose(line, variable)]
    formula: list[str] = []
    for line in lines:
        if formula and formula[-1] not in _OPERATORS | _OPENING and line[0] not in _OPERATORS | _CLOSING:
            formula.append(_LINE)  # two formulas
        formula += line
    formula = _without_words(formula, variable) if len(lines) > 1 else formula
    depth = start = 0
    in_words = is_integral = False
    for i, token in enumerate(formula[:-1]):
        depth += (token in _OPENING) - (token in _CLOSING)
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
    return token.isalpha() and len(token) > 1 and token != variable and token not in CONSTANTS and token not in NAMES


def _is_constant(token: str, variable: str) -> bool:
    return token != variable and _CONSTANT.fullmatch(token) is not None


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
        elif token in _CLOSING:
            told_before = told if depth == 0 else told_before
            depth += 1
        elif token in _OPENING and depth and (depth > 1 or told > told_before):
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


# --- The grammar: products without a sign, bars, functions without parentheses, fractions -----------------------------

_BARE_NAME: Final = re.compile(r"([A-Za-z]\w*)(?:\*\*(\(?-?\d+\)?))?", re.ASCII)
_WHOLE_FRACTION: Final = re.compile(r"\(\(\d+\)/\(\d+\)\)", re.ASCII)
_BEFORE_MIXED: Final = _OPENING | {"", "+", "-"}
_BEHIND_MIXED: Final = _CLOSING | {"", "+", "-"}
_BRACKETS: Final = {
    "|": ("Abs", frozenset("|")),
    r"\lfloor": ("floor", frozenset([r"\rfloor"])),
    r"\lceil": ("ceiling", frozenset([r"\rceil"])),
}


def _is_operand(character: str, bracket: str) -> bool:
    return character == bracket or character.isalnum() or character in "_."


class _Writer:
    """Writes tokens as text, with `*` between operands that stand side by side; RecursionError if they nest deeply."""

    def __init__(self, tokens: list[str], variable: str) -> None:
        self.tokens = ["", *tokens, "", "", "", ""]
        self.at = 1
        self.end = len(tokens) + 1
        self.depth = 0
        self.variable = variable

    def write(self) -> str:
        """All of the tokens."""
        out = self.sequence()
        while self.at < self.end:  # a bracket that nothing opened
            self.at += 1
            out += self.tokens[self.at - 1] + self.sequence()
        return out

    def sequence(self, closing: frozenset[str] = _CLOSING) -> str:
        """Operands and signs up to a closing bracket, which is left."""
        out: list[str] = []
        while self.at < self.end:
            token = self.tokens[self.at]
            follows = bool(out) and _is_operand(out[-1][-1], ")")
            if token in closing and (token != "|" or follows):
                break
            if token == r"\over":
                self.at += 1
                return f"(({''.join(out)})/({self.sequence(closing)}))"
            piece = self.item()
            if follows and piece == "!":
                out[-1] = f"factorial({out[-1]})"
                continue
            if follows and _is_operand(piece[0], "("):
                out.append("*")
            out.append(piece)
        return "".join(out)

    def item(self) -> str:
        """A group, a call, a number, a name or a sign."""
        token = self.tokens[self.at]
        self.at += self.at < self.end
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise RecursionError
        if token in _OPENING:
            inner = self.enclosed()
            bare = _BARE_NAME.fullmatch(inner)
            is_name = bare and (not bare[2] or (bare[1] in NAMES and bare[1] != self.variable))
            piece = self.name(bare[1], bare[2] or "") if bare and is_name else f"({inner})"
        elif token in _BRACKETS:
            function, closing = _BRACKETS[token]
            piece = f"{function}({self.enclosed(closing)})"
        elif token == r"\frac":
            piece = f"(({self.numerator()})/({self.numerator()}))"
        elif token[:1].isdigit():
            piece = self.number(token)
        elif token[:1].isalpha():
            piece = self.name(token)
        elif token == "%":
            piece = "/100" if self.tokens[self.at] in _BEHIND_MIXED else " % "
        else:
            piece = token if token != "_" else " _ "
        self.depth -= 1
        return piece

    def enclosed(self, closing: frozenset[str] = _CLOSING) -> str:
        """What stands before the closing bracket, which is read too; without one, a bracket that nothing closes."""
        inner = self.sequence(closing)
        if self.at == self.end:
            return f"{inner}("
        self.at += 1
        return inner

    def numerator(self) -> str:
        """A group or one token, of a number its first digit."""
        token = self.tokens[self.at]
        if token in _OPENING:
            self.at += 1
            return self.enclosed()
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return token[0]
        return self.item()

    def number(self, number: str) -> str:
        """A number, or a mixed one: 2 1/2, with nothing before or behind it but sums."""
        if self.tokens[self.at - 2] in _BEFORE_MIXED and number.isdigit():
            above, slash, below, behind = self.tokens[self.at : self.at + 4]
            if above.isdigit() and slash == "/" and below.isdigit() and behind in _BEHIND_MIXED:
                self.at += 3
                return f"({number}+{above}/{below})"
            if above == r"\frac":
                fraction = self.item()
                mixed = _WHOLE_FRACTION.fullmatch(fraction) and self.tokens[self.at] in _BEHIND_MIXED
                return f"({number}+{fraction})" if mixed else f"{number}*{fraction}"
        return number

    def name(self, name: str, power: str = "") -> str:
        """A constant, or a function with its argument."""
        subscript = ""
        if self.tokens[self.at] == "_":
            self.at += 1
            subscript = self.item().strip("()")
            if name not in ("log", "ln") and subscript.isalnum():
                name, subscript = f"{name}_{subscript}", ""
        if name == self.variable or name in CONSTANTS or name not in NAMES:
            while self.tokens[self.at] == "'" and _CONSTANT.fullmatch(name):
                self.at += 1
            return "I" if name == "j" != self.variable and self.tokens[self.at - 2][:1].isdigit() else name
        if name == "sqrt" and self.tokens[self.at] == "[":
            index = self.item()
            if self.tokens[self.at] != "{":
                return f"sqrt({index})"
            return f"(({self.numerator()})**(1/({index})))"
        if self.tokens[self.at] == "**":
            self.at += 1
            power = self.signed()
        if power in ("-1", "(-1)") and f"a{name}" in NAMES:
            name, power = f"a{name}", ""
        argument = self.argument(short=name in ("sqrt", "cbrt"))
        if not argument:
            return f"{name}**{power}" if power else name
        call = f"{name}({argument},{subscript})" if subscript else f"{name}({argument})"
        return f"({call})**{power}" if power else call

    def signed(self) -> str:
        """An exponent."""
        sign = self.tokens[self.at] == "-"
        self.at += sign
        return "-" * sign + self.item()

    def argument(self, *, short: bool) -> str:
        """A function's argument: a group, a call, or without parentheses a number and names with a power (`sin 2x`)."""
        token = self.tokens[self.at]
        if token in _OPENING:
            self.at += 1
            return self.enclosed()
        out = []
        if token in _BRACKETS or (token in NAMES and token != self.variable):
            return self.item()
        if token[:1].isdigit() or token == r"\frac":
            out.append(self.item())
            short = short or self.variable in out[0]
        while (token := self.tokens[self.at]) == self.variable or token in CONSTANTS:
            if short and out:
                break
            out.append(self.item())
        if out and not short and self.tokens[self.at] == "**":
            self.at += 1
            out.append(f"{out.pop()}**{self.signed()}")
        return "*".join(out)


# --- The constant of integration --------------------------------------------------------------------------------------

_VARIABLE, _FREE, _OTHER = 1, 2, 4
_KNOWN_NODES: Final = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Constant, ast.operator, ast.unaryop, ast.expr_context)
_ZERO_AND_ONE: Final = ((ast.Add, ast.Sub, 0), (ast.Mult, ast.Div, 1))


def without_constant(tree: ast.expr, variable: str) -> ast.expr:
    """`tree`, changed, without its constant of integration: terms and factors of a logarithm's argument that hold one.

    A term may be a function of the constant (2*C, log(C)) but not of the variable, and may stand in a sum that is
    multiplied or divided by numbers.
    """
    holds: dict[ast.AST, int] = {}
    for node in reversed(list(ast.walk(tree))):
        if isinstance(node, ast.Name):
            is_free = _CONSTANT.fullmatch(node.id)
            known = _FREE if is_free else 0 if node.id in CONSTANTS or node.id in NAMES else _OTHER
            holds[node] = _VARIABLE if node.id == variable else known
        else:
            holds[node] = 0 if isinstance(node, _KNOWN_NODES) else _OTHER
            for child in ast.iter_child_nodes(node):
                holds[node] |= holds[child]
    root = ast.Expression(tree)
    work: list[tuple[Any, Any, int]] = [(vars(root), "body", 0)]
    while work:
        place, key, neutral = work.pop()
        node = place[key]
        if holds[node] == _FREE:
            place[key] = ast.Constant(neutral)
        elif not holds[node] & _FREE:
            continue
        elif isinstance(node, ast.UnaryOp):
            work.append((vars(node), "operand", neutral))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, _ZERO_AND_ONE[neutral][:2]):
            if holds[node.right] == _FREE:
                place[key] = node.left
                work.append((place, key, neutral))
            elif holds[node.left] == _FREE and isinstance(node.op, ast.Add | ast.Mult):
                place[key] = node.right
                work.append((place, key, neutral))
            else:
                work += [(vars(node), "left", neutral), (vars(node), "right", neutral)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            if holds[node.right] == 0:
                work.append((vars(node), "left", 0))
            elif holds[node.left] == 0 and isinstance(node.op, ast.Mult):
                work.append((vars(node), "right", 0))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
            work += [(node.args, 0, 1)] * (node.func.id in (("log", "ln"), ("Abs", "abs"))[neutral])
    return root.body
