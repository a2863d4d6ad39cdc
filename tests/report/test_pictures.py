"""The figures of reports, as SVG and as PNG: their words are readable and their legends agree."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ladder_lite.report import figures, write_comparison, write_report
from ladder_lite.report.figures import accuracy, race, timeline
from tests.support.finished_run import build_run

Curves = dict[str, list[tuple[int, float]]]
Drawn = list[tuple[str, list[str]]]


def a_report(final: dict[str, float], curves: Curves, n_problems: int = 100, **names: Any) -> dict[str, Any]:
    rows = [
        {"condition": name, "step": step, "pass@1": value, "seconds": 1.0}
        for name, curve in curves.items()
        for step, value in curve
    ]
    conditions = {
        name: {"pass@1": {"value": value, "low": 0.0, "high": 1.0}, "n_problems": n_problems}
        for name, value in final.items()
    }
    return {"recipe": "tiny", "seed": 0, "conditions": conditions, "curve": rows} | names


RISING = [(step, min(0.9, step / 200)) for step in range(0, 251, 10)]
FLAT = [(step, 0.0) for step in range(0, 251, 10)]
REPORTS = {
    "all conditions": a_report(
        {"base": 0.004, "rl_without_variants": 0.004, "ladder": 0.9, "ladder_ttrl": 0.93},
        {"rl_without_variants": FLAT, "ladder": RISING},
    ),
    "nothing learned": a_report({"base": 0.0}, {"rl_without_variants": FLAT, "ladder": FLAT}),
    "everything right": a_report(
        {"base": 0.995, "rl_without_variants": 0.995, "ladder": 0.995, "ladder_ttrl": 1.0},
        {"rl_without_variants": [(10, 1.0)], "ladder": [(1, 1.0), (10, 1.0)]},
    ),
    "all alike": a_report(
        {"base": 0.3, "rl_without_variants": 0.3, "ladder": 0.3, "ladder_ttrl": 0.3},
        {"rl_without_variants": [(10, 0.3)], "ladder": [(10, 0.3)]},
    ),
    "control ends early": a_report({}, {"rl_without_variants": FLAT[:5], "ladder": RISING}),
    "one point, nothing evaluated": a_report({}, {"ladder": [(20, 0.02)]}),
    "ablations": a_report(
        {"base": 0.0, "ladder": 0.8, "ladder_ttrl": 0.82, "ladder_10": 0.78, "ladder_25": 0.79, "ladder_50": 0.8},
        {"ladder": RISING, "ladder_10": RISING, "ladder_25": FLAT, "ladder_50": FLAT[:4]},
    ),
    "step 0 only": a_report({}, {"ladder": [(0, 0.0)]}),
    "long names": a_report({"base": 0.5}, {"ladder": RISING}, 123456, recipe="a$_b$" * 40, seed=2**32 - 1),
}


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Check that each saved drawing is readable; returns the format and the legend of each."""
    saved: Drawn = []
    save = Figure.savefig

    def check_and_save(figure: Figure, *args: Any, **how: Any) -> None:
        assert_readable(figure)
        legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        saved.append((how["format"], [text.get_text() for legend in legends for text in legend.get_texts()]))
        save(figure, *args, **how)

    monkeypatch.setattr(Figure, "savefig", check_and_save)
    return saved


def assert_readable(figure: Figure) -> None:
    """Assert that all words are inside the picture and do not overlap."""
    figure.draw_without_rendering()
    words: list[Text] = list(figure.texts)
    for axes in figure.axes:
        words += [*axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else ())]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            first, last = sorted(axis.get_view_interval())
            words.append(axis.label)
            words += [tick.label1 for tick in axis.get_major_ticks() if first <= tick.get_loc() <= last]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text()]
    for text, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.height, text
    assert [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)] == []


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_page_and_picture_are_one_readable_drawing(report: dict[str, Any], drawn: Drawn) -> None:
    figure = accuracy(report)
    assert figure is not None
    (page, beside), (picture, legend) = drawn
    assert (page, beside, picture) == ("svg", [], "png")  # the legend is a part of the page's HTML
    assert legend == [key.label for key in figure.legend]
    assert len(legend) == len(report["conditions"].keys() | {row["condition"] for row in report["curve"]})


