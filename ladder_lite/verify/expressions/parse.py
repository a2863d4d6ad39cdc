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
from functools import partial, reduce
from itertools import pairwise
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.expressions.evaluation import Bend, Breaks, Curve, Evaluation, run
from ladder_lite.verify.expressions.function import Break, same
from ladder_lite.verify.expressions.functions import NAMES, NUMBERS, OF_TWO, SPELLINGS, lookup, words
from ladder_lite.verify.expressions.notation import HAS_CONSTANT, respell, without_constant
from ladder_lite.verify.expressions.operations import (
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

MAX_CHARS: Final = 8000  # of the text; SymPy's antiderivatives of exam problems stay below 2,000, few exceed 4,000
MAX_NODES: Final = 600  # operations left after equal subexpressions are merged
MAX_DEPTH: Final = 80  # of the syntax tree
MAX_DIGITS: Final = 40  # of one number
MAX_EXPONENT: Final = 10_000  # of a constant power, in size


__all__ = ["MAX_CHARS", "MAX_DEPTH", "MAX_DIGITS", "MAX_EXPONENT", "MAX_NODES"]
__all__ += ["FOLD"]
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
    _folded: tuple[Step, ...] = field(default=(), repr=False)  # how its constants are worked out

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

    @property
    def operations(self) -> list[str]:
        """What an `apply` does, which works the constants out too: functions by name, whole powers as products."""
        found = []
        for _, _, _, right, operation, name in (*self._folded, *self._steps):
            exponent = self._template[right]
            is_product = operation == "**" and exponent is not None and exponent == int(exponent.real)
            found.append(name or ("*" if is_product else operation))
        return found

    def apply(
        self,
        x: Any,
        operations: Mapping[Operation, Callable[[Any, Any], Any]],
        functions: Mapping[str, Callable[[Any], Any]],
        number: Callable[[complex], Any] = lambda value: value,
    ) -> Any:
        """Value at one `x` of any kind of number (a ball, say), by that kind's own `operations` and `functions`.

        `number` converts a number of the text; `functions` has pi, E, ... as functions of anything.
        """
        values: list[Any] = [None if value is None else number(value) for value in self._template]
        values[0] = x
        for slot, _, left, right, operation, name in (*self._folded, *self._steps):
            if name:
                values[slot] = functions[name](values[left])
            else:
                values[slot] = operations[operation](values[left], values[right])
        return values[-1]

    @property
    def inverse_tangents(self) -> list[tuple[str, int, int]]:
        """The calls of atan and acot: name, slot and slot of the argument."""
        return [(step.name, step.slot, step.left) for step in self._steps if step.name in ("atan", "acot")]

    def values_holding(self, points: NDArray[Any], held: Mapping[int, NDArray[Any]]) -> Complexes:
        """Values at `points` where some slots have given values."""
        values: list[Any] = [points, *self._template[1:]]
        with np.errstate(all="ignore"):
            for slot, forward, left, right, _, _ in self._steps:
                values[slot] = held[slot] if slot in held else forward(values[left], None, values[right], None)[0]
        return np.broadcast_to(values[-1], points.shape)

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
        self, points: NDArray[Any], *, derivative: bool = True, jitter: NDArray[np.float64] | None = None
    ) -> Evaluation:
        """Evaluate at `points`: real ones give real arrays, unless the expression holds a complex constant."""
        return run(self._template, self._steps, self._breaks, points, derivative, jitter)


# What is tried as it is: names, numbers that Python reads without a warning, and the signs of arithmetic.
_PYTHON: Final = re.compile(
    r"(?:[A-Za-z_]\w*+|(?:\d{1,20}+(?:\.\d{0,18}+)?|\.\d{1,19}+)(?:[eE][+-]?\d{1,3}+)?(?!\w)|[-+*/(), ]++)++", re.ASCII
)
_LONG_NUMBER: Final = re.compile(rf"[\d_.]{{{MAX_DIGITS + 1},}}")
# Quotes, escapes and comments never reach Python's parser, which warns about what it finds in some of them.
_NOT_A_FORMULA: Final = re.compile("[\"'\\\\#;`@\n\r\0]")


