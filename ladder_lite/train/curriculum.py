"""The curriculum: the pass rate of each problem, and which problems a step trains on.

A group whose rewards are all equal has zero advantages and teaches nothing. Its rewards differ most if the pass rate p
is near one half. So rows are drawn where p (1 - p) is expected to be large. Problems that the model always solves are
retired. Problems that it never solves are reported, so that the tree can grow easier ones below them
(`ladder_lite.variants`). The estimates cost nothing: every rollout of training is also a measurement of its problem.

The paper draws rows uniformly and leaves such a choice to future work.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln, expit, logit
from scipy.stats import beta

from ladder_lite.problems import Problem
from ladder_lite.problems.similarity import tokens

Floats = NDArray[np.float64]


class _Beliefs(NamedTuple):
    """The pass rate of each row as a Beta distribution. All arrays have shape (rows,)."""

    right: Floats  # first parameter: weighted right rollouts plus the prior's
    wrong: Floats  # second parameter
    tries: Floats  # weighted rollouts of the row itself, without the prior

    @property
    def mean(self) -> Floats:
        return self.right / (self.right + self.wrong)  # of Beta(a, b): a / (a + b)

    @property
    def signal(self) -> Floats:
        """The expectation of p (1 - p), which is the variance of a 0/1 reward."""
        # For Beta(a, b): a b / ((a + b) (a + b + 1)).
        total = self.right + self.wrong
        return self.right * self.wrong / (total * (total + 1))

    def all_wrong(self, n: int) -> Floats:
        """The expectation of (1 - p)**n: the probability that none of n rollouts is right."""
        return np.exp(betaln(self.right, self.wrong + n) - betaln(self.right, self.wrong))

    @property
    def retired(self) -> NDArray[np.bool_]:
        # The prior alone retires no row: it needs rollouts of its own.
        return (self.mean > PassRates.RETIRED) & (self.tries >= PassRates.ENOUGH_TRIES)


class PassRates:
    """Estimates the pass rates of problems, which may grow in number, and draws rows by them.

    A row is the index of a problem, in the order in which they were added. The pass rate of a row is a Beta
    distribution. It is computed from the row's own rollouts and from a prior:

    - The model changes from step to step, so old rollouts count less, half after `HALF_LIFE` steps.
    - A logistic regression of all rollouts on token counts and time estimates how much the model has improved since.
    - The same regression gives the prior. A problem that was never tried is judged by its tokens.

    All methods take a step and use only what was known after it; `draw` uses what was known before it. This is what
    lets a resumed run draw the same rows.
    """

    HALF_LIFE = 10
    """Steps after which a rollout counts half."""

    PRIOR_WEIGHT = 1.0
    """The prior counts as much as this number of rollouts.

    Few, because the outcomes of new rows are U-shaped: most are solved always or never. In runs of `tiny`, 1 makes the
    outcomes of the next groups most likely (beta-binomial); with 4, rows known to be solved sometimes are drawn too
    seldom, and half of the groups have no signal.
    """

    SHARPNESS = 2
    """Rows are drawn in proportion to this power of their expected signal."""

    EXPLORATION = 0.05
    """Share of the mean weight that is added to the weight of every row, so that none is forgotten."""

    RETIRED = 0.95
    """Pass rate above which a problem is retired."""

    STUCK = 0.05
    """Pass rate below which a problem is stuck."""

    FAILING = 8
    """Wrong rollouts, without a right one since, after which the base model may try a problem."""

    FRONTIER = 0.15
    """Expected p (1 - p) above which a problem is at the frontier; the maximum is 0.25."""

    ENOUGH_TRIES = 4.0
    """Weighted rollouts of its own that a problem needs before its state is "retired" or "stuck"."""

    def __init__(
        self, problems: Sequence[Problem], rows: Literal["pass_rate", "uniform", "staged"], seed: int, max_steps: int
    ) -> None:
        self._rows = rows
        self._max_steps = max_steps
        self._seed = seed
        self._tokens: list[Counter[str]] = []
        self._added_at: list[int] = []
        self._seen: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])  # (step, row) -> [right, tries]
        self._unverifiable: dict[int, int] = {}  # row -> the step in which it turned out that it cannot be verified
        self.add(problems, step=0)

    def add(self, problems: Sequence[Problem], step: int) -> None:
        """Add problems that the tree gained after a step; their rows follow the existing ones."""
        for problem in problems:
            self._tokens.append(Counter(tokens(problem)))
            self._added_at.append(step)

    def observe(self, step: int, row: int, correct: bool | None) -> None:
        """Record one rollout of a step; `correct` is None if the problem itself cannot be verified."""
        if correct is None:  # the row is not drawn again
            self._unverifiable.setdefault(row, step)
            return
        counts = self._seen[step, row]
        counts[0] += correct
        counts[1] += 1

    def estimate(self, step: int) -> Floats:
        """Return the mean pass rates after a step, one for each row that existed then."""
        return self._beliefs(step).mean

    def stuck(self, step: int) -> list[int]:
        """Return the rows that the model is not expected to solve after a step, even if they were never tried."""
        return np.flatnonzero((self.estimate(step) < self.STUCK) & ~self._is_unverifiable(step)).tolist()

    def failing(self, step: int) -> list[int]:
        """Return the rows with `FAILING` wrong rollouts up to a step since the last step with a right one."""
        # Not by the estimate: it assumes that the model improves on all problems alike, and stays above `STUCK` for a
        # row on which the model has become worse.
        last_right, n_wrong = Counter[int](), Counter[int]()
        for (when, row), (right, _) in self._seen.items():
            if right and when <= step:
                last_right[row] = max(last_right[row], when)
        for (when, row), (_, n) in self._seen.items():
            if last_right[row] < when <= step:
                n_wrong[row] += n
        unverifiable = self._is_unverifiable(step)
        return sorted(row for row, n in n_wrong.items() if n >= self.FAILING and not unverifiable[row])

    def frontier(self, step: int) -> list[int]:
        """Return the rows that the model sometimes solves after a step: those that teach most."""
        at_frontier = self._beliefs(step).signal > self.FRONTIER
        return np.flatnonzero(at_frontier & ~self._is_unverifiable(step)).tolist()

    def draw(self, step: int, count: int, spare: int = 0, replayed: Collection[int] = (), size: int = 1) -> list[int]:
        """Draw the rows that a step trains on, at random but determined by the seed and the step.

        They are followed by up to `spare` others, in case some of them turn out to teach nothing. A group of a
        `replayed` row gets an earlier right answer if none of its `size` rollouts is right.
        """
        rng = np.random.default_rng([self._seed, step])
        known = step - 1
        weights = np.ones(self._n_rows(known)) if self._rows == "uniform" else self._weights(known, replayed, size)
        if self._rows == "staged":
            # A third of the rows for each third of the steps, from the shortest problems to the longest.
            by_length = np.argsort([counts.total() for counts in self._tokens[: len(weights)]], kind="stable")
            stages = [part for part in np.array_split(by_length, 3) if len(part)]  # fewer than three rows: fewer stages
            stage = min(len(stages) - 1, len(stages) * known // self._max_steps)
            mask = np.isin(np.arange(len(weights)), stages[stage])
            weights = np.where(mask, weights, 0.0) if weights[mask].any() else mask.astype(float)
        n_drawable = int(np.count_nonzero(weights))
        n_rows = max(count, min(count + spare, n_drawable))
        rows: list[int] = []
        # Draw without replacement, so that each row comes once before any comes twice. With fewer rows than `count`,
        # start over; spare rows repeat none.
        while len(rows) < n_rows:
            size = min(n_rows - len(rows), n_drawable)
            rows += rng.choice(len(weights), size, replace=False, p=weights / weights.sum()).tolist()
        return rows

    def table(self, step: int) -> list[dict[str, Any]]:
        """Return for each row after a step: tries, right ones, pass rate with a 95 % interval, and state.

        The state is "drawn", "retired" (always solved), "stuck" (tried and never solved) or "unverifiable".
        """
        # Plain counts of rollouts; the beliefs weight them by age.
        tries, solved = Counter[int](), Counter[int]()
        for (when, row), (right, n) in self._seen.items():
            if when <= step:
                tries[row] += n
                solved[row] += right
        beliefs = self._beliefs(step)
        stuck = (beliefs.mean < self.STUCK) & (beliefs.tries >= self.ENOUGH_TRIES)
        states = np.where(beliefs.retired, "retired", np.where(stuck, "stuck", "drawn"))
        states = np.where(self._is_unverifiable(step), "unverifiable", states)
        # The central 95 % of each Beta distribution.
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
        """Return how many rows existed after a step."""
        # `_added_at` is sorted. A resumed run has all problems from the start, and must not see later ones too early.
        return bisect_right(self._added_at, step)

    def _weights(self, step: int, replayed: Collection[int], size: int) -> Floats:
        """Return the sampling weights of the rows after a step; those of retired and unverifiable rows are 0."""
        beliefs = self._beliefs(step)
        signal = beliefs.signal
        # A replayed answer gives a group a signal for certain: the greatest variance of a 0/1 reward is 1/4.
        rows = list(replayed)
        signal[rows] += beliefs.all_wrong(size)[rows] / 4
        weights = signal**self.SHARPNESS
        weights = weights + self.EXPLORATION * weights.mean()
        idle = beliefs.retired | self._is_unverifiable(step)
        # If all rows are idle, there is nothing else to train on, so draw from all of them.
        return weights if idle.all() else np.where(idle, 0.0, weights)

    def _is_unverifiable(self, step: int) -> NDArray[np.bool_]:
        mask = np.zeros(self._n_rows(step), dtype=bool)
        mask[[row for row, when in self._unverifiable.items() if when <= step]] = True
        return mask

    def _beliefs(self, step: int) -> _Beliefs:
        n_rows = self._n_rows(step)
        # An observation is the rollouts of one row in one step: arrays of shape (observations,).
        seen = [(when, row, *counts) for (when, row), counts in self._seen.items() if when <= step]
        when, rows, right, tries = np.array(seen, dtype=float).reshape(-1, 4).T  # reshape: `seen` may be empty
        rows = rows.astype(int)
        age = step - when
        weight = tries * 0.5 ** (age / self.HALF_LIFE)
        share = right / tries
        prior, gain = self._regress(self._tokens[:n_rows], rows, age, weight, share)
        # The share that the same rollouts would have today: old ones are moved up by what the model has gained since.
        # Clipped, because the logit of 0 or 1 is infinite.
        now = expit(logit(np.clip(share, 0.02, 0.98)) + gain * age)
        # Sum up by row, then add the prior as PRIOR_WEIGHT further rollouts.
        own = np.bincount(rows, weight, n_rows).astype(float)
        own_right = np.bincount(rows, weight * now, n_rows)
        return _Beliefs(own_right + self.PRIOR_WEIGHT * prior, own - own_right + self.PRIOR_WEIGHT * (1 - prior), own)

    def _regress(
        self, problems: Sequence[Counter[str]], rows: NDArray[np.intp], age: Floats, weight: Floats, share: Floats
    ) -> tuple[Floats, float]:
        """Fit a logistic regression; return the current pass rate of each problem, and the logits gained per step.

        `problems` has the token counts of each row; `rows`, `age`, `weight` and `share` have one entry for each
        observation. Without observations, all pass rates are 0.5.
        """
        # One column for each token, with its count in each problem, and one for the length: (problems, tokens + 1).
        words = sorted(set().union(*problems))
        counts = np.array([[tokens[word] for word in words] for tokens in problems], dtype=float)
        counts = np.column_stack([counts, counts.sum(axis=1)])
        counts /= np.sqrt((counts**2).mean(axis=0))  # to the same scale, as the ridge penalises all columns alike
        # Two more columns: a constant, and time. Time is measured in half-lives from the mean age of the observations.
        # If all of them are of the same age, it is 0 for each, and the ridge finds no change over time. Measured from
        # elsewhere, it would be a second constant, and the fit would read a change into the level.
        middle = float(np.average(age, weights=weight)) if len(age) else 0.0
        features = np.column_stack([counts, np.ones(len(counts)), np.full(len(counts), middle / self.HALF_LIFE)])
        x = features[rows]  # (observations, features); `features` itself has the time of today, age 0
        x[:, -1] = (middle - age) / self.HALF_LIFE

        def loss(parameters: Floats) -> tuple[float, Floats]:
            # Cross entropy of the shares, weighted, plus a ridge of |parameters|^2 / 2; and its gradient.
            logits = x @ parameters
            value = np.sum(weight * (np.logaddexp(0, logits) - share * logits)) + parameters @ parameters / 2
            return float(value), x.T @ (weight * (expit(logits) - share)) + parameters

        fitted = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
        # Clipped, so that the prior never excludes anything. The gain per half-life becomes a gain per step.
        return np.clip(expit(features @ fitted), 0.01, 0.99), float(fitted[-1]) / self.HALF_LIFE
