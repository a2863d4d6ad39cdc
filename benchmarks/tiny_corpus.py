"""The text the embedded model is taught on: integrals solved with a student's slips, and easier variants of integrals.

An integrand is a sum of terms, each of one technique. In the text, a term is integrated rightly with probability
`RIGHT` and otherwise with one of the technique's slips, each term for itself. A sum of seven terms therefore comes out
right about once in 16,000 times, while a single term does once in four: that distance is what the experiment is about.

`python benchmarks/tiny_corpus.py > benchmarks/tiny.jsonl` writes the training and test integrals of the tiny recipe,
which the corpus itself holds nowhere.

The answers are left unsimplified (`exp(3*x)/3*5`, `/(2*4)`): the model is taught techniques, not arithmetic.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

RIGHT = 0.25
"""Probability that a term of the corpus is integrated rightly."""

MAX_TERMS = 8
"""Terms of the longest integrand; training integrals have seven or eight, test integrals five to seven."""


@dataclass(frozen=True, slots=True)
class Technique:
    """A kind of term: its integrand, its antiderivative and the slips, as templates over a, b, n and m = n + 1."""

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
"""What each persona likes to write when a transformation lets it choose a new term."""


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
    """A term of one of the techniques, its numbers drawn at random."""
    a = rng.randint(2, 9)
    b = rng.choice([number for number in range(1, 10) if number != a])
    return Term(rng.choice(techniques), rng.choice("+-"), rng.randint(1, 9), a, b, rng.randint(2, 8))


def draw_terms(rng: Random, n_terms: int) -> Terms:
    """`n_terms` terms of different techniques: no two can be added up, so equal functions have equal sets of terms."""
    return tuple(draw_term(rng, [name]) for name in rng.sample(tuple(TECHNIQUES), n_terms))


def integrand(terms: Sequence[Term]) -> str:
    """The integrand as text in SymPy syntax."""
    return _join((term, _scaled(term.c, _fill(TECHNIQUES[term.technique].integrand, term))) for term in terms)


def answers(term: Term) -> tuple[str, ...]:
    """What the corpus may write for the term's antiderivative, the right one first, then the slips."""
    technique = TECHNIQUES[term.technique]
    return tuple(_scaled(term.c, _fill(form, term)) for form in (technique.right, *technique.slips))


def solve(rng: Random, terms: Sequence[Term]) -> str:
    """An antiderivative as a student would write it: each term right with probability `RIGHT`, else with a slip."""

    def attempt(term: Term) -> str:
        right, *slips = answers(term)
        return right if rng.random() < RIGHT else rng.choice(slips)

    return _join((term, attempt(term)) for term in terms)


def key(terms: Sequence[Term]) -> frozenset[tuple[str, str, int, str]]:
    """Equal for sums that are equal as functions, in whatever order their terms are written."""
    return frozenset((t.technique, t.sign, t.c, _fill(TECHNIQUES[t.technique].integrand, t)) for t in terms)


def _fill(form: str, term: Term) -> str:
    return form.format(a=term.a, b=term.b, n=term.n, m=term.n + 1)


def _scaled(c: int, text: str) -> str:
    if c == 1:
        return text
    return f"{c}{text[1:]}" if text.startswith("1/") else f"{c}*{text}"


def _join(parts: Iterator[tuple[Term, str]]) -> str:
    return "".join(term.sign + text for term, text in parts).removeprefix("+")


# ---------------------------------------------------------------------------------------------------------------------
# Variants: each transformation rewrites the terms of an integrand, with the techniques that the persona likes at hand.


def _keep(terms: Terms, rng: Random, count: int) -> Terms:
    return tuple(terms[at] for at in sorted(rng.sample(range(len(terms)), max(1, min(count, len(terms))))))


def _swap_function(terms: Terms, rng: Random, liked: Sequence[str]) -> Terms:
    present = {term.technique for term in terms}
    at = rng.randrange(len(terms))
    choice = [name for name in liked if name not in present]
    return (*terms[:at], draw_term(rng, choice), *terms[at + 1 :]) if choice else terms


TRANSFORMATIONS: dict[str, dict[str, Callable[[Terms, Random, Sequence[str]], Terms]]] = {
    "easier": {
        "keep-one": lambda terms, rng, liked: _keep(terms, rng, 1),
        "keep-two": lambda terms, rng, liked: _keep(terms, rng, 2),
        "halve": lambda terms, rng, liked: _keep(terms, rng, len(terms) // 2),
        "drop-one": lambda terms, rng, liked: _keep(terms, rng, len(terms) - 1),
        "drop-two": lambda terms, rng, liked: _keep(terms, rng, len(terms) - 2),
        "unit-factors": lambda terms, rng, liked: tuple(term._replace(c=1) for term in terms),
        "low-powers": lambda terms, rng, liked: tuple(term._replace(n=2) for term in terms),
        "swap-function": _swap_function,
    },
    "equivalent": {
        "new-numbers": lambda terms, rng, liked: tuple(
            draw_term(rng, [term.technique])._replace(sign=term.sign) for term in terms
        ),
        "flip-signs": lambda terms, rng, liked: tuple(term._replace(sign=rng.choice("+-")) for term in terms),
        "new-factors": lambda terms, rng, liked: tuple(term._replace(c=rng.randint(1, 9)) for term in terms),
        "reorder": lambda terms, rng, liked: tuple(rng.sample(terms, len(terms))),
        "swap-function": _swap_function,
    },
}


def write_variant(rng: Random, terms: Terms, effect: str, persona: str, suggestions: Sequence[str]) -> Terms:
    """The variant a persona would write: two of the suggested transformations, one after the other."""
    liked = [name for name, technique in TECHNIQUES.items() if technique.family in PERSONAS[persona]]
    for name in rng.sample(tuple(suggestions), 2):
        terms = TRANSFORMATIONS[effect][name](terms, rng, liked)
    return terms


# ---------------------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One text of the corpus: what is asked and what is to be written."""

    prompt: str
    reply: str
    terms: Terms


def examples(seed: int, held_out: Collection[frozenset[object]], share_of_variants: float = 0.35) -> Iterator[Example]:
    """An endless stream of texts; an integrand whose `key` is held out is never asked and never written."""
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


if __name__ == "__main__":
    for split, terms in benchmark():
        answer = _join((term, answers(term)[0]) for term in terms)
        print(json.dumps({"integrand": integrand(terms), "split": split, "answer": answer}))
