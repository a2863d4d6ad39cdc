"""TTRL on the embedded model: what comes of a problem, what ends it, how it goes on, and that it leaves no trace."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fakes import FakeBackend
from test_survival import Ticking, poisoned

from ladder_lite import divergence, grpo, ttrl, variants
from ladder_lite.attempts import Attempt, Completion
from ladder_lite.backends import Adapter, Backend, Sampling
from ladder_lite.config import load_recipe
from ladder_lite.deadline import Deadline, OutOfTime
from ladder_lite.live import Live
from ladder_lite.problems import Problem
from ladder_lite.run_dir import read_jsonl
from ladder_lite.scores import majority_vote
from ladder_lite.settings import Recipe
from ladder_lite.tasks import Messages, load_task
from ladder_lite.transformations import open_library
from ladder_lite.variants import Writer

SMALL = (
    *("ttrl.per_root=4", "ttrl.depth=1", "ttrl.max_steps=3", "ttrl.samples_per_step=2", "eval.samples=4", "eval.k=2"),
    *("ttrl.stop_when_solved=false", "grpo.trl.per_device_train_batch_size=16"),
    *("grpo.trl.max_completion_length=24", "grpo.trl.learning_rate=0.002"),
)
TASK = load_task(load_recipe("tiny").task)
HARD = TASK.read("x**2*exp(x)")  # the embedded model never answers it in these few steps
EASY = TASK.read("cos(2*x)")


def small(*overrides: str) -> Recipe:
    return load_recipe("tiny", [*SMALL, *overrides])


def learn(
    backend: Backend,
    folder: Path,
    recipe: Recipe,
    problem: Problem = HARD,
    deadline: Deadline | None = None,
    watch: ttrl.Watch | None = None,
) -> ttrl.Outcome:
    library = open_library(recipe.variants, folder)
    writer = Writer(TASK, backend, recipe.variants, library, {}, recipe.seed, deadline)
    with Live() as live:
        return ttrl.learn(writer, problem, recipe, folder, live, watch)


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def what_counts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row that a problem leaves, but for times."""
    names = ("variants/problems", *(f"train/{name}" for name in ("metrics", "attempts", "curve", "pass_rates")))
    names = (*names, "eval/attempts", "eval/greedy/attempts")
    return {name: without_times(read_jsonl(folder / f"{name}.jsonl")) for name in names}


