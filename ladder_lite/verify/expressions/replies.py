r"""Integrals in the replies of language models: text -> integrand, variable, bounds.

    read_integrals(r"1. integrate(x**2, x)  2. \int_0^\pi \sin u \, du")

Calls (`integrate(f, x)`, `Integral(f, (x, a, b))`, `integrate(f, x, a, b)`, one cut off at the end of its line), LaTeX,
the sign ∫, JSON; and bare integrands, but these only as items of a list, strings of JSON or lines of code, and only
where no integral is written out: a letter in a sentence is no integrand. The text is hostile: it is read in a few
passes of linear cost.

Reasoning models write `<think> ... </think>` before their reply. The integrals in it are not their answer, so
`strip_thinking` drops it. Some chat templates open the block themselves (DeepSeek-R1-Distill's does): such a reply
holds only the closing tag, or no tag if it was truncated while thinking. The text alone cannot show that, so the recipe
says it (`task.thinking`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ladder_lite.verify.expressions.functions import NAMES
from ladder_lite.verify.expressions.notation import to_python
from ladder_lite.verify.expressions.parse import MAX_CHARS

MAX_REPLY_CHARS: Final = 20_000
"""What is written beyond this is not read."""

_CALL: Final = re.compile(r"\b(?:[iI]ntegra(?:te|l)\}?\s*(?:\\left\s*)?[(\[]|int\()")  # SymPy's, Mathematica's, Maple's
_SIGN: Final = re.compile(r"\\int(?![A-Za-z])|∫")
_BEHIND: Final = " \t`*$.;,\"'\\"  # around a formula, no part of it


@dataclass(frozen=True, slots=True)
class Written:
    """An integral as `text` writes it; the bounds are None for an antiderivative. Nothing says it can be read."""

    text: str
    integrand: str
    variable: str
    lower: str | None = None
    upper: str | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """A piece of a reply that begins like an integral and is none."""

    text: str


Piece = Written | Unread


def strip_thinking(text: str, thinking: bool = False) -> str:
    """The part of a reply behind its thoughts, empty where they do not end; with `thinking`, every reply has some."""
    _, closed, behind = text.rpartition("</think>")
    if thinking and not closed:
        return ""
    return behind.partition("<think>")[0]  # what is opened there was cut off


def read_integrals(text: str, variable: str | None = None) -> list[Piece]:
    """The integrals in a text, in order; never raises, whatever the text.

    With `variable`, integrals over another one are renamed to it; else a bare integrand is one in x. An integrand
    stays as it was written where that is Python's notation already, else it is `spelling`'s. Pieces that differ in
    nothing are all returned.
    """
    text = re.sub(r"\\([*_^])", r"\1", text[:MAX_REPLY_CHARS])  # Markdown's escapes
    in_json = list(_in_json(text, variable))
    if any(not bare for bare, _ in in_json):
        return [piece for _, piece in in_json]
    return (
        list(_written_out(text, variable))
        or [piece for _, piece in in_json]
        or [_bare(item, variable) for item in _items(text)]
    )


def read_one(text: str) -> Piece:
    """The one integral that a text is, written out or as a bare integrand, in its own variable."""
    pieces = list(_written_out(text[:MAX_REPLY_CHARS], None))
    if not pieces:
        return _bare(next(_items(text), text) if len(text) <= MAX_REPLY_CHARS else text, None)
    piece = pieces[0]
    before, _, behind = text.partition(piece.text)
    if len(pieces) > 1 or _OPERATOR_BEFORE.search(before[-40:]) or _OPERATOR_BEHIND.match(behind):
        return Unread(text)  # a sum of integrals, `.subs(...)`: the piece alone would be another problem
    return piece


_OPERATOR_BEFORE: Final = re.compile(r"[\w)\]}]\s*[-+*/^]\s*$")
_OPERATOR_BEHIND: Final = re.compile(r"\s*(?:[-+*/^]+\s*(?![CcKk]\b)[\w(\\]|\.\w)")


def _written(text: str, integrand: str, name: str, lower: str | None, upper: str | None, variable: str | None) -> Piece:
    """The integral over `name`, in terms of `variable`."""
    text, name = text.strip(), name.strip().removeprefix("\\")
    if not name.isidentifier() or name in NAMES:
        return Unread(text)
    integrand = _to_python(integrand, name)
    if variable is None or variable == name:
        variable = name
    elif _token(variable).search(integrand):  # a parameter, which renaming would turn into the variable
        return Unread(text)
    else:
        integrand = _token(name).sub(variable, integrand)
    bounds = [None if bound is None else _to_python(bound, variable) for bound in (lower, upper)]
    return Written(text, integrand, variable, *bounds)


def _to_python(text: str, name: str) -> str:
    return to_python(text, name).strip() if len(text) <= MAX_CHARS else text


def _token(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}\b")


# --- Integrals that are written out: calls, LaTeX, the sign ----------------------------------------------------------


def _written_out(text: str, variable: str | None) -> Iterator[Piece]:
    starts = sorted([*_CALL.finditer(text), *_SIGN.finditer(text)], key=lambda match: match.start())
    brackets = _Brackets(text) if starts else None
    end = 0
    for match in starts:
        if brackets is None or match.start() < end:
            continue
        is_call = _SIGN.match(match[0]) is None
        line_start = max(text.rfind("\n", 0, match.start()) + 1, match.start() - 200)
        chained = line_start < end and _CHAIN.match(text, end, match.start())
        is_step = not is_call and (chained or _STEP.search(text[line_start : match.start()]))
        piece, end = (_call if is_call else _sign)(text, match, brackets, variable)
        if isinstance(piece, Written) and piece.lower is None and (behind := _BOUNDS_BEHIND.match(text, end)):
            lower, upper, end = *_worded(behind), behind.end()
            piece = _written(text[match.start() : end], piece.integrand, piece.variable, lower, upper, None)
        if not is_step and (isinstance(piece, Written) or match[0] != "int("):
            yield piece


# A step of a derivation: `= ...`, `we get ...`; and what makes one of what follows an integral.
_CHAIN: Final = re.compile(r"[^,;\n]*=")
_STEP: Final = re.compile(r"^[\s&$]*(?:\\\[)?\s*=|\b(?:get|obtain|becomes?|gives|yields)[\s:,$]*$")
_BOUND: Final = r"(\$?[^\s,;$]{1,40})\$?"
_IN_WORDS: Final = re.compile(
    rf"\b(?:from\s++{_BOUND}\s++to\s++{_BOUND}|between\s++{_BOUND}\s++and\s++{_BOUND}"
    r"|(?:over|on)\s++(?:the\s++interval\s++)?\$?[\[(]([^\],;\n]{1,40}),([^\])\n]{1,40})[\])])"
)
_BOUNDS_BEHIND: Final = re.compile(rf"[()\s,$]*+{_IN_WORDS.pattern}")


def _worded(match: re.Match[str]) -> list[str]:
    """The bounds of `from 0 to 1.`"""
    bounds = [bound.strip("$ ").rstrip(".:*`") for bound in match.groups() if bound]
    return [bound[:-1] if bound.endswith(")") and "(" not in bound else bound for bound in bounds]


class _Brackets:
    """Where each opening bracket is closed; and the end of the line at whose end it is the innermost open one."""

    def __init__(self, text: str) -> None:
        self.closing: dict[int, int] = {}
        self.line_end: dict[int, int] = {}
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
    opening = match.end() - 1
    cut, end = brackets.line_end.get(opening), brackets.closing.get(opening)
    if cut is not None:  # not closed on its line: complete but for its bracket?
        whole = text[match.start() : cut].rstrip(_BEHIND)
        piece = _of_arguments(whole, text[match.end() : cut].rstrip(_BEHIND), variable)
        if isinstance(piece, Written):
            return piece, cut
    if end is None:
        line = text[match.start() :].partition("\n")[0]
        following = _CALL.search(line, match.end() - match.start())
        return Unread(line[: following.start()] if following else line), match.end()
    whole = text[match.start() : end + 1]
    return _of_arguments(whole, text[match.end() : end].removesuffix("\\right"), variable), end + 1


def _of_arguments(whole: str, inside: str, variable: str | None) -> Piece:
    integrand, *limits = _split(inside)
    match limits:
        case [one] if maple := _RANGE.fullmatch(one):
            limits = list(maple.groups())
        case [one] if one[:1] in ("(", "[", "{") and one[-1:] in (")", "]", "}"):
            limits = _split(one[1:-1])
    match limits:
        case [name, lower, upper]:  # integrate(f, x, a, b) too, which SymPy would refuse and everybody understands
            return _written(whole, integrand, name, lower, upper, variable)
        case [name]:
            return _written(whole, integrand, name, None, None, variable)
    return Unread(whole.strip())


_RANGE: Final = re.compile(r"(\w+)\s*=\s*([^=]+?)\s*\.\.\s*([^=]+)")


def _split(text: str) -> list[str]:
    """The parts between the commas outside of all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{)\]},]", text):
        if match[0] == ",":
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if match[0] in "([{" else -1
    return [*parts, text[start:].strip()]


