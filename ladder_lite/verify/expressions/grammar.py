"""The tokens of a formula -> Python's text: products without a sign, bars, functions without parentheses, fractions."""

import re
from typing import Final

from ladder_lite.verify.expressions.functions import NAMES, SYMBOLS

MAX_NESTING: Final = 100
OPENING: Final = frozenset("([{")
CLOSING: Final = frozenset(")]}")
CONSTANT: Final = re.compile(r"[CcKkD](?:_?\d{1,2})?|[Cc]onst(?:ant)?")  # of integration

_BARE_NAME: Final = re.compile(r"([A-Za-z]\w*)(?:\*\*(\(?-?\d+\)?))?", re.ASCII)
_WHOLE_FRACTION: Final = re.compile(r"\(\(\d+\)/\(\d+\)\)", re.ASCII)
_BEFORE_MIXED: Final = OPENING | {"", "+", "-"}
_BEHIND_MIXED: Final = CLOSING | {"", "+", "-"}
_BRACKETS: Final = {
    "|": ("Abs", frozenset("|")),
    r"\lfloor": ("floor", frozenset([r"\rfloor"])),
    r"\lceil": ("ceiling", frozenset([r"\rceil"])),
}


def _is_operand(character: str, bracket: str) -> bool:
    return character == bracket or character.isalnum() or character in "_."


class Writer:
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

    def sequence(self, closing: frozenset[str] = CLOSING) -> str:
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
        if token in OPENING:
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

    def enclosed(self, closing: frozenset[str] = CLOSING) -> str:
        """What stands before the closing bracket, which is read too; without one, a bracket that nothing closes."""
        inner = self.sequence(closing)
        if self.at == self.end:
            return f"{inner}("
        self.at += 1
        return inner

    def numerator(self) -> str:
        """A group or one token, of a number its first digit."""
        token = self.tokens[self.at]
        if token in OPENING:
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
        if name == self.variable or name in SYMBOLS or name not in NAMES:
            while self.tokens[self.at] == "'" and CONSTANT.fullmatch(name):
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
        if token in OPENING:
            self.at += 1
            return self.enclosed()
        out = []
        if token in _BRACKETS or (token in NAMES and token != self.variable):
            return self.item()
        if token[:1].isdigit() or token == r"\frac":
            out.append(self.item())
            short = short or self.variable in out[0]
        while (token := self.tokens[self.at]) == self.variable or token in SYMBOLS:
            if short and out:
                break
            out.append(self.item())
        if out and not short and self.tokens[self.at] == "**":
            self.at += 1
            out.append(f"{out.pop()}**{self.signed()}")
        return "*".join(out)
