"""GRPO on problems: rows drawn by pass rate -> TRL's rollouts -> verified rewards -> TRL's update of a LoRA adapter.

What is the paper's: group-relative advantages, the clipped ratio, accuracy reward plus a small format reward. What is
ours: which rows a step trains on. A group whose rewards are all equal teaches nothing, so rows are drawn most often
where p (1 - p) is large, p being the pass rate measured in the rollouts that training makes anyway
(`grpo.rows: pass_rate`; the paper's setting is `uniform`).

Everything random in a step follows from the seed and the step's number, and what earlier steps saw is read back from
`attempts.jsonl`. A run that was killed goes on from its last complete checkpoint and, on a CPU, ends with the same
numbers as one that was not.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ladder_lite.attempts import Attempt, Completion
from ladder_lite.backends import Backend
from ladder_lite.config import GrpoSettings
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.tasks import Task
from ladder_lite.verify import Grade, Reason

if TYPE_CHECKING:  # importing TRL takes seconds; reading this module must not
    from trl import GRPOTrainer


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, counted from 1: a row of `metrics.jsonl`. Rewards are means over the step's rollouts.

    `stop` is set on the last step of a training that ended before `max_steps`: "plateau" or "asked".
    """

    step: int
    reward: float
    groups_without_signal: float
    n_tokens: int
    seconds: float
    verify_seconds: float
    loss: float
    learning_rate: float
    entropy: float
    stop: str | None


def train(
    task: Task,
    backend: Backend,
    problems: Sequence[Problem],
    settings: GrpoSettings,
    folder: Path,
    seed: int,
    after_step: Callable[[Step, list[Attempt]], bool],
) -> list[Step]:
    """Train the backend's adapter on the problems, from the weights it holds now; the trained adapter stays in it.

    `after_step` is called with each step and its rollouts and may end training by returning True. The folder receives
    `metrics.jsonl`, `attempts.jsonl` (every rollout with its grade) and `checkpoints/`. Called again with the same
    arguments after a kill, training goes on from the last complete checkpoint; rows of the logs that came after it
    (those of the caller's `curve.jsonl` included) are dropped. Returns all steps, the first one first.
    """
    checkpoint = _last_checkpoint(folder / "checkpoints")
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    for name in ("metrics.jsonl", "attempts.jsonl", "curve.jsonl"):
        truncate_jsonl(folder / name, lambda row: row["step"] <= done)
    log = _Log(task, problems, settings, folder, seed, after_step)
    trainer = _trainer(task, backend, settings, folder, seed, log, first_step=done + 1)
    if checkpoint and log.ended(trainer.args.max_steps):
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.accelerator.free_memory()
    return log.steps


