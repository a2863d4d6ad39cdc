"""Build the steps of an expression slot by slot: merge equal subexpressions, fold constants, record breaks."""

import cmath
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bend, Breaks, Curve, Expression, ExpressionError
from ladder_lite.verify.expressions.functions import SPELLINGS, lookup
from ladder_lite.verify.expressions.operations import (
    ARITHMETIC,
    MAX_MULTIPLIED,
    POSITIVE,
    REAL,
    Forward,
    Operation,
    Step,
    breaks_of,
    forward_of,
    identity,
    sign_of,
    sign_of_constant,
)

MAX_NODES: Final = 600  # operations, after equal subexpressions are merged
MAX_EXPONENT: Final = 10_000  # absolute value of a constant exponent


class Builder:
    """Builds steps over numbered slots, which contain the variable, constants and earlier results.

    For x**2 + 3: slot 0 is x, slot 1 the constant 2, slot 2 is x**2, slot 3 the constant 3, slot 4 the sum.
    """

    def __init__(self, variable: str, real_cube_roots: bool) -> None:
        self.variable = variable
        self.x = 0  # the slot of the variable; changes within a piece of a Piecewise
        self.real_cube_roots = real_cube_roots
        self.template: list[complex | None] = [None]  # by slot: the value of a constant, else None
        self.steps: list[Step] = []  # what an evaluation does
        self.folded: list[Step] = []  # how constants are computed, for evaluation in ball arithmetic
        self.slot_of: dict[Any, int] = {}  # by key: (operation, left, right), (function, argument), or a number
        self.signs: list[int] = [REAL]  # by slot
        self.functions: set[str] = set()
        self.breaks: list[Breaks] = []
        self.bases: dict[int, int] = {}  # slot of q**2 -> slot of q: 1/q**2 has its pole where q changes sign
        self.curves: list[Curve] = []
        self.may_be_resolved = True  # False if there is no bound on how narrow the features can be
        self.uses_variable = False

    def finish(self, source: str, last: int) -> Expression:
        """Return the expression whose result is in slot `last`; raises ExpressionError if it is too large."""
        if len(self.steps) > MAX_NODES:
            raise ExpressionError("TOO_LARGE", f"more than {MAX_NODES} operations")
        # The value of a definite integral may overflow a double and still be right: exp(1000). In a function, such a
        # constant would make every value infinite or nan.
        constants = [value for value in self.template if value is not None]
        if self.uses_variable and not all(map(cmath.isfinite, constants)):
            raise ExpressionError("TOO_LARGE", "a constant that overflows or is undefined")
        # Evaluation returns the last slot, so slots after the result are cut off.
        breaks = tuple(part for part in self.breaks if part.slot <= last)
        return Expression(
            source,
            self.variable,
            frozenset((self.variable,) if self.uses_variable else ()),
            frozenset(self.functions),
            frozenset([part.kind for part in breaks]),
            any(value.imag for value in constants),
            tuple(self.template[: last + 1]),
            tuple(step for step in self.steps if step.slot <= last),
            breaks,
            tuple(curve for curve in self.curves if curve.slot <= last) if self.may_be_resolved else None,
            tuple(step for step in self.folded if step.slot <= last),
        )

    def without_constant_terms(self, slot: int) -> int:
        """Return the slot of a sum without its constant terms: x + 10**20 -> x.

        An antiderivative remains right without them, and a large one would swallow the digits of the other terms.
        """
        rest = self._rest_of_sum(slot, {step.slot: step for step in self.steps})
        return self.constant(0.0) if rest is None else rest

    def _rest_of_sum(self, slot: int, steps: Mapping[int, Step]) -> int | None:
        """Return the slot of a sum without constant terms, or None if nothing is left. `steps`: steps by slot."""
        # A long sum nests to the left, so a loop goes down its left side; only right operands recurse. Sums that are
        # multiplied or divided by constants are entered too: 2*(x + 5) -> 2*x.
        spine = []
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
        # Go back up and rebuild the sum from the terms that are left.
        for step in reversed(spine):
            if step.operation in ("*", "/"):
                if rest is not None:
                    pair = (rest, step.right) if self.template[step.left] is None else (step.left, rest)
                    rest = self.operate(step.operation, *pair)
            elif (term := self._rest_of_sum(step.right, steps)) is not None:
                if rest is not None:
                    rest = self.operate(step.operation, rest, term)
                else:
                    rest = term if step.operation == "+" else self.operate("*", self.constant(-1.0), term)
        return rest

    def constant(self, value: complex, key: object = None) -> int:
        """Return the slot of a number."""
        key = value if key is None else key
        if key in self.slot_of:
            return self.slot_of[key]
        value = value if value.imag else value.real  # 2 + 0j -> 2.0, so that real arrays stay real
        slot = self.slot_of[key] = len(self.template)
        self.template.append(value)
        self.signs.append(sign_of_constant(value))
        return slot

    def fold(self, key: object, value: complex, left: int, right: int, operation: Operation, name: str) -> int:
        """Return the slot of a constant that was computed from others: 2*3 -> 6.

        The step is kept, so that `Expression.apply` can compute the constant again with more digits.
        """
        if key not in self.slot_of:
            slot = self.constant(value, key)
            self.folded.append(Step(slot, forward_of("+", None), left, right, operation, name))
        return self.slot_of[key]

    def operate(self, operation: Operation, left: int, right: int) -> int:
        """Return the slot of a sum, difference, product, quotient or power."""
        key = (operation, left, right)
        if key in self.slot_of:
            return self.slot_of[key]
        u, v = self.template[left], self.template[right]
        power = operation == "**"
        if power and v is not None and not math.hypot(v.real, v.imag) <= MAX_EXPONENT:
            raise ExpressionError("TOO_LARGE", f"a power above {MAX_EXPONENT}")
        if u is not None and v is not None:
            return self.fold(key, _folded(operation, u, v), left, right, operation, "")
        if power and v is not None:
            if v == 1:
                return left
            # A multiple of 1/3 that is not whole: x**(4/3) -> cbrt(x)**4.
            if self.real_cube_roots and v.real != int(v.real) and 3 * v == int(3 * v.real):
                return self.operate("**", self.apply("cbrt", left), self.constant(3 * v))
        if power:
            self._record_power(left, v, right)
        elif operation == "/":
            self._record_power(right, -1.0)
        slot = self._step(key, forward_of(operation, v), operation, left, right)
        # Whole powers, squares written as products, and products with a positive factor vanish exactly where their base
        # does. Of these, an even power hides the change of sign.
        if (power and v is not None and v == int(v.real)) or (
            operation == "*" and (left == right or POSITIVE in (self.signs[left], self.signs[right]))
        ):
            base = right if self.signs[left] == POSITIVE else left
            self.bases[slot] = self.bases.get(base, base)
        return slot

    def _record_power(self, base: int, exponent: complex | None, slot: int = 0) -> None:
        """Record breaks and narrow features of a power or quotient; `slot` is that of an exponent that varies."""
        u = self.template[base]
        if u is None:
            # A base that is positive everywhere has no pole. A root of it is recorded anyway, because the base can come
            # close to 0: sqrt(x**2+10**(-20)).
            for kind in breaks_of(exponent):
                if kind == "root" or self.signs[base] != POSITIVE:
                    self.breaks.append(Breaks(kind, self.bases.get(base, base)))
            if exponent is None:
                self.may_be_resolved = False
            elif exponent.real < 0 or exponent != int(exponent.real) or exponent.real > MAX_MULTIPLIED:
                self.curves.append(Curve(base, max(1.0, abs(exponent)), "zeros"))
        elif exponent is None:
            # A constant base, as in 2**u = exp(log(2)*u): smooth, but steep if u changes fast.
            self.curves.append(Curve(slot, abs(cmath.log(u)) if u else 0.0, "speed"))
            self.breaks.append(Breaks("turn", slot))

    def apply(self, name: str, argument: int) -> int:
        """Return the slot of a function of the value in slot `argument`."""
        name = SPELLINGS.get(name, name)
        key = (name, argument)
        if key in self.slot_of:
            return self.slot_of[key]
        function = lookup(name)
        assert function is not None
        self.functions.add(name)
        u = self.template[argument]
        if u is not None:  # a constant argument: fold it, and drop an imaginary part that is only rounding
            with np.errstate(all="ignore"):
                value = complex(function.value(np.complex128(u)))
            value = value.real if abs(value.imag) < 1e-16 * abs(value.real) else value
            return self.fold(key, value, argument, argument, "call", name)
        kind = function.breaks
        if name not in ("sin", "cos"):  # these two have no steps, however fast their argument changes
            bend: Bend = "speed" if kind is None else "zeros" if function.vanishes is identity else "any"
            self.curves.append(Curve(argument, 1.0, bend))
            self.may_be_resolved = self.may_be_resolved and kind != "step"
            if kind is None:
                self.breaks.append(Breaks("turn", argument))
            # An argument that is positive everywhere rules out poles and steps at 0, but it can come close to a branch
            # point.
            elif kind in ("root", "log") or self.signs[argument] != POSITIVE or function.vanishes is not identity:
                base = self.bases.get(argument, argument) if function.vanishes is identity else argument
                self.breaks.append(Breaks(kind, base, function.vanishes))
        return self._step(key, function.forward, "call", argument, argument, name)

    def choose(self, operation: Operation, condition: int, value: int) -> int:
        """Return the slot of `value` with the operation "only" or "where" under a condition."""
        # Simplify what is constant: a condition that always or never holds, and "only" of 0 or 1.
        constant, result = self.template[condition], self.template[value]
        if constant is not None:
            return value if constant or operation == "where" else self.constant(0.0)
        if operation == "only" and result in (0, 1):
            return condition if result else value
        key = (operation, condition, value)
        return self.slot_of.get(key) or self._step(key, forward_of(operation, None), operation, condition, value)

    def negation(self, condition: int) -> int:
        """Return the slot that is 1 where the slot of a condition is 0, and 0 where it is 1."""
        return self.operate("-", self.constant(1.0), condition)

    def compare(self, name: str, u: int, v: int) -> int:
        """Return the slot that is 1 where the comparison `name` (Lt, Le, Gt, Ge, Eq, Ne) holds, and 0 elsewhere."""
        # All comparisons come from u - v > 0 and v - u > 0; `positive` has a step where its argument is 0.
        above, below = (self.apply("positive", self.operate("-", *pair)) for pair in ((u, v), (v, u)))
        if name in ("Eq", "Ne"):
            unequal = self.operate("+", above, below)
            return unequal if name == "Ne" else self.negation(unequal)
        slot = above if name in ("Gt", "Le") else below
        return self.negation(slot) if name in ("Le", "Ge") else slot

    def _step(self, key: object, forward: Forward, operation: Operation, left: int, right: int, name: str = "") -> int:
        """Append a step and return its slot."""
        signs = self.signs
        signs.append(sign_of(operation, name, signs[left], signs[right], self.template[right], left == right))
        slot = self.slot_of[key] = len(self.template)
        self.template.append(None)
        self.steps.append(Step(slot, forward, left, right, operation, name))
        return slot


def _folded(operation: Operation, u: complex, v: complex) -> complex:
    try:
        value: complex = ARITHMETIC[operation](u, v)
    except ZeroDivisionError:
        raise ExpressionError("UNPARSEABLE", "a division by zero") from None
    except OverflowError:
        return math.inf  # `finish` decides whether this is an error
    return value