_STOP: Final = re.compile(rf"\n|\$|\\\]|\\\)|{_SIGN.pattern}|{_CALL.pattern}")
_SHORT_BOUND: Final = re.compile(
    r"[-+\N{MINUS SIGN}]?\s*"
    r"(?:\\d?frac\s*\d\s*\d|\\(?!d?frac|sqrt)[A-Za-z]+|\d+(?:\.\d+)?|pi|oo|inf(?:ty|inity)?\b|[^\W\d_]|∞)"
)
_SMALL: Final = re.compile("([₀-₉₊₋]*)([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]*)")
_SMALL_DIGITS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-" * 2)
_UPRIGHT: Final = r"\\(?:mathrm|text|operatorname|rm)"
_DIFFERENTIAL: Final = re.compile(
    rf"(?:(?<![A-Za-z\\])d|{_UPRIGHT}\s*\{{\s*d\s*\}}|\{{\\rm\s+d\}}|\\rm\s+d|"
    r"\N{DOUBLE-STRUCK ITALIC SMALL D})\s*(\\[A-Za-z]+|[^\W\d_])(?![A-Za-z(])"
    rf"|{_UPRIGHT}\s*\{{\s*d\s*([^\W\d_])\s*\}}"
)
_CLOSE_DIFFERENTIAL: Final = re.compile(r"d([^\W\d_])(?![A-Za-z(])")  # x e^xdx


