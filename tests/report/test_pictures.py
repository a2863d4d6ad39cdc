import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from ladder_lite.report.drawing.pictures import _spread, draw_accuracy, draw_race

Curves = dict[str, list[tuple[int, float]]]


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
    "arms": a_report(
        {"base": 0.0, "ladder": 0.8, "ladder_ttrl": 0.82, "ladder_10": 0.78, "ladder_25": 0.79, "ladder_50": 0.8},
        {"ladder": RISING, "ladder_10": RISING, "ladder_25": FLAT, "ladder_50": FLAT[:4]},
    ),
    "step 0 only": a_report({}, {"ladder": [(0, 0.0)]}),
    "long names": a_report({"base": 0.5}, {"ladder": RISING}, 123456, recipe="a$_b$" * 40, seed=2**32 - 1),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_all_words_are_on_the_picture_and_apart(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_accuracy(report, Path("unused.png"))
    figure = drawn[0]
    assert_readable(figure)
    n_labels = len(report["conditions"].keys() | {row["condition"] for row in report["curve"]})
    assert len(figure.axes[0].texts) == n_labels


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
def test_the_race_is_readable_too(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_race(report, Path("unused.png"))
    assert_readable(drawn[0])
    assert {text.get_text().rpartition(": ")[2] for text in drawn[0].axes[0].texts} == {
        f"{method['solved']} of 3" for method in report["race"]["methods"].values()
    }


def assert_readable(figure: Figure) -> None:
    """All words are inside the picture, and none lies on another."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    ticks = [
        tick.label1
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if axis.get_view_interval()[0] <= tick.get_loc() <= axis.get_view_interval()[1]  # the others are not drawn
    ]
    words = [*figure.texts, *figure.axes[0].texts, figure.axes[0].xaxis.label, *ticks]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text()]
    for text, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.height, text
    assert [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)] == []


def test_the_labels_tell_the_final_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curves: Curves = {"ladder": [(10, 0.5)], "rl_without_variants": [(10, 0.02)]}
    draw_accuracy(a_report({"base": 0.004, "ladder": 0.61}, curves), Path("unused.png"))
    labels = {text.get_text() for text in drawn[0].axes[0].texts}
    assert labels == {"LADDER 61 %", "RL without variants 2 %", "base model 0.4 %"}


def test_the_picture_is_a_png_of_the_promised_size(tmp_path: Path) -> None:
    draw_accuracy(REPORTS["all conditions"], tmp_path / "a.png")
    head = (tmp_path / "a.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (1600, 900)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.8, 0.2], [0.8, 0.2]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([1.0, 0.98], [1.0, 0.9]),
        ([0.0, 0.15, 0.15], [0.0, 0.1, 0.2]),
        ([0.0, 0.06, 0.12, 0.9], [0.0, 0.1, 0.2, 0.9]),
    ],
)
def test_spread(values: list[float], expected: list[float]) -> None:
    heights = _spread(values, top=1.0, gap=0.1)
    assert heights == pytest.approx(expected)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(sorted(heights)))
