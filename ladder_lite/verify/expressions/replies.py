r"""Read the integrals in the replies of language models: text -> integrand, variable, bounds.

    read_integrals(r"1. integrate(x**2, x)  2. \int_0^\pi \sin u \, du")

These forms are read: calls (`integrate(f, x)`, `Integral(f, (x, a, b))`, `integrate(f, x, a, b)`, also without the
closing bracket at the end of a line), LaTeX, the sign ∫, and JSON. Bare integrands are read only if the reply contains
no complete integral, and only as items of a list, strings in JSON or lines of code: a letter in a sentence is not an
integrand. The text is hostile, so it is read in a few passes of linear cost.

Reasoning models write `<think> ... </think>` before their reply. Integrals in it are not part of the answer, so
`strip_thinking` drops it. Some chat templates open the block themselves, as that of DeepSeek-R1-Distill does. Then the
reply contains only the closing tag, or no tag if it was truncated while thinking. The text alone cannot show this, so
the recipe declares it (`task.thinking`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ladder_lite.verify.expressions.functions import NAMES
from ladder_lite.verify.expressions.notation import to_python

MAX_REPLY_CHARS: Final = 20_000  # the rest of a longer reply is ignored

_CALL: Final = re.compile(r"\b(?:[iI]ntegra(?:te|l)\}?\s*(?:\\left\s*)?[(\[]|int\()")  # SymPy's, Mathematica's, Maple's
_SIGN: Final = re.compile(r"\\int(?![A-Za-z])|∫")
_TRAILING: Final = " \t`*$.;,\"'\\"  # characters behind a formula that are not part of it


@dataclass(frozen=True, slots=True)
class Written:
    """An integral as written in `text`. The bounds are None for an antiderivative. The integrand may be unreadable."""

    text: str
    integrand: str
    variable: str
    lower: str | None = None
    upper: str | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """A piece of a reply that begins like an integral but is not one."""

    text: str


Piece = Written | Unread


def strip_thinking(text: str, thinking: bool = False) -> str:
    """Return the part of a reply after its thoughts. If `thinking`, a reply without a closing tag is all thoughts."""
    _, closed, after = text.rpartition("</think>")
    if thinking and not closed:
        return ""
    return after.partition("<think>")[0]  # a block that is opened again was cut off


def read_integrals(text: str, variable: str | None = None) -> list[Piece]:
    """Return the integrals in a text, in order, duplicates included. Never raises, whatever the text.

    If `variable` is given, integrals over another variable are renamed to it. Otherwise a bare integrand is a function
    of x. An integrand that is not in Python's notation is rewritten in it (`notation`).
    """
    text = re.sub(r"\\([*_^])", r"\1", text[:MAX_REPLY_CHARS])  # Markdown's escapes: x\*y -> x*y
    from_json = list(_from_json(text, variable))
    if any(not bare for bare, _ in from_json):
        return [piece for _, piece in from_json]
    return (
        list(_written_out(text, variable))
        or [piece for _, piece in from_json]
        or [_bare(item, variable) for item in _items(text)]
    )


def read_one(text: str) -> Piece:
    """Read a text that is a single integral, complete or a bare integrand, in its own variable."""
    pieces = list(_written_out(text[:MAX_REPLY_CHARS], None))
    if not pieces:
        return _bare(next(_items(text), text) if len(text) <= MAX_REPLY_CHARS else text, None)
    piece = pieces[0]
    before, _, after = text.partition(piece.text)
    if len(pieces) > 1 or _OPERATOR_BEFORE.search(before[-40:]) or _OPERATOR_AFTER.match(after):
        return Unread(text)  # a sum of integrals, `.subs(...)`: the piece alone would be another problem
    return piece


_OPERATOR_BEFORE: Final = re.compile(r"[\w)\]}]\s*[-+*/^]\s*$")
_OPERATOR_AFTER: Final = re.compile(r"\s*(?:[-+*/^]+\s*(?![CcKk]\b)[\w(\\]|\.\w)")


def _written(text: str, integrand: str, name: str, lower: str | None, upper: str | None, variable: str | None) -> Piece:
    """Return the integral over `name`, renamed to `variable` if that is given."""
    text, name = text.strip(), name.strip().removeprefix("\\")
    if not name.isidentifier() or name in NAMES:
        return Unread(text)
    integrand = to_python(integrand, name).strip()
    if variable is None or variable == name:
        variable = name
    elif _token(variable).search(integrand):  # for an integral of x*u over u, renaming u to x would make it x*x
        return Unread(text)
    else:
        integrand = _token(name).sub(variable, integrand)
    bounds = [None if bound is None else to_python(bound, variable).strip() for bound in (lower, upper)]
    return Written(text, integrand, variable, *bounds)


def _token(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}\b")


# --- Complete integrals: calls, LaTeX, the sign ----------------------------------------------------------------------


def _written_out(text: str, variable: str | None) -> Iterator[Piece]:
    """Yield the complete integrals in a text, without the steps of a derivation."""
    starts = sorted([*_CALL.finditer(text), *_SIGN.finditer(text)], key=lambda match: match.start())
    brackets = _Brackets(text) if starts else None
    end = 0
    for match in starts:
        if brackets is None or match.start() < end:  # inside the previous integral
            continue
        is_call = _SIGN.match(match[0]) is None
        # A step of a derivation, such as "= ∫ u du", is another form of the integral before it. Looking back no more
        # than 200 characters keeps the cost linear.
        line_start = max(text.rfind("\n", 0, match.start()) + 1, match.start() - 200)
        chained = line_start < end and _CHAIN.match(text, end, match.start())
        is_step = not is_call and (chained or _STEP.search(text[line_start : match.start()]))
        piece, end = (_call if is_call else _sign)(text, match, brackets, variable)
        # Bounds in words: "∫ x dx from 0 to 1".
        if isinstance(piece, Written) and piece.lower is None and (worded := _BOUNDS_AFTER.match(text, end)):
            lower, upper, end = *_bounds_in_words(worded), worded.end()
            piece = _written(text[match.start() : end], piece.integrand, piece.variable, lower, upper, None)
        if not is_step and (isinstance(piece, Written) or match[0] != "int("):  # int(x) may be a cast
            yield piece


# _CHAIN: an equals sign between two integrals makes the second one a step. _STEP: so do "= ..." and "we get ...".
_CHAIN: Final = re.compile(r"[^,;\n]*=")
_STEP: Final = re.compile(r"^[\s&$]*(?:\\\[)?\s*=|\b(?:get|obtain|becomes?|gives|yields)[\s:,$]*$")
_BOUND: Final = r"(\$?[^\s,;$]{1,40})\$?"
_IN_WORDS: Final = re.compile(
    rf"\b(?:from\s++{_BOUND}\s++to\s++{_BOUND}|between\s++{_BOUND}\s++and\s++{_BOUND}"
    r"|(?:over|on)\s++(?:the\s++interval\s++)?\$?[\[(]([^\],;\n]{1,40}),([^\])\n]{1,40})[\])])"
)
_BOUNDS_AFTER: Final = re.compile(rf"[()\s,$]*+{_IN_WORDS.pattern}")


def _bounds_in_words(match: re.Match[str]) -> list[str]:
    """Return the bounds of a match of _IN_WORDS, without punctuation: `from 0 to 1.` -> ["0", "1"]."""
    bounds = [bound.strip("$ ").rstrip(".:*`") for bound in match.groups() if bound]
    return [bound[:-1] if bound.endswith(")") and "(" not in bound else bound for bound in bounds]


class _Brackets:
    """Positions of brackets in a text, computed once for all integrals in it."""

    def __init__(self, text: str) -> None:
        self.closing: dict[int, int] = {}  # opening bracket -> the bracket that closes it
        self.line_end: dict[int, int] = {}  # bracket that is the innermost open one at the end of a line -> that end
        opened: list[int] = []
        for match in re.finditer(r"[(\[{)\]}\n]|\Z", text):
            if match[0] and match[0] in "([{":
                opened.append(match.start())
            elif match[0] in ("", "\n"):
                if opened:
                    self.line_end.setdefault(opened[-1], match.start())
            elif opened:
                self.closing[opened.pop()] = match.start()


def _call(text: str, match: re.Match[str], brackets: _Brackets, variable: str | None) -> tuple[Piece, int]:
    """Read the call that begins at `match`. Returns the piece and its end in the text."""
    opening = match.end() - 1
    cut, end = brackets.line_end.get(opening), brackets.closing.get(opening)
    if cut is not None:  # not closed on its line; often only the bracket is missing: integrate(x, x
        whole = text[match.start() : cut].rstrip(_TRAILING)
        piece = _of_arguments(whole, text[match.end() : cut].rstrip(_TRAILING), variable)
        if isinstance(piece, Written):
            return piece, cut
    if end is None:  # never closed: skip to the next call on the line
        line = text[match.start() :].partition("\n")[0]
        following = _CALL.search(line, match.end() - match.start())
        return Unread(line[: following.start()] if following else line), match.end()
    whole = text[match.start() : end + 1]
    return _of_arguments(whole, text[match.end() : end].removesuffix("\\right"), variable), end + 1


def _of_arguments(whole: str, inside: str, variable: str | None) -> Piece:
    """Return the integral of a call: `whole` is the call, `inside` its arguments."""
    integrand, *limits = _split(inside)
    match limits:
        case [limit] if maple := _RANGE.fullmatch(limit):  # Maple's int(f, x=0..1)
            limits = list(maple.groups())
        case [limit] if limit[:1] in ("(", "[", "{") and limit[-1:] in (")", "]", "}"):  # (x, 0, 1), {x, 0, 1}
            limits = _split(limit[1:-1])
    match limits:
        case [name, lower, upper]:  # also integrate(f, x, a, b), which SymPy refuses but which is clear
            return _written(whole, integrand, name, lower, upper, variable)
        case [name]:
            return _written(whole, integrand, name, None, None, variable)
    return Unread(whole.strip())


_RANGE: Final = re.compile(r"(\w+)\s*=\s*([^=]+?)\s*\.\.\s*([^=]+)")


def _split(text: str) -> list[str]:
    """Split a text at the commas outside of all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{)\]},]", text):
        if match[0] == ",":
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if match[0] in "([{" else -1
    return [*parts, text[start:].strip()]