def _sign(text: str, match: re.Match[str], brackets: _Brackets, variable: str | None) -> tuple[Piece, int]:
    lower, upper, at = _bounds(text, match.end(), brackets)
    stop = _STOP.search(text, at)
    end = stop.start() if stop else len(text)
    region = text[at:end]
    differential, is_inside = _differential(region)
    if differential is None:
        return Unread(text[match.start() : end].strip()), max(end, match.end())
    before, behind = region[: differential.start()], region[differential.end() :]
    if is_inside:  # \frac{dx}{x}
        unit = "1" if before.rstrip()[-1:] in ("{", "(") and behind.lstrip()[:1] in ("}", ")") else ""
        integrand = before + unit + behind.rstrip(_BEHIND)
    else:
        integrand = before.rstrip(" \t\\,;:!*")
        end = at + differential.end()
        if not integrand.strip():  # dx/x
            integrand = "1"
            if behind.lstrip().startswith("/"):
                integrand, end = "1" + behind.rstrip(_BEHIND), at + len(region)
    name = next(group for group in differential.groups() if group)
    return _written(text[match.start() : end], integrand, name, lower, upper, variable), end


_MARKER: Final = re.compile(r"\s*(?:\\(?:no)?limits(?![A-Za-z])\s*)?([_^])\s*")


def _bounds(text: str, at: int, brackets: _Brackets) -> tuple[str | None, str | None, int]:
    """Lower and upper bound, in any order, and where they end."""
    found: dict[str, str] = {}
    if small := _SMALL.match(text, at):
        signs = zip("_^", small.groups(), strict=True)
        found = {sign: digits.translate(_SMALL_DIGITS) for sign, digits in signs if digits}
        at = small.end()
    while marker := _MARKER.match(text, at):
        bound, end = _bound(text, marker.end(), brackets)
        if bound is None or marker[1] in found:
            break
        found[marker[1]], at = bound, end
    return found.get("_"), found.get("^"), at


