"""report.json, report.md and the terminal table, of finished, unfinished and damaged runs."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from ladder_lite.config.load import dump_recipe, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.report import headline, summary_table, write_report
from ladder_lite.report.document import code, escape, listing, table
from ladder_lite.terminal import one_line, percent_interval, points_interval
from tests.support.commands import run_command
from tests.support.finished_run import (
    CONDITIONS,
    HOSTILE,
    PASS_1,
    build_run,
    problem_set,
    problems_of_run,
    replace,
    revise,
    revise_recipe,
)

GROWN = "conditions/ladder/train/variants"
"""The folder of the variants that are written during LADDER's training."""

KEYS = ["recipe", "seed", "model", "experiment", "conditions", "variants", "curve", "training", "probes", "lost"]
KEYS += ["ttrl", "ttrl_without_ladder", "race", "differences", "contamination", "depths", "costs", "jobs"]
KEYS += ["peak_memory_bytes", "versions", "controls"]


@pytest.fixture
def tests() -> list[Problem]:
    return problems_of_run()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "a run")
    return tmp_path / "a run"


def code_spans(markdown: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]


def terminal_text(report: dict[str, Any], width: int = 80) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)  # anything outside ASCII raises
    Console(file=file, width=width).print(summary_table(report))
    return file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_shares_and_differences_have_one_form() -> None:
    assert percent_interval({"value": 0.64, "low": 0.321, "high": 0.82}) == "64 % (32-82)"
    assert percent_interval({"value": 0.004, "low": 0.0, "high": 0.0151}) == "0.4 % (0-1.5)"
    assert points_interval({"value": 0.12, "low": -0.035, "high": 0.201}) == "+12.0 (-3.5 to +20.1)"
    assert points_interval({"value": 0.0, "low": 0.0, "high": 0.0}) == "0.0 (no difference)"


def test_a_table_has_the_columns_of_all_its_rows() -> None:
    rows = [{"no.": "1", "answer": code("a|b")}, {"no.": "2", "vote": "wrong"}]
    tokens = MarkdownIt("commonmark").enable("table").parse(table("rl", rows))
    cells = [token for token in tokens if token.type in ("th_open", "td_open")]
    assert [cell.attrs.get("style") for cell in cells] == ["text-align:right", None, None] * 3
    words = [token.children[0].content if token.children else "" for token in tokens if token.type == "inline"]
    assert words == ["no.", "answer", "vote", "1", "a|b", "", "2", "", "wrong"]
    assert table("rl", []) == ""


@pytest.mark.parametrize("text", [HOSTILE, "`", "a``", "\\", "&lt;b&gt; ~~x~~", "[a]: http://x"])
def test_foreign_text_is_one_harmless_piece_of_markdown(text: str) -> None:
    line = one_line(text, 160)
    assert code_spans(code(text)) == [line]
    (inline,) = [token for token in MarkdownIt().parse(f"- {escape(text)}.") if token.type == "inline"]
    assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children or ()) == f"{line}."
    assert code(" \x1b") == ""
    (fence,) = MarkdownIt().parse(listing(f"{text}```"))
    assert (fence.type, fence.content) == ("fence", f"{text}```\n")


