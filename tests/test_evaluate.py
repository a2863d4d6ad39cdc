"""Accuracy and its interval, and an evaluation that goes on after a kill."""

from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from fakes import FakeBackend, Script, silent_bar
from scipy.stats import binomtest

from ladder_lite import evaluate
from ladder_lite.attempts import Attempt, Completion
from ladder_lite.backends import Sampling
from ladder_lite.config import load_recipe
from ladder_lite.evaluate import pass_at_k, summarize, wilson_interval
from ladder_lite.problems import Problem
from ladder_lite.run_dir import read_jsonl
from ladder_lite.settings import EvalSettings
from ladder_lite.tasks import load_task
from ladder_lite.verify import Grade, Reason

TASK = load_task(load_recipe("tiny").task)
RIGHT = Grade(1.0, Reason.CORRECT, "x")
WRONG = Grade(0.0, Reason.WRONG, "y")
SILENT = Grade(0.0, Reason.NO_ANSWER, None)
NO_JUDGE = Grade(None, Reason.UNVERIFIABLE, "x")


# --- numbers


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int) -> None:
    for n_right in range(n + 1):
        attempts = [place < n_right for place in range(n)]
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(attempts, k)]
            assert pass_at_k(n, n_right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12), (n, n_right, k)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
def test_the_interval_is_wilsons(n: int) -> None:
    for right in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        reference = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(right / n, n) == pytest.approx((reference.low, reference.high), abs=1e-9), right


def test_an_interval_stays_around_its_share() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    for n in (1, 3, 100):
        for share in (0.0, 0.01, 0.1, 0.735, 0.99, 1.0):
            low, high = wilson_interval(share, n)
            assert 0 <= low <= share <= high <= 1, (share, n)


def attempts(**grades: list[Grade]) -> list[Attempt]:
    completion = Completion("text", 1, truncated=False)
    return [
        Attempt(problem_id, index, completion, grade)
        for problem_id, given in grades.items()
        for index, grade in enumerate(given)
    ]


SUMMARIES = [
    ("nothing", attempts(), 2, {"n_problems": 0, "pass@1": 0.0, "pass@2": 0.0}),
    ("all wrong", attempts(a=[WRONG, SILENT]), 2, {"n_problems": 1, "pass@1": 0.0, "pass@2": 0.0}),
    ("all right", attempts(a=[RIGHT] * 3, b=[RIGHT] * 3), 3, {"n_problems": 2, "pass@1": 1.0, "pass@3": 1.0}),
    (
        "one of four",
        attempts(a=[WRONG, RIGHT, WRONG, WRONG], b=[WRONG] * 4),
        2,
        {"n_problems": 2, "pass@1": 0.125, "pass@2": 0.25},
    ),
    ("k is 1", attempts(a=[RIGHT, WRONG]), 1, {"n_problems": 1, "pass@1": 0.5}),
    (
        "a problem without enough attempts counts for pass@1 alone",
        attempts(a=[RIGHT], b=[WRONG, RIGHT]),
        2,
        {"n_problems": 2, "pass@1": 0.75, "pass@2": 1.0},
    ),
    (
        "unverifiable",
        attempts(a=[RIGHT, WRONG], b=[NO_JUDGE, NO_JUDGE]),
        2,
        {"n_problems": 1, "pass@1": 0.5, "pass@2": 1.0},
    ),
    (
        "unverifiable, and some replies have no answer",
        attempts(a=[RIGHT, WRONG], b=[SILENT, NO_JUDGE, SILENT]),
        2,
        {"n_problems": 1, "pass@1": 0.5, "pass@2": 1.0},
    ),
    ("all unverifiable", attempts(a=[NO_JUDGE]), 1, {"n_problems": 0, "pass@1": 0.0}),
]


@pytest.mark.parametrize(("given", "k", "expected"), [case[1:] for case in SUMMARIES], ids=[c[0] for c in SUMMARIES])
def test_summary(given: list[Attempt], k: int, expected: dict[str, float]) -> None:
    summary = summarize(given, k)
    rates = {key: value for key, value in summary.items() if key == "n_problems" or key.startswith("pass@")}
    assert {key: value["value"] if isinstance(value, dict) else value for key, value in rates.items()} == expected
    assert summary["n_tokens"] == len(given)
    assert summarize(reversed(given), k) == summary


def test_the_interval_counts_the_problems_behind_each_number() -> None:
    summary = summarize(attempts(a=[RIGHT, WRONG], b=[RIGHT, RIGHT], c=[WRONG, WRONG], d=[RIGHT], e=[NO_JUDGE] * 2), 2)
    for key, share, n in (("pass@1", 2.5 / 4, 4), ("pass@2", 2 / 3, 3)):
        low, high = wilson_interval(share, n)
        assert summary[key] == pytest.approx({"value": share, "low": low, "high": high})


# --- sampling and going on

PROBLEMS = [
    Problem.root("integration", {"integrand": f"{n}*x", "variable": "x", "lower": None, "upper": None})
    for n in range(2, 9)
]
SETTINGS = load_recipe("tiny").eval.model_copy(
    update={"samples": 3, "k": 3, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 17, "batch_size": 5}
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 3)


