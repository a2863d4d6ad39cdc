"""report.html and comparisons of runs; a hostile model's text has no effect in them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ladder_lite.errors import UserError
from ladder_lite.evaluate import scores
from ladder_lite.jsonl import append_jsonl, read_jsonl, truncate_jsonl, write_json
from ladder_lite.problems import Problem, load_problems
from ladder_lite.report import summary_table, write_comparison, write_report
from ladder_lite.report.__main__ import app
from ladder_lite.report.drawing.palette import PALETTE
from ladder_lite.report.test_time import compared
from tests.support.finished_run import HOSTILE, build_run, problems_of_run, replace, revise, revise_recipe

HUGE = "</code><img src=x onerror=alert(1)>\u202e\x00" + "x" * 1_000_000
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "img", "image", "foreignobject", "a", "video"}
VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """The elements of a page, and its text by enclosing element. Asserts that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def within(self, *tags: str) -> str:
        return "\n".join(text for tag, text in self.texts if tag in tags)

    @property
    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag != "style")


def assert_harmless(html: str) -> Page:
    """Assert that the page runs and loads nothing, and has no control or bidi characters."""
    page = Page(html)
    assert ACTIVE.isdisjoint(tag for tag, _ in page.elements)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"], tag
        if "href" in attributes:  # only to parts of the same drawing
            assert (attributes["href"] or "").startswith("#"), tag
        assert "http" not in "".join(value or "" for name, value in attributes.items() if name != "aria-label"), tag
    assert "@import" not in page.within("style")
    assert re.findall(r"url\((?!#)", html) == []
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy[0]
    assert not set(html) & {"\x1b", "\x00", "\u202e"}
    return page


@pytest.fixture(scope="module")
def tests() -> list[Problem]:
    return problems_of_run()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "a run")
    return tmp_path / "a run"


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """The run with ablations, TTRL without LADDER, and LADDER resampled."""
    build_run(tmp_path / "a full run", full=True)
    return tmp_path / "a full run"


def test_the_page_shows_all_conditions_and_compares_ttrl(full_run: Path, tests: list[Problem]) -> None:
    revise(full_run / f"conditions/ladder_ttrl/problems/{tests[18].id}/done.json", stopped="budget")
    report = write_report(full_run)
    page = assert_harmless((full_run / "report.html").read_text())
    text = re.sub(r"\s+", " ", page.text)
    assert "written by the model itself" in text
    assert report["conditions"]["ladder_10"]["variants"] == 10  # one of each root
    stages = [json.loads((full_run / f"conditions/ladder/{name}/done.json").read_text()) for name in ("train", "eval")]
    assert report["conditions"]["ladder"]["n_tokens"] == sum(stage["n_tokens"] for stage in stages)
    compared_with = {
        row["condition"]: row["reference"] for row in report["differences"]
    }  # the last one, if there are two
    assert compared_with == {
        "rl_without_variants": "base",
        "ladder": "rl_without_variants",
        "ladder_ttrl": "ladder",
        "ladder_10": "ladder",
        "ladder_static": "ladder",
        "ttrl": "base",
    }
    for words in (
        "pass@1 on the test problems",
        "Accuracy against number of variants",
        "ladder_10: LADDER with other settings: share=0.1",
        "LADDER + TTRL is ahead of LADDER resampled: of the same 3 test problems, LADDER + TTRL solved 2 by the",
        "paper's rule and LADDER resampled solved 1 (at least 100 answers per problem and as many tokens as TTRL; 1",
        "LADDER + TTRL is ahead of TTRL without LADDER",
        "They differ on 2 (not significant; sign test, p = 0.5).",
        "is right on 1 of them. The vote itself does not use the verifier. The verifier does influence which model",
        "not solved (budget used up)",
        "51 of 51",
        "right 75 %",
        "the paper*",
        "The recipe as it ran, seed 3",
    ):
        assert words in text
    titles = [words.strip() for tag, words in page.texts if tag == "h3"]
    assert "Rollouts by outcome: LADDER" in titles
    assert "Problems solved against generated tokens" in titles
    assert (full_run / "ttrl.png").read_bytes().startswith(b"\x89PNG")
    assert "(ttrl.png)" in (full_run / "report.md").read_text()