def test_report_json_has_the_numbers_of_the_files(run: Path) -> None:
    report = write_report(run)
    assert json.loads((run / "report.json").read_text()) == report
    assert list(report) == KEYS
    assert (report["recipe"], report["seed"], report["model"]) == ("tiny", 3, "embedded")
    assert report["versions"] == json.loads((run / "versions.json").read_text())
    assert report["peak_memory_bytes"] == 7 * 2**30
    kept, rejected = (read_jsonl(run / f"variants/{name}.jsonl") for name in ("problems", "rejected"))
    duplicates = [row for row in rejected if row["reason"] == "duplicate"]
    assert report["variants"] == {
        "kept": len(kept),
        "rejected": len(rejected) - len(duplicates),
        "duplicates": len(duplicates),
        "by_depth": {"1": sum(row["depth"] == 1 for row in kept), "2": sum(row["depth"] == 2 for row in kept)},
        "tokens": sum(row["n_tokens"] for row in read_jsonl(run / "variants/rounds.jsonl")),
    }
    steps_and_seconds = {"base": (0, 5.5), "rl_without_variants": (20, 105.75)}
    steps_and_seconds |= {"ladder": (60, 105.75), "ladder_ttrl": (45, 65.5)}
    assert list(report["conditions"]) == list(steps_and_seconds)
    for name, (steps, seconds) in steps_and_seconds.items():
        folder = run / "conditions" / name
        done = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}
        expected = {key: done["eval"][key] for key in done["eval"].keys() - {"digest", "peak_memory_bytes"}}
        expected |= {"steps": steps, "seconds": seconds, "n_tokens": sum(stage["n_tokens"] for stage in done.values())}
        expected |= {"variants": done["train"]["variants"]} if "train" in done else {}
        assert report["conditions"][name] == expected
        assert expected["pass@1"]["value"] == pytest.approx(PASS_1[name])
    curves = {name: run / f"conditions/{name}/train/curve.jsonl" for name in ("rl_without_variants", "ladder")}
    assert report["curve"] == [{"condition": name, **row} for name, file in curves.items() for row in read_jsonl(file)]
    assert [row["step"] for row in report["curve"]] == [0, 20, 0, 20, 40, 60]
    ttrl = dict(report["ttrl"])
    assert sorted(ttrl.pop("steps_to_solve")) == [4, 11]
    assert ttrl == {"n_left": 3, "attempted": 3, "solved": 2, "voted_right": 1}


def test_outcomes_of_rollouts_of_other_versions_are_counted(run: Path) -> None:
    log = run / "conditions/ladder/train/attempts.jsonl"
    *rows, other, bare, cut = (row | {"reason": "WRONG", "truncated": False} for row in read_jsonl(log))
    del bare["truncated"]
    replace(log, [*rows, other | {"reason": "FROM_ANOTHER_VERSION"}, bare, cut | {"truncated": True}])
    found = write_report(run)["training"]["ladder"]["rollouts"]
    last = {kind: shares[-1] for kind, shares in found.items() if shares[-1]}
    assert last.keys() == {"wrong", "truncated", "unverifiable"}
    assert last["truncated"] == last["unverifiable"]


def test_an_unknown_condition_is_not_compared(run: Path) -> None:
    (run / "conditions/ladder").rename(run / "conditions/ladder_of_old")
    report = write_report(run)
    assert "ladder_of_old" in report["conditions"]
    assert "ladder_of_old" not in {row["condition"] for row in report["differences"]}


def test_a_run_on_the_mit_exam_is_shown_with_the_papers_exam(run: Path) -> None:
    text = terminal_text({**write_report(run), "experiment": "mit"})
    assert [row for row in ("50 %", "73 %", "90 %", "R1-Distill-Qwen-7B") if row not in text] == []
    assert "Llama" not in text


