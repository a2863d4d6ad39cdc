"""The corpus of the embedded model: integrals solved with a student's mistakes, and easier variants of integrals.

An integrand is a sum of terms, and each term belongs to one technique. In the corpus, each term is integrated correctly
with probability `RIGHT`, independently of the others. Otherwise it has one of the technique's slips, which are typical
mistakes. A single term is therefore right once in four times, a sum of seven terms once in about 16,000. The
experiment has to bridge this gap.

`python benchmarks/tiny_corpus.py > benchmarks/tiny.jsonl` writes the training and test integrals of the recipe `tiny`.
The corpus does not contain them. `python benchmarks/tiny_corpus.py exam > benchmarks/exam.jsonl` writes those of the
recipe `exam`, and its probe.

Answers are left unsimplified (`exp(3*x)/3*5`, `/(2*4)`): the model learns techniques, not arithmetic.
"""

import csv
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

RIGHT = 0.25
"""Probability that a term of the corpus is integrated correctly."""

MAX_TERMS = 8
"""Number of terms of the longest integrand. Training integrals have seven or eight, test integrals five to seven."""


@dataclass(frozen=True, slots=True)
class Technique:
    """A kind of term: templates of its integrand, its antiderivative and its slips in a, b, n and m = n + 1."""

    name: str
    family: str
    integrand: str
    right: str
    slips: tuple[str, ...]


def _read_techniques(path: Path) -> dict[str, Technique]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row | {"slips": tuple(row["slips"].split(" ; "))} for row in csv.DictReader(file)]
    return {row["name"]: Technique(**row) for row in rows}


TECHNIQUES = _read_techniques(Path(__file__).with_name("tiny_techniques.csv"))

PERSONAS: dict[str, tuple[str, ...]] = {
    "euler": ("exponentials", "trigonometric"),
    "gauss": ("squares", "hyperbolic"),
    "leibniz": ("parts", "substitution"),
    "noether": ("fractions", "powers"),
    "kovalevskaya": ("inverse", "logarithms"),
}
"""The technique families that each persona prefers when a transformation draws a new term."""


SOLVE = "solve integrate({integrand},x)"
VARIANT = "{effect} as {persona}: {suggestions}: integrate({integrand},x)"


class Term(NamedTuple):
    """One term of an integrand: `sign * c * integrand(technique)` with the technique's numbers, each a digit."""

    technique: str
    sign: str
    c: int
    a: int
    b: int
    n: int


Terms = tuple[Term, ...]


def draw_term(rng: Random, techniques: Sequence[str]) -> Term:
    """Draw a term of one of the techniques, with random numbers."""
    a = rng.randint(2, 9)
    b = rng.choice([number for number in range(1, 10) if number != a])  # partial fractions need different numbers
    return Term(rng.choice(techniques), rng.choice("+-"), rng.randint(1, 9), a, b, rng.randint(2, 8))


def draw_terms(rng: Random, n_terms: int) -> Terms:
    """Draw `n_terms` terms of different techniques.

    Terms of different techniques cannot be added up, so sums that are equal as functions have equal sets of terms.
    """
    return tuple(draw_term(rng, [name]) for name in rng.sample(tuple(TECHNIQUES), n_terms))


def integrand(terms: Sequence[Term]) -> str:
    """Return the integrand as text in SymPy syntax."""
    return _join((term, _scaled(term.c, _fill(TECHNIQUES[term.technique].integrand, term))) for term in terms)


def answers(term: Term) -> tuple[str, ...]:
    """Return the answers to a term that the corpus may contain: the right antiderivative, then the slips."""
    technique = TECHNIQUES[term.technique]
    return tuple(_scaled(term.c, _fill(form, term)) for form in (technique.right, *technique.slips))


def solve(rng: Random, terms: Sequence[Term]) -> str:
    """Write an antiderivative as a student would: each term is right with probability `RIGHT`, otherwise a slip."""

    def attempt(term: Term) -> str:
        right, *slips = answers(term)
        return right if rng.random() < RIGHT else rng.choice(slips)

    return _join((term, attempt(term)) for term in terms)


def key(terms: Sequence[Term]) -> frozenset[tuple[str, str, int, str]]:
    """Return a key that is equal for sums that are equal as functions, whatever the order of their terms."""
    return frozenset((t.technique, t.sign, t.c, _fill(TECHNIQUES[t.technique].integrand, t)) for t in terms)


def _fill(form: str, term: Term) -> str:
    return form.format(a=term.a, b=term.b, n=term.n, m=term.n + 1)


def _scaled(c: int, text: str) -> str:
    if c == 1:
        return text
    return f"{c}{text[1:]}" if text.startswith("1/") else f"{c}*{text}"  # 5 times "1/x" -> "5/x"


def _join(parts: Iterator[tuple[Term, str]]) -> str:
    return "".join(term.sign + text for term, text in parts).removeprefix("+")


# ---------------------------------------------------------------------------------------------------------------------
# Variants: each transformation rewrites the terms of an integrand; new terms come from the persona's techniques.


def _keep(terms: Terms, rng: Random, count: int) -> Terms:
    return tuple(terms[index] for index in sorted(rng.sample(range(len(terms)), max(1, min(count, len(terms))))))


def _swap_function(terms: Terms, rng: Random, preferred: Sequence[str]) -> Terms:
    present = {term.technique for term in terms}
    index = rng.randrange(len(terms))
    choice = [name for name in preferred if name not in present]
    return (*terms[:index], draw_term(rng, choice), *terms[index + 1 :]) if choice else terms


