"""The chapter on variants: what the model wrote, how hard it is, and trees of the problems with their pass rates."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from ladder_lite import variants
from ladder_lite.problems import Problem
from ladder_lite.report.document import WIDTH, Block, Chapter, Node, Trees, bullets, code, escape, table
from ladder_lite.report.findings import TREES, Report, known_problems, read_variants
from ladder_lite.runs import Run, layout
from ladder_lite.tasks import latex, statement
from ladder_lite.terminal import clock_time, counted, one_line, percent

# `library` in the done.json of the tree, as a sentence; any other value is the path of a library.
_LIBRARIES = {
    "model": "Its prompts had suggestions from a library of transformations that it wrote itself.",
    "model and default": "Its prompts had suggestions from a library of transformations that it wrote itself. That one "
    "was too short and was completed with the default library, which is hand-written.",
    "default": "Its prompts had suggestions from the default library of transformations, which is hand-written.",
    "recipe": "Its prompts had suggestions from the transformations that the recipe lists.",
}
_MAX_LISTED = 20
# What the page shows of the trees: with all of a large one, it would have megabytes.
_N_ROOTS = 2
_MAX_CHILDREN = 12
_MAX_DEPTH = 6


def variants_chapter(report: Report, run: Run) -> Chapter:
    """Build the chapter on the variants: how many were kept, why others were rejected, how hard they are, two trees."""
    tree, grown = (variants.summarize_tree(run.path / place) for place in TREES)
    if not tree["requests"]:
        return Chapter("Variants", ())
    done = run.done(layout.VARIANTS)
    library = str(done.get("library", "recipe"))
    suggested = _LIBRARIES.get(library, f"The suggestions come from {code(library)}.")
    # Duplicates are counted apart from `rejected`, though both are in rejected.jsonl.
    n_written = tree["kept"] + tree["rejected"] + tree["duplicates"]
    wrote = (
        f"The model wrote {counted(n_written, 'variant')} ({counted(tree['tokens'], 'token')}, "
        f"{clock_time(tree['seconds'])}), of which {tree['kept']:,} were kept. {suggested}"
    )
    if not tree["tokens"]:  # see `Task.given_variants`
        wrote = f"The variants were given by the task, not written by the model: {n_written:,}, {tree['kept']:,} kept."
    grew = (
        f"During training, {grown['kept']:,} more were kept: easier variants of problems that were too hard, and "
        f"equivalent variants of problems that were solved sometimes ({counted(grown['tokens'], 'token')})."
    )
    # Of both trees together: the table says so, because its sum exceeds what the first sentence leaves.
    reasons = (Counter(tree["reasons"]) + Counter(grown["reasons"])).most_common(_MAX_LISTED)
    when = "before and during training" if grown["requests"] else "before training"
    rejected = [
        {f"rejected {when} because": escape(str(why).replace("_", " "), 60), "variants": f"{n:,}"} for why, n in reasons
    ]
    about_trees = (
        "The trees of the first training problems that have variants, with the estimated pass rate of each problem at "
        "the end of LADDER's training:"
    )
    trees = _grow_trees(run)
    blocks: list[Block] = [
        wrote,
        grew if grown["requests"] else "",
        _by_depth(report),
        table("lr", rejected),
        *_held_out(run, done),
        _pass_rates(run),
        about_trees if trees else "",
        trees,
    ]
    return Chapter("Variants", blocks)


def _by_depth(report: Report) -> str:
    """Return a table of the variants of each depth, with early and late pass rates if LADDER was trained."""
    kept, solved = report["variants"]["by_depth"], report["depths"]
    thirds = {"first": "solved, first third of steps", "last": "solved, last third"} if solved else {}
    rows = []
    # A depth that only training reached has no variants from before, and one that was never drawn has no rates.
    for depth in sorted({*kept, *solved}, key=int):
        row = {"depth in the tree": depth, "kept before training": str(kept.get(depth, 0))}
        if depth == "0":
            row = {"depth in the tree": "training problems", "kept before training": ""}
        rates = {third: percent(entry["pass_rate"]) for third, entry in solved.get(depth, {}).items()}
        rows.append(row | {heading: rates.get(third, "") for third, heading in thirds.items()})
    return table("lr", rows)


def _held_out(run: Run, done: Mapping[str, Any]) -> list[str]:
    """Name the problem sets that variants were held apart from, and list the variants that equalled a problem."""
    sets = done.get("held_out_sets")
    if not sets:
        return []
    equal = [row for row in read_variants(run, layout.REJECTED) if row["reason"] == "test_problem"]
    blocks = []
    if shared := ", ".join(map(code, done.get("tests_among_roots", [])[:_MAX_LISTED])):
        blocks.append(f"Test problems that the problem sets also have as training problems: {shared}.")
    # `mit_bee` (18), `tiny` (100)
    names = ", ".join(f"{code(name)} ({n:,})" for name, n in sets.items())
    blocks.append(
        f"Every variant was compared with the problems of these sets, however they are written: {names}. Variants "
        f"rejected because they equal one of these problems: {len(equal)}."
    )
    items = [f"{code(row['text'])} ({code(row['equal_to'])})" for row in equal[:_MAX_LISTED]]
    if len(equal) > _MAX_LISTED:
        items.append(f"and {len(equal) - _MAX_LISTED} more, in {code(f'{layout.VARIANTS}/{layout.REJECTED}')}")
    return [*blocks, bullets(items)]


def _pass_rates(run: Run) -> str:
    """Summarize the difficulty of the problems, estimated from the rollouts of LADDER's training."""
    rates = run.rows(layout.train("ladder"), layout.PASS_RATES)
    steps = run.rows(layout.train("ladder"), layout.METRICS)
    if not rates or not steps:
        return ""
    # "retired" and "stuck" problems have an estimated pass rate above 95 % and below 5 %; "drawn" are all others. The
    # five numbers of the sentence below add up to all problems.
    states = Counter("untried" if row["state"] == "drawn" and not row["tries"] else row["state"] for row in rates)
    shares = [step["groups_without_signal"] for step in steps if "groups_without_signal" in step]
    groups = f" Zero-variance groups in training: {percent(sum(shares) / len(shares))}." if shares else ""
    return (
        f"Difficulty by estimated pass rate after training, for {counted(len(rates), 'problem')}: {states['retired']} "
        f"always solved (retired), {states['drawn']} sometimes solved, {states['stuck']} never solved, "
        f"{states['unverifiable']} unverifiable, {states['untried']} never tried.{groups}"
    )