def parse(
    text: str, variable: str = "x", *, constant_of_integration: bool = False, real_cube_roots: bool = False
) -> Expression:
    """Read `text` as an expression in `variable`; raises ExpressionError.

    With `constant_of_integration`, it may hold one (`C`, `2*c`, `log(K*x)`, ...), which is dropped. With
    `real_cube_roots`, a power of thirds is one of the real cube root, as `cbrt`, and not of the principal one.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError("TOO_LARGE", f"longer than {MAX_CHARS} characters")
    text = text.strip()
    if _PYTHON.fullmatch(text):
        try:
            return _read_source(text, variable, constant_of_integration, real_cube_roots)
        except ExpressionError as error:
            if error.reason == "TOO_LARGE":
                raise
    source = respell(text, variable).strip()
    if not source:
        raise ExpressionError("UNPARSEABLE", "empty")
    if len(source) > 2 * MAX_CHARS or _LONG_NUMBER.search(source):
        raise ExpressionError("TOO_LARGE", f"too long, or a number of more than {MAX_DIGITS} digits")
    if _NOT_A_FORMULA.search(source):
        raise ExpressionError("FORBIDDEN", "signs that no formula has")
    return _read_source(source, variable, constant_of_integration, real_cube_roots)


def _read_source(source: str, variable: str, constant_of_integration: bool, real_cube_roots: bool) -> Expression:
    try:
        tree = cast(ast.Expression, compile(source, "", "eval", ast.PyCF_ONLY_AST)).body
    except (SyntaxError, ValueError) as error:
        if "too many nested" in str(error):
            raise ExpressionError("TOO_LARGE", "nested too deeply") from None
        raise ExpressionError("UNPARSEABLE", f"not an expression: {error.args[0]}") from None
    except (RecursionError, MemoryError):  # how CPython's parser refuses deep nesting
        raise ExpressionError("TOO_LARGE", "nested too deeply") from None
    if constant_of_integration and HAS_CONSTANT.search(source):
        tree = without_constant(tree, variable)
    reader = _Reader(variable, real_cube_roots)
    result = reader.read(tree, 0)
    return reader.finish(source, reader.up_to_constants(result) if constant_of_integration else result)


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
FOLD: Final[dict[Operation, Callable[[Any, Any], Any]]] = {
    "+": lambda u, v: u + v,
    "-": lambda u, v: u - v,
    "*": lambda u, v: u * v,
    "/": lambda u, v: u / v,
    "**": lambda u, v: u**v,
    "only": lambda u, v: v if u > 0.5 else u * 0,
    "where": lambda u, v: v if u > 0.5 else u * 0 + 0.7,
}
_OF_ORDER: Final[dict[tuple[str, complex | None], str]] = {
    ("polylog", 2): "dilog",
    ("expint", 1): "E1",
    ("Ei", 1): "E1",
}
_COMPARISONS: Final[dict[type[ast.AST], str]] = dict(
    zip((ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq), words("Lt Le Gt Ge Eq Ne"), strict=True)
)
_CONNECTIVES: Final[dict[type[ast.AST], str]] = {
    **dict.fromkeys((ast.And, ast.BitAnd), "And"),
    **dict.fromkeys((ast.Or, ast.BitOr), "Or"),
    **dict.fromkeys((ast.Not, ast.Invert), "Not"),
}


def _folded(operation: Operation, u: complex, v: complex) -> complex:
    try:
        value: complex = FOLD[operation](u, v)
    except ZeroDivisionError:
        raise ExpressionError("UNPARSEABLE", "a division by zero") from None
    except OverflowError:
        value = math.inf
    return value


class _Reader:
    """Turns a syntax tree into steps over numbered slots, merging equal subexpressions and folding constants."""

    def __init__(self, variable: str, real_cube_roots: bool) -> None:
        self.variable = variable
        self.x = 0  # the slot that holds it
        self.real_cube_roots = real_cube_roots
        self.template: list[complex | None] = [None]
        self.steps: list[Step] = []
        self.folded: list[Step] = []
        self.known: dict[Any, int] = {}
        self.signs: list[int] = [REAL]  # by slot
        self.functions: set[str] = set()
        self.breaks: list[Breaks] = []
        self.bases: dict[int, int] = {}  # of whole powers: 1/q**2 has its pole where q changes its sign
        self.curves: list[Curve] = []
        self.may_be_resolved = True
        self.used = False
        self.is_complex = False

    def finish(self, source: str, last: int) -> Expression:
        if len(self.steps) > MAX_NODES:
            raise ExpressionError("TOO_LARGE", f"more than {MAX_NODES} operations")
        # A value that overflows may be the right one of a definite integral; in a function it would spoil every value.
        if self.used and not all(value is None or cmath.isfinite(value) for value in self.template):
            raise ExpressionError("TOO_LARGE", "a constant that overflows or is undefined")
        # Evaluation returns the last slot; what comes after the result is not needed for it.
        breaks = tuple(part for part in self.breaks if part.slot <= last)
        return Expression(
            source,
            self.variable,
            frozenset((self.variable,) if self.used else ()),
            frozenset(self.functions),
            frozenset([part.kind for part in breaks]),
            self.is_complex,
            tuple(self.template[: last + 1]),
            tuple(step for step in self.steps if step.slot <= last),
            breaks,
            tuple(curve for curve in self.curves if curve.slot <= last) if self.may_be_resolved else None,
            self.real_cube_roots,
            tuple(step for step in self.folded if step.slot <= last),
        )

    def up_to_constants(self, slot: int) -> int:
        """The slot of the same sum without its constant terms, in whose rounding the others could be lost."""
        if len(self.steps) > MAX_NODES:
            return slot
        found = self.rest_of_sum(slot, {step.slot: step for step in self.steps})
        return self.constant(0.0) if found is None else found

    def rest_of_sum(self, slot: int, steps: Mapping[int, Step]) -> int | None:
        spine = []  # a long sum nests to the left
        while slot in steps and (step := steps[slot]).operation in ("+", "-", "*", "/"):
            is_scaled = step.operation in ("*", "/")
            if is_scaled and self.template[step.right] is None:
                if step.operation == "/" or self.template[step.left] is None:
                    break
                slot = step.right
            else:
                slot = step.left
            spine.append(step)
        rest = slot if self.template[slot] is None else None
        for step in reversed(spine):
            if step.operation in ("*", "/"):
                constant = step.left if self.template[step.left] is not None else step.right
                if rest is not None:
                    pair = (constant, rest) if constant == step.left else (rest, constant)
                    rest = self.operate(step.operation, *pair)
            elif (term := self.rest_of_sum(step.right, steps)) is not None:
                if rest is not None:
                    rest = self.operate(step.operation, rest, term)
                else:
                    rest = term if step.operation == "+" else self.operate("*", self.constant(-1.0), term)
        return rest

    def read(self, node: ast.expr, depth: int) -> int:
        """The slot that holds the value of `node`."""
        kind = type(node)
        if kind is ast.Name:
            return self.name(node.id)  # type: ignore[attr-defined]
        if kind is ast.Constant:
            return self.number(node.value)  # type: ignore[attr-defined]
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
        raise ExpressionError("FORBIDDEN", f"syntax that no formula has ({kind.__name__})")

    def chain(self, node: ast.expr, depth: int) -> int:
        """Binary operations: a long sum nests to the left, and that is length, not depth."""
        spine: list[tuple[Operation, ast.expr]] = []
        while isinstance(node, ast.BinOp):
            operation = _OPERATIONS.get(type(node.op))
            if operation is None:
                raise ExpressionError("FORBIDDEN", f"operator {type(node.op).__name__}")
            spine.append((operation, node.right))
            node = node.left
        slot = self.read(node, depth)
        for operation, right in reversed(spine):
            slot = self.operate(operation, slot, self.read(right, depth + 1))
        return slot

    def name(self, name: str) -> int:
        if name == self.variable:
            self.used = True
            return self.x
        if name not in _CONSTANTS:
            what = "a function without its argument" if lookup(name) else "a name that is not on the list"
            raise ExpressionError("FORBIDDEN", f"{name}: {what}")
        if name in ("I", "i"):
            return self.constant(1j)
        return self.fold(name, _CONSTANTS[name], 0, 0, "call", name)

    def number(self, value: object) -> int:
        if type(value) is not int and type(value) is not float:  # a bool is an int
            raise ExpressionError("FORBIDDEN", "a constant that is not a number")
        slot = self.known.get(value)
        if slot is not None:
            return slot
        nearest = float(value)  # of MAX_DIGITS digits at most: infinite only for the likes of 1e999
        if type(value) is int and value != int(nearest):
            return self.operate("+", self.constant(nearest), self.number(value - int(nearest)))
        if not math.isfinite(nearest):
            raise ExpressionError("TOO_LARGE", "a number too large for floating point")
        return self.constant(nearest)

    def constant(self, value: complex, key: object = None) -> int:
        key = value if key is None else key
        slot = self.known.get(key)
        if slot is not None:
            return slot
        if value.imag:
            self.is_complex = True
        else:
            value = value.real
        slot = self.known[key] = len(self.template)
        self.template.append(value)
        self.signs.append(sign_of_constant(value))
        return slot

    def fold(self, key: object, value: complex, left: int, right: int, operation: Operation, name: str) -> int:
        """The slot of a constant that is worked out here; `apply` does so again, to as many digits as it has."""
        if key not in self.known:
            slot = self.constant(value, key)
            self.folded.append(Step(slot, forward_of("+", None), left, right, operation, name))
        return self.known[key]

    def operate(self, operation: Operation, left: int, right: int) -> int:
        key = (operation, left, right)
        slot = self.known.get(key)
        if slot is not None:
            return slot
        u, v = self.template[left], self.template[right]
        power = operation == "**"
        if v is not None:
            if power and not math.hypot(v.real, v.imag) <= MAX_EXPONENT:
                raise ExpressionError("TOO_LARGE", f"a power above {MAX_EXPONENT}")
            if u is not None:
                return self.fold(key, _folded(operation, u, v), left, right, operation, "")
            if power:
                if v == 1:
                    return left
                if self.real_cube_roots and v.real != int(v.real) and 3 * v == int(3 * v.real):
                    return self.operate("**", self.apply("cbrt", left), self.constant(3 * v))
        if power or operation == "/":
            base = left if power else right
            if self.template[base] is None:
                # No zero on the real line is no pole. But a root can come close to one: sqrt(x**2+10**(-20)).
                for kind in breaks_of(operation, v):
                    if kind == "root" or self.signs[base] != POSITIVE:
                        self.breaks.append(Breaks(kind, self.bases.get(base, base), None))
            self.bend(operation, left, right)
        sign = sign_of(operation, "", self.signs[left], self.signs[right], v, left == right)
        slot = self.step(key, forward_of(operation, v), left, right, operation, "", sign)
        if (power and v is not None and v == int(v.real)) or (
            operation == "*" and (left == right or POSITIVE in (self.signs[left], self.signs[right]))
        ):
            base = right if self.signs[left] == POSITIVE else left
            self.bases[slot] = self.bases.get(base, base)
        return slot

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
        name, arguments = node.func.id, node.args
        if len(arguments) == 1 and name in NAMES and name != self.variable and lookup(name):
            argument = arguments[0]
            if isinstance(argument, ast.Call) and SPELLINGS.get(name, name) == "log" and not argument.keywords:
                inner = argument.func
                if isinstance(inner, ast.Name) and inner.id in ("Abs", "abs") and len(argument.args) == 1:
                    return self.apply("log_abs", self.read(argument.args[0], depth + 2))
            return self.apply(name, self.read(argument, depth + 1))
        if name == "Piecewise":
            return self.piecewise(arguments, depth + 1)
        slots = [self.read(argument, depth + 1) for argument in arguments]
        if name in NUMBERS and len(slots) == 1 and self.template[slots[0]] is not None:
            return slots[0]
        if len(slots) > 1 and (name in OF_TWO or SPELLINGS.get(name) in OF_TWO):
            return self.call_of_several(name if name == "Log" else SPELLINGS.get(name, name), slots)
        if name not in NAMES or name == self.variable:
            raise ExpressionError("FORBIDDEN", f"{name}: a function that is not on the list")
        raise ExpressionError("UNPARSEABLE", f"{name} takes one argument")

    def call_of_several(self, name: str, arguments: list[int]) -> int:
        u, v = arguments[:2]
        if name in ("Max", "Min"):
            for v in arguments[1:]:
                first = self.compare("Gt" if name == "Max" else "Lt", u, v)
                u, v = self.choose("only", first, u), self.choose("only", self.negation(first), v)
                u = self.operate("+", u, v)
            return u
        if len(arguments) > 2:
            raise ExpressionError("UNPARSEABLE", f"{name} takes two arguments")
        if name == "log":
            return self.operate("/", self.apply("log", u), self.apply("log", v))
        if name == "Log":  # Mathematica's, whose base comes first
            return self.operate("/", self.apply("log", v), self.apply("log", u))
        if name == "Pow":
            return self.operate("**", u, v)
        if name == "Rational":
            return self.operate("/", u, v)
        if name == "root":
            return self.operate("**", u, self.operate("/", self.constant(1.0), v))
        if (name, self.template[u]) not in _OF_ORDER:
            raise ExpressionError("FORBIDDEN", f"{name} of this order")
        return self.apply(_OF_ORDER[name, self.template[u]], v)

    def choose(self, operation: Operation, condition: int, value: int) -> int:
        constant, result = self.template[condition], self.template[value]
        if constant is not None:
            return value if constant or operation == "where" else self.constant(0.0)
        if operation == "only" and result in (0, 1):
            return condition if result else value
        key = (operation, condition, value)
        sign = min(self.signs[value], REAL)
        return self.known.get(key) or self.step(key, forward_of(operation, None), condition, value, operation, "", sign)

    def piecewise(self, pairs: list[ast.expr], depth: int) -> int:
        """Each piece is read in a variable that takes only values for which the piece counts."""
        total, rest, variable = self.constant(0.0), self.constant(1.0), self.x
        for pair in pairs:
            if not isinstance(pair, ast.Tuple) or len(pair.elts) != 2:
                raise ExpressionError("UNPARSEABLE", "Piecewise takes pairs of a formula and a condition")
            holds = self.condition(pair.elts[1], depth)
            counts = self.choose("only", holds, rest)
            self.x = self.choose("where", counts, variable)
            piece = self.read(pair.elts[0], depth)
            self.x = variable
            total = self.operate("+", total, self.choose("only", counts, piece))
            rest = self.choose("only", self.negation(holds), rest)
        return total if self.template[rest] == 0 else self.operate("/", total, self.negation(rest))

    def condition(self, node: ast.AST, depth: int) -> int:
        """The slot that is 1 where a condition holds, and 0 elsewhere."""
        if depth > MAX_DEPTH:
            raise ExpressionError("TOO_LARGE", f"nested deeper than {MAX_DEPTH}")
        name, parts = "", list[ast.expr]()
        match node:
            case ast.Constant(value=bool(value)):
                return self.constant(float(value))
            case ast.Compare(left, [_, _, *_] as signs, sides):  # 0 < x < 1
                pairs = zip(signs, pairwise([left, *sides]), strict=True)
                conditions = [self.condition(ast.Compare(u, [sign], [v]), depth + 1) for sign, (u, v) in pairs]
                return self.every(conditions)
            case ast.Compare(left, [sign], [right]):
                name, parts = _COMPARISONS.get(type(sign), ""), [left, right]
            case ast.BoolOp(connective, values):
                name, parts = _CONNECTIVES[type(connective)], values
            case ast.BinOp(left, operator, right):
                name, parts = _CONNECTIVES.get(type(operator), ""), [left, right]
            case ast.UnaryOp(operator, operand):
                name, parts = _CONNECTIVES.get(type(operator), ""), [operand]
            case ast.Call(ast.Name(called), arguments):
                name, parts = called, arguments
        if name in _COMPARISONS.values() and len(parts) == 2:
            return self.compare(name, *(self.read(part, depth + 1) for part in parts))
        if name not in _CONNECTIVES.values() or not parts:
            raise ExpressionError("FORBIDDEN", "a condition that is no comparison")
        conditions = [self.condition(part, depth + 1) for part in parts]
        if name == "And":
            return self.every(conditions)
        return self.negation(self.every([self.negation(c) for c in conditions] if name == "Or" else conditions))

    def every(self, conditions: list[int]) -> int:
        return reduce(partial(self.choose, "only"), conditions)

    def negation(self, condition: int) -> int:
        return self.operate("-", self.constant(1.0), condition)

    def compare(self, name: str, u: int, v: int) -> int:
        above, below = (self.apply("positive", self.operate("-", *pair)) for pair in ((u, v), (v, u)))
        if name in ("Eq", "Ne"):
            unequal = self.operate("+", above, below)
            return unequal if name == "Ne" else self.negation(unequal)
        slot = {"Gt": above, "Lt": below, "Le": above, "Ge": below}[name]
        return self.negation(slot) if name in ("Le", "Ge") else slot

    def apply(self, name: str, argument: int) -> int:
        name = SPELLINGS.get(name, name)
        key = (name, argument)
        slot = self.known.get(key)
        if slot is not None:
            return slot
        function = lookup(name)
        assert function is not None
        self.functions.add(name)
        u = self.template[argument]
        if u is not None:
            with np.errstate(all="ignore"):
                value = complex(function.value(np.complex128(u)))
            value = value.real if abs(value.imag) < 1e-16 * abs(value.real) else value
            return self.fold(key, value, argument, argument, "call", name)
        kind, sign = function.breaks, self.signs[argument]
        if name not in ("sin", "cos"):  # which have no steps, however fast
            bend: Bend = "speed" if kind is None else "zeros" if function.vanishes is same else "any"
            self.curves.append(Curve(argument, 1.0, bend))
            self.may_be_resolved = self.may_be_resolved and kind != "step"
            if kind is None:
                self.breaks.append(Breaks("turn", argument, None))
            elif kind in ("root", "log") or sign != POSITIVE or function.vanishes is not same:
                base = self.bases.get(argument, argument) if function.vanishes is same else argument
                self.breaks.append(Breaks(kind, base, function.vanishes))
        return self.step(
            key, function.forward, argument, argument, "call", name, sign_of("call", name, sign, sign, None, True)
        )

    def step(
        self, key: object, forward: Forward, left: int, right: int, operation: Operation, name: str, sign: int
    ) -> int:
        slot = self.known[key] = len(self.template)
        self.template.append(None)
        self.signs.append(sign)
        self.steps.append(Step(slot, forward, left, right, operation, name))
        return slot
