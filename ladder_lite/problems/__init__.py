"""Problems, roots and variants alike, and the problem sets they come from.

    for problem in load_problems("tiny", "test"):
        print(problem.data["integrand"])

`python -m ladder_lite.problems clean FILE` makes a set of a list from elsewhere: read, checked, each problem once.
`python -m ladder_lite.problems fetch ladder-paper` gets the lists that the paper's authors published.
"""

from ladder_lite.problems.problem import Problem, Requested
from ladder_lite.problems.sets import Notes, dataset, held_out_problems, load_problems, notes, without_printed

__all__ = ["Notes", "Problem", "Requested", "dataset", "held_out_problems", "load_problems", "notes", "without_printed"]