class PassRates:
    """Measured pass rates of the problems, newest rollouts first in weight, and the rows that a step draws by them.

    A problem's pass rate is the mean of a Beta distribution. Its own rollouts count fully when new and half after
    `HALF_LIFE` steps, since the model changes under them; its prior is the pass rate of the problems of like length,
    so that a problem never tried is judged by its kind and one that was is judged by itself.
    """

    HALF_LIFE = 20
    PRIOR_WEIGHT = 2.0
    N_LENGTHS = 8
    EXPLORATION = 0.1

    def __init__(self, problems: Sequence[Problem], rows: str, seed: int) -> None:
        self._uniform = rows == "uniform"
        self._seed = seed
        order = np.argsort([len(json.dumps(dict(problem.data))) for problem in problems], kind="stable")
        self._length = np.empty(len(problems), dtype=int)
        self._length[order] = np.arange(len(problems)) * self.N_LENGTHS // len(problems)
        self._seen: dict[int, list[tuple[int, bool]]] = defaultdict(list)

    def observe(self, step: int, row: int, correct: bool) -> None:
        """Take in one rollout of a step."""
        self._seen[step].append((row, correct))

    def estimate(self, until: int) -> NDArray[np.float64]:
        """Pass rates (one per problem) by the rollouts of steps up to `until`."""
        right = np.zeros(len(self._length))
        tries = np.zeros(len(self._length))
        for step, rollouts in self._seen.items():
            if step <= until:
                weight = 0.5 ** ((until - step) / self.HALF_LIFE)
                for row, correct in rollouts:
                    tries[row] += weight
                    right[row] += weight * correct
        kin_right = np.bincount(self._length, right, self.N_LENGTHS)
        kin_tries = np.bincount(self._length, tries, self.N_LENGTHS)
        prior = ((kin_right + 1) / (kin_tries + 2))[self._length]
        return np.asarray((right + self.PRIOR_WEIGHT * prior) / (tries + self.PRIOR_WEIGHT))

    def draw(self, step: int, count: int) -> list[int]:
        """The rows that step number `step` trains on.

        They depend on rollouts up to two steps before only: the data loader asks for the rows of a step while the one
        before it is still to run, and a resumed training must draw the same.
        """
        rng = np.random.default_rng([self._seed, step])
        n_rows = len(self._length)
        weights = np.ones(n_rows)
        if not self._uniform:
            p = self.estimate(until=step - 2)
            weights = p * (1 - p)
            weights += self.EXPLORATION * weights.mean()
        rows: list[int] = []
        while len(rows) < count:  # each row once before any comes twice
            once = min(count - len(rows), n_rows)
            rows += rng.choice(n_rows, once, replace=False, p=weights / weights.sum()).tolist()
        return rows


class _Log:
    """The reward function's and the trainer's common memory: rollouts, pass rates and steps, on disk and at hand."""

    def __init__(
        self,
        task: Task,
        problems: Sequence[Problem],
        settings: GrpoSettings,
        folder: Path,
        seed: int,
        after_step: Callable[[Step, list[Attempt]], bool],
    ) -> None:
        self.problems = problems
        self.rates = PassRates(problems, settings.rows, seed)
        self.steps = [Step(**row) for row in read_jsonl(folder / "metrics.jsonl")]
        self._task = task
        self._settings = settings
        self._folder = folder
        self._after_step = after_step
        self._rollouts: list[Attempt] = []
        self._rewards: list[float | None] = []
        self._verify_seconds = 0.0
        self._started = time.monotonic()
        row_of = {problem.id: row for row, problem in enumerate(problems)}
        for row in read_jsonl(folder / "attempts.jsonl"):
            self._observe(row["step"], row_of[row["problem_id"]], Attempt.from_row(row))

    def ended(self, max_steps: int) -> bool:
        """Whether the logged steps are all there will be."""
        return bool(self.steps) and (len(self.steps) >= max_steps or self.steps[-1].stop is not None)

    def begin_step(self) -> None:
        """Start the clock of the next step."""
        self._started = time.monotonic()
        self._rollouts, self._rewards, self._verify_seconds = [], [], 0.0

    def grade(self, rows: Sequence[int], completions: Sequence[Completion]) -> list[float | None]:
        """Rewards of the completions (None where the problem itself cannot be verified), after noting them down."""
        started = time.monotonic()
        grades = [self._task.grade(self.problems[row], c.text) for row, c in zip(rows, completions, strict=True)]
        self._verify_seconds += time.monotonic() - started
        step = len(self.steps) + 1
        attempts = []
        for index, (row, completion, grade) in enumerate(zip(rows, completions, grades, strict=True)):
            attempts.append(Attempt(self.problems[row].id, index, completion, grade))
            self._observe(step, row, attempts[-1])
        append_jsonl(self._folder / "attempts.jsonl", [{"step": step, **attempt.to_row()} for attempt in attempts])
        self._rollouts += attempts
        rewards = [self._reward(grade) for grade in grades]
        self._rewards += rewards
        return rewards

    def end_step(self, logs: dict[str, float]) -> bool:
        """Note the step down and say whether training ends with it."""
        size = self._group_size
        groups = [self._rewards[start : start + size] for start in range(0, len(self._rewards), size)]
        verified = [reward for reward in self._rewards if reward is not None]
        step = Step(
            step=len(self.steps) + 1,
            reward=sum(verified) / max(1, len(verified)),
            groups_without_signal=sum(len(set(group) - {None}) <= 1 for group in groups) / len(groups),
            n_tokens=sum(attempt.completion.n_tokens for attempt in self._rollouts),
            seconds=time.monotonic() - self._started,
            verify_seconds=self._verify_seconds,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            entropy=logs["entropy"],
            stop=None,
        )
        if self._after_step(step, self._rollouts):
            step = replace(step, stop="asked")
        elif self._on_plateau([*self.steps, step]):
            step = replace(step, stop="plateau")
        self.steps.append(step)
        append_jsonl(self._folder / "metrics.jsonl", [asdict(step)])
        return step.stop is not None

    def _observe(self, step: int, row: int, attempt: Attempt) -> None:
        if attempt.grade.reward is not None:
            self.rates.observe(step, row, attempt.correct)

    @property
    def _group_size(self) -> int:
        return int(self._settings.trl["num_generations"])

    def _reward(self, grade: Grade) -> float | None:
        if grade.reward is None:
            return None
        return grade.reward + self._settings.format_reward * (grade.reason is not Reason.NO_ANSWER)

    def _on_plateau(self, steps: Sequence[Step]) -> bool:
        """Whether the last `patience` steps had hardly a group whose rewards differ: nothing to learn from is left."""
        plateau = self._settings.plateau
        if plateau is None or len(steps) < plateau.patience:
            return False
        recent = steps[-plateau.patience :]
        return sum(1 - step.groups_without_signal for step in recent) / plateau.patience < plateau.min_signal