class Tuned:
    """What the backend held each time weights were put back: last, the adapter that a problem was answered with."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.adapters: list[Adapter] = []
        restore = backend.restore

        def note(adapter: Adapter) -> None:
            self.adapters.append(backend.snapshot())
            restore(adapter)

        monkeypatch.setattr(backend, "restore", note)


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(weight.equal(other[name]) for name, weight in one.items())


def shaken(backend: Backend) -> Adapter:
    """Weights that are not those it was loaded with, as LADDER leaves them; a copy of what the backend then holds."""
    import torch

    generator = torch.Generator().manual_seed(1)
    adapter = backend.snapshot()
    for weight in adapter.values():
        weight += 1e-3 * torch.randn(weight.shape, generator=generator)
    backend.restore(adapter)
    return adapter


# --- which problems


def problems(n: int) -> list[Problem]:
    return [TASK.read(f"x**{power}") for power in range(2, n + 2)]


def test_listed_problems_are_the_first_ones() -> None:
    left = problems(10)
    for wanted in (0, 3, 10):
        assert ttrl.choose(left, small(f"ttrl.problems={wanted}", "ttrl.order=listed").ttrl, 0) == left[:wanted]
    assert ttrl.choose(left, small("ttrl.problems=11", "ttrl.order=listed").ttrl, 0) == left
    assert ttrl.choose(left, small("ttrl.problems=all", "ttrl.order=listed").ttrl, 0) == left


def test_shuffled_problems_are_a_sample_by_the_seed() -> None:
    left = problems(10)
    chosen = ttrl.choose(left, small("ttrl.problems=4", "ttrl.order=shuffled").ttrl, 3)
    assert chosen == Random(3).sample(left, 4)
    assert chosen != ttrl.choose(left, small("ttrl.problems=4", "ttrl.order=shuffled").ttrl, 4)
    everything = ttrl.choose(left, small("ttrl.problems=all", "ttrl.order=shuffled").ttrl, 3)
    assert everything != left
    assert sorted(everything, key=left.index) == left
    assert left == problems(10)


# --- what comes of it


class Notes:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.trees: list[list[Problem]] = []
        self.steps: list[tuple[grpo.Step, list[Attempt], list[Attempt]]] = []

    def tree(self, variants: Sequence[Problem]) -> None:
        self.trees.append(list(variants))

    def step(self, step: grpo.Step, rollouts: list[Attempt], tries: list[Attempt]) -> None:
        self.steps.append((step, rollouts, tries))


def test_the_outcome_is_what_stands_on_record(backend: Backend, tmp_path: Path) -> None:
    recipe, notes = small(), Notes()
    outcome = learn(backend, tmp_path, recipe, watch=notes)
    steps, curve = read_jsonl(tmp_path / "train/metrics.jsonl"), read_jsonl(tmp_path / "train/curve.jsonl")
    rollouts, rounds = read_jsonl(tmp_path / "train/attempts.jsonl"), read_jsonl(tmp_path / "variants/rounds.jsonl")
    answers = [Attempt.from_row(row) for row in read_jsonl(tmp_path / "eval/attempts.jsonl")]
    tree = variants.load(tmp_path / "variants")
    vote = majority_vote(TASK, HARD, answers)

    assert outcome.to_row() == {
        "problem_id": HARD.id,
        "solved": False,
        "steps_to_solve": None,
        "steps": 3,
        "seconds": outcome.seconds,
        "answer": None,
        "n_tokens": sum(row["n_tokens"] for row in (*rounds, *rollouts, *curve)),
        "n_variants": len(tree),
        "stopped": "max_steps",
        "voted_answer": vote.answer,
        "voted_share": vote.share,
        "voted_right": vote.right,
    }
    assert json.loads(json.dumps(outcome.to_row())) == outcome.to_row()
    assert all(row["n_tokens"] > 0 for row in (*curve, *rounds[:1]))
    assert len(answers) == 4
    assert len(read_jsonl(tmp_path / "eval/greedy/attempts.jsonl")) == 1
    assert [row["step"] for row in curve] == [row["step"] for row in steps] == [1, 2, 3]
    times = [sum(row["seconds"] for row in rounds), *(row["seconds"] for row in curve), outcome.seconds]
    assert times == sorted(times)

    assert notes.trees == [tree]
    assert without_times([asdict(step) for step, _, _ in notes.steps]) == without_times(steps)
    assert [(step.step, a.to_row()) for step, told, _ in notes.steps for a in told] == [
        (row.pop("step"), row) for row in rollouts
    ]
    assert [[a.problem_id for a in tries] for _, _, tries in notes.steps] == [[HARD.id] * 2] * 3


@pytest.mark.parametrize("stop_when_solved", [True, False])
def test_the_first_right_answer_solves_it_and_ends_training_where_that_is_asked_for(
    backend: Backend, tmp_path: Path, stop_when_solved: bool
) -> None:
    recipe = small(f"ttrl.stop_when_solved={json.dumps(stop_when_solved)}", "ttrl.samples_per_step=8")
    outcome = learn(backend, tmp_path, recipe, EASY)
    curve = read_jsonl(tmp_path / "train/curve.jsonl")
    first = next(row for row in curve if row["answer"] is not None)
    assert (outcome.solved, outcome.steps_to_solve, outcome.answer) == (True, first["step"], first["answer"])
    assert TASK.grade(EASY, f"<answer>{outcome.answer}</answer>").reward == 1
    assert outcome.steps_to_solve is not None
    assert outcome.steps_to_solve < 3
    assert outcome.steps == len(curve) == (outcome.steps_to_solve if stop_when_solved else 3)
    assert outcome.stopped == ("solved" if stop_when_solved else "max_steps")


def test_the_vote_is_that_of_the_last_answers_and_not_the_verifiers_pick(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tries hold a right answer, most of the answers that follow are wrong."""
    replies = {2: ["sin(2*x)/2", "x"], 4: ["x", "x", "sin(2*x)/2", "x"]}
    own = backend.sample

    def scripted(prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        if n == 1:  # a variant, or the greedy answer
            return own(prompts, n, sampling)
        return [[Completion(f"<answer>{answer}</answer>", 3, truncated=False) for answer in replies[n]]]

    monkeypatch.setattr(backend, "sample", scripted)
    outcome = learn(backend, tmp_path, small("ttrl.stop_when_solved=true"), EASY)
    assert (outcome.solved, outcome.answer, outcome.stopped) == (True, "sin(2*x)/2", "solved")
    assert (outcome.voted_answer, outcome.voted_share, outcome.voted_right) == ("x", 0.75, False)


class WithTensors(FakeBackend):
    """A scripted model that has weights to compare, and that nobody can train."""

    def __init__(self) -> None:
        import torch

        super().__init__(lambda prompt, rng: "<answer>x</answer>")
        self.weights = {"lora": torch.zeros(2, 3)}

    def snapshot(self) -> Adapter:
        return {name: weight.clone() for name, weight in self.weights.items()}


def test_a_problem_without_variants_is_answered_untrained(tmp_path: Path) -> None:
    fake, notes = WithTensors(), Notes()
    outcome = learn(fake, tmp_path, small(), watch=notes)
    assert (outcome.stopped, outcome.steps, outcome.n_variants) == ("no variants", 0, 0)
    assert (outcome.solved, outcome.voted_answer, outcome.voted_right) == (False, "x", False)
    assert outcome.n_tokens == sum(row["n_tokens"] for row in read_jsonl(tmp_path / "variants/rounds.jsonl")) > 0
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4
    assert (notes.trees, notes.steps) == ([[]], [])


def test_each_use_has_draws_of_its_own(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds would give variants, rollouts, tries and answers the same random numbers."""
    seeds: list[int] = []
    sample, roll_out = backend.sample, backend.roll_out

    def note_sample(prompts: Sequence[Messages], n: int, sampling: Sampling) -> Any:
        if prompts:
            seeds.append(sampling.seed)
        with monkeypatch.context() as patch:  # which it calls itself
            patch.setattr(backend, "roll_out", roll_out)
            return sample(prompts, n, sampling)

    def note_roll_out(prompts: Sequence[Messages], sampling: Sampling) -> Any:
        seeds.append(sampling.seed)
        return roll_out(prompts, sampling)

    monkeypatch.setattr(backend, "sample", note_sample)
    monkeypatch.setattr(backend, "roll_out", note_roll_out)
    for problem in (HARD, EASY):
        learn(backend, tmp_path / problem.id, small("ttrl.max_steps=2"), problem)
    assert len(seeds) >= 2 * (1 + 2 + 2 + 2)  # a tree's rounds, rollouts, tries, both kinds of answers
    assert len(set(seeds)) == len(seeds)


# --- small trees


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tree_of_few_variants_trains_for_real(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """TRL's own sampler drops the batch where there are fewer prompts than a generation wants, and trains nothing."""
    few = [TASK.read(text) for text in ("4*cos(8*x)", "8*x**2", "exp(4*x)")[:n]]
    monkeypatch.setattr(variants, "grow", lambda *_: few)
    start, tuned = backend.snapshot(), Tuned(backend, monkeypatch)
    outcome = learn(backend, tmp_path, small("grpo.trl.per_device_train_batch_size=32"))  # of four groups
    assert (outcome.steps, outcome.n_variants) == (3, n)
    rollouts = read_jsonl(tmp_path / "train/attempts.jsonl")
    for step in (1, 2, 3):
        own = [row["problem_id"] for row in rollouts if row["step"] == step]
        assert len(own) == 32
        assert set(own) == {problem.id for problem in few}
        assert all(len(set(own[at : at + 8])) == 1 for at in range(0, 32, 8))
    assert any(row["grad_norm"] > 0 for row in read_jsonl(tmp_path / "train/metrics.jsonl"))
    assert not same(tuned.adapters[-1], start)


# --- the rollback


def test_the_backend_gets_its_own_adapter_back(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shaken(backend)
    tuned = Tuned(backend, monkeypatch)
    learn(backend, tmp_path, small())
    assert same(backend.snapshot(), start)
    assert not same(tuned.adapters[-1], start)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OutOfTime])
def test_it_gets_it_back_from_what_passes_through_too(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    start = shaken(backend)
    tuned = Tuned(backend, monkeypatch)

    class Fails(Notes):
        def step(self, step: grpo.Step, *_: list[Attempt]) -> None:
            if step.step == 2:
                raise error

    with pytest.raises(error):
        learn(backend, tmp_path, small("grpo.trl.beta=0.05"), watch=Fails())
    assert not same(tuned.adapters[-1], start)
    assert same(backend.snapshot(), start)
    assert list(backend.trainable()[0].peft_config) == ["default"]


def test_a_rollback_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = WithTensors()
    monkeypatch.setattr(fake, "restore", lambda adapter: fake.weights["lora"].add_(1e-7))
    with pytest.raises(RuntimeError, match="TTRL's rollback failed: the adapter is not the one"):
        learn(fake, tmp_path, small())


def test_adapters_are_compared_bit_by_bit() -> None:
    import torch

    from ladder_lite.backends.adapter import is_same

    one = {"a": torch.tensor([[0.0, 1.0], [torch.nan, 2.0]]), "b": torch.ones(3)}
    assert is_same(one, {name: weight.clone() for name, weight in one.items()})
    assert not is_same(one, one | {"b": torch.tensor([1.0, 1.0, 1.0 + 2**-23])})
    assert not is_same(one, one | {"a": torch.tensor([[-0.0, 1.0], [torch.nan, 2.0]])})
    assert not is_same(one, {"a": one["a"]})
    assert not is_same({"a": one["a"]}, one)
    half = {"b": torch.tensor([0.1, -3.0], dtype=torch.bfloat16)}
    assert is_same(half, {"b": half["b"].float()})  # what a training that wants float32 leaves


# --- going on


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """The end of the process in its n-th write to the disk: before a new file has its name, after rows are appended."""
    number = count(1)

    def fsync(_: int) -> None:
        if next(number) == write:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("overrides", [(), ("grpo.trl.beta=0.05", "grpo.trl.save_steps=2")])
def test_a_problem_killed_again_and_again_comes_to_the_same(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    recipe = small(*overrides)
    start = shaken(backend)
    tuned = Tuned(backend, monkeypatch)
    whole = learn(backend, tmp_path / "whole", recipe)
    adapter = tuned.adapters[-1]
    outcome = None
    for write in count(1, 3):
        backend.restore(start)  # as the caller does in a new process
        try:
            with killed_at(write):
                outcome = learn(backend, tmp_path / "cut", recipe)
            break
        except KeyboardInterrupt:
            assert same(backend.snapshot(), start)
    assert write > 12
    assert without_times([asdict(outcome)]) == without_times([asdict(whole)])
    assert what_counts(tmp_path / "cut") == what_counts(tmp_path / "whole")
    assert same(tuned.adapters[-1], adapter)


def test_a_finished_training_is_not_repeated(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end came while the answers were sampled: the same adapter answers, and no step is done once more."""
    recipe = small("ttrl.stop_when_solved=true", "ttrl.samples_per_step=8", "grpo.trl.save_steps=100")
    tuned = Tuned(backend, monkeypatch)
    whole = learn(backend, tmp_path, recipe, EASY)
    assert (whole.stopped, whole.steps < 3) == ("solved", True)
    adapter, rows = tuned.adapters[-1], what_counts(tmp_path)
    (tmp_path / "eval/attempts.jsonl").unlink()
    notes = Notes()
    again = learn(backend, tmp_path, recipe, EASY, watch=notes)
    assert without_times([asdict(again)]) == without_times([asdict(whole)])
    assert again.seconds > read_jsonl(tmp_path / "train/curve.jsonl")[-1]["seconds"]
    assert what_counts(tmp_path) == rows
    assert same(tuned.adapters[-1], adapter)
    assert notes.steps == []


# --- what ends it early


def clocked(backend: Backend, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> Ticking:
    """A clock by which nothing takes time but sampling: so many seconds for `variants`, `tries` and `answers`."""
    clock, own = Ticking(), backend.sample
    of = {1: "variants", 2: "tries", 4: "answers"}

    def sample(prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        clock.seconds += seconds.get(of[n], 0) if prompts and sampling.temperature != 0 else 0
        return own(prompts, n, sampling)

    monkeypatch.setattr(backend, "sample", sample)
    return clock


def test_a_budget_ends_training_before_the_step_that_would_exceed_it(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, tries=10, answers=500)
    recipe = small("ttrl.budget=35s", "ttrl.max_steps=9")
    outcome = learn(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("budget", 3, 530)
    assert [row["seconds"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [10, 20, 30]
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4


def test_a_budget_that_the_last_step_exceeds_ended_nothing(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, tries=10)
    recipe = small("ttrl.budget=22s", "ttrl.max_steps=2")
    outcome = learn(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps) == ("max_steps", 2)


def test_a_budget_counts_what_earlier_processes_used(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("ttrl.budget=35s", "ttrl.max_steps=9")
    clock = clocked(backend, monkeypatch, tries=10)

    class PulledPlug(Notes):
        def step(self, step: grpo.Step, *_: list[Attempt]) -> None:
            if step.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock), watch=PulledPlug())
    clock.seconds = 7_000  # nobody was at work
    outcome = learn(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("budget", 2, 30)  # the second step was done twice
    assert [row["seconds"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [10, 30]


def test_a_budget_cuts_the_tree_and_a_tree_that_was_trained_on_stays_cut(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(backend, tmp_path / "whole", small("ttrl.per_root=30", "ttrl.max_steps=1"))
    n_rounds = sum(row["requests"] > 0 for row in read_jsonl(tmp_path / "whole/variants/rounds.jsonl"))
    assert n_rounds > 1
    clock = clocked(backend, monkeypatch, variants=10)
    cut = ("ttrl.per_root=30", "ttrl.max_steps=1", "ttrl.budget=11s")
    outcome = learn(backend, tmp_path / "cut", small(*cut), deadline=Deadline(inf, "", clock))
    assert 0 < outcome.n_variants < whole.n_variants
    assert len(read_jsonl(tmp_path / "cut/variants/rounds.jsonl")) == 1
    assert (outcome.steps, outcome.stopped) == (1, "max_steps")
    (tmp_path / "cut/eval/attempts.jsonl").unlink()
    again = learn(backend, tmp_path / "cut", small(*cut, "ttrl.budget=1h"), deadline=Deadline(inf, "", clock))
    assert without_times([asdict(again)]) == without_times([asdict(outcome)])


def test_a_budget_that_the_tree_used_up_leaves_the_answers(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, variants=10)
    outcome = learn(backend, tmp_path, small("ttrl.budget=9s"), deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps) == ("budget", 0)
    assert outcome.n_variants > 0
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4


def test_the_deadline_of_the_run_is_another_matter(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("ttrl.budget=1h")
    start = backend.snapshot()
    clock = clocked(backend, monkeypatch, tries=30)
    with pytest.raises(OutOfTime, match="budget of 75s used"):
        learn(backend, tmp_path / "cut", recipe, deadline=Deadline.after("75s", clock))
    assert same(backend.snapshot(), start)
    assert [row["step"] for row in read_jsonl(tmp_path / "cut/train/metrics.jsonl")] == [1, 2]
    outcome = learn(backend, tmp_path / "cut", recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("max_steps", 3, 90)
    learn(backend, tmp_path / "whole", recipe)
    assert what_counts(tmp_path / "cut") == what_counts(tmp_path / "whole")


def test_the_plateau_rule_ends_it(backend: Backend, tmp_path: Path) -> None:
    outcome = learn(backend, tmp_path, small("grpo.plateau={patience: 2, min_signal: 1.0}", "grpo.trl.temperature=9.0"))
    assert (outcome.stopped, outcome.steps) == ("plateau", 2)
    assert [row["stop"] for row in read_jsonl(tmp_path / "train/metrics.jsonl")] == [None, "plateau"]


def test_a_step_that_diverges_is_undone(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = shaken(backend)
    tuned = Tuned(backend, monkeypatch)
    with poisoned(backend, 3):
        outcome = learn(backend, tmp_path, small("ttrl.max_steps=4"))
    (rollback,) = divergence.load(tmp_path / "train")
    assert (rollback.step, rollback.back_to) == (3, 1)
    assert (outcome.stopped, outcome.steps) == ("max_steps", 4)
    assert [row["step"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [1, 2, 3, 4]
    assert all(weight.isfinite().all() for weight in tuned.adapters[-1].values())
    assert same(backend.snapshot(), start)


def test_kl_is_measured_against_the_adapter_it_began_with(backend: Backend, tmp_path: Path) -> None:
    shaken(backend)
    learn(backend, tmp_path, small("grpo.trl.beta=0.05"))
    steps = read_jsonl(tmp_path / "train/metrics.jsonl")
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl"] > 1e-6
