"""Measured difficulty: what share of the answers to each problem is right, and which problems a step trains on.

Every rollout of training tells something about its problem, for nothing. A group whose rewards are all equal teaches
nothing, so rows are drawn where p (1 - p) is likely to be large, p being the problem's pass rate; problems the model
always solves are retired; those it never solves are named, so that the tree can grow easier ones below them
(`ladder_lite.variants`). The paper draws rows uniformly and leaves the rest as future work.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import beta

from ladder_lite.problems import Problem

Floats = NDArray[np.float64]

_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\S")


class _Beliefs(NamedTuple):
    """Parameters of each row's Beta distribution, and how many rollouts of its own it rests on."""

    right: Floats
    wrong: Floats
    tries: Floats

    @property
    def mean(self) -> Floats:
        return self.right / (self.right + self.wrong)

    @property
    def signal(self) -> Floats:
        """The mean of p (1 - p), largest where the model is as often right as wrong."""
        total = self.right + self.wrong
        return self.right * self.wrong / (total * (total + 1))

    @property
    def retired(self) -> NDArray[np.bool_]:
        return (self.mean > PassRates.RETIRED) & (self.tries >= PassRates.ENOUGH_TRIES)


class PassRates:
    """Pass rates of problems that may grow in number, and the rows drawn by them.

    A problem's pass rate has a Beta distribution. The model changes from step to step, so rollouts count fully when new
    and half after `HALF_LIFE` steps, and a logistic regression of all of them on counts of tokens and on time says how
    much better the model has become since. It also gives the prior: a problem never tried is judged by what it is made
    of, as the model is now.
    """

    HALF_LIFE = 10
    PRIOR_WEIGHT = 4.0
    """How many rollouts the prior is worth."""

    SHARPNESS = 3
    """Rows are drawn in proportion to this power of their expected signal."""

    EXPLORATION = 0.05
    """Share of the mean weight that every row gets besides."""

    RETIRED = 0.95
    STUCK = 0.05
    FRONTIER = 0.15
    """Expected p (1 - p) from which a problem is at the frontier; 0.25 is the most there can be."""

    ENOUGH_TRIES = 4.0
    """Rollouts of its own without which no problem is retired."""

    def __init__(self, problems: Sequence[Problem], rows: Literal["pass_rate", "uniform"], seed: int) -> None:
        self._uniform = rows == "uniform"
        self._seed = seed
        self._tokens: list[Counter[str]] = []
        self._added_at: list[int] = []
        self._seen: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])  # by (step, row): right and tries
        self._unverifiable: dict[int, int] = {}  # the step at which a row turned out to be so
        self.add(problems, step=0)

    def add(self, problems: Sequence[Problem], step: int) -> None:
        """Take in problems that the tree gained after a step; their rows follow those there are."""
        for problem in problems:
            text = " ".join(str(value) for value in problem.data.values() if value is not None)
            self._tokens.append(Counter("0" if token.isdigit() else token for token in _TOKEN.findall(text)))
            self._added_at.append(step)

    def observe(self, step: int, row: int, correct: bool | None) -> None:
        """Take in one rollout of a step, None where the problem itself cannot be verified: it is not drawn again."""
        if correct is None:
            self._unverifiable.setdefault(row, step)
            return
        counts = self._seen[step, row]
        counts[0] += correct
        counts[1] += 1

    def estimate(self, step: int) -> Floats:
        """Mean pass rates of the rows there are after a step, by the rollouts up to it."""
        return self._beliefs(step).mean

    def stuck(self, step: int) -> list[int]:
        """The rows that the model is not expected to solve after a step, by their own rollouts or by their kind."""
        return np.flatnonzero((self.estimate(step) < self.STUCK) & ~self._is_unverifiable(step)).tolist()

    def frontier(self, step: int) -> list[int]:
        """The rows that the model sometimes solves: those that teach most after a step."""
        at_frontier = self._beliefs(step).signal > self.FRONTIER
        return np.flatnonzero(at_frontier & ~self._is_unverifiable(step)).tolist()

    def draw(self, step: int, count: int) -> list[int]:
        """The rows that step number `step` trains on.

        They depend on what was known two steps before only: the data loader asks for the rows of a step while the one
        before it is still to run, and a resumed training must draw the same.
        """
        rng = np.random.default_rng([self._seed, step])
        known = max(0, step - 2)
        weights = np.ones(self._n_rows(known)) if self._uniform else self._weights(known)
        rows: list[int] = []
        while len(rows) < count:  # each row once before any comes twice
            once = min(count - len(rows), int(np.count_nonzero(weights)))
            rows += rng.choice(len(weights), once, replace=False, p=weights / weights.sum()).tolist()
        return rows

    def table(self, step: int) -> list[dict[str, Any]]:
        """Per row, after a step: its tries and how many were right, its pass rate with a 95 % interval, its state.

        The state is "drawn", "retired" (always solved), "stuck" (tried and never solved) or "unverifiable".
        """
        tries, solved = Counter[int](), Counter[int]()
        for (when, row), (right, n) in self._seen.items():
            if when <= step:
                tries[row] += n
                solved[row] += right
        beliefs = self._beliefs(step)
        stuck = (beliefs.mean < self.STUCK) & (beliefs.tries >= self.ENOUGH_TRIES)
        states = np.where(beliefs.retired, "retired", np.where(stuck, "stuck", "drawn"))
        states = np.where(self._is_unverifiable(step), "unverifiable", states)
        low, high = (np.asarray(beta.ppf(q, beliefs.right, beliefs.wrong)) for q in (0.025, 0.975))
        return [
            {
                "tries": tries[row],
                "right": solved[row],
                "pass_rate": float(beliefs.mean[row]),
                "low": float(low[row]),
                "high": float(high[row]),
                "state": str(states[row]),
                "added_at": self._added_at[row],
            }
            for row in range(self._n_rows(step))
        ]

    def _n_rows(self, step: int) -> int:
        """The rows there are after a step: a training that goes on after a kill must not see later ones either."""
        return bisect_right(self._added_at, step)

    def _weights(self, step: int) -> Floats:
        beliefs = self._beliefs(step)
        weights = beliefs.signal**self.SHARPNESS
        weights = weights + self.EXPLORATION * weights.mean()
        idle = beliefs.retired | self._is_unverifiable(step)
        return weights if idle.all() else np.where(idle, 0.0, weights)

    def _is_unverifiable(self, step: int) -> NDArray[np.bool_]:
        found = np.zeros(self._n_rows(step), dtype=bool)
        found[[row for row, when in self._unverifiable.items() if when <= step]] = True
        return found

    def _beliefs(self, step: int) -> _Beliefs:
        n_rows = self._n_rows(step)
        seen = [(when, row, *counts) for (when, row), counts in self._seen.items() if when <= step]
        when, rows, right, tries = np.array(seen, dtype=float).reshape(-1, 4).T
        rows = rows.astype(int)
        age = step - when
        weight = tries * 0.5 ** (age / self.HALF_LIFE)
        share = right / tries
        prior, gain = self._regress(self._tokens[:n_rows], rows, age, weight, share)
        now = expit(logit(np.clip(share, 0.02, 0.98)) + gain * age)  # what these rollouts would come to by now
        own = np.bincount(rows, weight, n_rows).astype(float)
        own_right = np.bincount(rows, weight * now, n_rows)
        return _Beliefs(own_right + self.PRIOR_WEIGHT * prior, own - own_right + self.PRIOR_WEIGHT * (1 - prior), own)

    def _regress(
        self, problems: Sequence[Counter[str]], rows: NDArray[np.intp], age: Floats, weight: Floats, share: Floats
    ) -> tuple[Floats, float]:
        """Pass rates of the problems now (0.5 while nothing was seen), and the logits gained per step."""
        words = sorted(set().union(*problems))
        counts = np.array([[tokens[word] for word in words] for tokens in problems], dtype=float)
        counts = np.column_stack([counts, counts.sum(axis=1)])
        counts /= np.sqrt((counts**2).mean(axis=0))
        # Time is counted from the middle of what was seen, in half-lives: where all is of one age the ridge then finds
        # no change, instead of explaining the level by it.
        middle = float(np.average(age, weights=weight)) if len(age) else 0.0
        features = np.column_stack([counts, np.ones(len(counts)), np.full(len(counts), middle / self.HALF_LIFE)])
        x = features[rows]
        x[:, -1] = (middle - age) / self.HALF_LIFE

        def loss(parameters: Floats) -> tuple[float, Floats]:
            logits = x @ parameters
            value = np.sum(weight * (np.logaddexp(0, logits) - share * logits)) + parameters @ parameters / 2
            return float(value), x.T @ (weight * (expit(logits) - share)) + parameters

        fitted = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
        return np.clip(expit(features @ fitted), 0.01, 0.99), float(fitted[-1]) / self.HALF_LIFE
