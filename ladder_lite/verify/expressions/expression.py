"""Parsed expressions and their evaluation on arrays of points: values, derivatives, and where breaks may be."""

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

RESOLVED: Final = 4.0  # largest change of the argument of a function like atan from point to point, near its zeros
SATURATED: Final = 20.0  # for larger arguments, such a function is practically constant
NEAR_ZERO: Final = 2.0  # a divisor that could reach 0 within half a gap, at its slope, must change its sign there
ONE: Final = np.float64(1.0)  # dx/dx; a NumPy number, because 1.0/0 raises in Python but is inf in NumPy


class Breakable(NamedTuple):
    """Values of a quantity that vanishes where an expression may break."""

    kind: Break
    vanishing: Floats  # at the evaluated points


class Breaks(NamedTuple):
    """A break that a subexpression may have, where `vanishes(value of slot)` is 0."""

    kind: Break
    slot: int
    vanishes: Callable[[Any], Any] = identity


# What makes a narrow feature of a function: an argument that passes 0 fast ("speed", as for atan(u)), an argument that
# nearly vanishes without a change of sign ("zeros", as for 1/u and log(u)), or any argument that is not linear ("any",
# as for tan(u)).
Bend = Literal["speed", "zeros", "any"]


class Curve(NamedTuple):
    """The argument of a function that can have narrow features: the faster `factor` times it changes, the narrower."""

    slot: int
    factor: float
    by: Bend


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The values and derivatives of all slots of an expression at some points."""

    points: Numbers
    slots: list[Any]  # arrays, or numbers for constants; the last one is the expression itself
    slopes_of_slots: list[Any]  # the same for derivatives, None for an exact zero
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
        """Mask of the points at which all slots are finite, not only the result."""
        # A part that overflowed may matter although the result is finite: in 1 + a/inf a term is lost. The sum of all
        # slots is inf or nan if any of them is.
        with np.errstate(all="ignore"):
            total = self.values * 0.0
            for slot in self.slots:
                total = total + slot
            return np.isfinite(total)

    @cached_property
    def breakables(self) -> list[Breakable]:
        """The quantities that vanish where the expression may break, in the order of `breaks`."""
        with np.errstate(all="ignore"):
            return [Breakable(kind, self._shaped(np.real(zero(self.slots[slot])))) for kind, slot, zero in self.breaks]

    @property
    def overflown(self) -> Bools:
        """Mask of the points at which the value is not finite and some part of it is infinite."""
        overflown: Bools = ~np.isfinite(self.values)
        if overflown.any():
            overflown &= np.any([np.isinf(slot) & overflown for slot in self.slots], axis=0)
        return overflown

    def is_resolved(self, curves: Sequence[Curve] | None, gaps: Floats) -> bool:
        """Return True if the points, with `gaps` to their neighbours, are dense enough for all features.

        Then no step can hide between two points. That of tanh(10**6*x) could, because the argument changes fast from
        point to point; that of x/sqrt(x**2+10**-20), because the radicand nearly vanishes without a change of sign.
        """
        if curves is None:
            return False
        with np.errstate(all="ignore"):
            for slot, factor, by in curves:
                slope = self.slopes_of_slots[slot]
                linear = not isinstance(slope, np.ndarray)  # and so its zero is a simple one
                if linear and (by == "zeros" or factor * abs(slope) * gaps.max() <= RESOLVED):
                    continue
                # How much the argument changes from each point to its neighbours, at the slope it has there.
                change = factor * gaps * np.abs(slope)
                if by == "any":
                    return False
                if by == "speed":
                    # Fast, and close enough to 0 that the function has not settled between the points.
                    if ((change > RESOLVED) & (factor * np.abs(self.slots[slot]) < change + SATURATED)).any():
                        return False
                elif not _zeros_are_simple(self.slots[slot], change):
                    return False
        return True


def _zeros_are_simple(u: Numbers, change: Floats) -> bool:
    """Return True if `u` changes its sign wherever it nearly vanishes; it changes by `change` from point to point."""
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
    """A text that is refused. `reason` is UNPARSEABLE, FORBIDDEN or TOO_LARGE; the message explains it."""

    def __init__(self, reason: Literal["UNPARSEABLE", "FORBIDDEN", "TOO_LARGE"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A parsed expression: a flat list of operations on numbered slots, built by `builder`."""

    source: str  # the text that was parsed, in Python's notation
    variable: str
    free: frozenset[str]  # {variable} if the expression contains it, else empty
    functions: frozenset[str]  # names of the functions in it
    kinds: frozenset[Break]  # the breaks that it can have
    is_complex: bool  # contains a complex constant, such as I or sqrt(-2)
    _template: tuple[complex | None, ...] = field(repr=False)  # by slot: the value of a constant, else None
    _steps: tuple[Step, ...] = field(repr=False)
    _breaks: tuple[Breaks, ...] = field(repr=False)
    curves: tuple[Curve, ...] | None = field(repr=False)  # what makes features narrow; None if nothing bounds them
    _folded: tuple[Step, ...] = field(repr=False)  # the steps that compute its constants

    @property
    def n_nodes(self) -> int:
        """Number of array operations per evaluation."""
        return len(self._steps)

    @property
    def text(self) -> str:
        """The text in a uniform spelling: Python's operators and spaces, no redundant parentheses."""
        try:
            return ast.unparse(ast.parse(self.source, mode="eval"))
        except RecursionError:  # a sum of hundreds of terms
            return self.source

    @property
    def constants(self) -> tuple[float, ...]:
        """The finite real constants in the expression, including folded ones: 2, 3 and 6 for 2*3*x."""
        return tuple({c.real for c in self._template if c is not None and c.imag == 0 and math.isfinite(c.real)})

    def values(self, points: Complexes | Floats) -> Complexes:
        """Return values at `points`: nan or inf where undefined or overflowing; nan at real points if not real."""
        return self.evaluate(points, derivative=False).values

    def values_and_derivatives(self, points: Numbers) -> tuple[Complexes, Complexes]:
        """Return values and derivatives at `points`, from one forward pass."""
        evaluation = self.evaluate(points)
        return evaluation.values, evaluation.slopes

    @property
    def operations(self) -> list[str]:
        """The operations of one `apply`, including those on constants: names of functions, "+", "*", "**", ..."""
        found = []
        for _, _, _, right, operation, name in (*self._folded, *self._steps):
            exponent = self._template[right]
            # Balls compute whole powers by products.
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
        """Return the value at one `x` of any kind of number, such as a ball.

        `operations` and `functions` are those of that kind, and `number` converts a number of the text. Named constants
        are functions too: functions["pi"] ignores its argument.
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
        """Calls of atan and acot: name, slot, and slot of the argument."""
        return [(step.name, step.slot, step.left) for step in self._steps if step.name in ("atan", "acot")]

    def zeros(self, grid: Floats) -> list[float]:
        """Return the middles of the grid's intervals on which any subexpression changes sign."""
        values = self.evaluate(grid, derivative=False).slots
        found: set[int] = set()
        with np.errstate(all="ignore"):
            for step in self._steps:
                # A step may have a constant value, and then it is a single number.
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
        """Evaluate at `points`. Real points give real arrays, unless the expression contains a complex constant.

        `jitter` contains rows of random factors close to 1; the result of each operation is multiplied by the next row.
        The spread of several such runs is the rounding noise of a normal run (Vignes' stochastic arithmetic).
        `overrides` replaces the values of some slots; the derivatives are meaningless then.
        """
        # Slot 0 is the variable. Derivatives are propagated forwards, from dx/dx = 1.
        values: list[Any] = [points, *self._template[1:]]
        slopes: list[Any] = [ONE if derivative else None, *[None] * (len(values) - 1)]
        with np.errstate(all="ignore"):
            if jitter is not None:
                factors = cycle(jitter)
                # Whole constants are exact, so they get no jitter.
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
