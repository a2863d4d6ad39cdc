"""A variant tree in the terminal."""

import pytest

from ladder_lite.problems import Problem
from ladder_lite.tasks import statement
from ladder_lite.terminal import Live
from ladder_lite.variants.tree_view import draw_tree
from tests.support.terminal import a_console


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_tree_is_indented_and_escaped(encoding: str) -> None:
    def data(integrand: str, lower: str | None = None, upper: str | None = None) -> dict[str, str | None]:
        return {"integrand": integrand, "variable": "x", "lower": lower, "upper": upper}

    root = Problem.root("integration", data("x**2*exp(x)"))
    child = Problem.child(root, data("x**2[red]\x1b[31m\u202e", "0", "\u03c0"), ("drop",), "easier")
    grandchild = Problem.child(child, data("2*x"), ("reorder",), "equivalent")
    console, written = a_console(terminal=False, encoding=encoding)
    live = Live(console)
    live.print(draw_tree(live, statement, [root, child, grandchild], {root.id: 0.0, grandchild.id: 0.625}))
    lines = written.getvalue().decode(encoding).splitlines()
    pi = "\u03c0" if encoding == "utf-8" else "?"
    assert lines[0].rstrip() == "x**2*exp(x)  0 %"
    assert lines[1].rstrip().endswith(f" x**2[red][31m from 0 to {pi}  easier")
    assert lines[2].rstrip().endswith(" 2*x  equivalent  62 %")
    assert lines[2].index("2*x") > lines[1].index("x**2") > 0
