"""The figures of reports, with their titles, legends and captions.

Each function takes the contents of report.json and returns a `Figure`, or None if the run has no data for it. The SVG
of the page and the PNG beside report.md are made from the same drawing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, MaxNLocator

from ladder_lite.evaluate.scores import wilson_interval
from ladder_lite.problems.attempts import Outcome
from ladder_lite.report.document import Figure
from ladder_lite.report.drawing.axes import (
    bar_panels,
    canvas,
    draw_bar,
    draw_curve,
    draw_dot,
    ink,
    keys_of,
    shares_up,
    write,
)
from ladder_lite.report.drawing.output import to_png, to_svg
from ladder_lite.report.drawing.palette import Key, colour_of, label_of
from ladder_lite.report.findings import Report
from ladder_lite.report.paper_results import PAPER, VARIANTS
from ladder_lite.runs import layout
from ladder_lite.terminal import counted, one_line, percent

_MAX_TECHNIQUES = 32  # rows of `probes`


def bars(report: Report) -> Figure | None:
    """pass@1 of the conditions with 95 % intervals, and in a separate panel the paper's."""
    paper, entries = PAPER[report["experiment"]], report["conditions"]
    if not entries:
        return None
    # One row per condition of this run, then one for each further model or person that the paper compares with.
    names = [*entries, *paper.others]
    # Each panel spans this part of the width, and in it its bars go from 0 to 1.
    panels = {"this run": (0.0, 0.66), "the paper*": (0.74, 1.0)} if paper.results else {"this run": (0.0, 1.0)}
    drawing, (run_panel, *paper_panel) = bar_panels(len(names), panels)
    for row, name in enumerate(names):
        write(run_panel, 0.015, row + 0.22, one_line(label_of(name), 24), "ink" if name in entries else "soft")
        if name in entries:
            draw_bar(run_panel, row, entries[name]["pass@1"], colour_of(name))
        if quoted := paper.results.get(name) or paper.others.get(name):
            # A range such as "15 to 30 %" is drawn from its low end, a single number from 0.
            start = quoted.low if quoted.low < quoted.high else 0.0
            bar = paper_panel[0].barh(row + 0.62, quoted.high - start, left=start, height=0.36)[0]
            # Dashed and hollow, so that nobody takes it for a result of this run.
            bar.set(facecolor="none", edgecolor=ink("soft"), linewidth=1.1, linestyle=(0, (2, 1.5)))
            write(paper_panel[0], 0.03, row + 0.22, quoted.words.replace("<=", "≤").rstrip("*"), "soft")
    about_paper = f" \\*The paper's results are for another model ({paper.subject}) and are shown separately."
    return _figure(
        drawing,
        "bars",
        "pass@1 on the test problems",
        "Lines across the ends of the bars: 95 % intervals." + (about_paper if paper.results else ""),
    )


def seeds(mean: Mapping[str, Any], name: str) -> Figure:
    """Means over seeds as bars with their intervals, and a circle for each seed."""
    conditions = mean["conditions"]
    heading = one_line(f"seeds {', '.join(map(str, mean['seeds']))}", 40)
    drawing, (axes,) = bar_panels(len(conditions), {heading: (0.0, 1.0)})
    for row, (condition, entry) in enumerate(conditions.items()):
        write(axes, 0.01, row + 0.22, one_line(label_of(condition), 30), "ink")
        draw_bar(axes, row, entry, colour_of(condition))
        circles = axes.plot(entry["values"], [row + 0.62] * len(entry["values"]), "o", markersize=5, zorder=4)[0]
        # Not clipped: a circle at 0 or 1 is half outside the axes.
        circles.set(markerfacecolor="none", markeredgecolor=ink("ink"), clip_on=False)
    title = f"Mean pass@1 over {len(mean['seeds'])} seeds"
    caption = "Circles: individual seeds. Lines across the ends of the bars: 95 % intervals of the means."
    return _figure(drawing, name, title, caption)