def test_report_md_shows_results_beside_the_papers(run: Path, tests: list[Problem]) -> None:
    write_report(run)
    text = (run / "report.md").read_text()
    assert "scale model" in text
    assert (
        "after LADDER, compared with 1.2 % before and 0 % with RL without variants. Test-time RL then solved 2 of 3 "
        in text
    )
    assert "| `base` | 1.2 % (0.1-18) | 2.5 % (0.3-20) | 20 |  | 0 | 0:05 | 1 % |" in text
    n_variants = json.loads((run / "conditions/ladder/train/done.json").read_text())["variants"]
    assert f"| `ladder` | 64 % (42-81) | 85 % (64-95) | 20 | {n_variants} | 60 | 1:45 | 82 % |" in text
    tree, rejected, rounds = (read_jsonl(run / f"variants/{name}.jsonl") for name in ("problems", "rejected", "rounds"))
    assert f"| 1 | {sum(row['depth'] == 1 for row in tree)} |" in text
    n_tokens = json.loads((run / "conditions/ladder/train/done.json").read_text())["n_tokens"]
    assert f"| `conditions/ladder/train` | {n_tokens:,} | 1:40 | 3.0 GiB |" in text
    n_rejected = Counter(row["reason"] for row in (*rejected, *read_jsonl(run / GROWN / "rejected.jsonl")))
    assert f"| duplicate | {n_rejected['duplicate']} |\n" in text
    assert f"({sum(row['n_tokens'] for row in rounds):,} tokens, 1:01)" in text
    assert "tried 3 of 3 problems that LADDER left unsolved and solved 2" in text
    integrand = tests[18].data["integrand"]
    assert f"| not solved (all steps taken) | 30 | 0:20 | 6 | *wrong* 100 % | `{integrand}` |  |" in text
    assert "python -m ladder_lite.recipe" in text
    assert "7.0 GiB" in text
    for name in re.findall(r"!\[[^]]*\]\(([^)`]*)\)\n", text):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_report_md_describes_the_variants_and_their_difficulty(run: Path) -> None:
    revise(run / "variants/done.json", library="default", held_out_sets={"tiny": 100, "mit_bee": 18})
    train = run / "conditions/ladder/train"
    steps = [row | {"groups_without_signal": row["step"] / 4} for row in read_jsonl(train / "metrics.jsonl")[:2]]
    states = ["retired"] * 3 + ["stuck"] * 2 + ["drawn"] * 4
    ids = [row["id"] for row in read_jsonl(run / "variants/problems.jsonl")]
    rates = [
        row | {"problem_id": ids[n], "state": state, "tries": n % 3, "pass_rate": 0.25}
        for n, (row, state) in enumerate(zip(read_jsonl(train / "pass_rates.jsonl"), states, strict=False))
    ]
    (found, *_) = [row for row in read_jsonl(run / "variants/rejected.jsonl") if row["reason"] == "test_problem"]
    rejected = [found | {"text": HOSTILE, "equal_to": "mit_bee"}]
    rounds = [read_jsonl(run / GROWN / "rounds.jsonl")[0] | {"n_tokens": 77}]
    replace(train / "metrics.jsonl", steps)
    replace(train / "pass_rates.jsonl", rates)
    replace(run / GROWN / "rejected.jsonl", rejected)
    replace(run / GROWN / "rounds.jsonl", rounds)
    n_found = sum(row["reason"] == "test_problem" for row in read_jsonl(run / "variants/rejected.jsonl")) + 1
    write_report(run)
    text = (run / "report.md").read_text()
    assert "suggestions from the default library of transformations, which is hand-written" in text
    assert "with the problems of these sets, however they are written: `tiny` (100), `mit_bee` (18)." in text
    assert f"equal one of these problems: {n_found}." in text
    assert "(`mit_bee`)\n" in text
    assert "(77 tokens)" in text
    assert f"| test problem | {n_found} |" in text
    parts = "3 always solved (retired), 3 sometimes solved, 2 never solved, 0 unverifiable, 1 never tried"
    assert f"9 problems: {parts}." in text
    assert "Zero-variance groups in training: 38 %." in text
    assert "pass rate 25 %" in text


@pytest.mark.parametrize(
    ("library", "said"), [("model", "that it wrote itself."), ("a/library.json", "`a/library.json`")]
)
def test_report_md_names_the_library(run: Path, library: str, said: str) -> None:
    revise(run / "variants/done.json", library=library)
    write_report(run)
    assert said in (run / "report.md").read_text()


def test_model_text_stays_code_in_report_md(run: Path, tests: list[Problem]) -> None:
    for number in (17, 19):
        revise(run / f"conditions/ladder_ttrl/problems/{tests[number].id}/done.json", answer=HOSTILE)
    write_report(run)
    text = (run / "report.md").read_text()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert "html_inline" not in {child.type for child in inline} | {token.type for token in tokens}
    assert [child.attrs["src"] for child in inline if child.type == "image"] == ["accuracy.png", "techniques.png"]
    assert code_spans(text).count(one_line(HOSTILE, 120)) >= 2 + 6  # TTRL's answers, and the sampled ones
    assert len([token for token in tokens if token.type == "heading_open"]) == 9
    rows = re.findall(r"(?m)^\|.*\|$", text)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if tests[17].data["integrand"] in row} == {10}
    assert not set(text) & {"\x1b", "\u202e"}


def test_sampled_answers_are_evenly_spaced(run: Path, tests: list[Problem]) -> None:
    write_report(run)
    samples = (run / "report.md").read_text().partition("evenly spaced test problems")[2].partition("## Variants")[0]
    picked = [span for span in code_spans(samples) if span in {problem.data["integrand"] for problem in tests}]
    assert picked == [problem.data["integrand"] for problem in tests[0:18:3]]
    for label in ("base model", "RL without variants", "LADDER", "LADDER + TTRL"):
        assert samples.count(f"  - {label}: ") == len(picked)


