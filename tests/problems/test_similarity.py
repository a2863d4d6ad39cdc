"""The distance between the statements of problems."""

import pytest

from ladder_lite.problems.similarity import distances, tokens
from tests.support.problems import problem


def test_numbers_do_not_count() -> None:
    assert tokens(problem("12*sin(x)"))[:6] == ["0", "*", "sin", "(", "x", ")"]
    assert distances([problem("12*sin(3*x)")], [problem("7*sin(5*x)")]).tolist() == [[0]]


def test_the_distance_is_that_of_sorensen_and_dice() -> None:
    # Pairs, with the variable at the end: "x + | + sin | sin ( | ( x | x ) | ) x" and "sin ( | ( x | x ) | ) x".
    (distance,) = distances([problem("x+sin(x)")], [problem("sin(x)")])[0]
    assert distance == pytest.approx(1 - 2 * 4 / (6 + 4))


def test_a_shorter_variant_is_farther_and_order_hardly_matters() -> None:
    root = problem("2*sin(x)+3*exp(x)+4*log(x)")
    same, part, term = (problem(text) for text in ("4*log(x)+2*sin(x)+3*exp(x)", "2*sin(x)+3*exp(x)", "4*log(x)"))
    (row,) = distances([root], [same, part, term, problem("sqrt(tan(1/y))")]).tolist()
    assert row == sorted(row)
    assert row[0] < 0.15
    assert row[2] < row[3] < 1.0001


def test_shapes() -> None:
    few = [problem("x"), problem("sin(x)")]
    assert distances(few, few[:1]).shape == (2, 1)
    assert distances([], few).shape == (0, 2)
