"""Resuming an evaluation after a kill, and the command that compares the adapters of a run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from ladder_lite import errors
from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config.load import dump_recipe, load_recipe
from ladder_lite.config.schema import EvalSettings
from ladder_lite.errors import UserError
from ladder_lite.evaluate import Sampler, sampling
from ladder_lite.evaluate import __main__ as command_line
from ladder_lite.evaluate.of_run import Request, evaluate_run
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems.attempts import Attempt
from ladder_lite.terminal import Live
from ladder_lite.verify import Reason
from tests.support.commands import run_command
from tests.support.fakes import FakeBackend, Script
from tests.support.problems import TASK, problem

# --- sampling and resuming

PROBLEMS = [problem(f"{n}*x") for n in range(2, 9)]
SETTINGS = load_recipe("tiny").eval.model_copy(
    update={"samples": 3, "k": 3, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 17, "batch_size": 5}
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CHUNK", 3)


def answer(prompt: str, rng: Random) -> str:
    factor = prompt.partition("(")[2].partition("*")[0]
    return rng.choice([f"<answer>{factor}*x**2/2</answer>", f"<answer>{rng.random()}*x</answer>", "no idea"])


def run(
    script: Script, folder: Path, settings: EvalSettings = SETTINGS, seed: int = 0
) -> tuple[list[Attempt], FakeBackend]:
    backend, log = FakeBackend(script), StringIO()
    found = Sampler(TASK, backend, settings, seed).evaluate(PROBLEMS, folder, Live(Console(file=log)), "answers")
    assert f"answers: {len(PROBLEMS)}/{len(PROBLEMS)} after" in log.getvalue()
    return found, backend


def test_every_problem_is_attempted_and_graded(tmp_path: Path) -> None:
    found, backend = run(answer, tmp_path)
    assert [(attempt.problem_id, attempt.index) for attempt in found] == [
        (problem.id, index) for problem in PROBLEMS for index in range(3)
    ]
    assert {attempt.grade.reason for attempt in found} == {Reason.CORRECT, Reason.WRONG, Reason.NO_ANSWER}
    for attempt, asked in zip(found, [asked for asked in PROBLEMS for _ in range(3)], strict=True):
        assert attempt.grade == TASK.grade(asked, attempt.completion.text)
    assert [Attempt.from_row(row) for row in read_jsonl(tmp_path / "attempts.jsonl")] == found
    assert [prompt for call in backend.asked for prompt in call.prompts] == [TASK.prompt(p) for p in PROBLEMS]


def test_problems_that_do_not_count_are_named(tmp_path: Path) -> None:
    log, problems = StringIO(), [*PROBLEMS, problem("1/x", lower="-1", upper="1")]
    Sampler(TASK, FakeBackend(answer), SETTINGS, 0).evaluate(problems, tmp_path, Live(Console(file=log)), "answers")
    said = "answers: 1 of 8 cannot be verified and do not count, such as 1/x from -1 to 1 (the integral diverges"
    assert said in " ".join(log.getvalue().split())


def test_sampling_uses_the_settings(tmp_path: Path) -> None:
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
    monkeypatch.undo()  # without the small chunks of `_small_chunks`
    assert Sampler(TASK, FakeBackend([]), load_recipe(recipe, profile=profile).eval, 0).chunk_size == size


def test_chunks_follow_from_the_settings_and_have_their_own_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_TOKENS", 2 * 3 * 17)  # two problems with their samples
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
        *((4, 3), (8, 3), (8.5, 3), (13, 2), (16.9, 2), (19, 1)),  # a chunk was cut short, as by a full disk
    ],
)
def test_an_interrupted_evaluation_ends_with_the_same_rows(tmp_path: Path, kept: float, chunks_left: int) -> None:
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


def test_greedy_is_one_answer_at_temperature_0(tmp_path: Path) -> None:
    found, backend = run(answer, tmp_path, sampling.greedy(SETTINGS))
    assert len(found) == len(PROBLEMS)
    assert {(call.n, call.sampling.temperature, call.sampling.max_new_tokens) for call in backend.asked} == {
        (1, 0.0, 17)
    }


# --- one problem up to a number of tokens


def sample_tokens(
    folder: Path, script: Script, n: int, n_tokens: int, seed: int = 0, deadline: Deadline | None = None
) -> tuple[list[Attempt], FakeBackend]:
    backend = FakeBackend(script)
    sampler = Sampler(TASK, backend, SETTINGS, seed, deadline or Deadline.never())
    return sampler.sample_tokens(PROBLEMS[0], folder, n, n_tokens), backend


def ten(_: str, rng: Random) -> str:
    """A reply of ten tokens."""
    return f"{rng.randrange(10**9, 10**10)}"


@pytest.mark.parametrize(
    ("n", "n_tokens", "sizes"),
    [
        (3, 0, [3]),
        (12, 0, [5, 5, 2]),  # batches of 5
        (3, 30, [3]),
        (3, 31, [3, 1]),
        (3, 175, [3, 5, 5, 5]),
        (0, 45, [1, 4]),
        (0, 0, [1]),
    ],
)
def test_attempts_reach_both_the_number_and_the_tokens(tmp_path: Path, n: int, n_tokens: int, sizes: list[int]) -> None:
    found, backend = sample_tokens(tmp_path, ten, n, n_tokens)
    assert [call.n for call in backend.asked] == sizes
    assert len({call.sampling.seed for call in backend.asked}) == len(sizes)
    assert [attempt.index for attempt in found] == list(range(sum(sizes)))
    assert len({attempt.completion.text for attempt in found}) == len(found)
    assert {attempt.problem_id for attempt in found} == {PROBLEMS[0].id}
    assert [Attempt.from_row(row) for row in read_jsonl(tmp_path / "attempts.jsonl")] == found


def test_sampling_empty_replies_ends(tmp_path: Path) -> None:
    found, _ = sample_tokens(tmp_path, lambda prompt, rng: "", 3, 20)
    assert len(found) == 20


def test_interrupted_sampling_ends_with_the_same_attempts(tmp_path: Path) -> None:
    script = answer  # lengths vary, so the size of each chunk depends on the replies before it
    found, backend = sample_tokens(tmp_path / "whole", script, 8, 700)
    lines = (tmp_path / "whole" / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    assert len(backend.asked) > 3
    assert sum(attempt.completion.n_tokens for attempt in found) >= 700
    for kept in range(len(lines) + 1):
        path = tmp_path / str(kept) / "attempts.jsonl"
        path.parent.mkdir()
        path.write_bytes(b"".join(lines[:kept]) + (lines[kept][:20] if kept < len(lines) else b""))
        again, resumed = sample_tokens(path.parent, script, 8, 700)
        assert again == found
        assert path.read_bytes() == b"".join(lines)
        assert len(resumed.asked) <= len(backend.asked)
    assert sample_tokens(tmp_path / "whole", [], 8, 700)[1].asked == []
    assert sample_tokens(tmp_path / "other", script, 8, 700, seed=1)[0] != found


def test_asking_for_more_tokens_keeps_the_first_attempts(tmp_path: Path) -> None:
    found, _ = sample_tokens(tmp_path, ten, 5, 50)
    more, backend = sample_tokens(tmp_path, ten, 5, 90)
    assert more[:5] == found
    assert [call.n for call in backend.asked] == [4]


def test_running_out_of_time_keeps_finished_chunks(tmp_path: Path) -> None:
    now = 0.0

    def slow(prompt: str, rng: Random) -> str:
        nonlocal now
        now += 1.0
        return ten(prompt, rng)

    with pytest.raises(OutOfTime):
        sample_tokens(tmp_path, slow, 20, 0, deadline=Deadline.after("12s", clock=lambda: now))
    assert len(read_jsonl(tmp_path / "attempts.jsonl")) == 10
    assert sample_tokens(tmp_path, ten, 20, 0)[1].asked[0].n == 5


# --- a run's conditions on other problems


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, module_backend: Backend) -> Path:
    """A run with two adapters: a fresh one, which changes nothing, and one with random weights."""
    import torch

    path = tmp_path_factory.mktemp("runs") / "tiny-s0"
    path.mkdir()
    (path / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe("tiny")))
    fresh = module_backend.snapshot()
    module_backend.save(path / "conditions/rl_without_variants/train/adapter")
    torch.manual_seed(0)
    module_backend.restore({name: weight + 0.5 * torch.randn_like(weight) for name, weight in fresh.items()})
    module_backend.save(path / "conditions/ladder/train/adapter")
    module_backend.restore(fresh)
    return path


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> Backend:
    """The already loaded model, in place of the one that the command would load."""
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda _: backend)
    return backend


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    """Problems that the base model sometimes solves."""
    path = tmp_path / "easy.jsonl"
    answers = {"x**5": "x**6/6", "sin(2*x)": "-cos(2*x)/2", "x*exp(2*x)": "(x/2-1/4)*exp(2*x)"}
    rows = [{"integrand": f, "answer": answer, "technique": "by heart"} for f, answer in answers.items()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.usefixtures("lent")
def test_a_run_is_evaluated_on_other_problems(made: Path, easy: Path) -> None:
    result = evaluate_run(made, Request(str(easy), samples=8), Live(Console(file=StringIO())))
    assert list(result["conditions"]) == ["base", "rl_without_variants", "ladder"]
    base, same, broken = result["conditions"].values()
    assert (base["n_problems"], list(base["techniques"])) == (3, ["by heart"])
    assert base["pass@1"]["value"] > broken["pass@1"]["value"]
    assert base["official"]["n_agree"] == base["official"]["n_compared"] == round(24 * base["pass@1"]["value"])
    assert {key: value for key, value in same.items() if key != "over_base"} == base  # the same weights and seeds
    assert same["over_base"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert broken["over_base"]["value"] == pytest.approx(broken["pass@1"]["value"] - base["pass@1"]["value"])
    console = Console(width=80, record=True, file=StringIO())
    console.print(command_line.summary_table(result))
    shown = console.export_text()
    assert "3 problems of" in shown
    assert all(f"{name} " in shown for name in (*result["conditions"], "pass@8", "majority"))
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.usefixtures("lent")
def test_options_override_the_recipe(made: Path, easy: Path) -> None:
    live = Live(Console(file=StringIO()))
    result = evaluate_run(made, Request(str(easy), condition="base", samples=3, k=2, seed=7), live)
    assert list(result["conditions"]) == ["base"]
    assert (result["samples"], result["seed"]) == (3, 7)
    assert {"pass@1", "pass@2", "greedy", "majority"} <= result["conditions"]["base"].keys()
    alone = evaluate_run(made, Request(str(easy), condition="ladder", greedy_only=True), live)
    assert list(alone["conditions"]) == ["base", "ladder"]
    for summary in alone["conditions"].values():
        assert summary["pass@1"] == summary["greedy"] == summary["majority"]
    assert alone["conditions"]["base"]["greedy"] == result["conditions"]["base"]["greedy"]
    assert "majority" not in [column.header for column in command_line.summary_table(alone).columns]


def test_kept_answers_are_not_sampled_again(
    made: Path, easy: Path, lent: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, request = (
        Live(Console(file=StringIO())),
        Request(str(easy), "test", "ladder", samples=2, out=tmp_path / "out"),
    )
    result = evaluate_run(made, request, live)
    assert len(read_jsonl(tmp_path / "out/ladder/attempts.jsonl")) == 6
    assert len(read_jsonl(tmp_path / "out/base/greedy/attempts.jsonl")) == 3
    with monkeypatch.context() as patch:
        patch.setattr(type(lent), "sample", None)  # sampling would now raise
        assert evaluate_run(made, request, live) == result
    with pytest.raises(UserError, match=r"out/base: .*; name another --out"):
        evaluate_run(made, replace(request, samples=3), live)
    other = shutil.copytree(made, tmp_path / "other")
    shutil.copytree(other / "conditions/rl_without_variants", other / "conditions/ladder", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"out/ladder: .*; name another --out"):
        evaluate_run(other, request, live)
    (tmp_path / "out/base/begun.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        evaluate_run(made, request, live)


def test_json_is_the_only_output_on_stdout(made: Path, easy: Path) -> None:
    done = run_command("evaluate", made, "--problems", easy, "--condition", "ladder", "--samples", 2, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert list(result["conditions"]) == ["base", "ladder"]
    assert result["conditions"]["base"]["pass@1"].keys() == {"value", "low", "high"}
    assert "evaluate ladder" in done.stderr


BROKEN = [
    ("{run} --problems {easy} --condition laddr", "has no such adapter; did you mean ladder?"),
    ("{run} --problems {easy} --condition what", "it has base, rl_without_variants, ladder"),
    ("{run} --problems {easy} --samples 2 --k 3", "--k 3: pass@3 needs 3 samples, but there are 2"),
    ("{run} --problems {easy} --greedy-only --samples 2", "leave out --samples and --k"),
    ("{run} --problems {easy} --split all", "'all' is not one of 'train', 'test'"),
    ("{run} --problems {easy} --out {easy}", "easy.jsonl' is a file"),
    ("{run}/variants --problems {easy}", "variants: not a run folder (no recipe.resolved.yaml)"),
    ("{run} --problems tiniy", 'unknown problem set "tiniy"; did you mean tiny?'),
    ("{run} --problems {easy}.jsonl", "cannot read this problem set"),
    ("{run} --problems {bad}", "bad.jsonl:2: the integrand cannot be read"),
    ("{run}", "Missing option '--problems'"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN, ids=[case[1] for case in BROKEN])
def test_a_usage_error_is_one_line(
    made: Path,
    easy: Path,
    tmp_path: Path,
    line: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"integrand": "x"}\n{"integrand": "x**"}\n')
    monkeypatch.setattr(sys, "argv", ["evaluate", *line.format(run=made, easy=easy, bad=bad).split()])
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda _: pytest.fail("a mistake that is seen before"))
    with pytest.raises(SystemExit) as stopped:
        errors.run(command_line.app)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("integrand", "message"),
    [
        ("+".join(f"{n}*x**{n}" for n in range(1, 80)), "is longer than model.max_prompt_length, 256 tokens"),
        ("x*cos(x)", "model.safetensors: cannot read this adapter"),
    ],
)
@pytest.mark.usefixtures("lent")
def test_a_problem_or_adapter_that_the_model_refuses(made: Path, tmp_path: Path, integrand: str, message: str) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    (run / "conditions/ladder/train/adapter/adapter_model.safetensors").unlink()
    (tmp_path / "problems.jsonl").write_text(json.dumps({"integrand": integrand}))
    with pytest.raises(UserError, match=message):
        evaluate_run(run, Request(str(tmp_path / "problems.jsonl"), greedy_only=True), Live(Console(file=StringIO())))


def test_a_run_that_needs_a_gpu_is_refused_without_one(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    (run / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe("tiny", ["model.device=cuda"])))
    with pytest.raises(UserError, match=r"model\.device is cuda"):
        evaluate_run(run, Request("tiny", greedy_only=True), Live(Console(file=StringIO())))


@pytest.mark.usefixtures("lent")
def test_settings_of_a_run_can_be_changed(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    trains = [
        "model.device=cuda",
        "grpo.trl.report_to=comet_ml",
    ]  # neither is there, and only training needs the second
    (run / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe("tiny", trains)))
    (tmp_path / "one.jsonl").write_text(json.dumps({"integrand": "cos(2*x)"}))
    request = Request(str(tmp_path / "one.jsonl"), condition="base", greedy_only=True, overrides=("model.device=cpu",))
    found = evaluate_run(run, request, Live(Console(file=StringIO())))
    assert found["conditions"]["base"]["n_problems"] == 1


def test_help_does_not_import_torch() -> None:
    code = "import sys, runpy; sys.argv = ['evaluate', '--help']; "
    code += "runpy.run_module('ladder_lite.evaluate', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "--problems" in done.stdout
    assert "| typer" in done.stderr.replace("  ", "")
    assert " torch\n" not in done.stderr
