"""The numbers of an evaluation: pass@k, majority vote and shares, with 95 % intervals, from graded attempts.

    summary = summarize(attempts, 10, greedy=greedy, task=task, problems=problems, notes=task.notes("mit_bee"))

The estimators: pass@k is the unbiased one of Chen et al. 2021, means of pass rates have Wilson score intervals (1927),
and two conditions are compared by a paired percentile bootstrap over problems (Efron 1979). The unit of all
intervals is the problem, not the attempt: ten answers to one problem are not ten independent observations of a model.
"""

# NumPy alone, without scipy.stats: importing that takes a second, its Wilson interval takes whole counts where these
# are means of pass rates, and its default bootstrap (BCa) has no interval for conditions that agree on every problem.

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any, Final

import numpy as np

from ladder_lite.problems import Notes, Problem
from ladder_lite.problems.attempts import Attempt, Outcome
from ladder_lite.tasks import Task

Interval = dict[str, float]
"""{"value", "low", "high"}: a number with its 95 % interval."""

_Z_95: Final = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer that most attempts gave, and their share of all attempts; None and 0 if no answer can be read.

    `right` is the verifier's verdict on that answer, looked up after the vote.
    """

    answer: str | None
    share: float
    right: bool


def summarize(
    attempts: Iterable[Attempt],
    k: int,
    *,
    greedy: Iterable[Attempt] = (),
    task: Task | None = None,
    problems: Sequence[Problem] = (),
    notes: Mapping[str, Notes] | None = None,
) -> dict[str, Any]:
    """Summarize the sampled and greedy attempts of a model as a JSON object. "Interval": {"value", "low", "high"}.

    - `n_problems`: the problems that count. One that the verifier cannot judge (any reward of None) is left out.
    - `pass@1`, `pass@K` for K = k: means over the problems, as intervals; a problem with fewer than K attempts counts
      for pass@1 alone.
    - `greedy`, if there are greedy attempts: the share of problems that they solve, as an interval.
    - `shares` of the sampled answers, which sum to 1: `solved`, `truncated` (not solved, and cut by the token limit),
      `wrong`, `unreadable` (every other grade).
    - `n_tokens`: generated tokens, also those for problems that are left out.
    - `majority`, with `task` and `problems`: the share of problems whose `majority_vote` is right, as an interval.
    - `techniques`, if `notes` name any: {"n_problems", "pass@1"} by technique.
    - `official`, if `notes` have answers, with `task` and `problems`: of the `n_compared` verified sampled answers,
      `n_agree` equal the official answer of the set.
    """
    sampled, greedy_groups = _by_problem(attempts), _by_problem(greedy)
    has_greedy = bool(greedy_groups)
    # Counted before problems are left out: tokens are a cost, whatever the verdict.
    groups = (*sampled.values(), *greedy_groups.values())
    n_tokens = sum(attempt.completion.n_tokens for group in groups for attempt in group)
    # A problem is left out as a whole, even if some of its attempts were graded: a reply without an answer gets reward
    # 0 before the problem is looked at, and counting only those replies would make the problem look unsolved.
    for problem_id in {*_unverifiable(sampled), *_unverifiable(greedy_groups)}:
        sampled.pop(problem_id, None)
        greedy_groups.pop(problem_id, None)
    summary: dict[str, Any] = {"n_problems": len(sampled)}
    for size in dict.fromkeys((1, k)):  # (1, 10), or only 1 if k is 1
        summary[f"pass@{size}"] = mean_with_interval(list(_rates(sampled, size).values()))
    if has_greedy:  # even if every problem was left out: whoever asked for the key finds it
        summary["greedy"] = mean_with_interval(list(_rates(greedy_groups, 1).values()))
    summary |= {"shares": _shares(sampled), "n_tokens": n_tokens}
    judged = [problem for problem in problems if problem.id in sampled]
    if task is not None and problems:
        votes = [majority_vote(task, problem, sampled[problem.id]) for problem in judged]
        summary["majority"] = mean_with_interval([float(vote.right) for vote in votes])
    techniques = _techniques(sampled, notes or {})
    official = {problem_id: note.answer for problem_id, note in (notes or {}).items() if note.answer is not None}
    if techniques:
        summary["techniques"] = techniques
    if task is not None and any(problem.id in official for problem in problems):
        summary["official"] = _compare_with_official(task, judged, sampled, official)
    return summary


def majority_vote(task: Task, problem: Problem, attempts: Sequence[Attempt]) -> Vote:
    """The answer that most attempts at a problem gave, however written (self-consistency, arXiv 2203.11171).

    The task decides which answers are the same; the verifier's verdicts have no influence. Unreadable answers do not
    vote, and a tie goes to the answer that came first.
    """
    voters = [attempt for attempt in attempts if attempt.grade.answer is not None]
    # For each answer the index of the first one that is the same. For 1/x: log(x), x, log(2*x), x** -> [0, 1, 0, None]
    places = task.same_answers(problem, [str(attempt.grade.answer) for attempt in voters])
    votes = Counter(place for place in places if place is not None)
    if not votes:
        return Vote(None, 0.0, right=False)
    place, n = max(votes.items(), key=lambda vote: vote[1])  # the first of a tie: Counter keeps insertion order
    # The share is of all attempts, not of the voters: a model that is mostly unreadable has no strong majority.
    return Vote(voters[place].grade.answer, n / len(attempts), right=voters[place].correct)


def pass_rates(attempts: Iterable[Attempt], k: int = 1) -> dict[str, float]:
    """pass@k by problem id, for the problems with at least k attempts that the verifier can judge."""
    groups = _by_problem(attempts)
    unverifiable = _unverifiable(groups)
    return _rates({name: own for name, own in groups.items() if name not in unverifiable}, k)


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Unbiased estimate, from n attempts, of the chance that at least one of k is right (arXiv 2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k) for c right attempts: the share of the subsets of k attempts that have a right one.
    """
    # 1 - (1 - c/n)**k, the obvious formula, is biased: too low, as Chen et al. show.
    if not 0 <= n_right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n_right} right ones among {n} attempts")
    if n - n_right < k:
        return 1.0  # too few wrong ones for k of them
    # C(n - c, k) / C(n, k) as a product of c factors 1 - k/i, i = n - c + 1 ... n; the binomials themselves would
    # overflow for large n. An empty product (c = 0) is 1.
    return float(1 - np.prod(1 - k / np.arange(n - n_right + 1, n + 1)))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of n problems (Wilson, JASA 1927)."""
    # For a mean of pass rates it is cautious: of all distributions on [0, 1] with mean p, the one with only 0 and 1, as
    # single attempts have, has the largest variance, p(1 - p). Unlike the normal ("Wald") interval, it does not shrink
    # to a point at 0 % or 100 %: 0 of 100 gives 0 to 3.7 %.
    if n == 0:
        return 0.0, 1.0  # nothing is known
    z2 = _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and 1 the bound equals the share exactly; rounding must not put it a hair to the wrong side.
    return (max(0.0, centre - half) if share else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)


def mean_with_interval(rates: Sequence[float]) -> Interval:
    """The mean of the problems' pass rates with its Wilson interval; without problems, 0 with the interval 0 to 1."""
    value = fmean(rates) if rates else 0.0
    low, high = wilson_interval(value, len(rates))
    return {"value": value, "low": low, "high": high}


