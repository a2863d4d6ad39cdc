"""The tasks of the package reasoning-gym as `reasoning_gym:NAME`: generated problems with verifiers of their own.

A source in `task.train`, `task.test` and `task.probe` is a number of problems, then settings of the data set:

    "50"                        50 problems with the default settings
    "50 level=2"                50 problems of level 2 of the curriculum, in all of its attributes
    "50 seed=7 min_terms=4"     50 problems with these settings of the data set's configuration
    "rows.jsonl"                a file with rows that were generated before

The splits have different problems, unless their sources name the same seed. Variants are not written by the model:
easier variants of a problem with a level are new problems of the level below, equivalent ones of the same level.

The verifiers are those of reasoning-gym. Some of them evaluate parts of an answer as Python or SymPy expressions, so
run them only where that does no harm.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, ClassVar, Final

import yaml

from ladder_lite.errors import UserError, first_line, nearest
from ladder_lite.tasks.problem import Problem
from ladder_lite.tasks.rows import Row
from ladder_lite.tasks.task import Rejected, Task, Unreadable, VariantRequest

# Far apart: problem number i of seed s is problem number i - 1 of seed s + 1.
_SEEDS: Final = {"train": 0, "test": 1_000_000_000, "probe": 2_000_000_000}


class ReasoningGymTask(Task):
    """One task of reasoning-gym, named after the colon of `task.name`."""

    fields: ClassVar[Mapping[str, str]] = {
        "question": "the question",
        "entry": "an answer that the verifier accepts and what else it needs to know, as JSON",
        "level": "the level of the curriculum, null without one",
    }
    optional = ("level",)
    placeholder_names = ("question",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        try:
            from reasoning_gym import factory
        except ImportError as error:
            raise self._error("needs reasoning-gym; run pip install 'ladder_lite[reasoning-gym]'") from error
        self._factory, self._name = factory, self.settings.name.partition(":")[2]
        if self._name not in factory.DATASETS:
            raise self._error(f"reasoning-gym has no such task{nearest(self._name, factory.DATASETS)}")
        self._score = factory.get_score_answer_fn(self._name)

    @property
    def examples(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Generated problems."""
        return [row.values for row in self.rows("5", None)]

    def statement(self, problem: Problem) -> str:
        """Return the question in one line."""
        return " ".join(str(problem.data["question"]).split())

    def key(self, problem: Problem) -> str:
        """Return the question in one line."""
        return self.statement(problem)

    def is_right(self, problem: Problem, answer: str) -> bool:
        """Return whether reasoning-gym gives the answer its full score; partial scores count as wrong."""
        try:
            entry = {"question": problem.data["question"], **json.loads(str(problem.data["entry"]))}
            return float(self._score(answer, entry)) >= 1
        except Exception as error:  # many of these verifiers read an answer without catching what that may raise
            raise Unreadable(f"{type(error).__name__}: {first_line(error)}") from error

    def read(self, text: str, **fields: str | None) -> Problem:  # noqa: ARG002
        """Raise UserError: without the values that its verifier needs, a question cannot be answered."""
        raise self._error("its problems are generated; `python -m ladder_lite.evaluate` has a model answer them")

    def rows(self, source: str, split: str | None) -> list[Row]:
        """Return generated rows, or those of a file of JSON lines. Raises UserError for a source that is wrong."""
        if source.endswith(".jsonl"):
            return super().rows(source, split)
        try:
            size, *settings = source.split()
            chosen = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}
            seeds = [_SEEDS[split]] if split else _SEEDS.values()
            values = [row for seed in seeds for row in self._generate(int(size), {"seed": seed, **chosen})]
        except (ValueError, AssertionError, TypeError, yaml.YAMLError) as error:
            raise self._error(f'"{source}" is not a source such as "50 level=2" ({first_line(error)})') from error
        # Each question once: a small space of problems repeats itself.
        once = {row["question"]: row for row in values}.values()
        return [Row(f'"{source}", problem {number}', number, row) for number, row in enumerate(once, start=1)]

    def given_variants(self, parent: Problem, request: VariantRequest, seed: str) -> str:
        """Return problems of the level below, or of the same one for equivalent variants, as JSON lines."""
        if (level := parent.data["level"]) is None:
            raise self._error(
                'variants need a level; give the training problems one ("50 level=2"), or leave out the conditions '
                "that train on variants"
            )
        lower = max(0, int(level) - (request.effect == "easier"))
        rows = self._generate(request.count, {"seed": Random(seed).getrandbits(32), "level": lower})
        return "\n".join(json.dumps({name: row[name] for name in self.fields}) for row in rows)

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Return the problems that `given_variants` made; `transforms` says that they are not the model's."""
        given = replace(request, suggestions=("generated by reasoning-gym, not written by the model",))
        return super().parse_variants(text, parent, given)

    def _generate(self, size: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
        if (level := settings.pop("level", None)) is None:
            data = self._factory.create_dataset(self._name, size=size, **settings)
        else:
            curriculum = self._factory.create_curriculum(self._name)  # raises ValueError if there is none
            for name, attribute in curriculum.attributes.items():
                curriculum.set_attr_level(name, min(int(level), len(attribute.levels) - 1))
            config = curriculum.generate_configuration({"size": size, **settings})
            data = self._factory.DATASETS[self._name][0](config)
        rows = []
        for made in data:
            entry = json.dumps({name: made[name] for name in ("answer", "metadata")}, default=str)
            row = {"question": made["question"], "answer": made["answer"], "entry": entry}
            row["level"] = None if level is None else str(level)
            if not self.grade(Problem.root(self.settings.name, row), f"<answer>{row['answer']}</answer>").reward:
                raise self._error("its verifier rejects its own answer; choose another task")
            rows.append(row)
        return rows

    def _error(self, fault: str) -> UserError:
        return UserError(f"task.name {self.settings.name}: {fault}")
