"""Problems (roots and variants alike), attempts at them, and problem sets.

    for problem in load_problems("tiny", "test"):
        print(problem.data)

`python -m ladder_lite.problems clean FILE` turns a list of integrals from elsewhere into a problem set: checked,
without duplicates. `python -m ladder_lite.problems fetch ladder-paper` downloads the lists that the paper's authors
published.
"""

from ladder_lite.problems.sets import dataset, load_problems
from ladder_lite.tasks import Notes, Problem

__all__ = ["Notes", "Problem", "dataset", "load_problems"]
