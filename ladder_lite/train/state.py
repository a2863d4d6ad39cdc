"""A training run and its state: rollouts, pass rates and steps, in memory and in the files of the run's folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Protocol

from ladder_lite.budget import Deadline
from ladder_lite.config import GrpoSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl, rewrite_jsonl
from ladder_lite.models import Backend, Rollout
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.runs import layout
from ladder_lite.tasks import Reason, Task
from ladder_lite.train import divergence
from ladder_lite.train.curriculum import PassRates
from ladder_lite.train.groups import Group, most_groups, sample_groups
from ladder_lite.variants import Growth


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, counted from 1: a row of `metrics.jsonl`.

    `reward` is the mean over the model's own rollouts, format reward included. `grad_norm` is the norm before clipping;
    it is None in the file if the gradient scaler skipped the step. `kl` is None without a KL term. `stop` is set on the
    last step of a run that ended before `max_steps`: "plateau", or "asked" if `after_step` ended it. `training_pass`
    tells how Unsloth batched the step: packed, or padded and why.
    """

    step: int
    reward: float
    groups_without_signal: float  # share of zero-variance groups among those trained on
    n_tokens: int
    seconds: float  # rollouts, verification and update
    verify_seconds: float
    loss: float
    learning_rate: float
    entropy: float | None
    stop: str | None
    grad_norm: float | None = None
    kl: float | None = None
    training_pass: str | None = None
    sampled_groups_without_signal: float | None = None  # share among all groups, those that were replaced included
    n_rollouts: int | None = None  # of all groups, and of the base model
    n_base_rollouts: int = 0
    solved_problems: float | None = None  # share of the step's problems to which the model itself has a right answer


class Sampler(Protocol):
    """What a training run needs of its trainer to make rollouts."""

    def sample(self, problems: list[Problem], wave: int, from_base: bool = False) -> list[Rollout]:
        """Sample one completion for each problem, with the adapter switched off if `from_base`.

        `wave` counts the calls within a step.
        """

    def encode(self, completion: Completion) -> list[int]:
        """Return the token ids of an earlier completion."""


AfterStep = Callable[[Step, list[Attempt]], bool]
"""Called with each step and its rollouts; training ends if it returns True."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training run: task and model, settings, folder, seed and deadline.

    `say` prints a line: when the run rolls back after a divergence or continues with a smaller micro-batch, and about
    Unsloth's training pass.
    """

    task: Task
    backend: Backend
    settings: GrpoSettings
    folder: Path
    seed: int
    deadline: Deadline = field(default_factory=Deadline.never)
    say: Callable[[str], None] = lambda _: None


