"""A read expression, and its evaluation on an array of points: values, derivatives, and what they tell of its shape."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.expressions.operations import Break, Operation, Step, identity

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
Complexes = NDArray[np.complex128]
Numbers = NDArray[Any]  # real or complex

RESOLVED: Final = 4.0  # how much the argument of a function like atan may change between points, near its zeros
SATURATED: Final = 20.0  # arguments at which such a function has come to rest
NEAR_ZERO: Final = 2.0  # a divisor that would vanish within half a gap, at its speed, has to change its sign there
ONE: Final = np.float64(1.0)  # of NumPy's, whose division by zero is infinite and no error


class Breakable(NamedTuple):
    """A real quantity of an expression, on the evaluated points, that vanishes where the expression may break."""

    kind: Break
    vanishing: Floats


class Breaks(NamedTuple):
    """A break that a subexpression may have: where `vanishes` of the slot's value is 0."""

    kind: Break
    slot: int
    vanishes: Callable[[Any], Any] = identity


# What gives a function a feature: its argument passing zero fast (atan(u)), or nearly vanishing without a change of
# sign (1/u, log(u)), or any argument that is not linear (tan(u)).
Bend = Literal["speed", "zeros", "any"]


class Curve(NamedTuple):
    """A slot that some function bends into features, the narrower the faster `factor` times the slot changes."""

    slot: int
    factor: float
    by: Bend


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Value and derivative of every slot of an expression; derivatives are None where they are an exact zero."""

    points: Numbers
    slots: list[Any]
    slopes_of_slots: list[Any]
    breaks: Sequence[Breaks]

    @property
    def values(self) -> Numbers:
        """Values of the expression, in the shape of the points."""
        return self._shaped(self.slots[-1])

    def _shaped(self, value: Any, dtype: Any = None) -> Numbers:
        return value if isinstance(value, np.ndarray) else np.full(self.points.shape, value, dtype)

    @property
    def slopes(self) -> Numbers:
        """Derivatives of the expression, in the shape of the points."""
        slope = self.slopes_of_slots[-1]
        return self._shaped(0.0 if slope is None else slope, self.values.dtype)

    @property
    def is_finite(self) -> Bools:
        """At which points every slot is: a part that overflowed may be one that counts (a/inf is a lost term)."""
        with np.errstate(all="ignore"):
            total = self.values * 0.0
            for slot in self.slots:
                total = total + slot
            return np.isfinite(total)

    @cached_property
    def breakables(self) -> list[Breakable]:
        """What may break."""
        with np.errstate(all="ignore"):
            return [Breakable(kind, self._shaped(np.real(zero(self.slots[slot])))) for kind, slot, zero in self.breaks]

    @property
    def overflown(self) -> Bools:
        """Where a value is not finite and some part of it is infinite."""
        overflown: Bools = ~np.isfinite(self.values)
        if overflown.any():
            overflown &= np.any([np.isinf(slot) & overflown for slot in self.slots], axis=0)
        return overflown

    def is_resolved(self, curves: Sequence[Curve] | None, gaps: Floats) -> bool:
        """Whether the points, with `gaps` to their neighbours, are dense enough for every feature of the expression.

        A step that hides between two points, as of tanh(10**6*x) or x/sqrt(x**2+10**-20), has to come out of a function
        whose argument changes fast from point to point, or nearly vanishes between them without changing its sign.
        """
        if curves is None:
            return False
        with np.errstate(all="ignore"):
            for slot, factor, by in curves:
                slope = self.slopes_of_slots[slot]
                linear = not isinstance(slope, np.ndarray)  # and so its zero is a simple one
                if linear and (by == "zeros" or factor * abs(slope) * gaps.max() <= RESOLVED):
                    continue
                change = factor * gaps * np.abs(slope)
                if by == "any":
                    return False
                if by == "speed":
                    if ((change > RESOLVED) & (factor * np.abs(self.slots[slot]) < change + SATURATED)).any():
                        return False
                elif not _zeros_are_simple(self.slots[slot], change):
                    return False
        return True


def _zeros_are_simple(u: Numbers, change: Floats) -> bool:
    """Whether `u`, which changes by `change` from a point to the next, changes its sign wherever it nearly vanishes."""
    near_zero = NEAR_ZERO * np.abs(u) < change
    if not near_zero.any():
        return True
    negative = np.signbit(u.real)
    beside = np.zeros(len(u) + 3, bool)  # two points to either side of a change of sign
    changes = negative[1:] != negative[:-1]
    for shift in range(4):
        beside[shift : shift + len(changes)] |= changes
    return not (near_zero & ~beside[1:-2]).any()


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
    _folded: tuple[Step, ...] = field(repr=False)  # how its constants are worked out

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

    def values(self, points: Complexes | Floats) -> Complexes:
        """Values at `points`; nan or inf where undefined or overflowing. At real points nan where they are not real."""
        return self.evaluate(points, derivative=False).values

    def values_and_derivatives(self, points: Numbers) -> tuple[Complexes, Complexes]:
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
        number: Callable[[complex], Any],
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

    def zeros(self, grid: Floats) -> list[float]:
        """Middles of the grid's intervals on which some subexpression changes sign."""
        values = self.evaluate(grid, derivative=False).slots
        found: set[int] = set()
        with np.errstate(all="ignore"):
            for step in self._steps:
                real = np.broadcast_to(np.real(values[step.slot]), grid.shape)
                found.update(np.flatnonzero(np.sign(real[:-1]) * np.sign(real[1:]) < 0).tolist())
        return [float((grid[i] + grid[i + 1]) / 2) for i in sorted(found)]

    def evaluate(
        self,
        points: Numbers,
        *,
        derivative: bool = True,
        jitter: Floats | None = None,
        overrides: Mapping[int, Numbers] | None = None,
    ) -> Evaluation:
        """Evaluate at `points`: real ones give real arrays, unless the expression holds a complex constant.

        With `jitter`, rows of random factors close to 1, each operation's result is scaled by the next row: the spread
        of some such runs is the rounding noise of a plain run (Vignes' stochastic arithmetic). Slots that are `held`
        have these values, and the derivatives are then not to be used.
        """
        values: list[Any] = [points, *self._template[1:]]
        slopes: list[Any] = [ONE if derivative else None, *[None] * (len(values) - 1)]
        with np.errstate(all="ignore"):
            if jitter is not None:
                factors = cycle(jitter)
                constants = [c if c is None or _is_whole(c) else c * next(factors) for c in self._template[1:]]
                values = [points * next(factors), *constants]
            for slot, forward, left, right, _, _ in self._steps:
                value, slope = forward(values[left], slopes[left], values[right], slopes[right])
                if jitter is not None:
                    value = value * next(factors)
                    slope = None if slope is None else slope * next(factors)
                elif overrides and slot in overrides:
                    value = overrides[slot]
                values[slot], slopes[slot] = value, slope
        return Evaluation(points, values, slopes, self._breaks)


def _is_whole(constant: complex) -> bool:
    return constant.real.is_integer() and constant.imag.is_integer()