def _bound(text: str, at: int, brackets: _Brackets) -> tuple[str | None, int]:
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
    """The first `dx` outside of all brackets, else the first one; and whether it is inside of some."""
    first: re.Match[str] | None = None
    for pattern in (_DIFFERENTIAL, _CLOSE_DIFFERENTIAL):
        depth, at = 0, 0
        for match in pattern.finditer(region):
            between = region[at : match.start()]
            depth += sum(map(between.count, "([{")) - sum(map(between.count, ")]}"))
            at = match.start()
            if depth == 0:
                return match, False
            first = first or match
    return first, True


# --- Bare integrands: items of lists, lines of code ------------------------------------------------------------------

_ITEM: Final = re.compile(r"\s*(?:\(?\d{1,4}[.):]|[-*+•])\s+(\S.*)")
_SPANS: Final = (("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def _items(text: str) -> Iterator[str]:
    in_code = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif (item := _ITEM.match(line)) is not None:
            yield item[1]
        elif in_code and line.strip(" \t[](){},\r") and not line.lstrip().startswith("#"):
            yield line


def _bare(item: str, variable: str | None) -> Piece:
    content = item.strip()
    for opening, closing in _SPANS:  # the formula, where words stand beside it
        start = content.find(opening)
        end = content.find(closing, start + len(opening)) if start >= 0 else -1
        if end > start + len(opening):
            content = content[start + len(opening) : end]
            break
    if content.startswith("**") and content.endswith("**"):
        content = content[2:-2]
    lower = upper = None
    if behind := _IN_WORDS.search(content):
        lower, upper = _worded(behind)
        content = content[: behind.start()].rstrip(" ,$")
    content = _LABEL.sub("", content.strip(" \t\"'")).rstrip(_BEHIND)
    if _DERIVATION.search(content):
        return Unread(item)
    name = variable or "x"
    if differential := re.search(r"(?<![A-Za-z])d([^\W\d_])$", content):
        content, name = content[: differential.start()].rstrip(" \t\\,;:!*"), differential[1]
    return _written(item, content, name, lower, upper, variable)


_LABEL: Final = re.compile(
    r"^(?:(?:integrate|integral of|evaluate|find|compute)\s+|(?:[A-Za-z]\w*\([a-z]\)|y|integrand)\s*=(?!=)\s*)",
    re.IGNORECASE,
)
_DERIVATION: Final = re.compile(
    r"(?<![<>=!])=(?!=)|^(?:let|so|then|thus|hence|we|use|using|where|set|put)\b", re.IGNORECASE
)


# --- JSON ------------------------------------------------------------------------------------------------------------

TEXT_KEYS: Final = ("question", "integral", "problem", "variant", "expression")
"""Where an object holds an integral as text; else its integrand stands in "integrand"."""

_MAX_JSON_DEPTH: Final = 4


def _in_json(text: str, variable: str | None) -> Iterator[tuple[bool, Piece]]:
    """The integrals of the first JSON value that holds any, each with whether it is a bare integrand."""
    for candidates in _json_candidates(text):
        found = [part for value in map(_load, candidates) for part in _of_json(value, variable, _MAX_JSON_DEPTH)]
        if found:
            yield from found
            return


def _json_candidates(text: str) -> Iterator[list[str]]:
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
    """A value that was read from JSON as JSON again; what is nested too deeply for that is only named."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deeply)"


def _of_json(value: Any, variable: str | None, depth: int) -> Iterator[tuple[bool, Piece]]:
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
            for item in value.values():
                if isinstance(item, list | dict):
                    yield from _of_json(item, variable, depth - 1)


def read_fields(fields: dict[str, Any], variable: str | None = None) -> Piece:
    """The integral of an object {"integrand", "variable"?, "lower"?, "upper"?}, numbers as bounds included."""
    text = as_text(fields)
    integrand, name = fields.get("integrand"), fields.get("variable")
    if not isinstance(integrand, str) or not isinstance(name, str | None):
        return Unread(text)
    bounds = [fields.get("lower"), fields.get("upper")]
    if any(isinstance(bound, bool) or not isinstance(bound, str | int | float | None) for bound in bounds):
        return Unread(text)
    lower, upper = (None if bound is None else str(bound) for bound in bounds)
    if name is None and (pieces := list(_written_out(integrand, variable))):
        return pieces[0] if len(pieces) == 1 else Unread(text)
    return _written(text, integrand, name or "x", lower, upper, variable)