class TrainingState:
    """The problems of a training run with their pass rates, and its steps so far.

    `roll_out` adds rollouts and `end_step` adds steps; both are written to the folder immediately. Created
    with the folder of an earlier run, it continues from the last step in that folder.
    """

    def __init__(
        self, training: Training, problems: Sequence[Problem], growth: Growth | None, after_step: AfterStep
    ) -> None:
        self.problems = list(problems)
        settings = training.settings
        self.rates = PassRates(problems, settings.rows, training.seed, int(settings.trl["max_steps"]))
        self.steps = [Step(**row) for row in read_jsonl(training.folder / layout.METRICS)]
        self.training_pass: str | None = None
        self._task, self._settings, self._folder = training.task, settings, training.folder
        self._seed = training.seed
        self._after_step = after_step
        self._growth = growth
        self._replayed: dict[int, Attempt] = {}  # row -> the right attempt that unsolved groups get
        self._asked: set[int] = set()  # rows that the base model has tried
        # The current step:
        self._started = time.monotonic()
        self._rollouts: list[Attempt] = []
        self.trained: list[Group] = []
        self.dropped: list[Group] = []
        self._verify_seconds = 0.0
        # Restore the problems that the tree gained while training ran; those of later steps are dropped.
        for step, problem in growth.rewind(len(self.steps)) if growth else ():
            self._add([problem], step)
        # Replay the rollouts in order. A row is a problem's index in `self.problems`.
        row_of = {problem.id: row for row, problem in enumerate(self.problems)}
        for row in read_jsonl(self._folder / layout.ATTEMPTS):
            self._observe(row["step"], row_of[row["problem_id"]], Attempt.from_row(row))

    def ended(self, max_steps: int) -> bool:
        """Return whether training has ended: by reaching `max_steps`, on a plateau, or as `after_step` asked."""
        return bool(self.steps) and (len(self.steps) >= max_steps or self.steps[-1].stop is not None)

    def begin_step(self) -> None:
        """Start the clock of the next step."""
        self._started = time.monotonic()
        self._rollouts, self.trained, self.dropped, self._verify_seconds = [], [], [], 0.0

    def roll_out(self, n: int, size: int, sampler: Sampler) -> list[Group]:
        """Draw rows and sample `n` groups of `size` rollouts for the current step; return those to train on."""
        settings, step = self._settings, len(self.steps) + 1
        n_sampled = max(size, settings.downsample_from or size)
        waves = count()

        def sample(rows: list[int], from_base: bool = False) -> tuple[list[Rollout], list[float | None]]:
            rollouts = sampler.sample([self.problems[row] for row in rows], next(waves), from_base)
            return rollouts, self.grade(rows, [rollout.completion for rollout in rollouts], from_base)

        def replay(groups: list[Group]) -> None:
            for group in groups:
                if earlier := self._replayed.get(group.row):
                    ids = sampler.encode(earlier.completion)
                    answer = Rollout(group.rollouts[0].prompt_ids, ids, earlier.completion)
                    half = len(group.rollouts) // 2  # rewards then differ most
                    group.rollouts[-half:] = [answer] * half
                    group.rewards[-half:] = [self._reward(earlier, is_right=True)] * half

        if asked := self._rows_for_base(step - 1):
            sample(asked, from_base=True)  # right answers are replayed
        n_spare = most_groups(n, n_sampled, settings.refill) - n
        n_first = min(settings.refill.pilot, n_sampled) if settings.refill else n_sampled
        rows = self.rates.draw(step, n, n_spare, self._replayed, n_first)
        trained, self.dropped = sample_groups(rows, sample, n, n_sampled, settings.refill, replay)
        self.trained = [group.select(size) for group in trained] if n_sampled > size else trained
        return self.trained

    def grade(
        self, rows: Sequence[int], completions: Sequence[Completion], from_base: bool = False
    ) -> list[float | None]:
        """Grade completions of the problems in `rows`, record the attempts, and return the rewards.

        A reward is None if the problem itself cannot be verified.
        """
        started = time.monotonic()
        grades = [self._task.grade(self.problems[row], c.text) for row, c in zip(rows, completions, strict=True)]
        self._verify_seconds += time.monotonic() - started
        step = len(self.steps) + 1  # the current step is appended to `self.steps` when it ends
        attempts = []
        # Numbered through all waves of the step.
        numbered = enumerate(zip(rows, completions, grades, strict=True), start=len(self._rollouts))
        for index, (row, completion, grade) in numbered:
            attempts.append(Attempt(self.problems[row].id, index, completion, grade, from_base))
            self._observe(step, row, attempts[-1])
        # Written before the step is complete. After a kill, the rows of an incomplete step are cut off.
        append_jsonl(self._folder / layout.ATTEMPTS, [{"step": step, **attempt.to_row()} for attempt in attempts])
        self._rollouts += attempts
        return [self._reward(attempt, self._is_right(step, attempt)) for attempt in attempts]

    def check_step(self, logs: dict[str, float], *, max_grad_norm: float, skipped: bool, finite: bool) -> None:
        """Raise Diverged if the current step went wrong; see `divergence.check_step`."""
        # Called before `end_step`: of a step that diverged, only its rollouts have been recorded.
        recent = [(step.loss, step.grad_norm) for step in self.steps]
        loss, norm = logs["loss"], logs["grad_norm"]
        divergence.check_step(
            len(self.steps) + 1, loss, norm, recent, max_grad_norm=max_grad_norm, skipped=skipped, finite=finite
        )

    def end_step(self, logs: dict[str, float]) -> bool:
        """Record the current step, grow the tree if it is due, and return whether training ends."""
        # Rewards of None are ignored, as TRL does: such rows get an advantage of 0.
        own = [attempt for attempt in self._rollouts if not attempt.from_base]
        rewards = [self._reward(attempt, self._is_right(len(self.steps) + 1, attempt)) for attempt in own]
        verified = [reward for reward in rewards if reward is not None]
        step = Step(
            step=len(self.steps) + 1,
            reward=sum(verified) / max(1, len(verified)),
            groups_without_signal=_share_without_signal(self.trained),
            sampled_groups_without_signal=_share_without_signal([*self.trained, *self.dropped]),
            n_rollouts=len(self._rollouts),
            n_base_rollouts=len(self._rollouts) - len(own),
            solved_problems=len({attempt.problem_id for attempt in own if attempt.correct})
            / max(1, len({attempt.problem_id for attempt in own if attempt.grade.reward is not None})),
            n_tokens=sum(attempt.completion.n_tokens for attempt in self._rollouts),
            seconds=time.monotonic() - self._started,
            verify_seconds=self._verify_seconds,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            entropy=logs.get("entropy"),  # missing with Unsloth, and in a step in which no row has a gradient
            stop=None,
            grad_norm=logs.get("grad_norm"),
            kl=logs.get("kl"),
            training_pass=self.training_pass,
        )
        # Before the step is written to metrics.jsonl: after a kill in between, the step is repeated, and this call too.
        if self._after_step(step, own):
            step = replace(step, stop="asked")
        elif self._on_plateau([*self.steps, step]):
            step = replace(step, stop="plateau")
        self.steps.append(step)
        in_time = step.stop is None and step.step < int(self._settings.trl["max_steps"])
        if self._growth and in_time and step.step % self._growth.settings.every == 0:
            stuck = [self.problems[row] for row in self.rates.stuck(step.step)]
            frontier = [self.problems[row] for row in self.rates.frontier(step.step)]
            self._add(self._growth.grow(step.step, stuck, frontier), step.step)
        append_jsonl(self._folder / layout.METRICS, [asdict(step)])
        return step.stop is not None

    def write_pass_rates(self) -> None:
        """Write `pass_rates.jsonl`: the tries, pass rate and state of each problem."""
        rows = zip(self.problems, self.rates.table(len(self.steps)), strict=True)
        rewrite_jsonl(self._folder / layout.PASS_RATES, [{"problem_id": problem.id, **row} for problem, row in rows])

    def _add(self, problems: Sequence[Problem], step: int) -> None:
        self.problems += problems
        self.rates.add(problems, step)

    def _observe(self, step: int, row: int, attempt: Attempt) -> None:
        is_right = self._is_right(step, attempt)
        if is_right and (self._settings.replay or attempt.from_base):
            self._replayed[row] = attempt
        if attempt.from_base:
            self._asked.add(row)
            return
        # The format reward plays no part here: a pass rate counts verified answers.
        self.rates.observe(step, row, is_right)

    def _rows_for_base(self, step: int) -> list[int]:
        """Return the rows that the base model tries: the shortest problems that the model fails, each once."""
        setting = self._settings.base_rollouts
        if setting is None:
            return []
        candidates = {*self.rates.stuck(step), *self.rates.failing(step)} - self._replayed.keys() - self._asked
        # Shorter problems are easier, and cost fewer tokens.
        shortest = sorted(candidates, key=lambda row: (len(self._task.statement(self.problems[row])), row))
        return [row for row in shortest[: setting.rows] for _ in range(setting.samples)]

    def _is_right(self, step: int, attempt: Attempt) -> bool | None:
        """Return whether an attempt earns the reward of `grpo.reward`; None if its problem cannot be verified."""
        if attempt.grade.reward is None:
            return None
        # The controls also replace what the choice of rows and the replay of answers learn from the verifier.
        match self._settings.reward:
            case "random":  # from the attempt's place in the run, so that a resumed run draws the same
                return Random(f"{self._seed}/reward/{step}/{attempt.index}").random() < 0.5
            case "format":
                return attempt.grade.reason in (Reason.CORRECT, Reason.WRONG)
            case "verifier":
                return attempt.correct

    def _reward(self, attempt: Attempt, is_right: bool | None) -> float | None:
        if is_right is None or attempt.grade.reward is None:
            return None
        # A task may grade an answer that is not right above 0.
        earned = attempt.grade.reward if self._settings.reward == "verifier" else float(is_right)
        # The format reward is for any reply that states an answer, even one that cannot be parsed.
        return earned + self._settings.format_reward * (attempt.grade.reason is not Reason.NO_ANSWER)

    def _on_plateau(self, steps: Sequence[Step]) -> bool:
        """Return whether too few groups of the last `patience` steps had rewards that differ."""
        plateau = self._settings.plateau
        if plateau is None or len(steps) < plateau.patience:
            return False
        recent = steps[-plateau.patience :]
        return sum(1 - step.groups_without_signal for step in recent) / plateau.patience < plateau.min_signal


def _share_without_signal(groups: Sequence[Group]) -> float:
    return sum(not group.has_signal for group in groups) / len(groups)
