"""Draw a variant tree in the terminal: problems by depth, each with the requested effect and its pass rate."""

from collections.abc import Callable, Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from ladder_lite.problems import Problem
from ladder_lite.terminal import Live, one_line, percent

_LEAST_WIDTH = 24


def draw_tree(
    live: Live, statement: Callable[[Problem], str], problems: Sequence[Problem], pass_rates: Mapping[str, float]
) -> Tree:
    """Draw a tree; `problems` are its root and then its variants, `pass_rates` are by problem id."""

    def line(problem: Problem) -> Text:
        # One terminal line: 4 columns of guides for each level, the statement, and up to 20 columns for the effect and
        # the pass rate. The statement is a model's text, which `one_line` makes harmless.
        width = min(72, max(_LEAST_WIDTH, live.console.width - 20 - 4 * problem.depth))
        text = Text(one_line(statement(problem), width))
        if problem.parent_id is not None:
            text.append(f"  {problem.requested}", style="dim")
        if (rate := pass_rates.get(problem.id)) is not None:
            text.append(f"  {percent(rate)}", style="green" if rate > 0.5 else "yellow" if rate else "red")
        return text

    root, *variants = problems
    tree = Tree(line(root), guide_style="dim")
    nodes = {root.id: tree}
    for variant in variants:  # parents come before their children, so each parent has its node already
        nodes[variant.id] = nodes[variant.parent_id or root.id].add(line(variant))
    return tree
