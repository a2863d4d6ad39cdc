"""The numbers of an evaluation: pass@k, majority vote and shares, with 95 % intervals, from graded attempts.

    summary = summarize(attempts, 10, greedy=greedy, task=task, problems=problems, notes=notes("mit_bee"))

The statistics are NumPy's alone: importing `scipy.stats` takes a second, its Wilson interval wants whole counts where
these are means of pass rates, and its bootstrap (BCa) has no interval for conditions that agree on every problem.
"""

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

_Z_95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer that most attempts gave, and the share of all attempts that gave it; None and 0 if none can be read.

    `right` is the verifier's verdict on it, looked up when the vote was over.
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
    """What sampled attempts, and greedy ones where there are any, say of a model; JSON.

    - `n_problems`: those that count. A problem that the verifier cannot judge (any grade without reward) is left out.
    - `pass@1`, `pass@K` for K = k: means over the problems, each {"value", "low", "high"} with a 95 % interval; a
      problem with fewer than K attempts counts for pass@1 alone.
    - `greedy`: the share of problems that the greedy attempt solves, likewise.
    - `shares` of the sampled answers, which sum to 1: `solved`, `truncated` (not solved, and cut by the token limit),
      `wrong`, `unreadable` (every other grade).
    - `n_tokens`: generated in all, for problems that are left out too.
    - `majority`, with `task` and `problems`: the share of problems whose `majority_vote` is right, likewise.
    - `techniques`, where `notes` name any: {"n_problems", "pass@1"} by name.
    - `official`, where `notes` have answers, with `task` and `problems`: of the `n_compared` verified sampled answers,
      `n_agree` equal the set's own.
    """
    sampled, chosen = _by_problem(attempts), _by_problem(greedy)
    has_greedy = bool(chosen)
    n_tokens = sum(a.completion.n_tokens for group in (sampled, chosen) for own in group.values() for a in own)
    for problem_id in {*_unverifiable(sampled), *_unverifiable(chosen)}:
        sampled.pop(problem_id, None)
        chosen.pop(problem_id, None)
    summary: dict[str, Any] = {"n_problems": len(sampled)}
    for size in dict.fromkeys((1, k)):
        summary[f"pass@{size}"] = mean_with_interval(list(_rates(sampled, size).values()))
    if has_greedy:
        summary["greedy"] = mean_with_interval(list(_rates(chosen, 1).values()))
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
        summary["official"] = _compare(task, judged, sampled, official)
    return summary


def majority_vote(task: Task, problem: Problem, attempts: Sequence[Attempt]) -> Vote:
    """The answer that most of the attempts at a problem gave, in whatever words (self-consistency, arXiv 2203.11171).

    Answers count together where the task says that they are the same; the verifier's verdicts have no part in that.
    What cannot be read does not vote, and a tie goes to the answer that came first.
    """
    voters = [attempt for attempt in attempts if attempt.grade.answer is not None]
    places = task.same_answers(problem, [str(attempt.grade.answer) for attempt in voters])
    votes = Counter(place for place in places if place is not None)
    if not votes:
        return Vote(None, 0.0, right=False)
    place, n = max(votes.items(), key=lambda vote: vote[1])  # the first of equals: counters keep the order
    return Vote(voters[place].grade.answer, n / len(attempts), right=voters[place].correct)


def pass_rates(attempts: Iterable[Attempt], k: int = 1) -> dict[str, float]:
    """pass@k of each problem that has k attempts or more and that the verifier can judge, by its id."""
    groups = _by_problem(attempts)
    unverifiable = _unverifiable(groups)
    return _rates({name: own for name, own in groups.items() if name not in unverifiable}, k)


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Unbiased chance that one of k attempts is right, from n of them (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k) with c right ones, as a product of c factors: the binomials of a large n are huge numbers.
    """
    if not 0 <= n_right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n_right} right ones among {n} attempts")
    if n - n_right < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - n_right + 1, n + 1)))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of n problems (Wilson 1927); the mean of pass rates takes it as a cautious one."""
    if n == 0:
        return 0.0, 1.0
    z2 = _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half) if share else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)


def mean_with_interval(rates: Sequence[float]) -> Interval:
    """The mean of the problems' pass rates with its Wilson interval; 0 of 0 to 1 where there is no problem."""
    value = fmean(rates) if rates else 0.0
    low, high = wilson_interval(value, len(rates))
    return {"value": value, "low": low, "high": high}