# An integral without brackets ends at the end of the line or formula, or at the next integral.
_STOP: Final = re.compile(rf"\n|\$|\\\]|\\\)|{_SIGN.pattern}|{_CALL.pattern}")
# A bound without braces: \int_0^\pi, ∫_-1^1, \int_0^\frac12.
_SHORT_BOUND: Final = re.compile(
    r"[-+\N{MINUS SIGN}]?\s*"
    r"(?:\\d?frac\s*\d\s*\d|\\(?!d?frac|sqrt)[A-Za-z]+|\d+(?:\.\d+)?|pi|oo|inf(?:ty|inity)?\b|[^\W\d_]|∞)"
)
# Bounds as sub- and superscripts: ∫₀¹.
_SMALL_BOUNDS: Final = re.compile("([₀-₉₊₋]*)([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]*)")
_SMALL_DIGITS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-" * 2)
_UPRIGHT: Final = r"\\(?:mathrm|text|operatorname|rm)"
# dx, \, dx, \mathrm{d}x, {\rm d}x, d\theta, \mathrm{dx}; one of the groups is the variable.
_DIFFERENTIAL: Final = re.compile(
    rf"(?:(?<![A-Za-z\\])d|{_UPRIGHT}\s*\{{\s*d\s*\}}|\{{\\rm\s+d\}}|\\rm\s+d|"
    r"\N{DOUBLE-STRUCK ITALIC SMALL D})\s*(\\[A-Za-z]+|[^\W\d_])(?![A-Za-z(])"
    rf"|{_UPRIGHT}\s*\{{\s*d\s*([^\W\d_])\s*\}}"
)
_CLOSE_DIFFERENTIAL: Final = re.compile(r"d([^\W\d_])(?![A-Za-z(])")  # x e^xdx