def _grow_trees(run: Run) -> Trees:
    """Build the trees of the first training problems that have variants, with the first children of each problem."""
    # A recipe with `task.select` trains on the problems that were selected from its set.
    selected = run.path / layout.SELECT / layout.PROBLEMS
    training = known_problems(run, str(selected) if selected.exists() else run.recipe.task.train, "train")
    all_variants = [variant for place in TREES for variant in variants.load(run.path / place)]
    problems = {problem.id: problem for problem in (*training, *all_variants)}
    rates = {row["problem_id"]: row for row in run.rows(layout.train("ladder"), layout.PASS_RATES)}
    children: dict[str | None, list[Problem]] = defaultdict(list)
    for variant in all_variants:
        children[variant.parent_id].append(variant)

    def node(problem_id: str, label: str, depth: int) -> Node:
        below = children[problem_id] if depth else []
        rate, problem = rates.get(problem_id), problems.get(problem_id)
        return Node(
            one_line(statement(problem) if problem else problem_id, WIDTH),
            latex(problem) if problem else None,
            label,
            # Without tries the pass rate is a guess from similar problems, so none is shown.
            float(rate["pass_rate"]) if rate and rate["tries"] else None,
            tuple(node(child.id, child.requested, depth - 1) for child in below[:_MAX_CHILDREN]),
            len(below[_MAX_CHILDREN:]),
        )

    # In the order of the problem set. If it cannot be read any more, the variants still name their roots.
    roots = dict.fromkeys([problem.id for problem in training if problem.id in children])
    roots |= dict.fromkeys(variant.root_id for variant in all_variants)
    return Trees(node(root_id, "training problem", _MAX_DEPTH) for root_id in list(roots)[:_N_ROOTS])
