"""Steps of an expression, built slot by slot: equal subexpressions are merged, constants folded, breaks noted."""

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

MAX_NODES: Final = 600  # operations left after equal subexpressions are merged
MAX_EXPONENT: Final = 10_000  # of a constant power, in size


class Builder:
    """Operations and functions over numbered slots, which hold the variable, constants and earlier results."""

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

    def finish(self, source: str, last: int) -> Expression:
        """What was built, of which `last` is the result."""
        if len(self.steps) > MAX_NODES:
            raise ExpressionError("TOO_LARGE", f"more than {MAX_NODES} operations")
        # A value that overflows may be the right one of a definite integral; in a function it would spoil every value.
        constants = [value for value in self.template if value is not None]
        if self.used and not all(map(cmath.isfinite, constants)):
            raise ExpressionError("TOO_LARGE", "a constant that overflows or is undefined")
        # Evaluation returns the last slot; what comes after the result is not needed for it.
        breaks = tuple(part for part in self.breaks if part.slot <= last)
        return Expression(
            source,
            self.variable,
            frozenset((self.variable,) if self.used else ()),
            frozenset(self.functions),
            frozenset([part.kind for part in breaks]),
            any(value.imag for value in constants),
            tuple(self.template[: last + 1]),
            tuple(step for step in self.steps if step.slot <= last),
            breaks,
            tuple(curve for curve in self.curves if curve.slot <= last) if self.may_be_resolved else None,
            tuple(step for step in self.folded if step.slot <= last),
        )

    def up_to_constants(self, slot: int) -> int:
        """The slot of the same sum without its constant terms, in whose rounding the others could be lost."""
        found = self._rest_of_sum(slot, {step.slot: step for step in self.steps})
        return self.constant(0.0) if found is None else found

    def _rest_of_sum(self, slot: int, steps: Mapping[int, Step]) -> int | None:
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
        """The slot that holds a number."""
        key = value if key is None else key
        if key in self.known:
            return self.known[key]
        value = value if value.imag else value.real
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
        """The slot of a sum, difference, product, quotient or power."""
        key = (operation, left, right)
        if key in self.known:
            return self.known[key]
        u, v = self.template[left], self.template[right]
        power = operation == "**"
        if power and v is not None and not math.hypot(v.real, v.imag) <= MAX_EXPONENT:
            raise ExpressionError("TOO_LARGE", f"a power above {MAX_EXPONENT}")
        if u is not None and v is not None:
            return self.fold(key, _folded(operation, u, v), left, right, operation, "")
        if power and v is not None:
            if v == 1:
                return left
            if self.real_cube_roots and v.real != int(v.real) and 3 * v == int(3 * v.real):
                return self.operate("**", self.apply("cbrt", left), self.constant(3 * v))
        if power:
            self._note_power(left, v, right)
        elif operation == "/":
            self._note_power(right, -1.0)
        slot = self._step(key, forward_of(operation, v), operation, left, right)
        if (power and v is not None and v == int(v.real)) or (
            operation == "*" and (left == right or POSITIVE in (self.signs[left], self.signs[right]))
        ):
            base = right if self.signs[left] == POSITIVE else left
            self.bases[slot] = self.bases.get(base, base)
        return slot

    def _note_power(self, base: int, exponent: complex | None, slot: int = 0) -> None:
        """Note the breaks and the features of a power, or quotient; `slot` holds an exponent that varies."""
        u = self.template[base]
        if u is None:
            # No zero on the real line is no pole. But a root can come close to one: sqrt(x**2+10**(-20)).
            for kind in breaks_of(exponent):
                if kind == "root" or self.signs[base] != POSITIVE:
                    self.breaks.append(Breaks(kind, self.bases.get(base, base)))
            if exponent is None:
                self.may_be_resolved = False
            elif exponent.real < 0 or exponent != int(exponent.real) or exponent.real > MAX_MULTIPLIED:
                self.curves.append(Curve(base, max(1.0, abs(exponent)), "zeros"))
        elif exponent is None:
            self.curves.append(Curve(slot, abs(cmath.log(u)) if u else 0.0, "speed"))
            self.breaks.append(Breaks("turn", slot))

    def apply(self, name: str, argument: int) -> int:
        """The slot of a function's value."""
        name = SPELLINGS.get(name, name)
        key = (name, argument)
        if key in self.known:
            return self.known[key]
        function = lookup(name)
        assert function is not None
        self.functions.add(name)
        u = self.template[argument]
        if u is not None:
            with np.errstate(all="ignore"):
                value = complex(function.value(np.complex128(u)))
            value = value.real if abs(value.imag) < 1e-16 * abs(value.real) else value
            return self.fold(key, value, argument, argument, "call", name)
        kind = function.breaks
        if name not in ("sin", "cos"):  # which have no steps, however fast
            bend: Bend = "speed" if kind is None else "zeros" if function.vanishes is identity else "any"
            self.curves.append(Curve(argument, 1.0, bend))
            self.may_be_resolved = self.may_be_resolved and kind != "step"
            if kind is None:
                self.breaks.append(Breaks("turn", argument))
            elif kind in ("root", "log") or self.signs[argument] != POSITIVE or function.vanishes is not identity:
                base = self.bases.get(argument, argument) if function.vanishes is identity else argument
                self.breaks.append(Breaks(kind, base, function.vanishes))
        return self._step(key, function.forward, "call", argument, argument, name)

    def choose(self, operation: Operation, condition: int, value: int) -> int:
        """The slot of `only` or `where`."""
        constant, result = self.template[condition], self.template[value]
        if constant is not None:
            return value if constant or operation == "where" else self.constant(0.0)
        if operation == "only" and result in (0, 1):
            return condition if result else value
        key = (operation, condition, value)
        return self.known.get(key) or self._step(key, forward_of(operation, None), operation, condition, value)

    def negation(self, condition: int) -> int:
        """The slot that is 1 where a condition's is 0, and the other way round."""
        return self.operate("-", self.constant(1.0), condition)

    def compare(self, name: str, u: int, v: int) -> int:
        """The slot that is 1 where two values compare so (Lt, Le, Gt, Ge, Eq, Ne), and 0 elsewhere."""
        above, below = (self.apply("positive", self.operate("-", *pair)) for pair in ((u, v), (v, u)))
        if name in ("Eq", "Ne"):
            unequal = self.operate("+", above, below)
            return unequal if name == "Ne" else self.negation(unequal)
        slot = above if name in ("Gt", "Le") else below
        return self.negation(slot) if name in ("Le", "Ge") else slot

    def _step(self, key: object, forward: Forward, operation: Operation, left: int, right: int, name: str = "") -> int:
        signs = self.signs
        signs.append(sign_of(operation, name, signs[left], signs[right], self.template[right], left == right))
        slot = self.known[key] = len(self.template)
        self.template.append(None)
        self.steps.append(Step(slot, forward, left, right, operation, name))
        return slot


def _folded(operation: Operation, u: complex, v: complex) -> complex:
    try:
        value: complex = ARITHMETIC[operation](u, v)
    except ZeroDivisionError:
        raise ExpressionError("UNPARSEABLE", "a division by zero") from None
    except OverflowError:
        return math.inf
    return value