def a_race(solved_at: dict[str, list[float | None]]) -> dict[str, Any]:
    methods = {
        name: {
            "solved": sum(tokens is not None for tokens in at),
            "tokens_to_solve": at,
            "spent": [50_000.0 if tokens is None else tokens for tokens in at],
        }
        for name, at in solved_at.items()
    }
    return {"recipe": "tiny", "seed": 0, "race": {"problems": [f"p{n}" for n in range(3)], "methods": methods}}


RACES = {
    "TTRL wins": a_race({"ladder_ttrl": [9e3, 2e4, 3e4], "ladder_pass100": [None, 500, None], "ttrl": [None] * 3}),
    "nothing solved": a_race({name: [None] * 3 for name in ("ladder_ttrl", "ladder_pass100", "ttrl")}),
    "all alike": a_race({name: [1e6, 1.1e6, 1.2e6] for name in ("ladder_ttrl", "ladder_pass100", "ttrl")}),
    "at once": a_race({"ladder_ttrl": [1, 1, 1], "ttrl": [1, 1, 2]}),
}


@pytest.mark.parametrize("report", RACES.values(), ids=RACES.keys())
def test_the_race_is_readable(report: dict[str, Any], drawn: Drawn) -> None:
    figure = race(report)
    assert figure is not None
    (_, legend) = drawn[-1]
    assert legend == [key.label for key in figure.legend]
    assert [label.rpartition(": ")[2] for label in legend] == [
        f"{method['solved']} of 3" for method in report["race"]["methods"].values()
    ]


def test_a_report_without_data_has_no_pictures(drawn: Drawn) -> None:
    empty = {"curve": [], "race": {}, "conditions": {}}
    assert (accuracy(empty), race(empty), drawn) == (None, None, [])


def test_labels_show_the_final_evaluation() -> None:
    curves: Curves = {"ladder": [(10, 0.5)], "rl_without_variants": [(10, 0.02)]}
    figure = accuracy(a_report({"base": 0.004, "ladder": 0.61}, curves))
    assert figure is not None
    assert {key.label for key in figure.legend} == {"base model 0.4 %", "RL without variants 2 %", "LADDER 61 %"}


def test_the_picture_is_a_png_of_the_promised_size() -> None:
    figure = accuracy(REPORTS["all conditions"])
    assert figure is not None
    assert figure.picture is not None
    head = figure.picture[1][:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (1600, 900)


@pytest.mark.parametrize("points", [1, 2])
def test_a_curve_of_one_point_is_visible(points: int) -> None:
    figure = accuracy(a_report({}, {"ladder": [(10, 0.5), (20, 0.5)][:points]}))
    assert figure is not None
    assert len(re.findall("<use [^>]*stroke: var\\(--ladder\\)", figure.svg)) == (1 if points == 1 else 0)


def test_all_figures_of_reports_and_comparisons_are_readable(tmp_path: Path, drawn: Drawn) -> None:
    runs = [tmp_path / "s0", tmp_path / "s1"]
    for seed, run in enumerate(runs):
        build_run(run, seed, full=True)
    write_report(runs[0])
    assert [form for form, _ in drawn].count("png") == 3
    before = len(drawn)
    write_comparison(runs, tmp_path / "out")
    assert len(drawn) > before >= 9


def test_the_timeline_leaves_out_the_time_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "to_svg", lambda drawing, *_: kept.append(drawing) or "")
    row = {"stage": "variants", "worker": 1, "began_at": 1000.0, "seconds": 60.0, "ended": "done"}
    night = 50_000.0  # the run was stopped, and resumed by two workers
    jobs = [row, row | {"stage": "conditions/ladder/train", "began_at": night, "seconds": 120.0, "ended": "died"}]
    jobs.append(row | {"stage": "conditions/base/eval", "worker": 2, "began_at": night + 30, "seconds": 30.0})
    drawn = timeline({"jobs": jobs})
    assert drawn is not None
    assert [key.label for key in drawn.legend] == ["shared stages", "LADDER", "base model"]
    bars = {(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in kept[0].axes[0].patches}
    assert bars == {(0, 1, 1), (1, 2, 1), (1.5, 0.5, 2)}  # start and length in minutes, and the worker
    assert [bool(bar.get_facecolor()[3]) for bar in kept[0].axes[0].patches] == [True, False, True]


def test_a_run_without_workers_has_no_timeline() -> None:
    assert timeline({"jobs": []}) is None
