"""How similar the statements of problems are, by their tokens."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ladder_lite.tasks import Problem

# Names, whole numbers, and any other single character: "2*sin(x)" -> 2 * sin ( x )
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\S")


def tokens(problem: Problem) -> list[str]:
    """Return the tokens of a problem's data, with "0" for every whole number.

    2*x**3 and 5*x**7 thus have the same tokens: they are the same kind of problem.
    """
    text = " ".join(str(value) for value in problem.data.values() if value is not None)
    return ["0" if token.isdigit() else token for token in _TOKEN.findall(text)]


def distances(problems: Sequence[Problem], others: Sequence[Problem]) -> NDArray[np.float64]:
    """Return an array of shape (problems, others) with the distance of each pair.

    It is the Sørensen-Dice distance of the problems' pairs of adjacent tokens, 1 - 2 |A & B| / (|A| + |B|), where A and
    B are multisets: 0 if the problems differ in numbers only, 1 if they share no pair. The order of the terms of a sum
    hardly matters.
    """

    def pairs(problem: Problem) -> Counter[tuple[str, ...]]:
        own = tokens(problem)
        return Counter(pairwise(own)) if len(own) > 1 else Counter([(*own,)])  # a single word has no pair

    rows, columns = ([pairs(problem) for problem in each] for each in (problems, others))
    shared = [[2 * (a & b).total() / max(1, a.total() + b.total()) for b in columns] for a in rows]
    return 1 - np.array(shared, dtype=np.float64).reshape(len(rows), len(columns))
