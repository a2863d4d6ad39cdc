"""The chapter on variants: what the model wrote, and which problem came of which, with how often each is solved."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from ladder_lite import variants
from ladder_lite.problems import Problem
from ladder_lite.report.document import Block, Bullets, Chapter, Code, Item, Node, Paragraph, Row, Tree, listed, table
from ladder_lite.report.findings import TREES, Report, known_problems, read_variants
from ladder_lite.runs import Run, layout
from ladder_lite.tasks import statement
from ladder_lite.terminal import clock_time, one_line, percent

_LIBRARIES = {
    "model": "It was given suggestions from a library of transformations that it wrote itself.",
    "model and default": "It was given suggestions from a library of transformations that it wrote itself, filled up "
    "with the default one, which is hand-written: its own was too short.",
    "default": "It was given suggestions from the default library of transformations, which is hand-written.",
    "recipe": "It was given suggestions from the transformations that the recipe lists.",
}
_ROWS = {"pass_rate": "by pass rate", "uniform": "uniformly"}
_N_LISTED = 20
_N_ROOTS = 2
_N_CHILDREN = 12
_DEPTH = 6
_WIDTH = 140


def variants_chapter(report: Report, run: Run) -> Chapter:
    """What the model wrote, what was rejected and why, how hard it turned out, and two trees to unfold."""
    tree, grown = (variants.count(run.path / place) for place in TREES)
    if not tree["requests"]:
        return Chapter("Variants", ())
    done = run.done(layout.VARIANTS)
    library = str(done.get("library", "recipe"))
    suggested: tuple[Any, ...] = (
        (_LIBRARIES[library],) if library in _LIBRARIES else ("The suggestions come from ", Code(library), ".")
    )
    written = tree["kept"] + tree["rejected"] + tree["duplicates"]
    wrote = (
        f"The model wrote {written} ({tree['tokens']} tokens, {clock_time(tree['seconds'])}), of which {tree['kept']} "
        "were kept. "
    )
    blocks: list[Block] = [Paragraph((wrote, *suggested))]
    if grown["requests"]:
        blocks.append(
            Paragraph(
                f"While training ran, {grown['kept']} more were kept: easier ones of problems that were too hard, and "
                f"equivalent ones of problems at the frontier ({grown['tokens']} tokens)."
            )
        )
    reasons = (Counter(tree["reasons"]) + Counter(grown["reasons"])).most_common(_N_LISTED)
    rejected: list[Row] = [
        {"rejected because": one_line(str(why), 60).replace("_", " "), "variants": str(n)} for why, n in reasons
    ]
    blocks += _by_depth(report) + table("lr", rejected)
    blocks += [*_held_out(run, done), *_pass_rates(run)]
    if roots := _grow_trees(run):
        blocks += [
            Paragraph(
                "The trees of the first training problems that have variants, with the pass rate of each problem at "
                "the end of LADDER's training:"
            ),
            Tree(roots),
        ]
    return Chapter("Variants", tuple(blocks))


def _by_depth(report: Report) -> list[Block]:
    """Variants of each depth, and how often they were solved early and late in training where that is known."""
    kept, solved = report["variants"]["by_depth"], report["depths"]
    if not solved:
        return table("lr", [{"depth in the tree": depth, "kept": str(n)} for depth, n in kept.items()])
    rows: list[Row] = []
    for depth in sorted({*kept, *solved}, key=int):
        rates = {part: percent(found["pass_rate"]) for part, found in solved.get(depth, {}).items()}
        rows.append(
            {
                "depth in the tree": "training problems" if depth == "0" else depth,
                "kept before training": "" if depth == "0" else str(kept.get(depth, 0)),
                "solved, first third of steps": rates.get("first", ""),
                "solved, last third": rates.get("last", ""),
            }
        )
    return table("lr", rows)


def _held_out(run: Run, done: Mapping[str, Any]) -> list[Block]:
    """Say which benchmark problems the variants were compared with, and list those that were equal to one."""
    sets = done.get("held_out_sets")
    if not sets:
        return []
    found = [row for row in read_variants(run, layout.REJECTED) if row["reason"] == "test_problem"]
    blocks: list[Block] = []
    if shared := done.get("tests_among_roots"):
        words = "Test problems that are training problems too, by the sets themselves: "
        blocks.append(Paragraph((words, *listed(map(Code, shared[:_N_LISTED])), ".")))
    names = listed((Code(name), f" ({n})") for name, n in sets.items())
    compared = "Every variant was compared, as a function, with the problems of these sets: "
    end = f". Equal to one of them, and left out for that: {len(found)}{'.' if not found else ':'}"
    blocks.append(Paragraph((compared, *names, end)))
    items = [Item((Code(row["text"], 120), " (", Code(row["equal_to"]), ")")) for row in found[:_N_LISTED]]
    if len(found) > _N_LISTED:
        items.append(Item((f"and {len(found) - _N_LISTED} more, in ", Code(f"{layout.VARIANTS}/{layout.REJECTED}"))))
    return [*blocks, Bullets(tuple(items))] if items else blocks


def _pass_rates(run: Run) -> list[Block]:
    """Say how hard the variants have turned out to be, by the rollouts of LADDER's training."""
    rates = run.rows(layout.train("ladder"), layout.PASS_RATES)
    steps = run.rows(layout.train("ladder"), layout.METRICS)
    if not rates or not steps:
        return []
    states = Counter(row["state"] for row in rates)
    shares = [step["groups_without_signal"] for step in steps if "groups_without_signal" in step]
    without = f" Zero-variance groups: {percent(sum(shares) / len(shares))}." if shares else ""
    kind = "adaptive" if run.settings["variants"].get("adaptive") else "grown before training"
    drawn = _ROWS.get(run.settings["grpo"].get("rows"), "uniformly")
    return [
        Paragraph(
            f"Measured difficulty after training (tree {kind}, rows drawn {drawn}): of {len(rates)} problems, "
            f"{states['retired']} are always solved and retired, {states['stuck']} are never solved, "
            f"{states['unverifiable']} cannot be verified, {sum(row['tries'] == 0 for row in rates)} were never tried."
            f"{without}"
        )
    ]


def _grow_trees(run: Run) -> tuple[Node, ...]:
    """The trees of the first training problems that have variants, with pass rates where they were measured.

    At most 12 children of a problem are shown, the first ones written.
    """
    chosen = run.path / layout.SELECT / layout.PROBLEMS
    training = known_problems(str(chosen) if chosen.exists() else run.train, "train")
    written = [variant for place in TREES for variant in variants.load(run.path / place)]
    texts = {problem.id: statement(problem) for problem in (*training, *written)}
    rates = {row["problem_id"]: row for row in run.rows(layout.train("ladder"), layout.PASS_RATES)}
    children: dict[str | None, list[Problem]] = defaultdict(list)
    for variant in written:
        children[variant.parent_id].append(variant)

    def node(name: str, label: str, depth: int) -> Node:
        below = children[name] if depth else []
        rate = rates.get(name)
        return Node(
            Code(texts.get(name, name), _WIDTH),
            label,
            float(rate["pass_rate"]) if rate and rate["tries"] else None,
            tuple(node(child.id, child.requested, depth - 1) for child in below[:_N_CHILDREN]),
            len(below[_N_CHILDREN:]),
        )

    roots = dict.fromkeys([problem.id for problem in training if problem.id in children])
    roots |= dict.fromkeys(variant.root_id for variant in written)
    return tuple(node(name, "training problem", _DEPTH) for name in list(roots)[:_N_ROOTS])