def test_ttrl_may_lose(full_run: Path, tests: list[Problem]) -> None:
    for problem in tests[17:]:
        for condition, changes in (
            ("ladder_ttrl", {"solved": False, "stopped": "plateau"}),
            ("ladder_pass100", {"solved": True, "tokens_to_right": 99}),
        ):
            revise(full_run / "conditions" / condition / "problems" / problem.id / "done.json", **changes)
    write_report(full_run)
    text = (full_run / "report.md").read_text()
    assert "**LADDER resampled is ahead of LADDER + TTRL**: of the same 3 test problems" in text
    assert "**LADDER + TTRL and TTRL without LADDER are level**" in text
    assert "Test-time RL then solved 0 of 3" in text


@pytest.mark.parametrize(("n_problems", "verdict"), [(5, "is ahead of"), (6, "beats")])
def test_a_lead_is_a_win_only_if_it_is_significant(n_problems: int, verdict: str) -> None:
    ours = {"tokens_to_solve": [500] * n_problems, "spent": [500] * n_problems, "solved": n_problems}
    theirs = {"tokens_to_solve": [None] * n_problems, "spent": [500] * n_problems, "solved": 0}
    words = compared([{}, {"methods": {"ladder_ttrl": ours, "ttrl": theirs}}], "ttrl")
    assert words.startswith(f"**LADDER + TTRL {verdict} TTRL without LADDER**")
    assert compared([{"methods": {"ladder_ttrl": ours, "ttrl": theirs}}], "ladder_pass100") == ""


def test_a_race_is_about_problems_that_all_methods_have_finished(full_run: Path, tests: list[Problem]) -> None:
    conditions = full_run / "conditions"
    for problem in tests[17:19]:
        (conditions / "ttrl/problems" / problem.id / "done.json").unlink()
    report = write_report(full_run)
    assert report["race"]["problems"] == [tests[19].id]
    (conditions / "ttrl/problems" / tests[19].id / "done.json").unlink()
    (conditions / "ladder_pass100/problems" / tests[19].id / "done.json").unlink()
    assert sorted(write_report(full_run)["race"]["problems"]) == sorted(problem.id for problem in tests[17:19])


@pytest.mark.parametrize("text", [HOSTILE, HUGE], ids=["hostile", "huge"])
def test_hostile_text_stays_text_and_small(full_run: Path, tests: list[Problem], text: str) -> None:
    run = full_run
    for condition in ("ladder_ttrl", "ttrl"):
        for problem in tests[17:]:
            marker = run / "conditions" / condition / "problems" / problem.id / "done.json"
            answer = json.loads(marker.read_text())["answer"]
            revise(marker, answer=answer and text, voted_answer=text)
    done = run / "conditions/ladder/eval/done.json"
    revise(done, techniques={text: json.loads(done.read_text())["techniques"][HOSTILE]})
    rollouts = run / "conditions/ladder/train/attempts.jsonl"
    replace(rollouts, [row | {"text": text, "answer": text} for row in read_jsonl(rollouts)[::8]])
    attempts, rejected = run / "conditions/ladder/eval/attempts.jsonl", run / "variants/rejected.jsonl"
    first = read_jsonl(attempts)[0]
    replace(attempts, [first | {"text": text, "answer": answer, "index": n} for n, answer in enumerate((text, None))])
    append_jsonl(rejected, [read_jsonl(rejected)[-1] | {"text": text, "reason": why} for why in ("test_problem", text)])
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    recipe["ablations"]["ladder_10"] = {"share": 0.1, "variants.personas": [text[:9000]]}
    recipe["model"]["id"] = text[:9000]
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe))
    write_json(run / "versions.json", {text[:9000]: text})
    write_report(run)
    html = (run / "report.html").read_text()
    page = assert_harmless(html)
    assert len(html) < 600_000
    assert "alert(1)" in page.within("code")
    assert "alert(1)" not in page.within("script", "style")
    if text is HUGE:
        assert f"(cut, of {len(text):,} characters)" in page.text
        assert len((run / "report.md").read_text()) < 200_000
        assert len(html) < 600_000