def _sign(text: str, match: re.Match[str], brackets: _Brackets, variable: str | None) -> tuple[Piece, int]:
    r"""Read the integral whose sign, ∫ or \int, is `match`. Returns the piece and its end in the text."""
    lower, upper, at = _bounds(text, match.end(), brackets)
    stop = _STOP.search(text, at)
    end = stop.start() if stop else len(text)
    region = text[at:end]
    differential, is_inside = _differential(region)
    if differential is None:
        return Unread(text[match.start() : end].strip()), max(end, match.end())
    before, after = region[: differential.start()], region[differential.end() :]
    if is_inside:  # \frac{dx}{x} -> \frac{1}{x}, and \frac{x\,dx}{2} -> \frac{x\,}{2}
        unit = "1" if before.rstrip()[-1:] in ("{", "(") and after.lstrip()[:1] in ("}", ")") else ""
        integrand = before + unit + after.rstrip(_TRAILING)
    else:
        integrand = before.rstrip(" \t\\,;:!*")
        end = at + differential.end()
        if not integrand.strip():  # ∫ dx is 1, ∫ dx/x is 1/x
            integrand = "1"
            if after.lstrip().startswith("/"):
                integrand, end = "1" + after.rstrip(_TRAILING), at + len(region)
    name = next(group for group in differential.groups() if group)
    return _written(text[match.start() : end], integrand, name, lower, upper, variable), end


