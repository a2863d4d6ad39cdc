"""Untrusted text -> Expression: read with an allow-list, evaluated with its derivative on arrays of complex points.

Nothing in the text is ever run. It is read with Python's `ast`, every node that is not on the list is refused, and what
is left is a flat list of array operations of capped length, so evaluating it has a fixed worst cost.

    parse("x*exp(x)").values_and_derivatives(np.array([0.5 + 0j]))
"""

from __future__ import annotations

import ast
import cmath
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ladder_lite.evaluation import Bend, Breaks, Curve, Evaluation, run
from ladder_lite.functions import NUMBERS, OF_TWO, SPELLINGS, Break, lookup, same
from ladder_lite.operations import (
    MAX_MULTIPLIED,
    POSITIVE,
    REAL,
    Breakable,
    Complexes,
    Forward,
    Operation,
    Step,
    breaks_of,
    forward_of,
    sign_of,
    sign_of_constant,
)
from ladder_lite.spelling import plain, without_constant

MAX_CHARS: Final = 8000  # of the text; SymPy's antiderivatives of exam problems stay below 2,000, few exceed 4,000
MAX_NODES: Final = 600  # operations left after equal subexpressions are merged
MAX_DEPTH: Final = 80  # of the syntax tree
MAX_DIGITS: Final = 40  # of one number
MAX_EXPONENT: Final = 10_000  # of a constant power, in size


__all__ = ["MAX_CHARS", "MAX_DEPTH", "MAX_DIGITS", "MAX_EXPONENT", "MAX_NODES"]
__all__ += ["Breakable", "Complexes", "Expression", "ExpressionError", "parse"]