def test_the_same_run_gives_the_same_report(run: Path) -> None:
    def results() -> list[bytes]:
        write_report(run)
        return [(run / name).read_bytes() for name in ("report.html", "report.json", "report.md", "accuracy.png")]

    assert results() == results()


UNFINISHED = {
    "nothing done": ["variants", "conditions"],
    "variants begun": ["variants/done.json", "variants/rounds.jsonl", "conditions"],
    "only the base": ["variants", *(f"conditions/{name}" for name in CONDITIONS[1:])],
    "first test problem at work": [
        "conditions/ladder_ttrl/eval",
        "conditions/ladder_ttrl/problems/done.json",
        "conditions/ladder_ttrl/problems/*/done.json",
    ],
    "training": ["conditions/ladder/eval", "conditions/ladder/train/done.json", "conditions/ladder_ttrl"],
    "no versions": ["versions.json", "conditions/*/eval/done.json"],
}


@pytest.mark.parametrize("missing", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_an_unfinished_run_has_a_report(run: Path, missing: list[str]) -> None:
    write_report(run)  # pictures of an earlier report must not stay
    for pattern in missing:
        for path in sorted(run.glob(pattern)):
            path.rename(path.with_name(f"gone-{path.name}")) if path.is_file() else _remove(path)
    report = write_report(run)
    assert list(report) == KEYS
    finished = {name for name in CONDITIONS if (run / f"conditions/{name}/eval/done.json").exists()}
    assert set(report["conditions"]) == finished
    text = (run / "report.md").read_text()
    assert text.count("| not finished") == len(CONDITIONS) - len(finished)
    has_curve = any(run.glob("conditions/*/train/curve.jsonl"))
    assert (run / "accuracy.png").exists() == ("(accuracy.png)" in text) == bool(report["curve"]) == has_curve
    assert terminal_text(report).count("0:05") + terminal_text(report).count("1:") >= len(finished)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_progress_of_an_unfinished_training_run_is_shown(run: Path) -> None:
    for name in ("eval/done.json", "train/done.json"):
        (run / "conditions/ladder" / name).unlink()
    with (run / "conditions/ladder/train/metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "rew')  # a line torn by a kill
    write_report(run)
    assert "| `ladder` | not finished, 60 steps done |" in (run / "report.md").read_text()


def test_a_training_run_that_diverged_is_listed(run: Path) -> None:
    write_report(run)
    assert "training diverged" not in (run / "report.md").read_text()
    row = {"step": 12, "reason": "its loss is no number", "back_to": 10, "learning_rate": 0.002}
    append_jsonl(run / "conditions/ladder/train/rollbacks.jsonl", [row])
    write_report(run)
    assert (
        "- `conditions/ladder/train`: training diverged at step 12 (its loss is no number): back to the checkpoint of "
        "step 10 and on at half the learning rate, 0.002\n"
    ) in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("recipe.resolved.yaml", None, "not a run folder"),
        ("recipe.resolved.yaml", "name: [", "recipe.resolved.yaml"),
        ("conditions/ladder/eval/done.json", "{", "done.json: damaged"),
        ("conditions/ladder/eval/done.json", "[]", "done.json: damaged"),
        ("conditions/ladder/train/curve.jsonl", "{\n", "curve.jsonl:1: damaged"),
        ("versions.json", "\udcff", "versions.json: damaged"),
    ],
)
def test_a_damaged_file_is_named(run: Path, file: str, content: str | None, words: str) -> None:
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=re.escape(words)):
        write_report(run)


@pytest.mark.parametrize(
    ("overrides", "experiment"),
    [
        ([], "undergraduate"),
        (["task.test=exam"], "mit"),
        ([f"task.test={problem_set()}"], "own"),
        (["smoke={eval.samples: 4, variants.adaptive: {start: 2, every: 20, requests: 4}}"], "smoke"),
        (["smoke={eval.samples: 4, eval.k: 2, variants.per_root: 99}"], "smoke"),  # an override of a smoke test
        (["smoke={eval.samples: 4, variants.per_root: 99}"], "undergraduate"),
        (["smoke={}"], "undergraduate"),
    ],
)
def test_only_comparable_runs_are_shown_beside_the_paper(run: Path, overrides: list[str], experiment: str) -> None:
    revise_recipe(run, *overrides)
    report = write_report(run)
    assert report["experiment"] == experiment
    text, page = terminal_text(report), (run / "report.html").read_text(encoding="utf-8")
    is_comparable = experiment in ("undergraduate", "mit")
    assert ("paper" in [column.header for column in summary_table(report).columns]) is is_comparable
    assert ("the paper*" in page) is is_comparable
    assert ("| the paper |" in (run / "report.md").read_text(encoding="utf-8")) is is_comparable
    assert ("smoke test" in text and "smoke test" in headline(report)) is (experiment == "smoke")


