"""Fakes of a model, a progress bar and a clock."""

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from rich.progress import Progress

from ladder_lite.models import Sampling
from ladder_lite.problems.attempts import Completion
from ladder_lite.tasks import Messages
from ladder_lite.terminal import Bar

Script = Iterable[str] | Callable[[str, Random], str]


class Asked(NamedTuple):
    """One call of `FakeBackend.sample`."""

    prompts: list[Messages]
    n: int
    sampling: Sampling


class FakeBackend:
    """A model with scripted replies: texts in turn, or a function of the prompt's last message and a random generator.

    The generator depends only on the call's seed and the position of the reply, like a real model's random draws on a
    CPU. Each character of a reply counts as a token.
    """

    def __init__(self, script: Script) -> None:
        self.asked: list[Asked] = []
        self.restored: list[dict[str, Any]] = []
        self.weights: dict[str, Any] = {"lora": 0}
        if callable(script):
            self._reply = script
        else:
            replies = iter(script)
            self._reply = lambda prompt, rng: next(replies)

    @property
    def prompts(self) -> list[str]:
        """The last message of every prompt so far."""
        return [prompt[-1]["content"] for call in self.asked for prompt in call.prompts]

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        self.asked.append(Asked(list(prompts), n, sampling))
        return [
            [self._complete(prompt, Random(f"{sampling.seed}/{place}/{index}")) for index in range(n)]
            for place, prompt in enumerate(prompts)
        ]

    def check(self, prompts: Sequence[Messages]) -> None:
        assert all(self.fits(prompt) for prompt in prompts)

    def fits(self, prompt: Messages) -> bool:
        return len(prompt[-1]["content"]) < 2_000

    def snapshot(self) -> dict[str, Any]:
        return dict(self.weights)

    def restore(self, adapter: dict[str, Any]) -> None:
        self.restored.append(adapter)
        self.weights = dict(adapter)

    def _complete(self, prompt: Messages, rng: Random) -> Completion:
        text = self._reply(prompt[-1]["content"], rng)
        return Completion(text, len(text), truncated=False)


def silent_bar(total: int | None = None) -> Bar:
    """A progress bar that is not displayed."""
    progress = Progress(disable=True)
    task_id = progress.add_task("", total=total)
    return Bar("", progress.tasks[0], lambda _bar, done, _fields: progress.update(task_id, completed=done))


class Clock:
    """A clock that a test sets by hand."""

    def __init__(self, seconds: float = 100.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds
