"""The embedded model: what it was taught, what it was not, and that it loads like any other."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import tiny_corpus as corpus
import tiny_pretrain as pretrain

import ladder_lite.tiny
from ladder_lite.config.load import load_recipe
from ladder_lite.install import shipped
from ladder_lite.problems import load_problems
from ladder_lite.tasks import load_task
from ladder_lite.verify import Reason, verify
from tests.support.problems import TASK, problem

FOLDER = Path(ladder_lite.tiny.__file__).parent


def _terms(count: int) -> Iterator[corpus.Term]:
    rng = Random(0)
    for _ in range(count):
        yield from (corpus.draw_term(rng, [name]) for name in corpus.TECHNIQUES)


def test_there_are_techniques_of_ten_families() -> None:
    assert len({technique.family for technique in corpus.TECHNIQUES.values()}) >= 10


def test_right_forms_are_right_and_slips_are_wrong() -> None:
    for term in _terms(4):
        right, *slips = (term.sign + form for form in corpus.answers(term))
        integrand = corpus.integrand([term])
        assert verify(integrand, right).reason is Reason.CORRECT, (integrand, right)
        for slip in slips:
            assert verify(integrand, slip).reason is Reason.WRONG, (integrand, slip)


def test_a_term_is_right_as_often_as_stated() -> None:
    rng = Random(0)
    term = corpus.draw_term(rng, ["sine"])
    right = corpus.answers(term)[0]
    share = sum(corpus.solve(rng, [term]).lstrip("-") == right for _ in range(4000)) / 4000
    assert share == pytest.approx(corpus.RIGHT, abs=0.03)


def test_the_exam_and_its_probe() -> None:
    rows = [json.loads(line) for line in (shipped("benchmarks") / "exam.jsonl").read_text().splitlines()]
    exam = corpus.exam()
    assert [(row["split"], row["integrand"]) for row in rows] == [
        (split, corpus.integrand(terms)) for split, terms in exam
    ]
    assert all(verify(row["integrand"], row["answer"]).reason is Reason.CORRECT for row in rows)
    keys = {key for row in rows for key in TASK.fingerprints(problem(row["integrand"]))}
    assert len(keys) == 2 * len(rows) == 2 * (34 + 60 + 320)
    # A pair is (split, whether a term has a technique that no training integral has).
    kinds = Counter((split, any(term.technique in corpus.UNTRAINED for term in terms)) for split, terms in exam)
    expected = {("train", False): 34, ("test", False): 20, ("test", True): 40}
    assert kinds == expected | {("probe", False): 200, ("probe", True): 120}
    assert {row["technique"] for row in rows if row["split"] == "probe"} == set(corpus.TECHNIQUES)


def test_the_problem_set_is_what_the_corpus_keeps_out() -> None:
    rows = [json.loads(line) for line in (shipped("benchmarks") / "tiny.jsonl").read_text().splitlines()]
    assert [(row["split"], row["integrand"]) for row in rows] == [
        (split, corpus.integrand(terms)) for split, terms in corpus.benchmark()
    ]
    assert all(verify(row["integrand"], row["answer"]).reason is Reason.CORRECT for row in rows)
    problems = [*TASK.problems("train"), *TASK.problems("test")]
    assert len({key for problem in problems for key in TASK.fingerprints(problem)}) == 2 * len(problems) == 220


def test_no_text_of_the_corpus_holds_a_training_or_test_integral() -> None:
    """By the key of the generator for as much text as pretraining reads, and as functions for a part of it."""
    held_out = pretrain.held_out()
    stream = corpus.examples(0, held_out)
    held = [problem for split in ("train", "test") for problem in load_problems("tiny", split)]
    tests = {key for problem in held for key in TASK.fingerprints(problem)}
    for number, example in enumerate(islice(stream, pretrain.STEPS * pretrain.BATCH_SIZE)):
        asked = example.prompt.rpartition("integrate(")[2].removesuffix(",x)")
        written = corpus.integrand(example.terms)
        assert corpus.key(example.terms) not in held_out
        if number < 4000:
            for text in {asked, written}:
                assert tests.isdisjoint(TASK.fingerprints(problem(text)))


def test_a_held_out_integral_is_left_out() -> None:
    first = next(corpus.examples(3, set()))
    assert first.terms not in [example.terms for example in islice(corpus.examples(3, {corpus.key(first.terms)}), 50)]


@pytest.mark.parametrize("effect", ["easier", "equivalent"])
def test_the_recipe_asks_as_the_corpus_taught(effect: str) -> None:
    recipe = load_recipe("tiny")
    assert set(recipe.variants.personas) == set(corpus.PERSONAS)
    assert list(getattr(recipe.variants.transformations, effect)) == list(corpus.TRANSFORMATIONS[effect])
    problem = load_problems("tiny", "test")[0]
    (turn,) = load_task(recipe.task).prompt(problem)
    assert turn["content"] == corpus.SOLVE.format(integrand=problem.data["integrand"])
    fields = {"persona": "euler", "suggestions": "reorder", "integrand": "x"}
    asked = getattr(recipe.task.prompts, effect).format(**fields, variable="x", count=1)
    assert asked == corpus.VARIANT.format(effect=effect, **fields)


def test_variants_are_integrands_of_known_terms() -> None:
    rng = Random(1)
    for effect, library in corpus.TRANSFORMATIONS.items():
        for name in library:
            for persona in corpus.PERSONAS:
                terms = corpus.draw_terms(rng, rng.randint(1, corpus.MAX_TERMS))
                variant = corpus.write_variant(rng, terms, effect, persona, [name, name])
                assert 1 <= len(variant) <= len(terms)
                if name.startswith(("keep", "drop", "halve")):
                    assert len(variant) < len(terms) or len(terms) <= 2


def test_every_text_is_in_the_vocabulary_and_reads_back() -> None:
    tokenizer = pretrain.build_tokenizer()
    for example in islice(corpus.examples(1, set()), 500):
        for text in (example.prompt, example.reply):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text.replace(" ", "")


def test_the_model_is_small_and_complete() -> None:
    weights = (FOLDER / "model.safetensors").stat().st_size
    assert weights <= 10_000_000
    scores = json.loads((FOLDER / "scores.json").read_text())
    assert scores["steps"] == pretrain.STEPS
    assert scores["pass@1"]["7 terms"]["value"] <= 0.02


def test_pretraining_learns_and_repeats_itself() -> None:
    from ladder_lite.terminal import Live

    losses: list[float] = []

    class Bar:
        def set(self, _done: int, loss: float) -> None:
            losses.append(loss)

    with Live():
        first, _ = pretrain.pretrain(seed=5, steps=4, bar=Bar())  # type: ignore[arg-type]
        second, _ = pretrain.pretrain(seed=5, steps=4, bar=Bar())  # type: ignore[arg-type]
    assert losses[3] < losses[0]
    assert losses[:4] == losses[4:]
    assert all((a == b).all() for a, b in zip(first.parameters(), second.parameters(), strict=True))
