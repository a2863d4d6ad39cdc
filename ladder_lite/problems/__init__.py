"""Problems (roots and variants alike) and problem sets.

    for problem in load_problems("tiny", "test"):
        print(problem.data["integrand"])

`python -m ladder_lite.problems clean FILE` turns a list from elsewhere into a problem set: checked, without duplicates.
`python -m ladder_lite.problems fetch ladder-paper` downloads the lists that the paper's authors published.
"""

from ladder_lite.problems.problem import Problem, Requested
from ladder_lite.problems.sets import Notes, dataset, held_out_problems, load_problems, notes, without_printed

__all__ = ["Notes", "Problem", "Requested", "dataset", "held_out_problems", "load_problems", "notes", "without_printed"]
