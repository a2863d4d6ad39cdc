"""Linear equations such as 2*x + 3 = 11, as a task of ladder_lite. See ladder_lite/tasks/README.md."""

import re
from collections.abc import Mapping
from fractions import Fraction
from math import gcd

from ladder_lite.tasks import Problem, Task, Unreadable

TERM = re.compile(r"([+-]?)(?:(\d+)(?:\*?(x))?|(x))")  # 3, 3*x, 3x or x, with a sign
NUMBER = re.compile(r"(?:x=)?(-?\d{1,9}(?:/[1-9]\d{0,8})?)", re.ASCII)


def read_side(text: str) -> tuple[int, int]:
    """Return (a, b) of a side, a*x + b: "2*x+3" -> (2, 3)."""
    a, b, end = 0, 0, 0
    for term in TERM.finditer(text):
        if term.start() != end or (end and not term[1]):
            break
        value, end = int(term[1] + (term[2] or "1")), term.end()
        a, b = (a + value, b) if term[3] or term[4] else (a, b + value)
    if end < len(text) or not text:
        raise Unreadable("not a sum of terms such as 2*x and 3")
    return a, b


def read(equation: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return both sides of an equation."""
    text = "".join(equation.split())
    # Models write anything: limit the text before it is read.
    if len(text) > 60 or not text.isascii() or text.count("=") != 1:
        raise Unreadable("not an equation")
    left, right = map(read_side, text.split("="))
    if left[0] == right[0]:
        raise Unreadable("not one solution")
    return left, right


class Equations(Task):
    """Linear equations in x with whole coefficients. An answer is a whole number or a fraction."""

    fields = {"equation": "a linear equation in x"}
    nouns = ("equation", "equations")
    examples = (
        {"equation": "2*x + 3 = 11", "answer": "4", "same": "4*x + 6 = 22"},
        {"equation": "5 = x - 2", "answer": "7", "same": "x-2=5"},
        {"equation": "3*x - 1 = x", "answer": "1/2", "same": "x = 3x - 1"},
    )

    def check(self, data: Mapping[str, str | None]) -> None:
        """Raise Unreadable if it is not an equation with one solution."""
        read(str(data["equation"]))

    def is_right(self, problem: Problem, answer: str) -> bool:
        """Return whether the number solves the equation."""
        (a, b), (c, d) = read(str(problem.data["equation"]))
        return (a - c) * self.number(answer) == d - b

    def answer_key(self, problem: Problem, answer: str) -> str:
        """Return the number in lowest terms, for the majority vote."""
        return str(self.number(answer))

    def key(self, problem: Problem) -> str:
        """Return the sides in order and without a common factor: multiples of an equation count as equal."""
        sides = read(str(problem.data["equation"]))
        factor = gcd(*sides[0], *sides[1])
        return str(sorted((a // factor, b // factor) for a, b in sides))

    @staticmethod
    def number(answer: str) -> Fraction:
        """Return the number that an answer states."""
        if not (found := NUMBER.fullmatch("".join(answer.split()))):
            raise Unreadable("not a number")
        return Fraction(found[1])