def answer(prompt: str, rng: Random) -> str:
    factor = prompt.partition("(")[2].partition("*")[0]
    return rng.choice([f"<answer>{factor}*x**2/2</answer>", f"<answer>{rng.random()}*x</answer>", "no idea"])


def run(
    script: Script, folder: Path, settings: EvalSettings = SETTINGS, seed: int = 0
) -> tuple[list[Attempt], FakeBackend]:
    backend, bar = FakeBackend(script), silent_bar(len(PROBLEMS))
    found = evaluate.evaluate(TASK, backend, PROBLEMS, settings, folder, seed, bar)
    assert bar.done == bar.total
    return found, backend


def test_every_problem_is_attempted_and_graded(tmp_path: Path) -> None:
    found, backend = run(answer, tmp_path)
    assert [(attempt.problem_id, attempt.index) for attempt in found] == [
        (problem.id, index) for problem in PROBLEMS for index in range(3)
    ]
    assert {attempt.grade.reason for attempt in found} == {Reason.CORRECT, Reason.WRONG, Reason.NO_ANSWER}
    for attempt, problem in zip(found, [problem for problem in PROBLEMS for _ in range(3)], strict=True):
        assert attempt.grade == TASK.grade(problem, attempt.completion.text)
    assert [Attempt.from_row(row) for row in read_jsonl(tmp_path / "attempts.jsonl")] == found
    assert [prompt for call in backend.asked for prompt in call.prompts] == [TASK.prompt(p) for p in PROBLEMS]


def test_sampling_is_the_settings(tmp_path: Path) -> None:
    _, backend = run(answer, tmp_path)
    assert [(len(call.prompts), call.n) for call in backend.asked] == [(3, 3), (3, 3), (1, 3)]
    seeds = [call.sampling.seed for call in backend.asked]
    assert [call.sampling for call in backend.asked] == [Sampling(0.7, 0.9, 17, 5, seed, TASK.stop) for seed in seeds]
    other = [call.sampling.seed for call in run(answer, tmp_path / "other", seed=1)[1].asked]
    assert len({*seeds, *other}) == 6


@pytest.mark.parametrize(
    ("recipe", "profile", "size"),
    [
        ("tiny", None, 50),
        ("smollm", None, 50),
        ("llama3b", None, 19),
        ("llama3b", "kaggle", 50),
        ("qwen7b", None, 4),
        ("qwen7b", "kaggle", 24),
    ],
)
def test_a_chunk_of_long_answers_has_fewer_problems(
    monkeypatch: pytest.MonkeyPatch, recipe: str, profile: str | None, size: int
) -> None:
    monkeypatch.undo()  # the small chunks of this file
    assert evaluate.chunk_size(load_recipe(recipe, profile=profile).eval) == size


def test_chunks_follow_from_the_settings_and_have_seeds_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CHUNK_TOKENS", 2 * 3 * 17)  # two problems with their samples
    _, backend = run(answer, tmp_path)
    assert [(len(call.prompts), call.sampling.seed) for call in backend.asked] == [(2, 0), (2, 2), (2, 4), (1, 6)]
    long = SETTINGS.model_copy(update={"max_new_tokens": 1_000})
    _, backend = run(answer, tmp_path / "long", long, seed=1)
    assert [(len(call.prompts), call.sampling.seed) for call in backend.asked] == [(1, 1000 + at) for at in range(7)]


def test_the_seed_decides(tmp_path: Path) -> None:
    found, _ = run(answer, tmp_path / "one")
    assert run(answer, tmp_path / "same")[0] == found
    assert run(answer, tmp_path / "other", seed=1)[0] != found


def test_a_finished_evaluation_samples_nothing(tmp_path: Path) -> None:
    found, _ = run(answer, tmp_path)
    before = (tmp_path / "attempts.jsonl").read_bytes()
    again, backend = run([], tmp_path)
    assert (again, backend.asked, (tmp_path / "attempts.jsonl").read_bytes()) == (found, [], before)


@pytest.mark.parametrize(
    ("kept", "chunks_left"),
    [
        *((0, 3), (9, 2), (18, 1)),  # whole chunks of 3 problems with 3 attempts each
        *((0.5, 3), (9.5, 2), (18.5, 1)),  # the next chunk's first row is torn
        *((4, 3), (8, 3), (8.5, 3), (13, 2), (16.9, 2), (19, 1)),  # the disk was full within a chunk
    ],
)
def test_an_evaluation_cut_anywhere_ends_with_the_same_rows(tmp_path: Path, kept: float, chunks_left: int) -> None:
    found, _ = run(answer, tmp_path / "whole")
    lines = (tmp_path / "whole" / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    torn = lines[int(kept)][: int(kept % 1 * len(lines[int(kept)]))]
    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut" / "attempts.jsonl"
    path.write_bytes(b"".join(lines[: int(kept)]) + torn)
    again, backend = run(answer, tmp_path / "cut")
    assert again == found
    assert path.read_bytes() == b"".join(lines)
    assert len(backend.asked) == chunks_left