def accuracy(report: Report) -> Figure | None:
    """Test accuracy during training against the GRPO step: LADDER, the control, and as thin lines the ablations."""
    # Rows of curve.jsonl, {"step": 20, "pass@1": 0.35, ...}, by condition.
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["curve"]:
        curves.setdefault(row["condition"], []).append(row)
    if not curves:
        return None
    entries = report["conditions"]
    final = {name: entry["pass@1"]["value"] for name, entry in entries.items()}
    n_problems = max((entry["n_problems"] for entry in entries.values()), default=0)
    # The last step of each condition: that of its training if it is finished, else the last one evaluated.
    trained = {name: max(entries.get(name, {}).get("steps", 0), rows[-1]["step"]) for name, rows in curves.items()}
    drawing, axes = canvas("GRPO step", "pass@1")
    legend = []
    if "base" in final:
        # The base model is not trained: a dashed horizontal line.
        legend.append(Key(f"{label_of('base')} {percent(final['base'])}", "base", (5.0, 2.0)))
        draw_curve(axes, legend[0], (0, max(trained.values())), [final["base"]] * 2, linewidth=1.2)
    for name, key in keys_of(curves).items():
        steps, values = [row["step"] for row in curves[name]], [row["pass@1"] for row in curves[name]]
        legend.append(key._replace(label=f"{key.label} {percent(final.get(name, values[-1]))}"))
        draw_curve(axes, legend[-1], steps, values)
        # Ablations have neither a dot nor a band: there can be many, all in one colour.
        if name in final and key.colour != "ablation":
            draw_dot(axes, trained[name], final[name], key.colour)
        if n_problems and key.colour != "ablation":
            low, high = zip(*(wilson_interval(value, n_problems) for value in values), strict=True)
            axes.fill_between(steps, low, high, color=ink(key.colour), alpha=0.15, linewidth=0, zorder=1)
    if "ladder_ttrl" in final:
        # TTRL trains on one problem at a time, so it has no curve here, only a diamond at the end.
        label = f"{label_of('ladder_ttrl')} {percent(final['ladder_ttrl'])}"
        legend.append(Key(label, "ladder_ttrl", shape="diamond"))
        draw_dot(axes, max(trained.values()), final["ladder_ttrl"], "ladder_ttrl", "D", label)
    shares_up(axes)
    axes.set_xlim(0, max(1, *trained.values()))
    of_problems = f" on {n_problems} test problems" if n_problems else ""
    intervals = ", with 95 % intervals" if n_problems else ""
    figure = _figure(
        drawing,
        "accuracy",
        "Test accuracy during training",
        f"Lines: one sampled answer per problem, during training{intervals}. Dots: the final evaluation. The legend "
        "shows its value, or that of the last evaluation during training if there is no final one.",
        legend,
    )
    return _with_picture(figure, "accuracy.png", drawing, report, f"pass@1{of_problems}{intervals}")


def variants(report: Report) -> Figure | None:
    """Accuracy against the number of variants that training could draw from, as in the paper's Figure 3."""
    # (26, "ladder", {"value": 0.64, "low": 0.42, "high": 0.81}); TTRL conditions draw from a tree per problem instead.
    points = sorted(
        (entry["variants"], name, entry["pass@1"])
        for name, entry in report["conditions"].items()
        if entry.get("variants") and name not in ("ladder_ttrl", "ttrl")
    )
    if len(points) < 2:
        return None
    drawing, axes = canvas("variants that training could draw from", "pass@1")
    # Ablations that differ in the number of variants alone are connected with LADDER.
    line = [(n, result["value"]) for n, name, result in points if _is_share(name)]
    axes.plot(*zip(*line, strict=True) if line else ([], []), color=ink("ladder"), linewidth=1.6, zorder=2)
    for n, name, result in points:
        axes.plot([n, n], [result["low"], result["high"]], color=ink(colour_of(name)), linewidth=1.4, zorder=2)
        draw_dot(axes, n, result["value"], colour_of(name), "o" if _is_share(name) else "D")
    few, many = points[0][0], points[-1][0]
    if many > 4 * few:
        # A logarithmic axis, with a tick at each end of the points instead of at powers of ten.
        axes.set_xscale("log")
        axes.set_xlim(few / 1.3, many * 1.3)
        axes.set_xticks([few, many], [f"{few:,}", f"{many:,}"])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(0, many * 1.1)
    shares_up(axes)
    return _figure(
        drawing,
        "variants",
        "Accuracy against number of variants",
        "Dots on the line: LADDER with all or some of its variants. A subset keeps the first variants of each "
        "training problem, which are less deep in the tree. Diamonds: other ablations. " + VARIANTS,
        (Key("LADDER, all variants", "ladder"), Key("ablations", "ablation")),
    )


def _is_share(name: str) -> bool:
    # By the names that recipes use: "ladder_25" is LADDER with 25 % of its variants, "ladder_static" is not a share.
    return name == "ladder" or name.removeprefix("ladder_").isdecimal()


_QUANTITIES = {
    "groups_without_signal": (
        ("signal", "share of groups", "Zero-variance groups"),
        "Share of groups whose rewards are all equal, from which GRPO learns nothing; averaged over bins of steps.",
    ),
    "entropy": (
        ("entropy", "nats per token", "Entropy"),
        "Mean entropy of the model at the tokens that it is trained on, averaged over bins of steps. At 0, all "
        "answers of a group are equal.",
    ),
    "solved_problems": (
        ("exploration", "share of problems", "Problems with a right answer"),
        "Share of the problems of a step to which the model has a right answer among its rollouts, averaged over bins "
        "of steps. Without replayed answers, it learns nothing from the others.",
    ),
}
"""Quantities of `training` in report.json: the names of the file, of the axis and of the figure, and its caption."""


