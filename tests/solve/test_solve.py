"""Solving one integral from the command line and from Python: exit codes, output, and that no files are left."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ladder_lite import errors, ttrl
from ladder_lite import models as backends
from ladder_lite.config.load import dump_recipe, load_recipe
from ladder_lite.doctor import checks as preflight
from ladder_lite.errors import UserError
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.solve import Solution, Solver, solve
from ladder_lite.solve.__main__ import app
from ladder_lite.terminal import Live
from ladder_lite.verify import Grade, Reason, verify
from tests.support.commands import run_command
from tests.support.fakes import FakeBackend, Script
from tests.support.problems import problem
from tests.support.terminal import HOSTILE, a_console
from tests.support.ttrl_runs import same

KEYS = ["integrand", "variable", "lower", "upper", "verified", "answer", "latex", "attempts", "steps", "seconds"]


def right(_prompt: str, _rng: Random) -> str:
    return "<answer>x**3/3</answer>"


def wrong(_prompt: str, _rng: Random) -> str:
    return "<answer>x**3</answer>"


def solver_of(script: Script, model: str = "tiny", live: Live | None = None, **options: Any) -> Solver:
    solver = Solver(model, live=live, **options)
    solver.backend = FakeBackend(script)  # type: ignore[assignment]
    return solver


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line on a scripted model; returns its exit code, stdout and stderr."""

    def run(script: Script, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(Solver, "backend", FakeBackend(script))
        monkeypatch.setattr(sys, "argv", ["solve", *arguments])
        with pytest.raises(SystemExit) as stop:
            errors.run(app)
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def a_run(path: Path, *overrides: str, trained: Sequence[str] = ()) -> str:
    """A run folder of the tiny recipe, with empty files for adapters."""
    path.mkdir()
    (path / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe("tiny", overrides)))
    for condition in trained:
        adapter = path / f"conditions/{condition}/train/adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").touch()
    return str(path)


# --- exit codes and output