def paired_bootstrap(
    first: Mapping[str, float], second: Mapping[str, float], n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How much better the second condition is: the mean difference of two `pass_rates`, as a share.

    The 95 % interval is the percentile bootstrap over problems (Efron 1979): of the problems that both conditions have,
    as many are drawn with replacement, each with both its rates, so what makes a problem hard cancels.
    """
    shared = [name for name in first if name in second]
    if not shared:
        return {"value": 0.0, "low": -1.0, "high": 1.0}
    differences = np.array([second[name] - first[name] for name in shared])
    # How often each distinct difference is drawn is multinomial: the same resamples, without a row for each problem.
    distinct, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(shared), counts / len(shared), size=n_resamples)
    low, high = np.quantile(drawn @ distinct / len(shared), (0.025, 0.975))
    return {"value": float(differences.mean()), "low": float(low), "high": float(high)}


def pass_rates_by_depth(
    rollouts: Iterable[Mapping[str, object]], depths: Mapping[str, int]
) -> dict[int, dict[str, dict[str, float]]]:
    """How often training solved problems of each depth of the variant tree, early and late.

    `rollouts` are the rows of a `train/attempts.jsonl`, `depths` the depth of each variant by its id; what is not among
    them is a root, of depth 0. Returns, by depth, {"first", "last"}: the first and the last third of the steps, each
    {"n", "pass_rate"}, without a third in which there was no rollout. Rollouts without reward (unverifiable) are left
    out.
    """
    rows = [row for row in rollouts if row["reward"] is not None]
    steps = sorted({int(str(row["step"])) for row in rows})
    third = -(-len(steps) // 3)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for name, chosen in (("first", set(steps[:third])), ("last", set(steps[-third:]))):
        solved: dict[int, list[bool]] = {}
        for row in rows:
            if row["step"] in chosen:
                solved.setdefault(depths.get(str(row["problem_id"]), 0), []).append(row["reason"] == "CORRECT")
        for depth, right in solved.items():
            found.setdefault(depth, {})[name] = {"n": len(right), "pass_rate": sum(right) / len(right)}
    return dict(sorted(found.items()))


def _by_problem(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        found[attempt.problem_id].append(attempt)
    return dict(found)


def _unverifiable(attempts: Mapping[str, Sequence[Attempt]]) -> set[str]:
    return {problem_id for problem_id, own in attempts.items() if any(attempt.grade.reward is None for attempt in own)}


def _rates(attempts: Mapping[str, Sequence[Attempt]], k: int) -> dict[str, float]:
    return {
        problem_id: pass_at_k(len(own), sum(attempt.correct for attempt in own), k)
        for problem_id, own in attempts.items()
        if len(own) >= k
    }


def _shares(attempts: Mapping[str, Sequence[Attempt]]) -> dict[str, float]:
    outcomes = Counter(attempt.outcome for own in attempts.values() for attempt in own)
    total = outcomes.total() or 1
    counts = {
        "solved": outcomes.pop(Outcome.RIGHT, 0),
        "wrong": outcomes.pop(Outcome.WRONG, 0),
        "truncated": outcomes.pop(Outcome.TRUNCATED, 0),
        "unreadable": outcomes.total(),
    }
    return {kind: n / total for kind, n in counts.items()}


def _techniques(attempts: Mapping[str, Sequence[Attempt]], notes: Mapping[str, Notes]) -> dict[str, Any]:
    rates: dict[str, list[float]] = defaultdict(list)
    for problem_id, rate in _rates(attempts, 1).items():
        if problem_id in notes and (technique := notes[problem_id].technique) is not None:
            rates[technique].append(rate)
    return {technique: {"n_problems": len(own), "pass@1": mean_with_interval(own)} for technique, own in rates.items()}


def _compare(
    task: Task, problems: Iterable[Problem], attempts: Mapping[str, Sequence[Attempt]], official: Mapping[str, str]
) -> dict[str, int]:
    n_compared = n_agree = 0
    for problem in problems:
        right = [str(attempt.grade.answer) for attempt in attempts[problem.id] if attempt.correct]
        if problem.id in official and right:
            places = task.same_answers(problem, [official[problem.id], *right])
            if places[0] is not None:  # an official answer that cannot be read says nothing
                n_compared += len(right)
                n_agree += places[1:].count(0)
    return {"n_compared": n_compared, "n_agree": n_agree}