def against_steps(report: Report) -> list[Figure]:
    """The quantities of training against the step."""
    drawn = []
    for key, ((name, label, title), caption) in _QUANTITIES.items():
        # Where metrics.jsonl lacks the key, the list contains None alone.
        training = {
            condition: row
            for condition, row in report["training"].items()
            if any(value is not None for value in row.get(key, ()))
        }
        if not training:
            continue
        drawing, axes = canvas("GRPO step", label)
        keys = keys_of(training)
        for condition, row in training.items():
            draw_curve(axes, keys[condition], row["steps"], row[key])  # with a gap at None
        if label.startswith("share"):
            shares_up(axes, 1.0)
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
        drawn.append(_figure(drawing, name, title, caption, tuple(keys.values())))
    return drawn


def probes(report: Report) -> Figure | None:
    """Pass rate of each technique of the probe, a row for each, with a dot and its interval for each condition.

    Ablations are left out: there is no room for their dots.
    """
    probed = {name: rates for name, rates in report["probes"].items() if colour_of(name) != "ablation"}
    techniques = list(dict.fromkeys(technique for rates in probed.values() for technique in rates))[:_MAX_TECHNIQUES]
    if not techniques:
        return None
    drawing, axes = canvas("pass rate", "", 22.0 * len(techniques) + 48)  # 48 for the axis below
    keys = keys_of(probed)
    for place, (condition, rates) in enumerate(probed.items()):
        for row, technique in enumerate(techniques):
            if rate := rates.get(technique):
                # The conditions of a row are drawn below each other, so that their intervals do not overlap.
                y = row + 0.7 * ((place + 0.5) / len(probed) - 0.5)
                axes.plot([rate["low"], rate["high"]], [y, y], color=ink(keys[condition].colour), linewidth=1.2)
                draw_dot(axes, rate["value"], y, keys[condition].colour, "o", None if row else keys[condition].label)
    axes.set(xlim=(0, 1), ylim=(len(techniques) - 0.4, -0.6))  # upside down: the first technique on top
    axes.set_yticks(range(len(techniques)), [one_line(technique, 28) for technique in techniques])
    axes.xaxis.set_major_formatter(lambda share, _: percent(share))
    axes.set_xticks([0, 0.5, 1])
    figure = _figure(
        drawing,
        "probes",
        "What training gains and loses",
        "Pass rate on the problems of `task.probe`, with 95 % intervals. For TTRL: the mean over its test problems, "
        "each with its last probe.",
        tuple(keys.values()),
    )
    return _with_picture(figure, "techniques.png", drawing, report, "pass rate by technique, with 95 % intervals")