@pytest.mark.parametrize(
    ("control", "low", "ending"),
    [
        (0.0, 0.4, "with RL without variants."),
        (0.6, -0.1, "with RL without variants; the difference from RL without variants is not significant."),
        (0.9, -0.3, "with RL without variants: LADDER did not help."),
    ],
)
def test_the_headline_says_whether_ladder_beats_the_control(run: Path, control: float, low: float, ending: str) -> None:
    report = write_report(run)
    report["conditions"]["rl_without_variants"]["pass@1"]["value"] = control
    (row,) = (row for row in report["differences"] if row["reference"] == "rl_without_variants")
    row["low"] = low
    assert ending in headline(report)


def test_the_table_has_a_row_for_ladder_resampled(tmp_path: Path) -> None:
    build_run(tmp_path / "run", full=True)
    (row,) = re.findall(r"(?m)^ladder_pass100 .*$", terminal_text(write_report(tmp_path / "run")))
    assert "solved 1 of 3" in row


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 2**32 - 1, "recipe": "a_long_name_" * 9},
        {"model": "org/model-3b"},
        {"model": "/home/me/models/model-3b.gguf"},
    ],
)
def test_the_table_fits_80_columns_of_ascii(run: Path, changes: dict[str, Any]) -> None:
    report = write_report(run) | changes
    for entry in report["conditions"].values():
        entry["pass@1"] = {"value": 0.9951, "low": 0.9901, "high": 0.9951}
        entry |= {"n_problems": 1234, "steps": 12345, "seconds": 359_999.0}
    text = terminal_text(report)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    for word in ("rl_without_variants", "99.5 % (99-99.5)", "99:59:59", "12345", "<= 3 %", "90 %*", "1234 "):
        assert word in text
    assert ("scale model" in text) == (report["model"] == "embedded")
    assert ("model-3b" in text) == ("model-3b" in report["model"])
    assert "/home" not in text


ALL = (*load_recipe("tiny").full, *load_recipe("tiny").conditions)
COMMANDS = {
    "as shipped": ("tiny", [], False, "recipe tiny seed=0\n"),
    "another seed": ("tiny", ["seed=7"], False, "recipe tiny seed=7\n"),
    "a smoke test": ("tiny", [], True, "recipe tiny seed=0 --smoke\n"),
    "all conditions": ("tiny", [f"conditions=[{', '.join(ALL)}]"], False, "recipe tiny seed=0 --full\n"),
    "other conditions": ("tiny", ["conditions=[base]"], False, "recipe.resolved.yaml' --run-dir NEW_FOLDER\n"),
    "changed": ("tiny", ["seed=7", "eval.top_p=0.5"], False, "recipe.resolved.yaml' --run-dir NEW_FOLDER\n"),
    "another name": ("tiny", ["name=mine"], False, "recipe.resolved.yaml' --run-dir NEW_FOLDER\n"),
}


@pytest.mark.parametrize(("name", "overrides", "smoke", "command"), COMMANDS.values(), ids=COMMANDS.keys())
def test_the_command_reproduces_the_recipe(
    tmp_path: Path, name: str, overrides: list[str], smoke: bool, command: str
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe(name, overrides, smoke=smoke)))
    write_report(folder)
    assert command in (folder / "report.md").read_text()


def test_importing_the_room_loads_no_drawing_library() -> None:
    script = "import sys, ladder_lite.report; assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=300).returncode == 0


def test_the_command_line_prints_table_and_path_without_torch(run: Path) -> None:
    script = (
        "import runpy, sys\n"
        "try: runpy.run_module('ladder_lite.report', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "64 % (42-81)" in done.stdout
    assert done.stdout.endswith(f"report: {run / 'report.html'}\n")
    done = run_command("report", run.parent)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*not a run folder.*\n", done.stderr)