def _trainer(
    task: Task, backend: Backend, settings: GrpoSettings, folder: Path, seed: int, log: _Log, first_step: int
) -> "GRPOTrainer":
    import torch
    from datasets import Dataset
    from torch.utils.data import Sampler
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = backend.trainable()
    config = GRPOConfig(
        output_dir=str(folder / "checkpoints"),
        seed=seed,
        use_cpu=model.device.type == "cpu",
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        report_to="none",
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,  # the one being written may be torn by a kill, the one before it is whole
        disable_tqdm=True,
        ignore_data_skip=True,  # the sampler below starts at the right step by itself
        dataloader_num_workers=0,
        num_iterations=1,
        **settings.trl,
    )
    prompts = [task.prompt(problem) for problem in log.problems]
    backend.check(prompts)

    class Rows(Sampler[int]):
        """Endless rows; each generation is asked for once per micro-batch that reuses it, as TRL's own sampler does."""

        def __len__(self) -> int:
            n_rows: int = config.max_steps * config.generation_batch_size * config.steps_per_generation
            return n_rows

        def __iter__(self) -> Iterator[int]:
            n_prompts = config.generation_batch_size // config.num_generations
            for step in range(first_step, config.max_steps + 1):
                rows = [row for row in log.rates.draw(step, n_prompts) for _ in range(config.num_generations)]
                for _ in range(config.steps_per_generation):
                    yield from rows

    class Trainer(GRPOTrainer):
        def _get_train_sampler(self, _dataset: Dataset | None = None) -> Sampler[int]:
            return Rows()

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            set_seed((seed * 1_000_003 + state.global_step) % 2**32)
            log.begin_step()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs and log.end_step(logs):
                control.should_training_stop = True

    def reward(completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        ended = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        replies = [
            Completion(messages[0]["content"], len(ids), truncated=not ids or ids[-1] not in ended)
            for messages, ids in zip(completions, completion_ids, strict=True)
        ]
        return log.grade(row, replies)

    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt, "row": row} for row, prompt in enumerate(prompts)]),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the trainer's state is the last of its files."""

    def complete(checkpoint: Path) -> bool:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            return False
        return True

    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((checkpoint for checkpoint in reversed(checkpoints) if complete(checkpoint)), None)