def rollouts(report: Report, condition: str) -> Figure | None:
    """Shares of the outcomes of a condition's rollouts, stacked, against the step."""
    row = report["training"].get(condition)
    if row is None or not row["rollouts"]:
        return None
    # {"right": [0.3, 0.5], "wrong": [0.7, 0.5], ...}; outcomes that never occurred are left out of the legend.
    kinds = [kind.value for kind in Outcome if any(row["rollouts"].get(kind.value, ()))]
    drawing, axes = canvas("GRPO step", "share of rollouts")
    # An area needs two points: with only one, its shares are drawn from step 0 on.
    steps = row["steps"] if len(row["steps"]) > 1 else [0, *row["steps"]]
    shares = [row["rollouts"][kind] * (len(steps) // len(row["steps"])) for kind in kinds]
    axes.stackplot(steps, *shares, colors=[ink(kind) for kind in kinds], linewidth=0)
    axes.set_xlim(steps[0], steps[-1])
    shares_up(axes, 1.0)
    return _figure(
        drawing,
        f"rollouts-{condition}",
        f"Rollouts by outcome: {label_of(condition)}",
        f"Shares of all rollouts, from bottom to top: {', '.join(kinds)}. The verifier rewards right answers only.",
        tuple(Key(kind, kind, shape="area") for kind in kinds),
    )


def race(report: Report) -> Figure | None:
    """Problems solved against the tokens generated per problem, as in the paper's Figure 6."""
    if not report["race"]:
        return None
    n_problems, methods = len(report["race"]["problems"]), report["race"]["methods"]
    last = max(tokens for method in methods.values() for tokens in method["spent"])
    firsts = [tokens for method in methods.values() for tokens in method["tokens_to_solve"] if tokens]
    # One early sample may solve a problem for which TTRL needs a thousand times as many tokens.
    logarithmic = bool(firsts) and last > 20 * min(firsts)
    start = min(firsts) / 2 if logarithmic else 0.0  # a logarithmic axis has no 0
    drawing, axes = canvas("tokens generated per problem", "problems solved")
    legend = []
    for name, key in keys_of(methods).items():
        # The number of problems solved goes up by one at each of these token counts.
        solved_at = sorted(tokens for tokens in methods[name]["tokens_to_solve"] if tokens is not None)
        xs = [start, *solved_at, max(methods[name]["spent"])]
        ys = [0, *range(1, len(solved_at) + 1), len(solved_at)]
        legend.append(key._replace(label=f"{key.label}: {methods[name]['solved']} of {n_problems}"))
        draw_curve(axes, legend[-1], xs, ys, drawstyle="steps-post")
        draw_dot(axes, xs[-1], ys[-1], key.colour)
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlim=(start, last * 1.05 or 1), ylim=(0, n_problems))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20000 -> "20k"
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure = _figure(
        drawing,
        "race",
        "Problems solved against generated tokens",
        f"How many of the same {counted(n_problems, 'test problem')} each method solves with up to this many generated "
        "tokens per problem. A line ends at the most tokens that the method spent on a problem.",
        legend,
    )
    return _with_picture(figure, "ttrl.png", drawing, report, f"{n_problems} test problems that LADDER left unsolved")


def distance(report: Report) -> Figure | None:
    """LADDER's pass rate on each test problem against its distance from the nearest training variant."""
    found = report["contamination"]
    if not found:
        return None
    drawing, axes = canvas("distance from the nearest variant", "pass rate")
    for row in found["problems"]:
        draw_dot(axes, row["distance"], row["ladder"], "ladder")
    axes.set_xlim(0, max(0.1, *(1.05 * row["distance"] for row in found["problems"])))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    shares_up(axes, 1.0)
    caption = (
        "A dot for each test problem. The distance is 0 if problem and variant differ in numbers only, and 1 if they "
        "have no pair of adjacent tokens in common (Sørensen-Dice)."
    )
    if ranks := found["spearman"]:
        value, low, high = (f"{ranks[key]:.2f}" for key in ("value", "low", "high"))
        caption += f" Rank correlation {value} ({low} to {high}); below 0, LADDER does better near its variants."
    return _figure(drawing, "distance", "Accuracy against distance from the variants", caption)


def timeline(report: Report) -> Figure | None:
    """What each worker did and when, in a run with `--workers`."""
    jobs = sorted(report["jobs"], key=lambda job: job["began_at"])
    if not jobs:
        return None
    workers = max(job["worker"] for job in jobs)
    drawing, axes = canvas("minutes", "worker", 90 + 26 * workers)
    conditions = {job["stage"]: layout.split_stage(job["stage"])[0] for job in jobs}
    # Time without any job is left out: a resumed run may have been stopped for a night.
    now = idle = jobs[0]["began_at"]
    for job in jobs:
        idle += max(0.0, job["began_at"] - now)
        now = max(now, job["began_at"] + job["seconds"])
        colour = colour_of(condition) if (condition := conditions[job["stage"]]) else "edge"
        bar = axes.barh(job["worker"], job["seconds"] / 60, left=(job["began_at"] - idle) / 60, height=0.7)[0]
        # A stage that was cut short, by the death of its worker or the end of the budget, is hollow.
        bar.set(facecolor=ink(colour) if job["ended"] == "done" else "none", edgecolor=ink("ink"), linewidth=0.4)
    axes.set_ylim(workers + 0.5, 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend = [Key("shared stages", "edge", shape="area")] if None in conditions.values() else []
    names = dict.fromkeys("ablation" if colour_of(name) == "ablation" else name for name in conditions.values() if name)
    labels = {"ablation": "ablations"}
    legend += [Key(labels.get(name) or label_of(name), colour_of(name), shape="area") for name in names]
    caption = "A bar is a stage, or a stage's part for one test problem; hollow ones did not end."
    return _figure(drawing, "timeline", "What the workers did", caption, legend)


def _figure(drawing: Drawing, name: str, title: str, caption: str, legend: Sequence[Key] = ()) -> Figure:
    return Figure(title, to_svg(drawing, name, title), caption, tuple(legend))


def _with_picture(figure: Figure, name: str, drawing: Drawing, report: Report, about: str) -> Figure:
    """Return the figure with a PNG of its drawing; the PNG names the run, since it is also shown without the report."""
    about = f"{one_line(report['recipe'], 28)}, seed {report['seed']}: {about}"
    return replace(figure, picture=(name, to_png(drawing, figure.title, about)))
