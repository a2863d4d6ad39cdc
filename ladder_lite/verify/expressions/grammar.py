r"""Rewrite the tokens of a formula in Python's notation.

Handles products without a sign (`2x`), bars (`|x|`), functions without parentheses (`sin 2x`), and fractions
(`\frac12`). A recursive descent: each method of `Writer` reads tokens from `position` on and returns the text for them.
"""

import re
from typing import Final

from ladder_lite.verify.expressions.functions import NAMES, SYMBOLS

MAX_NESTING: Final = 100
OPENING: Final = frozenset("([{")
CLOSING: Final = frozenset(")]}")
CONSTANT: Final = re.compile(r"[CcKkD](?:_?\d{1,2})?|[Cc]onst(?:ant)?")  # constants of integration: C, c_1, K2, const

_BARE_NAME: Final = re.compile(r"([A-Za-z]\w*)(?:\*\*(\(?-?\d+\)?))?", re.ASCII)  # "sin", or "sin**(-1)"
_WHOLE_FRACTION: Final = re.compile(r"\(\(\d+\)/\(\d+\)\)", re.ASCII)  # "((1)/(2))"
# What may stand around a mixed number such as 2 1/2; "" is an end of the tokens. But 2 1/2 x is a product.
_BEFORE_MIXED: Final = OPENING | {"", "+", "-"}
_BEHIND_MIXED: Final = CLOSING | {"", "+", "-"}
_BRACKETS: Final = {  # opening bracket -> function and closing brackets
    "|": ("Abs", frozenset("|")),
    r"\lfloor": ("floor", frozenset([r"\rfloor"])),
    r"\lceil": ("ceiling", frozenset([r"\rceil"])),
}


def _is_operand(character: str, bracket: str) -> bool:
    """Return True if an operand can end with the character (`bracket` is ")") or begin with it ("(")."""
    return character == bracket or character.isalnum() or character in "_."


