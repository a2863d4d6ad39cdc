"""TTRL on the embedded model: the choice of problems, the outcome of one, and the rollback of the weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ladder_lite import ttrl, variants
from ladder_lite.budget import OutOfTime
from ladder_lite.evaluate.scores import majority_vote
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Adapter, Backend, Sampling
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.tasks import Messages
from ladder_lite.train import grpo
from ladder_lite.train.state import Step
from tests.support.fakes import FakeBackend
from tests.support.problems import TASK
from tests.support.ttrl_runs import (
    EASY,
    HARD,
    AdapterLog,
    Recorder,
    perturbed,
    result_rows,
    run_ttrl,
    same,
    small_recipe,
    without_times,
)

# --- the choice of problems


def problems(n: int) -> list[Problem]:
    return [TASK.read(f"x**{power}") for power in range(2, n + 2)]


def test_listed_problems_are_the_first_ones() -> None:
    left = problems(10)
    for n in (0, 3, 10):
        assert ttrl.choose_problems(left, small_recipe(f"ttrl.problems={n}", "ttrl.order=listed").ttrl, 0) == left[:n]
    assert ttrl.choose_problems(left, small_recipe("ttrl.problems=11", "ttrl.order=listed").ttrl, 0) == left
    assert ttrl.choose_problems(left, small_recipe("ttrl.problems=all", "ttrl.order=listed").ttrl, 0) == left


def test_shuffled_problems_are_a_sample_drawn_from_the_seed() -> None:
    left = problems(10)
    chosen = ttrl.choose_problems(left, small_recipe("ttrl.problems=4", "ttrl.order=shuffled").ttrl, 3)
    assert chosen == Random(3).sample(left, 4)
    assert chosen != ttrl.choose_problems(left, small_recipe("ttrl.problems=4", "ttrl.order=shuffled").ttrl, 4)
    everything = ttrl.choose_problems(left, small_recipe("ttrl.problems=all", "ttrl.order=shuffled").ttrl, 3)
    assert everything != left
    assert sorted(everything, key=left.index) == left
    assert left == problems(10)


# --- the outcome


def test_the_outcome_agrees_with_the_files(backend: Backend, tmp_path: Path) -> None:
    recipe, notes = small_recipe(), Recorder()
    outcome = run_ttrl(backend, tmp_path, recipe, observer=notes)
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
        "root_id": HARD.id,
        "n_verifier_calls": len(rollouts) + 3 * recipe.ttrl.samples_per_step,
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
    assert [(step.step, a.to_row()) for step, seen, _ in notes.steps for a in seen] == [
        (row.pop("step"), row) for row in rollouts
    ]
    assert [[a.problem_id for a in tries] for _, _, tries in notes.steps] == [[HARD.id] * 2] * 3


def test_a_tree_that_grows_during_training(backend: Backend, tmp_path: Path) -> None:
    adaptive = ("ttrl.adaptive={start: 2, every: 1, requests: 4}", "ttrl.per_root=12", "ttrl.depth=3")
    recipe = small_recipe(*adaptive)
    outcome = run_ttrl(backend, tmp_path / "whole", recipe)
    tree, grown = (variants.load(tmp_path / "whole" / folder) for folder in ("variants", "train/variants"))
    assert len(tree) < outcome.n_variants == len(tree) + len(grown) <= 12 + 4
    assert {problem.parent_id for problem in grown} <= {problem.id for problem in (*tree, *grown)}
    assert HARD.id not in {problem.parent_id for problem in grown}  # the test problem itself is no row of training
    rows = [
        *read_jsonl(tmp_path / "whole/variants/rounds.jsonl"),
        *read_jsonl(tmp_path / "whole/train/variants/rounds.jsonl"),
    ]
    logs = [row for name in ("attempts", "curve") for row in read_jsonl(tmp_path / f"whole/train/{name}.jsonl")]
    assert outcome.n_tokens == sum(row["n_tokens"] for row in (*rows, *logs))

    class Interrupted(Recorder):
        def step(self, step: Step, rollouts: list[Attempt], tries: list[Attempt]) -> None:
            super().step(step, rollouts, tries)
            if step.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ttrl(backend, tmp_path / "cut", recipe, observer=Interrupted())
    resumed = run_ttrl(backend, tmp_path / "cut", recipe)
    assert replace(resumed, seconds=0) == replace(outcome, seconds=0)
    assert result_rows(tmp_path / "cut") == result_rows(tmp_path / "whole")
    assert variants.load(tmp_path / "cut/train/variants") == grown


@pytest.mark.parametrize("stop_when_solved", [True, False])
def test_the_first_right_answer_solves_the_problem_and_may_end_training(
    backend: Backend, tmp_path: Path, stop_when_solved: bool
) -> None:
    recipe = small_recipe(f"ttrl.stop_when_solved={json.dumps(stop_when_solved)}", "ttrl.samples_per_step=8")
    outcome = run_ttrl(backend, tmp_path, recipe, EASY)
    curve = read_jsonl(tmp_path / "train/curve.jsonl")
    first = next(row for row in curve if row["answer"] is not None)
    assert (outcome.solved, outcome.steps_to_solve, outcome.answer) == (True, first["step"], first["answer"])
    assert TASK.grade(EASY, f"<answer>{outcome.answer}</answer>").reward == 1
    assert outcome.steps_to_solve is not None
    assert outcome.steps_to_solve < 3
    assert outcome.steps == len(curve) == (outcome.steps_to_solve if stop_when_solved else 3)
    assert outcome.stopped == ("solved" if stop_when_solved else "max_steps")


def test_training_on_the_problem_itself(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tree is grown, also during training, and a right rollout solves the problem even if all tries are wrong."""
    notes, sample = Recorder(), backend.sample
    recipe = small_recipe(
        "ttrl.train_on=problem", "ttrl.stop_when_solved=true", "ttrl.adaptive={start: 2, every: 1, requests: 4}"
    )

    def wrong(prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        replies = sample(prompts, n, sampling)
        return [[replace(reply, text="<answer>x</answer>") for reply in own] for own in replies]

    monkeypatch.setattr(backend, "sample", wrong)
    outcome = run_ttrl(backend, tmp_path, recipe, EASY, observer=notes)
    assert [[problem.id for problem in tree] for tree in notes.trees] == [[EASY.id]]
    rollouts = read_jsonl(tmp_path / "train/attempts.jsonl")
    assert {row["problem_id"] for row in rollouts} == {EASY.id}
    assert (outcome.solved, outcome.stopped, outcome.n_variants, outcome.root_id) == (True, "solved", 0, EASY.id)
    assert outcome.answer in {row["answer"] for row in rollouts if row["reason"] == "CORRECT"}
    assert [row["pass@1"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [0.0] * outcome.steps
    assert outcome.n_verifier_calls == len(rollouts) + 2 * outcome.steps
    assert not list(tmp_path.rglob("rounds.jsonl"))


def test_training_on_the_variants_of_another_problem(backend: Backend, tmp_path: Path) -> None:
    outcome = run_ttrl(backend, tmp_path, small_recipe(), HARD, root=EASY)
    tree = variants.load(tmp_path / "variants")
    assert {problem.root_id for problem in tree} == {EASY.id} == {outcome.root_id}
    assert {row["problem_id"] for row in read_jsonl(tmp_path / "train/attempts.jsonl")} <= {p.id for p in tree}
    assert {row["problem_id"] for row in read_jsonl(tmp_path / "eval/attempts.jsonl")} == {HARD.id}
    assert outcome.problem_id == HARD.id


def test_the_vote_is_independent_of_right_tries(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the tries is right, but most of the final answers are wrong."""
    replies = {2: ["sin(2*x)/2", "x"], 4: ["x", "x", "sin(2*x)/2", "x"]}
    sample = backend.sample

    def scripted(prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        if n == 1:  # a variant, or the greedy answer
            return sample(prompts, n, sampling)
        return [[Completion(f"<answer>{answer}</answer>", 3, truncated=False) for answer in replies[n]]]

    monkeypatch.setattr(backend, "sample", scripted)
    outcome = run_ttrl(backend, tmp_path, small_recipe("ttrl.stop_when_solved=true"), EASY)
    assert (outcome.solved, outcome.answer, outcome.stopped) == (True, "sin(2*x)/2", "solved")
    assert (outcome.voted_answer, outcome.voted_share, outcome.voted_right) == ("x", 0.75, False)


class WithTensors(FakeBackend):
    """A scripted model with weights that can be compared but not trained."""

    def __init__(self) -> None:
        import torch

        super().__init__(lambda prompt, rng: "<answer>x</answer>")
        self.weights = {"lora": torch.zeros(2, 3)}

    def snapshot(self) -> Adapter:
        return {name: weight.clone() for name, weight in self.weights.items()}


def test_a_problem_without_variants_is_answered_untrained(tmp_path: Path) -> None:
    fake, notes = WithTensors(), Recorder()
    outcome = run_ttrl(fake, tmp_path, small_recipe(), observer=notes)
    assert (outcome.stopped, outcome.steps, outcome.n_variants) == ("no variants", 0, 0)
    assert (outcome.solved, outcome.voted_answer, outcome.voted_right) == (False, "x", False)
    assert outcome.n_tokens == sum(row["n_tokens"] for row in read_jsonl(tmp_path / "variants/rounds.jsonl")) > 0
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4
    assert (notes.trees, notes.steps) == ([[]], [])


def test_each_use_has_its_own_seed(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds would give variants, rollouts, tries and answers the same random numbers."""
    seeds: list[int] = []
    sample, roll_out = backend.sample, backend.roll_out

    def record_sample(prompts: Sequence[Messages], n: int, sampling: Sampling) -> Any:
        if prompts:
            seeds.append(sampling.seed)
        with monkeypatch.context() as patch:  # `sample` calls it, which must not count twice
            patch.setattr(backend, "roll_out", roll_out)
            return sample(prompts, n, sampling)

    def record_roll_out(prompts: Sequence[Messages], sampling: Sampling) -> Any:
        seeds.append(sampling.seed)
        return roll_out(prompts, sampling)

    monkeypatch.setattr(backend, "sample", record_sample)
    monkeypatch.setattr(backend, "roll_out", record_roll_out)
    for problem in (HARD, EASY):
        run_ttrl(backend, tmp_path / problem.id, small_recipe("ttrl.max_steps=2"), problem)
    assert len(seeds) >= 2 * (1 + 2 + 2 + 2)  # rounds of the tree, rollouts, tries, sampled and greedy answers
    assert len(set(seeds)) == len(seeds)


# --- small trees


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tree_of_few_variants_is_trained_on(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """A step of four groups takes each problem as often as it needs to, one group after another."""
    few = [TASK.read(text) for text in ("4*cos(8*x)", "8*x**2", "exp(4*x)")[:n]]
    monkeypatch.setattr(variants, "grow", lambda *_: few)
    start, adapter_log = backend.snapshot(), AdapterLog(backend, monkeypatch)
    outcome = run_ttrl(backend, tmp_path, small_recipe("grpo.trl.per_device_train_batch_size=32", "grpo.refill=null"))
    assert outcome.steps == 3
    rollouts = read_jsonl(tmp_path / "train/attempts.jsonl")
    for step in (1, 2, 3):
        own = [row["problem_id"] for row in rollouts if row["step"] == step]
        assert len(own) == 32
        assert set(own) == {problem.id for problem in few}
        assert all(len(set(own[at : at + 8])) == 1 for at in range(0, 32, 8))
    assert any(row["grad_norm"] > 0 for row in read_jsonl(tmp_path / "train/metrics.jsonl"))
    assert not same(adapter_log.adapters[-1], start)


# --- the rollback


def test_the_adapter_is_restored(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = perturbed(backend)
    adapter_log = AdapterLog(backend, monkeypatch)
    run_ttrl(backend, tmp_path, small_recipe())
    assert same(backend.snapshot(), start)
    assert not same(adapter_log.adapters[-1], start)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OutOfTime])
def test_the_adapter_is_restored_after_an_exception(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    start = perturbed(backend)
    adapter_log = AdapterLog(backend, monkeypatch)

    class Fails(Recorder):
        def step(self, step: grpo.Step, *_: list[Attempt]) -> None:
            if step.step == 2:
                raise error

    with pytest.raises(error):
        run_ttrl(backend, tmp_path, small_recipe("grpo.trl.beta=0.05"), observer=Fails())
    assert not same(adapter_log.adapters[-1], start)
    assert same(backend.snapshot(), start)
    assert list(backend.trainable()[0].peft_config) == ["default"]


def test_a_rollback_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = WithTensors()
    monkeypatch.setattr(fake, "restore", lambda adapter: fake.weights["lora"].add_(1e-7))
    with pytest.raises(RuntimeError, match="rollback failed"):
        run_ttrl(fake, tmp_path, small_recipe())


def test_adapters_are_compared_bit_by_bit() -> None:
    import torch

    from ladder_lite.models.adapter import is_same

    one = {"a": torch.tensor([[0.0, 1.0], [torch.nan, 2.0]]), "b": torch.ones(3)}
    assert is_same(one, {name: weight.clone() for name, weight in one.items()})
    assert not is_same(one, one | {"b": torch.tensor([1.0, 1.0, 1.0 + 2**-23])})
    assert not is_same(one, one | {"a": torch.tensor([[-0.0, 1.0], [torch.nan, 2.0]])})
    assert not is_same(one, {"a": one["a"]})
    assert not is_same({"a": one["a"]}, one)
    half = {"b": torch.tensor([0.1, -3.0], dtype=torch.bfloat16)}
    assert is_same(half, {"b": half["b"].float()})  # as after training, which widens the adapter to float32
