import numpy as np

from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics.singularities import locate


def test_zeros_are_located_to_the_last_digits() -> None:
    grid = np.linspace(-9.9, 10, 400)
    expression = parse("1/((x-2)*(x-5)**2)+log(x+3)+floor(x/4)+sqrt(x-7.7)")
    breakables = expression.evaluate(grid).breakables
    kinds = {round(at, 9): kind for at, kind in locate(expression, grid, breakables)}
    expected = {2.0: "pole", 5.0: "pole", -3.0: "log", 4.0: "step", 7.7: "root"}
    assert {at: kinds[at] for at in expected} == expected
    assert [kind for _, kind in locate(expression, grid, breakables, kinds=["log"])] == ["log"]