def paired_bootstrap(
    first: Mapping[str, float], second: Mapping[str, float], n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How much better the second condition is: the mean difference of two `pass_rates`, as a share.

    The 95 % interval is a percentile bootstrap over the problems that both conditions have (Efron 1979). It covers the
    choice of problems; the randomness of training, which other seeds would show, is not in it.
    """
    shared = [name for name in first if name in second]
    if not shared:
        return {"value": 0.0, "low": -1.0, "high": 1.0}  # nothing is known
    # Paired: a resample draws problems, each with both its rates. What makes a problem hard for both cancels in the
    # difference, so the interval is usually narrower than one from two separate resamples.
    differences = np.array([second[name] - first[name] for name in shared])  # (n_problems,)
    # A resample draws n problems with replacement. Only how often each distinct difference is drawn matters for the
    # mean, and these counts are multinomial: the same distribution with an array of (n_resamples, n_distinct) instead
    # of (n_resamples, n_problems).
    distinct, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(shared), counts / len(shared), size=n_resamples)
    low, high = np.quantile(drawn @ distinct / len(shared), (0.025, 0.975))
    return {"value": float(differences.mean()), "low": float(low), "high": float(high)}


def pass_rates_by_depth(
    rollouts: Iterable[Mapping[str, object]], depths: Mapping[str, int]
) -> dict[int, dict[str, dict[str, float]]]:
    """How often training solved problems of each depth of the variant tree, early and late.

    `rollouts` are the rows of a `train/attempts.jsonl`; `depths` has the depth of each variant by its id, and every
    other problem is a root, of depth 0. Returns {depth: {"first", "last"}} for the first and the last third of the
    steps, each {"n", "pass_rate"}. A third without rollouts of that depth is left out. Unverifiable rollouts do not
    count.
    """
    # n counts rollouts, and the curriculum chooses the problems: a description of training, hence no interval.
    rows = [row for row in rollouts if row["reward"] is not None]
    steps = sorted({int(str(row["step"])) for row in rows})
    third = -(-len(steps) // 3)  # rounded up: with one step, both thirds are that step
    by_depth: dict[int, dict[str, dict[str, float]]] = {}
    for name, third_of_steps in (("first", set(steps[:third])), ("last", set(steps[-third:]))):
        results: dict[int, list[bool]] = {}
        for row in rows:
            if row["step"] in third_of_steps:
                results.setdefault(depths.get(str(row["problem_id"]), 0), []).append(row["reason"] == "CORRECT")
        for depth, right in results.items():
            by_depth.setdefault(depth, {})[name] = {"n": len(right), "pass_rate": sum(right) / len(right)}
    return dict(sorted(by_depth.items()))


def _by_problem(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    groups: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        groups[attempt.problem_id].append(attempt)
    return dict(groups)


def _unverifiable(attempts: Mapping[str, Sequence[Attempt]]) -> set[str]:
    return {name for name, group in attempts.items() if any(attempt.grade.reward is None for attempt in group)}


def _rates(attempts: Mapping[str, Sequence[Attempt]], k: int) -> dict[str, float]:
    return {
        problem_id: pass_at_k(len(own), sum(attempt.correct for attempt in own), k)
        for problem_id, own in attempts.items()
        if len(own) >= k
    }


def _shares(attempts: Mapping[str, Sequence[Attempt]]) -> dict[str, float]:
    outcomes = Counter(attempt.outcome for group in attempts.values() for attempt in group)
    total = outcomes.total() or 1
    counts = {  # `pop` takes the named outcomes out, so that "unreadable" is the rest and the shares sum to 1
        "solved": outcomes.pop(Outcome.RIGHT, 0),
        "wrong": outcomes.pop(Outcome.WRONG, 0),
        "truncated": outcomes.pop(Outcome.TRUNCATED, 0),
        "unreadable": outcomes.total(),
    }
    return {kind: n / total for kind, n in counts.items()}


def _techniques(attempts: Mapping[str, Sequence[Attempt]], notes: Mapping[str, Notes]) -> dict[str, Any]:
    rates: dict[str, list[float]] = defaultdict(list)  # by technique
    for problem_id, rate in _rates(attempts, 1).items():
        if problem_id in notes and (technique := notes[problem_id].technique) is not None:
            rates[technique].append(rate)
    return {technique: {"n_problems": len(own), "pass@1": mean_with_interval(own)} for technique, own in rates.items()}


def _compare_with_official(
    task: Task, problems: Iterable[Problem], attempts: Mapping[str, Sequence[Attempt]], official: Mapping[str, str]
) -> dict[str, int]:
    n_compared = n_agree = 0
    for problem in problems:
        right = [str(attempt.grade.answer) for attempt in attempts[problem.id] if attempt.correct]
        if problem.id in official and right:
            places = task.same_answers(problem, [official[problem.id], *right])
            # Place 0 is the official answer; if it cannot be read, there is nothing to compare with. Disagreement with
            # a verified answer points to a mistake in the set, or in the verifier.
            if places[0] is not None:
                n_compared += len(right)
                n_agree += places[1:].count(0)
    return {"n_compared": n_compared, "n_agree": n_agree}