class Writer:
    """Writes tokens as text, with `*` between adjacent operands. Raises RecursionError if they nest too deeply."""

    def __init__(self, tokens: list[str], variable: str) -> None:
        # Empty tokens at both ends, so that looking one token back and four ahead needs no check.
        self.tokens = ["", *tokens, "", "", "", ""]
        self.position = 1
        self.end = len(tokens) + 1
        self.depth = 0
        self.variable = variable

    def write(self) -> str:
        """Return the text for all tokens."""
        out = self.sequence()
        while self.position < self.end:  # a closing bracket without an opening one: kept, and refused by `parse`
            self.position += 1
            out += self.tokens[self.position - 1] + self.sequence()
        return out

    def sequence(self, closing: frozenset[str] = CLOSING) -> str:
        """Read operands and signs up to a closing bracket, which is not consumed."""
        out: list[str] = []
        while self.position < self.end:
            token = self.tokens[self.position]
            follows = bool(out) and _is_operand(out[-1][-1], ")")  # an operand stands before this token
            if token in closing and (token != "|" or follows):  # a bar closes only behind an operand: |x+|x||
                break
            if token == r"\over":  # {a \over b} divides all that is before it by all that follows
                self.position += 1
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
        """Read a group, a call, a number, a name or a sign."""
        token = self.tokens[self.position]
        self.position += self.position < self.end
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise RecursionError
        if token in OPENING:
            inner = self.enclosed()
            # A function name in brackets still takes the argument that follows: {\sin} x, or (sin^-1)(x).
            bare = _BARE_NAME.fullmatch(inner)
            is_name = bare and (not bare[2] or (bare[1] in NAMES and bare[1] != self.variable))
            piece = self.name(bare[1], bare[2] or "") if bare and is_name else f"({inner})"
        elif token in _BRACKETS:
            function, closing = _BRACKETS[token]
            piece = f"{function}({self.enclosed(closing)})"
        elif token == r"\frac":
            piece = f"(({self.fraction_part()})/({self.fraction_part()}))"
        elif token[:1].isdigit():
            piece = self.number(token)
        elif token[:1].isalpha():
            piece = self.name(token)
        elif token == "%":  # percent at the end of a term; "%" elsewhere is Python's operator, which `parse` refuses
            piece = "/100" if self.tokens[self.position] in _BEHIND_MIXED else " % "
        else:
            piece = token if token != "_" else " _ "
        self.depth -= 1
        return piece

    def enclosed(self, closing: frozenset[str] = CLOSING) -> str:
        """Read up to the closing bracket and consume it. If it is missing, leave a bracket open, so `parse` refuses."""
        inner = self.sequence(closing)
        if self.position == self.end:
            return f"{inner}("
        self.position += 1
        return inner

    def fraction_part(self) -> str:
        r"""Read a numerator or denominator: a group or one token. Of a number only the first digit: \frac12 is 1/2."""
        token = self.tokens[self.position]
        if token in OPENING:
            self.position += 1
            return self.enclosed()
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.position] = token[1:]
            return token[0]
        return self.item()

    def number(self, number: str) -> str:
        """Read a number, or a mixed number such as 2 1/2 if only sums stand around it."""
        if self.tokens[self.position - 2] in _BEFORE_MIXED and number.isdigit():
            numerator, slash, denominator, following = self.tokens[self.position : self.position + 4]
            if numerator.isdigit() and slash == "/" and denominator.isdigit() and following in _BEHIND_MIXED:
                self.position += 3
                return f"({number}+{numerator}/{denominator})"
            if numerator == r"\frac":
                fraction = self.item()
                mixed = _WHOLE_FRACTION.fullmatch(fraction) and self.tokens[self.position] in _BEHIND_MIXED
                return f"({number}+{fraction})" if mixed else f"{number}*{fraction}"
        return number

    def name(self, name: str, power: str = "") -> str:
        """Read a name: the variable, a constant, or a function with its argument."""
        subscript = ""
        # log_2 x -> log(x,2), but C_1 and Li_2 are names.
        if self.tokens[self.position] == "_":
            self.position += 1
            subscript = self.item().strip("()")
            if name not in ("log", "ln") and subscript.isalnum():
                name, subscript = f"{name}_{subscript}", ""
        if name == self.variable or name in SYMBOLS or name not in NAMES:
            while self.tokens[self.position] == "'" and CONSTANT.fullmatch(name):  # C' is a constant too
                self.position += 1
            # Python's imaginary unit behind a number: 1j -> 1*I.
            return "I" if name == "j" != self.variable and self.tokens[self.position - 2][:1].isdigit() else name
        if name == "sqrt" and self.tokens[self.position] == "[":  # \sqrt[3]{x}, or Mathematica's Sqrt[x]
            index = self.item()
            if self.tokens[self.position] != "{":
                return f"sqrt({index})"
            return f"(({self.fraction_part()})**(1/({index})))"
        if self.tokens[self.position] == "**":
            self.position += 1
            power = self.signed()
        if power in ("-1", "(-1)") and f"a{name}" in NAMES:  # sin^-1 x -> asin(x)
            name, power = f"a{name}", ""
        argument = self.argument(short=name in ("sqrt", "cbrt"))
        if not argument:
            return f"{name}**{power}" if power else name
        call = f"{name}({argument},{subscript})" if subscript else f"{name}({argument})"
        return f"({call})**{power}" if power else call  # sin^2 x -> (sin(x))**2

    def signed(self) -> str:
        """Read an exponent, with its sign."""
        sign = self.tokens[self.position] == "-"
        self.position += sign
        return "-" * sign + self.item()

    def argument(self, *, short: bool) -> str:
        """Read the argument of a function: a group, a call, or factors without parentheses (`sin 2x`, `ln x^2`).

        A `short` argument is a single factor: √2 x is sqrt(2)*x. Empty if there is none.
        """
        token = self.tokens[self.position]
        if token in OPENING:
            self.position += 1
            return self.enclosed()
        out = []
        if token in _BRACKETS or (token in NAMES and token != self.variable):
            return self.item()
        if token[:1].isdigit() or token == r"\frac":  # a coefficient; \frac{x}{2} is the whole argument
            out.append(self.item())
            short = short or self.variable in out[0]
        while (token := self.tokens[self.position]) == self.variable or token in SYMBOLS:
            if short and out:
                break
            out.append(self.item())
        if out and not short and self.tokens[self.position] == "**":
            self.position += 1
            out.append(f"{out.pop()}**{self.signed()}")
        return "*".join(out)
