"""Problem sets by name or path, for Python: `load_problems`, `dataset`. A task does the reading."""

from typing import TYPE_CHECKING

from ladder_lite.tasks import Problem, plain_task

if TYPE_CHECKING:
    from datasets import Dataset


def load_problems(name_or_path: str, split: str, task: str = "integration") -> list[Problem]:
    """Read a split of a problem set, given by its name (shipped or fetched) or by the path of a JSON lines file.

    A row has the fields of the task, "split"?: "train"|"test"|"probe", without which it belongs to all splits, and
    notes for people: "id", "answer", "technique", "steps", "source", "note". Whether the values make a problem is not
    checked, as that takes time. Raises UserError with file:line for a row that cannot be read or repeats another.
    """
    return plain_task(task).load(name_or_path, split, check=False)


def dataset(name_or_path: str, split: str, task: str = "integration") -> "Dataset":
    """A split of a problem set as a `datasets.Dataset`, which TRL's trainers take.

    The columns are text: id, the fields of the task, answer, technique, source. Missing values are None. Raises
    UserError as `load_problems` does.
    """
    from datasets import Dataset, Features, Value

    chosen = plain_task(task)
    columns = ("id", *chosen.fields, "answer", "technique", "source")
    rows = [chosen.data_of(row.values) | row.values for row in chosen.rows(name_or_path, split)]
    # Explicit features: a column that has only None in it would otherwise get the type "null".
    features = Features(dict.fromkeys(columns, Value("string")))
    return Dataset.from_list([{key: row.get(key) for key in columns} for row in rows], features=features)