class ExpressionError(Exception):
    """The text is not an expression: `reason` is UNPARSEABLE, FORBIDDEN or TOO_LARGE, the message says why."""

    def __init__(self, reason: Literal["UNPARSEABLE", "FORBIDDEN", "TOO_LARGE"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A read expression.

    `is_complex`: whether it holds a complex constant (I, sqrt(-2)). `kinds` are the breaks its functions can have,
    `functions` their names, `curves` what decides how narrow its features can be (None: there is no telling).
    """

    source: str
    variable: str
    free: frozenset[str]
    functions: frozenset[str]
    kinds: frozenset[Break]
    is_complex: bool
    _template: tuple[complex | None, ...] = field(repr=False)
    _steps: tuple[Step, ...] = field(repr=False)
    _breaks: tuple[Breaks, ...] = field(repr=False)
    curves: tuple[Curve, ...] | None = field(repr=False)
    real_cube_roots: bool = False

    @property
    def n_nodes(self) -> int:
        """Number of array operations that one evaluation takes."""
        return len(self._steps)

    @property
    def text(self) -> str:
        """The text in one spelling: Python operators, plain spaces, no redundant parentheses."""
        try:
            return ast.unparse(ast.parse(self.source, mode="eval"))
        except RecursionError:  # a sum of hundreds of terms
            return self.source

    @property
    def terms(self) -> tuple[Expression, ...]:
        """The terms that it adds and subtracts at the top, signs aside; itself if it is no sum."""
        node = without_constant(ast.parse(self.source, mode="eval").body, self.variable)
        found: list[ast.expr] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            found.append(node.right)
            node = node.left
        return tuple(_read(term, self.variable, "", self.real_cube_roots) for term in (node, *reversed(found)))

    @property
    def constants(self) -> tuple[float, ...]:
        """The finite real constants in it, folded ones included."""
        return tuple({c.real for c in self._template if c is not None and c.imag == 0 and math.isfinite(c.real)})

    def values(self, points: Complexes | NDArray[np.float64]) -> Complexes:
        """Values at `points`; nan or inf where undefined or overflowing. At real points nan where they are not real."""
        return self.evaluate(points, derivative=False).values

    def values_and_derivatives(self, points: NDArray[Any]) -> tuple[Complexes, Complexes]:
        """Values and derivatives at `points`, in one forward pass."""
        evaluation = self.evaluate(points)
        return evaluation.values, evaluation.slopes

    def apply(self, x: Any, power: Callable[[Any, Any], Any], functions: Mapping[str, Callable[[Any], Any]]) -> Any:
        """Value at one `x` of any kind of number (mpmath's, say), by that kind's own functions."""
        values: list[Any] = list(self._template)
        values[0] = x
        for slot, _, left, right, operation, name in self._steps:
            if name:
                values[slot] = functions[name](values[left])
            else:
                values[slot] = (power if operation == "**" else _FOLD[operation])(values[left], values[right])
        return values[-1]

    def zeros(self, grid: NDArray[np.float64]) -> list[float]:
        """Middles of the grid's intervals on which some subexpression changes sign."""
        values = self.evaluate(grid, derivative=False).slots
        found: set[int] = set()
        with np.errstate(all="ignore"):
            for step in self._steps:
                real = np.broadcast_to(np.real(values[step.slot]), grid.shape)
                found.update(np.flatnonzero(np.sign(real[:-1]) * np.sign(real[1:]) < 0).tolist())
        return [float((grid[i] + grid[i + 1]) / 2) for i in sorted(found)]

    def evaluate(
        self, points: NDArray[Any], *, derivative: bool = True, jitter: np.random.Generator | None = None
    ) -> Evaluation:
        """Evaluate at `points`: real ones give real arrays, unless the expression holds a complex constant."""
        return run(self._template, self._steps, self._breaks, points, derivative, jitter)


_LONG_NUMBER: Final = re.compile(rf"[\d_.]{{{MAX_DIGITS + 1},}}")
# Quotes, escapes and comments never reach Python's parser, which warns about what it finds in some of them.
_NOT_A_FORMULA: Final = re.compile("[\"'\\\\#;`@\n\r\0]")


def parse(
    text: str, variable: str = "x", *, constant_of_integration: bool = False, real_cube_roots: bool = False
) -> Expression:
    """Read `text` as an expression in `variable`; raises ExpressionError.

    With `constant_of_integration`, terms `C` (or `c`, `K`, `C_1`, ...) added at the top are dropped. With
    `real_cube_roots`, a power of thirds is one of the real cube root, as `cbrt`, and not of the principal one.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError("TOO_LARGE", f"longer than {MAX_CHARS} characters")
    source = plain(text, variable).strip()
    if not source:
        raise ExpressionError("UNPARSEABLE", "empty")
    if _LONG_NUMBER.search(source):
        raise ExpressionError("TOO_LARGE", f"a number of more than {MAX_DIGITS} digits")
    if _NOT_A_FORMULA.search(source):
        raise ExpressionError("FORBIDDEN", "signs that no formula has")
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        if "too many nested" in str(error):
            raise ExpressionError("TOO_LARGE", "nested too deeply") from None
        raise ExpressionError("UNPARSEABLE", f"not an expression: {error.args[0]}") from None
    except (RecursionError, MemoryError):  # how CPython's parser refuses deep nesting
        raise ExpressionError("TOO_LARGE", "nested too deeply") from None
    if constant_of_integration:
        tree = without_constant(tree, variable)
    return _read(tree, variable, source, real_cube_roots)


def _read(tree: ast.expr, variable: str, source: str = "", real_cube_roots: bool = False) -> Expression:
    reader = _Reader(variable, real_cube_roots)
    with np.errstate(all="ignore"):
        last = reader.read(tree, 0)
    return reader.finish(source, last)


_CONSTANTS: Final[dict[str, complex]] = {
    "pi": math.pi,
    "Pi": math.pi,
    "E": math.e,
    "e": math.e,
    "I": 1j,
    "i": 1j,
    "EulerGamma": 0.5772156649015329,
    "Catalan": 0.915965594177219,
    "GoldenRatio": (1 + math.sqrt(5)) / 2,
}
_OPERATIONS: Final[dict[type[ast.operator], Operation]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}
_FOLD: Final[dict[Operation, Callable[[Any, Any], Any]]] = {
    "+": lambda u, v: u + v,
    "-": lambda u, v: u - v,
    "*": lambda u, v: u * v,
    "/": lambda u, v: u / v,
    "**": lambda u, v: u**v,
}


class _Reader:
    """Turns a syntax tree into steps over numbered slots, merging equal subexpressions and folding constants."""

    def __init__(self, variable: str, real_cube_roots: bool) -> None:
        self.variable = variable
        self.real_cube_roots = real_cube_roots
        self.template: list[complex | None] = [None]  # slot 0 is the variable
        self.steps: list[Step] = []
        self.known: dict[Any, int] = {}
        self.signs: list[int] = [REAL]  # by slot
        self.functions: set[str] = set()
        self.breaks: list[Breaks] = []
        self.curves: list[Curve] = []
        self.may_be_resolved = True
        self.used = False
        self.is_complex = False

    def finish(self, source: str, last: int) -> Expression:
        # Evaluation returns the last slot: move a bare variable or an already known slot there.
        if last != len(self.template) - 1:
            zero = self.constant(0.0)
            self.steps.append(Step(len(self.template), forward_of("+", None), last, zero, "+", ""))
            self.template.append(None)
        return Expression(
            source,
            self.variable,
            frozenset((self.variable,) if self.used else ()),
            frozenset(self.functions),
            frozenset([breaks[0] for breaks in self.breaks]),
            self.is_complex,
            tuple(self.template),
            tuple(self.steps),
            tuple(self.breaks),
            tuple(self.curves) if self.may_be_resolved else None,
            self.real_cube_roots,
        )

    def read(self, node: ast.expr, depth: int) -> int:
        """The slot that holds the value of `node`."""
        if isinstance(node, ast.Name):
            return self.name(node.id)
        if isinstance(node, ast.Constant):
            return self.number(node.value)
        if depth > MAX_DEPTH:
            raise ExpressionError("TOO_LARGE", f"nested deeper than {MAX_DEPTH}")
        if isinstance(node, ast.BinOp):
            return self.chain(node, depth)
        if isinstance(node, ast.Call):
            return self.call(node, depth)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self.operate("*", self.constant(-1.0), self.read(node.operand, depth + 1))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
            return self.read(node.operand, depth + 1)
        raise ExpressionError("FORBIDDEN", f"syntax that no formula has ({type(node).__name__})")

    def chain(self, node: ast.expr, depth: int) -> int:
        """Binary operations: a long sum nests to the left, and that is length, not depth."""
        spine: list[ast.BinOp] = []
        while isinstance(node, ast.BinOp):
            spine.append(node)
            node = node.left
        slot = self.read(node, depth)
        for binary in reversed(spine):
            operation = _OPERATIONS.get(type(binary.op))
            if operation is None:
                raise ExpressionError("FORBIDDEN", f"operator {type(binary.op).__name__}")
            slot = self.operate(operation, slot, self.read(binary.right, depth + 1))
        return slot

    def name(self, name: str) -> int:
        if name == self.variable:
            self.used = True
            return 0
        if name not in _CONSTANTS:
            what = "a function without its argument" if lookup(name) else "a name that is not on the list"
            raise ExpressionError("FORBIDDEN", f"{name}: {what}")
        return self.constant(_CONSTANTS[name])

    def number(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ExpressionError("FORBIDDEN", "a constant that is not a number")
        try:
            return self.constant(float(value))
        except OverflowError:
            raise ExpressionError("TOO_LARGE", "a number too large for floating point") from None

    def constant(self, value: complex) -> int:
        slot = self.known.get(value)
        if slot is not None:
            return slot
        if not (math.isfinite(value.real) and math.isfinite(value.imag)):
            raise ExpressionError("TOO_LARGE", "a constant that overflows or is undefined")
        if value.imag == 0:
            value = value.real
        else:
            self.is_complex = True
        slot = self.known[value] = len(self.template)
        self.template.append(value)
        self.signs.append(sign_of_constant(value))
        return slot

    def operate(self, operation: Operation, left: int, right: int) -> int:
        u, v = self.template[left], self.template[right]
        power = operation == "**"
        if power and v is not None and abs(v) > MAX_EXPONENT:
            raise ExpressionError("TOO_LARGE", f"a power above {MAX_EXPONENT}")
        if u is not None and v is not None:
            try:
                return self.constant(_FOLD[operation](u, v))
            except ZeroDivisionError:
                raise ExpressionError("UNPARSEABLE", "a division by zero") from None
            except OverflowError:
                raise ExpressionError("TOO_LARGE", "a constant that overflows") from None
        if power and v == 1:
            return left
        if power and self.real_cube_roots and v is not None and v.real != int(v.real) and 3 * v == int(3 * v.real):
            return self.operate("**", self.apply("cbrt", left), self.constant(3 * v))
        key = (operation, left, right)
        slot = self.known.get(key)
        if slot is not None:
            return slot
        base = left if power else right
        if (power or operation == "/") and self.template[base] is None:
            # No zero on the real line is no pole. But a root can come close to one: sqrt(x**2+10**(-20)).
            kinds = breaks_of(operation, v)
            self.breaks += [Breaks(k, base, None) for k in kinds if k == "root" or self.signs[base] != POSITIVE]
        if operation == "/" or power:
            self.bend(operation, left, right)
        sign = sign_of(operation, "", self.signs[left], self.signs[right], v, left == right)
        return self.step(key, forward_of(operation, v), left, right, operation, "", sign)

    def bend(self, operation: Operation, left: int, right: int) -> None:
        """Note the features that a division or power can have."""
        u, v = self.template[left], self.template[right]
        if operation == "/":
            if v is None:
                self.curves.append(Curve(right, 1.0, "zeros"))
        elif v is None:
            if u is not None:
                self.curves.append(Curve(right, abs(cmath.log(u)) if u else 0.0, "speed"))
                self.breaks.append(Breaks("turn", right, None))
            else:
                self.may_be_resolved = False
        elif v.real < 0 or v != int(v.real) or v.real > MAX_MULTIPLIED:
            self.curves.append(Curve(left, max(1.0, abs(v)), "zeros"))

    def call(self, node: ast.Call, depth: int) -> int:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise ExpressionError("FORBIDDEN", "a call that is not a function of the list")
        name = node.func.id
        if name in OF_TWO and len(node.args) == 2:
            return self.call_of_two(name, *(self.read(argument, depth + 1) for argument in node.args))
        if name in NUMBERS and len(node.args) == 1:
            slot = self.read(node.args[0], depth + 1)
            if self.template[slot] is not None:
                return slot
        if lookup(name) is None:
            raise ExpressionError("FORBIDDEN", f"{name}: a function that is not on the list")
        if len(node.args) != 1:
            raise ExpressionError("UNPARSEABLE", f"{name} takes one argument")
        argument = node.args[0]
        if name in ("log", "ln") and isinstance(argument, ast.Call) and isinstance(argument.func, ast.Name):
            inner = argument.func.id
            if inner in ("Abs", "abs") and len(argument.args) == 1 and not argument.keywords:
                return self.apply("log_abs", self.read(argument.args[0], depth + 2))
        return self.apply(name, self.read(argument, depth + 1))

    def call_of_two(self, name: str, u: int, v: int) -> int:
        if name == "log":
            return self.operate("/", self.apply("log", u), self.apply("log", v))
        if name == "Pow":
            return self.operate("**", u, v)
        if name == "Rational":
            return self.operate("/", u, v)
        if name == "root":
            return self.operate("**", u, self.operate("/", self.constant(1.0), v))
        if self.template[u] != 2:
            raise ExpressionError("FORBIDDEN", "polylog of an order other than 2")
        return self.apply("dilog", v)

    def apply(self, name: str, argument: int) -> int:
        function = lookup(name)
        assert function is not None
        name = SPELLINGS.get(name, name)
        self.functions.add(name)
        u = self.template[argument]
        if u is not None:
            value = complex(function.value(np.complex128(u)))
            return self.constant(value.real if abs(value.imag) < 1e-16 * abs(value.real) else value)
        key = (name, argument)
        slot = self.known.get(key)
        if slot is not None:
            return slot
        bend: Bend = "speed" if function.breaks is None else "zeros" if function.vanishes is same else "any"
        if name not in ("sin", "cos"):  # which have no steps, however fast
            self.curves.append(Curve(argument, 1.0, bend))
            if bend == "speed":
                self.breaks.append(Breaks("turn", argument, None))
        self.may_be_resolved = self.may_be_resolved and function.breaks != "step"
        sign = self.signs[argument]
        positive = function.vanishes is same and sign == POSITIVE
        if function.breaks is not None and not (positive and function.breaks != "root"):
            self.breaks.append(Breaks(function.breaks, argument, function.vanishes))
        sign = sign_of("call", name, sign, sign, None, True)
        return self.step(key, function.forward, argument, argument, "call", name, sign)

    def step(
        self, key: object, forward: Forward, left: int, right: int, operation: Operation, name: str, sign: int
    ) -> int:
        if len(self.steps) >= MAX_NODES:
            raise ExpressionError("TOO_LARGE", f"more than {MAX_NODES} operations")
        slot = self.known[key] = len(self.template)
        self.template.append(None)
        self.signs.append(sign)
        self.steps.append(Step(slot, forward, left, right, operation, name))
        return slot