_MARKER: Final = re.compile(r"\s*(?:\\(?:no)?limits(?![A-Za-z])\s*)?([_^])\s*")


def _bounds(text: str, at: int, brackets: _Brackets) -> tuple[str | None, str | None, int]:
    """Return the lower and the upper bound, which may come in any order, and the position where they end."""
    bounds: dict[str, str] = {}
    if small_bounds := _SMALL_BOUNDS.match(text, at):
        signs = zip("_^", small_bounds.groups(), strict=True)
        bounds = {sign: digits.translate(_SMALL_DIGITS) for sign, digits in signs if digits}
        at = small_bounds.end()
    while marker := _MARKER.match(text, at):
        bound, end = _bound(text, marker.end(), brackets)
        if bound is None or marker[1] in bounds:  # not a bound, or a second one of the same kind
            break
        bounds[marker[1]], at = bound, end
    return bounds.get("_"), bounds.get("^"), at


def _bound(text: str, at: int, brackets: _Brackets) -> tuple[str | None, int]:
    r"""Read a bound at a position, and return it with its end: {...}, (...), \frac{...}{...}, \sqrt{...}, or short."""
    command = re.compile(r"[-+\N{MINUS SIGN}]?\s*\\(?:d?frac|sqrt)\s*(?=\{)").match(text, at)
    end = opening = command.end() if command else at
    for brace in ("{(", "{") if command else ("{(",):
        if text[end : end + 1] in tuple(brace) and end in brackets.closing:
            end = brackets.closing[end] + 1
    if end > opening:
        return (text[at:end], end) if command else (text[at + 1 : end - 1], end)
    short = _SHORT_BOUND.match(text, at)
    return (short[0], short.end()) if short else (None, at)


def _differential(region: str) -> tuple[re.Match[str] | None, bool]:
    """Return the first `dx` outside of all brackets, else the first one, and whether it is inside of brackets."""
    first: re.Match[str] | None = None
    for pattern in (_DIFFERENTIAL, _CLOSE_DIFFERENTIAL):
        depth, at = 0, 0
        for match in pattern.finditer(region):
            # Count brackets from match to match, so that the whole pass is linear.
            between = region[at : match.start()]
            depth += sum(map(between.count, "([{")) - sum(map(between.count, ")]}"))
            at = match.start()
            if depth == 0:
                return match, False
            first = first or match
    return first, True


# --- Bare integrands: items of lists, lines of code ------------------------------------------------------------------

