"""GRPO on problems: rows drawn by pass rate -> TRL's rollouts -> verified rewards -> TRL's update of a LoRA adapter.

What is the paper's: group-relative advantages, the clipped ratio, accuracy reward plus a small format reward. What is
ours: which rows a step trains on (`grpo.rows: pass_rate`, see `ladder_lite.curriculum`; the paper's is `uniform`), and
that the tree may grow between steps below problems that are too hard (`variants.adaptive`).

Everything random in a step follows from the seed and the step's number, and what earlier steps saw is read back from
`attempts.jsonl`. A run that was killed goes on from its last complete checkpoint and, on a CPU, ends with the same
numbers as one that was not.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite.attempts import Attempt, Completion
from ladder_lite.backends import Backend
from ladder_lite.curriculum import PassRates
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.settings import GrpoSettings
from ladder_lite.tasks import Task
from ladder_lite.variants import Growth
from ladder_lite.verify import Grade, Reason

if TYPE_CHECKING:  # importing TRL takes seconds; reading this module must not
    from trl import GRPOTrainer


_MAX_ROWS = 1_000_000
"""More than any tree has: TRL wants a data set of fixed length, and rows that are never drawn cost nothing."""


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


AfterStep = Callable[[Step, list[Attempt]], bool]
"""Called with each step and its rollouts; training ends where it returns True."""


def train(
    task: Task,
    backend: Backend,
    problems: Sequence[Problem],
    settings: GrpoSettings,
    folder: Path,
    seed: int,
    after_step: AfterStep,
    growth: Growth | None = None,
) -> list[Step]:
    """Train the backend's adapter on the problems, from the weights it holds now; the trained adapter stays in it.

    `after_step` is called with each step and its rollouts and may end training by returning True; `growth` adds
    problems between steps. The folder receives `metrics.jsonl`, `attempts.jsonl` (every rollout with its grade),
    `pass_rates.jsonl` (what is known of each problem at the end) and `checkpoints/`. Called again with the same
    arguments after a kill, training goes on from the last complete checkpoint; rows of the logs that came after it
    (those of the caller's `curve.jsonl` included) are dropped. Returns all steps, the first one first.
    """
    checkpoint = _last_checkpoint(folder / "checkpoints")
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    for name in ("metrics.jsonl", "attempts.jsonl", "curve.jsonl"):
        truncate_jsonl(folder / name, lambda row: row["step"] <= done)
    log = _Log(problems, growth, settings, seed, task, folder, after_step)
    trainer = _trainer(task, backend, settings, folder, seed, log, first_step=done + 1)
    if checkpoint and log.ended(trainer.args.max_steps):
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.accelerator.free_memory()
    if "ref" in trainer.model.peft_config:  # TRL's copy of the weights training began with, which KL is measured from
        trainer.model.delete_adapter("ref")  # the next training makes one of its own
    log.write_pass_rates()
    return log.steps


class _Log:
    """The reward function's and the trainer's common memory: rollouts, pass rates and steps, on disk and at hand."""

    def __init__(
        self,
        problems: Sequence[Problem],
        growth: Growth | None,
        settings: GrpoSettings,
        seed: int,
        task: Task,
        folder: Path,
        after_step: AfterStep,
    ) -> None:
        self.problems = list(problems)
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
        self._growth = growth
        for step, problem in growth.rewind(len(self.steps)) if growth else ():
            self._add([problem], step)
        row_of = {problem.id: row for row, problem in enumerate(self.problems)}
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
        # What grows now is drawn two steps later at the earliest.
        in_time = step.stop is None and step.step <= int(self._settings.trl["max_steps"]) - 2
        if self._growth and in_time and step.step % self._growth.every == 0:
            stuck = [self.problems[row] for row in self.rates.stuck(step.step)]
            frontier = [self.problems[row] for row in self.rates.frontier(step.step)]
            self._add(self._growth.grow(step.step, stuck, frontier), step.step)
        append_jsonl(self._folder / "metrics.jsonl", [asdict(step)])
        return step.stop is not None

    def write_pass_rates(self) -> None:
        """Write what is known of each problem."""
        rows = zip(self.problems, self.rates.table(len(self.steps)), strict=True)
        truncate_jsonl(self._folder / "pass_rates.jsonl", lambda row: False)
        append_jsonl(self._folder / "pass_rates.jsonl", [{"problem_id": problem.id, **row} for problem, row in rows])

    def _add(self, problems: Sequence[Problem], step: int) -> None:
        self.problems += problems
        self.rates.add(problems, step)

    def _observe(self, step: int, row: int, attempt: Attempt) -> None:
        self.rates.observe(step, row, None if attempt.grade.reward is None else attempt.correct)

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
    backend.check([task.prompt(problem) for problem in log.problems])

    def ask(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
        """A prompt is made when its row is drawn, for the tree may have grown since."""
        return [{"prompt": task.prompt(log.problems[row["row"]]), **row} for row in rows]

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

        def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
            """Where there is a second adapter, as with `beta`, transformers would leave out the one that is trained."""
            super()._load_from_checkpoint(checkpoint, model)
            self.model.load_adapter(checkpoint, "default", is_trainable=True)

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
        train_dataset=Dataset.from_dict({"row": range(_MAX_ROWS)}),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.data_collator = ask
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