TRANSFORMATIONS: dict[str, dict[str, Callable[[Terms, Random, Sequence[str]], Terms]]] = {
    "easier": {
        "keep-one": lambda terms, rng, preferred: _keep(terms, rng, 1),
        "keep-two": lambda terms, rng, preferred: _keep(terms, rng, 2),
        "halve": lambda terms, rng, preferred: _keep(terms, rng, len(terms) // 2),
        "drop-one": lambda terms, rng, preferred: _keep(terms, rng, len(terms) - 1),
        "drop-two": lambda terms, rng, preferred: _keep(terms, rng, len(terms) - 2),
        "unit-factors": lambda terms, rng, preferred: tuple(term._replace(c=1) for term in terms),
        "low-powers": lambda terms, rng, preferred: tuple(term._replace(n=2) for term in terms),
        "swap-function": _swap_function,
    },
    "equivalent": {
        "new-numbers": lambda terms, rng, preferred: tuple(
            draw_term(rng, [term.technique])._replace(sign=term.sign) for term in terms
        ),
        "flip-signs": lambda terms, rng, preferred: tuple(term._replace(sign=rng.choice("+-")) for term in terms),
        "new-factors": lambda terms, rng, preferred: tuple(term._replace(c=rng.randint(1, 9)) for term in terms),
        "reorder": lambda terms, rng, preferred: tuple(rng.sample(terms, len(terms))),
        "swap-function": _swap_function,
    },
}


def write_variant(rng: Random, terms: Terms, effect: str, persona: str, suggestions: Sequence[str]) -> Terms:
    """Write a variant as a persona would: apply two of the suggested transformations, one after the other."""
    preferred = [name for name, technique in TECHNIQUES.items() if technique.family in PERSONAS[persona]]
    for name in rng.sample(tuple(suggestions), 2):
        terms = TRANSFORMATIONS[effect][name](terms, rng, preferred)
    return terms


# ---------------------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One text of the corpus: a prompt, its reply, and the terms of the integrand in the reply or the prompt."""

    prompt: str
    reply: str
    terms: Terms


def examples(seed: int, held_out: Collection[frozenset[object]], share_of_variants: float = 0.35) -> Iterator[Example]:
    """Yield texts endlessly. An integrand whose `key` is held out occurs in no prompt and in no reply."""
    rng = Random(seed)
    while True:
        terms = draw_terms(rng, rng.randint(1, MAX_TERMS))
        if rng.random() < share_of_variants:
            effect = "easier" if rng.random() < 0.7 else "equivalent"
            persona = rng.choice(tuple(PERSONAS))
            library = tuple(TRANSFORMATIONS[effect])
            suggestions = rng.sample(library, rng.randint(3, 5))
            variant = write_variant(rng, terms, effect, persona, suggestions)
            listed = ", ".join(suggestions)
            prompt = VARIANT.format(effect=effect, persona=persona, suggestions=listed, integrand=integrand(terms))
            example = Example(prompt, f"integrate({integrand(variant)},x)", variant)
        else:
            example = Example(SOLVE.format(integrand=integrand(terms)), f"<answer>{solve(rng, terms)}</answer>", terms)
        if key(terms) not in held_out and key(example.terms) not in held_out:
            yield example


def benchmark() -> list[tuple[str, Terms]]:
    """Return the recipe's integrals with their splits: 10 of 7 or 8 terms for training, 100 of 5 to 7 for the test."""
    rng = Random(20250303)
    train = [("train", draw_terms(rng, rng.randint(7, 8))) for _ in range(10)]
    return train + [("test", draw_terms(rng, rng.randint(5, 7))) for _ in range(100)]


UNTRAINED = ("parts_exponential", "sine_squared", "partial_fractions", "arcsine", "substitution_cosine", "square_root")
"""Techniques of the exam that none of its training integrals has."""


def exam() -> list[tuple[str, Terms]]:
    """Return the recipe's integrals with their splits.

    34 are for training, 20 of the same kind for the test and 40 with untrained techniques. The probe has twenty single
    terms of each technique.
    """
    rng = Random(20250120)
    trained = [name for name in TECHNIQUES if name not in UNTRAINED]

    def draw(n_trained: int, n_untrained: int = 0) -> Terms:
        names = rng.sample(trained, n_trained) + rng.sample(UNTRAINED, n_untrained)
        return tuple(draw_term(rng, [name]) for name in rng.sample(names, len(names)))

    roots = [("train", draw(rng.randint(7, 8))) for _ in range(34)]
    alike = [("test", draw(rng.randint(6, 7))) for _ in range(20)]
    untrained = [("test", draw(2, rng.randint(2, 4))) for _ in range(40)]
    terms: dict[frozenset[object], tuple[str, Terms]] = {}
    rng = Random(20250121)
    for name in TECHNIQUES:
        while sum(term.technique == name for _, (term,) in terms.values()) < 20:
            term = draw_term(rng, [name])
            terms[key((term,))] = ("probe", (term,))
    return [*roots, *alike, *untrained, *terms.values()]


if __name__ == "__main__":
    for split, terms in {"tiny": benchmark, "exam": exam}[sys.argv[1] if len(sys.argv) > 1 else "tiny"]():
        answer = _join((term, answers(term)[0]) for term in terms)
        row = {"integrand": integrand(terms), "split": split, "answer": answer}
        print(json.dumps(row | ({"technique": terms[0].technique} if split == "probe" else {})))