def test_a_tree_of_many_variants_is_cut(run: Path) -> None:
    root = load_problems("tiny", "train")[0]
    children = [
        Problem.child(root, {"integrand": f"x**{n}", "variable": "x"}, ("halve",), "easier").to_row() | {"depth": 1}
        for n in range(40, 65)
    ]
    train = run / "conditions/ladder/train"
    replace(run / "variants/problems.jsonl", [{"round": 0, **row} for row in children])
    replace(train / "variants/problems.jsonl", [])
    rate = {"problem_id": children[0]["id"], "tries": 8, "right": 2, "pass_rate": 0.25, "state": "drawn"}
    replace(train / "pass_rates.jsonl", [read_jsonl(train / "pass_rates.jsonl")[0] | rate])
    write_report(run)
    page = Page((run / "report.html").read_text())
    assert "and 13 more" in page.within("small")
    # Its integral is typeset; that of the root, which is long, scrolls within its box.
    assert ("span", {"class": "formula", "title": "x**40"}) in page.elements
    assert page.within("mn").splitlines().count("40") == 1
    rates = [rate.strip() for rate in page.within("span").splitlines()]
    assert rates[:3] == ["not tried", "25 %", "not tried"]
    assert [attributes["style"] for tag, attributes in page.elements if "--share" in str(attributes.get("style"))] == [
        "--share:25%"
    ]


def test_drawings_use_the_colours_of_the_page(full_run: Path) -> None:
    write_report(full_run)
    html = (full_run / "report.html").read_text()
    drawings = re.findall(r"<svg role.*?</svg>|<svg viewBox.*?</svg>", html, re.S)
    assert len(drawings) >= 8
    assert not [drawing for drawing in drawings if re.search(r"(?<!url\()#[0-9a-fA-F]{6}\b", drawing)]
    used = set(re.findall(r"var\(--([a-z0-9-]+)", html)) - {"page", "card", "code", "share"}
    assert used <= {name.replace("_", "-") for name in PALETTE}
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_colours_are_readable() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for name, colour in PALETTE.items():
        if name not in ("line", "edge"):  # no text
            assert contrast(colour.light, "#f6f8fa") >= 4.5, name
            assert contrast(colour.dark, "#1b2026") >= 4.5, name
    assert len({colour.light for colour in PALETTE.values()}) == len(PALETTE)


def test_a_run_of_another_version_is_one_line(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe | {"later": 1}))
    with pytest.raises(UserError, match=r"recipe\.resolved\.yaml:\d+: unknown setting later"):
        write_report(run)


def seeds(tmp_path: Path, shares: list[float]) -> list[Path]:
    """Make runs that differ in seed, each with the given pass@1 of LADDER."""
    runs = []
    for seed, value in enumerate(shares):
        run = tmp_path / f"run-s{seed}"
        build_run(run, seed)
        revise(run / "conditions/ladder/eval/done.json", **{"pass@1": {"value": value, "low": 0.0, "high": 1.0}})
        runs.append(run)
    return runs


def test_seeds_are_compared_by_their_mean(tmp_path: Path) -> None:
    runs = seeds(tmp_path, [0.5, 0.6, 0.7])
    comparison = write_comparison(runs, tmp_path / "out")
    (mean,) = comparison["means"]
    assert mean["seeds"] == [0, 1, 2]
    ladder = mean["conditions"]["ladder"]
    assert ladder["value"] == pytest.approx(0.6)
    assert (ladder["low"], ladder["high"]) == pytest.approx((0.6 - 0.24841, 0.6 + 0.24841), abs=1e-4)  # t of 2 degrees
    base = mean["conditions"]["base"]  # all seeds alike: the interval of the 60 problems pooled
    assert (base["low"], base["high"]) == pytest.approx(scores.wilson_interval(0.0125, 60))
    assert {(row["condition"], row["reference"]) for row in mean["differences"]} >= {("ladder", "base")}
    assert comparison["differences"] == []
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == comparison
    text = (tmp_path / "out/comparison.md").read_text()
    assert "60 % (35-85) |" in text
    assert_harmless((tmp_path / "out/comparison.html").read_text())