# "1. x", "(2) x", "- x", "* x", "• x"
_ITEM: Final = re.compile(r"\s*(?:\(?\d{1,4}[.):]|[-*+•])\s+(\S.*)")
_SPANS: Final = (("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def _items(text: str) -> Iterator[str]:
    """Yield the items of lists and the lines of code, without comments and lines that are only brackets."""
    in_code = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif (item := _ITEM.match(line)) is not None:
            yield item[1]
        elif in_code and line.strip(" \t[](){},\r") and not line.lstrip().startswith("#"):
            yield line


def _bare(item: str, variable: str | None) -> Piece:
    """Read an item as a bare integrand, possibly with a label, a differential, or bounds in words."""
    content = item.strip()
    for opening, closing in _SPANS:  # if there are words around a marked formula, take the formula: `x**2`: easier
        start = content.find(opening)
        end = content.find(closing, start + len(opening)) if start >= 0 else -1
        if end > start + len(opening):
            content = content[start + len(opening) : end]
            break
    if content.startswith("**") and content.endswith("**"):
        content = content[2:-2]
    lower = upper = None
    if worded := _IN_WORDS.search(content):
        lower, upper = _bounds_in_words(worded)
        content = content[: worded.start()].rstrip(" ,$")
    content = _LABEL.sub("", content.strip(" \t\"'")).rstrip(_TRAILING)
    if _DERIVATION.search(content):  # "Let u = x**2"
        return Unread(item)
    name = variable or "x"
    if differential := re.search(r"(?<![A-Za-z])d([^\W\d_])$", content):
        content, name = content[: differential.start()].rstrip(" \t\\,;:!*"), differential[1]
    return _written(item, content, name, lower, upper, variable)


# "Evaluate x**2", "f(x) = x**2", "y = x**2"
_LABEL: Final = re.compile(
    r"^(?:(?:integrate|integral of|evaluate|find|compute)\s+|(?:[A-Za-z]\w*\([a-z]\)|y|integrand)\s*=(?!=)\s*)",
    re.IGNORECASE,
)
_DERIVATION: Final = re.compile(
    r"(?<![<>=!])=(?!=)|^(?:let|so|then|thus|hence|we|use|using|where|set|put)\b", re.IGNORECASE
)


# --- JSON ------------------------------------------------------------------------------------------------------------

# Keys under which an object may have an integral as text. An object with "integrand" has it in separate fields.
TEXT_KEYS: Final = ("question", "integral", "problem", "variant", "expression")
_MAX_JSON_DEPTH: Final = 4


def _from_json(text: str, variable: str | None) -> Iterator[tuple[bool, Piece]]:
    """Yield the integrals of the first JSON value that contains any, as pairs (is a bare integrand, piece)."""
    for candidates in _json_candidates(text):
        parts = [part for value in map(_load, candidates) for part in _of_json(value, variable, _MAX_JSON_DEPTH)]
        if parts:
            yield from parts
            return


def _json_candidates(text: str) -> Iterator[list[str]]:
    """Yield lists of texts that may be JSON, the most likely first; the texts of one list belong together."""
    # The whole reply, blocks of code, from the first bracket to the last one, and JSON lines.
    yield [text]
    yield [block.partition("\n")[2] for block in text.split("```")[1::2]]
    for opening, closing in ("[]", "{}"):
        yield [text[text.find(opening) : text.rfind(closing) + 1]]
    lines = (line.strip().rstrip(",") for line in text.split("\n"))
    yield [line for line in lines if line[:1] in ("{", "[", '"')]


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_text(value: Any) -> str:
    """Return a value from JSON as JSON text again, or a placeholder if it is nested too deeply."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deeply)"


def _of_json(value: Any, variable: str | None, depth: int) -> Iterator[tuple[bool, Piece]]:
    """Yield the integrals of a JSON value, down to `depth` levels, as pairs (is a bare integrand, piece)."""
    if isinstance(value, str):
        pieces = list(_written_out(value, variable))
        yield from ((False, piece) for piece in pieces)
        if not pieces and value.strip():
            yield True, _bare(value, variable)
    elif isinstance(value, list) and depth:
        for item in value:
            yield from _of_json(item, variable, depth - 1)
    elif isinstance(value, dict) and depth:
        if "integrand" in value:
            yield False, read_fields(value, variable)
        elif texts := [value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)]:
            yield from _of_json(texts[0], variable, depth)
        else:
            for item in value.values():  # {"variants": [...]}; other strings are not integrals
                if isinstance(item, list | dict):
                    yield from _of_json(item, variable, depth - 1)


def read_fields(fields: dict[str, Any], variable: str | None = None) -> Piece:
    """Read an object {"integrand", "variable"?, "lower"?, "upper"?}; bounds may be texts or numbers."""
    text = as_text(fields)
    integrand, name = fields.get("integrand"), fields.get("variable")
    if not isinstance(integrand, str) or not isinstance(name, str | None):
        return Unread(text)
    bounds = [fields.get("lower"), fields.get("upper")]
    # bool is a subclass of int, but true is not a bound.
    if any(isinstance(bound, bool) or not isinstance(bound, str | int | float | None) for bound in bounds):
        return Unread(text)
    lower, upper = (None if bound is None else str(bound) for bound in bounds)
    # The field may contain a complete integral: {"integrand": "integrate(x**2, (x, 0, 1))"}.
    if name is None and (pieces := list(_written_out(integrand, variable))):
        return pieces[0] if len(pieces) == 1 else Unread(text)
    return _written(text, integrand, name or "x", lower, upper, variable)