def test_a_verified_answer_is_shown_with_what_was_checked(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run_cli(right, "x**2")
    assert (code, err) == (0, "")
    assert "verified antiderivative: x**3/3\n" in out
    assert "LaTeX: \\frac{x^{3}}{3}\n" in out
    assert "checked: Its derivative equals the integrand, to 1e-09 of its size" in out
    assert "not a proof" in out


def test_a_failure_is_reported_with_remedies(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run_cli(wrong, "x**2", "--samples", "5")
    assert (code, err) == (1, "")
    assert "none of 5 answers is right: 5 wrong\n" in out
    assert "not solved: no answer was verified (5 answers tried, 0 s)\n" in out
    assert "`--model runs/tiny-s0`" in out
    assert "--ttrl" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x**2*("], '"x**2*(" is not an integral (unreadable)'),
        (["a*x"], '"a*x" is not an integral'),
        (["1/x", "--lower", "-1", "--upper", "1"], '"1/x" cannot be verified'),
        (["x", "--lower", "0"], "--lower and --upper: give both"),
        (["integrate(x,(x,0,1))", "--lower", "0", "--upper", "1"], '"integrate(x,(x,0,1))" already has bounds'),
        (["x", "--lower", "0", "--upper", "y"], "not an integral (bad bounds)"),
        (["x", "--budget", "3x"], "--budget 3x: "),
        (["x", "--samples", "0"], "Invalid value for '--samples'"),
        (["x", "--steps", "3"], "--steps 3: limits the training of --ttrl"),
        (["x", "--ttlr"], "No such option: --ttlr; did you mean --ttrl?"),
        (["x", "--modle", "tiny"], "No such option: --modle"),
        (["x", "--condition", "ladder"], "--condition ladder: tiny is not a run folder"),
        (["x", "--recipe", "smollm"], "--recipe smollm: --model tiny "),
        (["x", "--model", "a/b", "--recipe", "smolm"], 'unknown recipe "smolm"; did you mean smollm?'),
        (["x", "--model", "tinny"], "--model tinny: no such model, run or recipe; did you mean tiny?"),
        (["x", "--model", "runs/tiny-s9"], "--model runs/tiny-s9: no such model, run or recipe"),
        (["x", "--model", "."], "--model .: neither a run nor a model, it has no config.json"),
        (["x", "--model", "./model.gguf"], "--model ./model.gguf: no such model"),
        (["x", "--model", "a/b/c"], "--model a/b/c: no such model"),
    ],
)
def test_a_usage_error_is_one_line(
    run_cli: Callable[..., tuple[int, str, str]],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(right, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("script", "code"), [(right, 0), (wrong, 1)])
def test_json_is_the_only_output_on_stdout(
    run_cli: Callable[..., tuple[int, str, str]], script: Callable[[str, Random], str], code: int
) -> None:
    def noisy(prompt: str, rng: Random) -> str:
        print("a library's banner")
        return script(prompt, rng)

    done, out, err = run_cli(noisy, "-x**2+2*x**2", "--json")
    row = json.loads(out)
    assert (done, out.count("\n"), list(row)) == (code, 1, KEYS)
    assert row["verified"] is (code == 0)
    assert (row["answer"], row["latex"]) == (("x**3/3", r"\frac{x^{3}}{3}") if code == 0 else (None, None))
    assert row["integrand"] == "-x**2+2*x**2"
    assert row["steps"] == 0
    assert "a library's banner" in err


def test_the_whole_command(tmp_path: Path) -> None:
    done = run_command("solve", "5*x**4", "--samples", 40, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert verify("5*x**4", row["answer"]).reward == 1.0
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_import_torch() -> None:
    code = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: print({'torch', 'trl', 'sympy'} & set(sys.modules), file=sys.stderr))\n"
        "sys.argv = ['solve', '--help']\n"
        "runpy.run_module('ladder_lite.solve', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert "--ttrl" in done.stdout


# --- sampling


def test_sampling_stops_after_a_portion_with_a_verified_answer() -> None:
    texts = ["<answer>x</answer>"] * 4 + ["<answer>x**3/3 + C</answer>"] + ["no answer"] * 10
    solver = solver_of(texts)
    solution = solver.solve("x**2")
    assert [call.n for call in solver.backend.asked] == [3, 3]  # type: ignore[attr-defined]
    assert (solution.attempts, solution.answer, solution.latex) == (6, "x**3/3", r"\frac{x^{3}}{3}")
    assert verify("x**2", solution.answer or "").reason is Reason.CORRECT


def test_the_seed_decides_the_samples() -> None:
    def random_answer(_prompt: str, rng: Random) -> str:
        return f"<answer>{rng.random()}</answer>"

    def texts(seed: int) -> list[int]:
        solver = solver_of(random_answer, seed=seed)
        solver.solve("x**2", samples=8)
        return [call.sampling.seed for call in solver.backend.asked]  # type: ignore[attr-defined]

    assert texts(3) == texts(3)
    assert len(set(texts(3) + texts(4))) == 8


def test_solve_returns_a_frozen_solution_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Solver, "backend", FakeBackend(right))
    solution = solve("x**2")
    assert [*solution.to_row()] == KEYS
    assert solution == Solution(
        problem("x**2"), True, "x**3/3", r"\frac{x^{3}}{3}", attempts=3, steps=0, seconds=solution.seconds
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.verified = False  # type: ignore[misc]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [(("integrate(x**2, (x, 0, 1))",), {}), (("x**2",), {"lower": "0", "upper": "1"})],
)
def test_a_definite_integral_has_a_value(arguments: tuple[str], bounds: dict[str, str]) -> None:
    solver = solver_of(["<answer>0.33</answer>"] * 3 + ["<answer>1/3</answer>"] * 3)
    solution = solver.solve(*arguments, **bounds)
    assert (solution.answer, solution.latex, solution.attempts) == ("1/3", r"\frac{1}{3}", 6)
    assert solver.backend.prompts[0] == "solve integrate(x**2,(x,0,1))"  # type: ignore[attr-defined]


def test_a_definite_integral_is_reported_as_a_value(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli(lambda prompt, rng: "<answer>1/3</answer>", "x**2", "--lower", "0", "--upper", "1")
    assert code == 0
    assert "verified value: 1/3\n" in out
    assert "checked: It equals the integral's value by numerical quadrature, to 1e-08" in out


@pytest.mark.parametrize(
    ("integrand", "bounds", "antiderivative", "value"),
    [
        ("2*x", ("1", "3"), "x**2", "(3)**2-((1)**2)"),
        ("exp(2*x)", ("-1", "pi/2"), "exp(2*x)/2 + C", "exp(2*(pi/2))/2-(exp(2*(-1))/2)"),
        ("2*x", ("1", "oo"), "x**2", None),  # it diverges
        ("exp(-x)", ("0", "oo"), "-exp(-x)", None),  # no value at the bound
        ("1/(5+4*cos(x))", ("0", "2*pi"), "2*atan(tan(x/2)/3)/3", None),  # it jumps at pi, where F(b)-F(a) is wrong
    ],
)
def test_a_definite_integral_may_be_solved_by_its_antiderivative(
    monkeypatch: pytest.MonkeyPatch, integrand: str, bounds: tuple[str, str], antiderivative: str, value: str | None
) -> None:
    def script(prompt: str, _: Random) -> str:
        return f"<answer>{antiderivative if '(x,' not in prompt else 'x'}</answer>"

    monkeypatch.setattr(Solver, "backend", FakeBackend(script))
    if bounds[1] == "oo" and integrand == "2*x":
        with pytest.raises(UserError, match="cannot be verified"):
            solve(integrand, lower=bounds[0], upper=bounds[1])
        return
    solution = solve(integrand, lower=bounds[0], upper=bounds[1])
    assert solution.answer == value
    assert (solution.problem.data["lower"], solution.problem.data["upper"]) == bounds
    if value is not None:
        assert verify(integrand, value, lower=bounds[0], upper=bounds[1]).reward == 1.0


def test_the_strict_rule_applies_whatever_the_recipe(tmp_path: Path) -> None:
    model = a_run(tmp_path / "run", "task.protocol=paper")
    solver = solver_of(lambda prompt, rng: "<answer>x**3/3.0001</answer>", model, condition="base")
    assert not solver.solve("x**2").verified


def test_an_exhausted_budget_ends_the_search(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli(right, "x**2", "--budget", "0.0001s", "--ttrl")
    assert code == 1
    assert "the budget is used\n" in out
    assert "0 answers tried" in out
    assert "a longer `--budget`" in out


def test_a_word_unknown_to_the_embedded_model_is_one_line(backend: Backend) -> None:
    solver = Solver("tiny")
    solver.backend = backend
    with pytest.raises(UserError, match=r"^the model has no word for 'erf' in .*; the embedded model reads "):
        solver.solve("erf(x)")


def test_a_model_that_cannot_be_loaded_is_not_blamed_on_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> Backend:
        raise UserError("adapter: cannot read this adapter")

    monkeypatch.setattr("ladder_lite.doctor.checks.open_backend", load)
    with pytest.raises(UserError, match=r"^adapter: cannot read this adapter$"):
        Solver("tiny").solve("x**2")


def test_no_samples_is_a_mistake() -> None:
    with pytest.raises(UserError, match="samples is 0; it must be 1 or more"):
        Solver("tiny").solve("x**2", samples=0)


# --- which model


@pytest.mark.parametrize(
    ("model", "options", "recipe", "id_"),
    [
        ("tiny", {}, "tiny", "embedded"),
        ("smollm", {}, "smollm", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {}, "smollm", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("unsloth/Llama-3.2-3B-Instruct", {}, "llama3b", "unsloth/Llama-3.2-3B-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct", {}, "llama3b", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct", {"recipe": "smollm"}, "smollm", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("./a: b.gguf", {}, "llama3b", "./a: b.gguf"),
    ],
)
def test_the_model_decides_the_recipe(
    model: str, options: dict[str, str], recipe: str, id_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a: b.gguf").touch()
    chosen = Solver(model, **options).recipe  # type: ignore[arg-type]
    assert (chosen.name, chosen.model.id) == (recipe, id_)
    assert chosen.model.device == (
        "cpu" if recipe == "tiny" else "auto"
    )  # a GPU is optional, whatever the recipe asks for


def test_a_run_folder_supplies_recipe_and_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    class Loading(FakeBackend):
        def load(self, folder: Path) -> None:
            loaded.append(folder)

    monkeypatch.setattr(backends, "load_backend", lambda recipe: Loading(right))
    monkeypatch.setattr(preflight, "preflight", lambda recipe, path, **needs: [])
    model = a_run(tmp_path / "run", "eval.samples=7", "eval.k=1", trained=["ladder", "rl_without_variants"])
    solver = Solver(model)
    assert solver.solve("x**2").attempts == 2  # one portion: a quarter of 7, rounded up
    assert not solver.is_untrained
    Solver(model, condition="rl_without_variants").solve("x**2")
    Solver(model, condition="base").solve("x**2")
    assert [path.parts[-3] for path in loaded] == ["ladder", "rl_without_variants"]
    with pytest.raises(UserError, match=r"--condition ladder_ttrl: .* use the one it starts from"):
        Solver(model, condition="ladder_ttrl")
    with pytest.raises(UserError, match=r"--recipe tiny: .* leave out --recipe"):
        Solver(model, recipe="tiny")
    with pytest.raises(UserError, match=r"no such adapter; .*run the recipe first"):
        Solver(a_run(tmp_path / "new"))


# --- TTRL

SMALL = (
    *("ttrl.per_root=12", "ttrl.max_steps=8", "grpo.trl.per_device_train_batch_size=32", "eval.samples=2", "eval.k=1"),
    *("grpo.trl.num_generations=8", "eval.max_new_tokens=60", "grpo.trl.max_completion_length=60"),
)


def test_ttrl_solves_the_integral_and_leaves_no_trace(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    console, data = a_console(terminal=False)
    solver = Solver(a_run(tmp_path / "run", *SMALL), condition="base", live=Live(console), seed=1)
    solver.backend = backend
    before = backend.snapshot()
    solution = solver.solve("5*exp(3*x)+4*x**4", ttrl=True)
    assert same(backend.snapshot(), before)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert 1 <= solution.steps <= 8
    assert solution.attempts == 2 + 8 * solution.steps + 1
    assert solution.verified
    assert verify(str(solution.problem.data["integrand"]), solution.answer or "").reward == 1.0
    out = data.getvalue().decode()
    assert " variants to learn from\n" in out
    assert f"step {solution.steps}: reward " in out
    assert " of 8 right, " in out


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError])
def test_an_interruption_leaves_no_trace(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise stop("stopped")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ladder_lite.solve.search.Search.step", interrupt)
    solver = Solver(a_run(tmp_path / "run", *SMALL), condition="base", seed=1)
    solver.backend = backend
    before = backend.snapshot()
    with pytest.raises(stop):
        solver.solve("5*exp(3*x)+4*x**4+6*sin(2*x)", ttrl=True)
    assert same(backend.snapshot(), before)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def scripted_ttrl(texts: Sequence[str], solved: bool) -> Callable[..., None]:
    """A stand-in for `ttrl.train_on_problem`: a tree of two levels, then a step with these texts."""
    from ladder_lite.train.grpo import Step

    def train_on_problem(_writer: Any, problem: Problem, *_: Any, observer: ttrl.Observer) -> None:
        def data(integrand: str) -> dict[str, str | None]:
            return {"integrand": integrand, "variable": "x", "lower": None, "upper": None}

        child = Problem.child(problem, data("x\x1b[31m\u202e[red]"), (), "easier")
        others = [Problem.child(child, data(f"{k}*x"), (), "equivalent") for k in range(2, 60)]
        observer.tree([child, *others])
        grade = Grade(0.0, Reason.WRONG, "x")
        rollouts = [Attempt(child.id, at, Completion(text, 9, False), grade) for at, text in enumerate(texts)]
        rollouts.append(Attempt(others[-1].id, 0, Completion("", 9, False), Grade(1.0, Reason.CORRECT, "x")))
        tries = [dataclasses.replace(attempt, problem_id=problem.id) for attempt in rollouts[:-1]]
        if solved:
            tries.append(
                Attempt(problem.id, 99, Completion("<answer>", 9, False), Grade(1.0, Reason.CORRECT, "x**3/3"))
            )
        observer.step(Step(1, 0.25, 0.5, 9, 1.0, 0.0, 0.0, 0.0, None, None), rollouts, tries)

    return train_on_problem


@pytest.mark.parametrize("terminal", [True, False])
def test_hostile_completions_are_shown_safely(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    texts = [*HOSTILE.values(), "<script>alert(1)</script>", "<answer>" + "x+" * 500_000 + "</answer>"]
    monkeypatch.setattr(ttrl, "train_on_problem", scripted_ttrl(texts, solved=False))
    console, data = a_console(terminal=terminal)
    replies = iter(texts)
    with Live(console) as live:
        solution = solver_of(lambda prompt, rng: next(replies), live=live).solve("x**2", ttrl=True, samples=len(texts))
    written = data.getvalue().decode()
    assert (solution.verified, solution.steps, solution.attempts) == (False, 1, 2 * len(texts))
    ours = written if not terminal else written.replace("\x1b[2K", "").replace("\x1b[1A", "")
    for hostile in ("\x1b[2J", "\x1b]0;", "\x1b[31m", "\x07", "\x9b", "\u202e", "\u2066", "\b", "\ud800"):
        assert hostile not in ours
    assert "<script>" in ours
    assert len(ours) < 200_000


def test_a_terminal_shows_the_part_of_the_tree_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttrl, "train_on_problem", scripted_ttrl(["a"] * 7, solved=True))
    console, data = a_console(terminal=True)
    panels: list[Any] = []
    with Live(console) as live:
        monkeypatch.setattr(live, "show_panel", panels.append)
        solution = solver_of(wrong, live=live).solve("x**2", ttrl=True)
        room = live.panel_height
    assert (solution.verified, solution.answer, solution.steps) == (True, "x**3/3", 1)
    grown, trained, gone = panels
    assert gone is None
    assert room is not None
    for panel in (grown, trained):
        console.print(panel)
    lines = [line.rstrip() for line in data.getvalue().decode().splitlines()]
    tree = lines[max(at for at, line in enumerate(lines) if line.startswith("x**2")) :]
    assert 5 < len(tree) <= room
    assert tree[1].endswith("easier  0 %")
    assert tree[-1].endswith(" 59*x  equivalent  100 %")  # the last of 58 variants, since it was trained on last


def test_no_readable_variant_is_reported(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(ttrl, "train_on_problem", lambda *_, observer: observer.tree([]))
    code, out, _ = run_cli(wrong, "x**2", "--ttrl", "--samples", "1")
    assert code == 1
    assert "no readable variant" in out