def test_runs_of_other_settings_are_compared_problem_by_problem(tmp_path: Path, tests: list[Problem]) -> None:
    one, other = seeds(tmp_path, [0.5, 0.6])
    recipe = yaml.safe_load((other / "recipe.resolved.yaml").read_text())
    recipe_of_one = yaml.safe_load((one / "recipe.resolved.yaml").read_text())
    recipe["grpo"]["eval_every"] = 99
    (other / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe))
    attempts = other / "conditions/ladder/eval/attempts.jsonl"
    truncate_jsonl(attempts, lambda row: row["problem_id"] != tests[0].id)
    comparison = write_comparison([one, other], tmp_path / "out")
    assert comparison["means"] == []
    found = {row["condition"]: row for row in comparison["differences"]}
    assert set(found) == {"base", "rl_without_variants", "ladder_ttrl"}  # LADDER answered other problems
    assert found["base"]["value"] == 0.0
    assert comparison["settings"] == {"grpo.eval_every": [recipe_of_one["grpo"]["eval_every"], 99]}
    text = (tmp_path / "out/comparison.md").read_text()
    assert "| `grpo.eval_every` | `20` | `99` |" in text
    assert "| `base` | `run-s1` minus `run-s0` | 0.0 (no difference) | not shown |" in text
    assert comparison["smoke"] == []
    with pytest.raises(UserError, match="named twice"):
        write_comparison([one, one / "." / ""], tmp_path / "out")


def test_a_comparison_with_a_smoke_test_says_that_its_numbers_mean_nothing(tmp_path: Path) -> None:
    one, other = seeds(tmp_path, [0.5, 0.6])
    revise_recipe(other, "smoke={eval.samples: 4, eval.k: 2, variants.per_root: 99}")
    write_comparison([one, other], tmp_path / "out")
    text = (tmp_path / "out/comparison.md").read_text()
    assert "Smoke tests are among these runs (run-s1): their numbers mean nothing." in text
    assert "Mean pass@1" not in text


def test_a_watched_page_is_rewritten_and_reloads_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_run(tmp_path / "run")
    page, pages = tmp_path / "run/report.html", list[str]()
    file = tmp_path / "run/conditions/ladder/eval/attempts.jsonl"

    def sleep(_: float) -> None:
        pages.append(page.read_text(encoding="utf-8"))
        if len(pages) == 2:
            raise KeyboardInterrupt
        file.write_text("", encoding="utf-8")  # training has changed the run

    monkeypatch.setattr("time.sleep", sleep)
    result = CliRunner().invoke(app, [str(tmp_path / "run"), "--watch"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "rewritten every 60 s until Ctrl-C")
    assert f"report: {page}" in result.output
    assert ['http-equiv="refresh" content="60"' in each for each in pages] == [True, True]
    assert ["<li>LADDER: " in each for each in pages] == [True, False]  # its sampled answers
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")
    refused = CliRunner().invoke(app, [str(tmp_path / "run"), str(tmp_path), "--watch"])
    assert isinstance(refused.exception, UserError)


def test_the_command_line_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = seeds(tmp_path, [0.5, 0.6])
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [str(run) for run in runs])
    assert result.exit_code == 0
    assert "comparison: comparison/comparison.html" in result.output
    assert (tmp_path / "comparison/comparison.html").exists()
    refused = CliRunner().invoke(app, [str(runs[0]), "--out", "x"])
    assert isinstance(refused.exception, UserError)


def test_a_dozen_conditions_fit_the_terminal(run: Path) -> None:
    report = write_report(run)
    entry: dict[str, Any] = report["conditions"]["ladder"]
    report["conditions"] |= {f"ladder_with_a_long_name_{n}": entry for n in range(8)}
    table = summary_table(report)
    assert table.row_count == 12
