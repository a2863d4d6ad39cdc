"""The library of transformations: how replies are read and sorted, how the library is completed, stored and reused."""

import json
from pathlib import Path
from random import Random

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import VariantSettings
from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_json
from ladder_lite.tasks import load_task
from ladder_lite.variants import transformations
from ladder_lite.variants.transformations import EFFECTS, FILE, Library, default, open_library, read_list, write
from tests.support.fakes import FakeBackend

PROMPT = "task.prompts.transformations='list {count} changes that make it {effect}'"
TASK = load_task(load_recipe("tiny", [PROMPT]).task)


def settings(source: str = "model", most: int = 5) -> VariantSettings:
    changes = [PROMPT, f"variants.transformations={source}", f"variants.suggestions=[3, {most}]"]
    return load_recipe("tiny", changes).variants


REPLIES: list[tuple[str, list[str | None]]] = [
    ("1. Lower the exponent\n2. drop a term.", ["lower the exponent", "drop a term"]),
    ("1) **Lower the exponent**\n2) `Drop` a term", ["lower the exponent", "drop a term"]),
    ("- swap sine and cosine\n* shift x\n\u2022 scale x", ["swap sine and cosine", "shift x", "scale x"]),
    ("Here are some:\n\n1. lower the exponent\n\nI hope this helps!", ["lower the exponent"]),  # prose is skipped
    ("lower the exponent\ndrop a term", ["lower the exponent", "drop a term"]),  # short lines without list markers
    ("Here are some changes:", [None]),
    ("1. integrate(x, x)\n2. x**2 = 1\n3. Use \\int x dx", [None, None, None]),
    ("1. simplify\n2. ", [None]),  # one word is too little; an empty item is skipped
    ("1. Is it easier?\n2. 3 + 4", [None, None]),
    (f"1. {'very ' * 40}long", [None]),
    (
        "1. Lower the exponent: for instance one may replace the cube of x by its square, which is easier by one step",
        ["lower the exponent"],
    ),
    ("1. drop\x1b[31m a term", [None]),
    ("", []),
]


@pytest.mark.parametrize(("reply", "expected"), REPLIES, ids=[f"{reply[:30]!a}" for reply, _ in REPLIES])
def test_a_reply_is_read_line_by_line(reply: str, expected: list[str | None]) -> None:
    assert [text for _, text in read_list(reply)] == expected


@pytest.mark.parametrize("reply", ["1. a " * 100_000, "\n" * 100_000, "1. \ud800 x", "-" * 100_000, "1. " + "(" * 9999])
def test_a_hostile_reply_is_read_safely(reply: str) -> None:
    assert all(text is None or len(text) <= 120 for _, text in read_list(reply))


def inventive(prompt: str, rng: Random) -> str:
    """Ten new valid items."""
    effect = prompt.rsplit(" ", 1)[-1]
    return "\n".join(f"{n}. {effect} change number {rng.randrange(10**8, 10**9)}" for n in range(1, 11))


def test_the_model_is_asked_until_the_library_is_long_enough(tmp_path: Path) -> None:
    backend = FakeBackend(inventive)
    summary = write(TASK, backend, settings(), tmp_path, seed=0)
    library = open_library(TASK, settings(), tmp_path)
    assert (library.source, summary["source"]) == ("model", "model")
    for effect in EFFECTS:
        texts = library.of(effect)
        assert len(texts) == len(set(texts)) == summary["written"][effect] >= transformations.SIZE
        assert all(text.startswith(effect) for text in texts)
    assert len(backend.asked) == 3  # one round was enough
    assert {prompt.rsplit(" ", 1)[-1] for prompt in backend.prompts} == set(EFFECTS)
    assert len({call.sampling.seed for call in backend.asked}) == 3
    assert backend.asked[0].sampling.temperature == pytest.approx((0.8, 1.0, 1.2, 1.4))
    assert summary["tokens"] == sum(len(inventive(prompt, Random(0))) for prompt in backend.prompts)


def test_thoughts_are_not_transformations(tmp_path: Path) -> None:
    backend = FakeBackend(lambda prompt, rng: f"1. think of\n</think>\n{inventive(prompt, rng)}")
    task = load_task(load_recipe("tiny", [PROMPT, "task.thinking=true"]).task)
    assert write(task, backend, settings(), tmp_path, seed=0)["source"] == "model"
    assert "think of" not in (tmp_path / FILE).read_text()


def test_repeats_count_once_and_the_default_is_added(tmp_path: Path) -> None:
    replies = {"easier": "1. Drop a term\n2. drop the term.", "equivalent": "1. Reorder it all", "harder": "no idea"}
    backend = FakeBackend(lambda prompt, rng: replies[prompt.rsplit(" ", 1)[-1]])
    summary = write(TASK, backend, settings(), tmp_path, seed=0)
    library = open_library(TASK, settings(), tmp_path)
    assert (library.source, summary["source"]) == ("model and default",) * 2
    assert summary["written"] == {"easier": 1, "equivalent": 1, "harder": 1}
    assert library.easier == ("drop a term", *default(TASK).easier)
    assert library.equivalent == ("reorder it all", *default(TASK).equivalent)
    assert len(backend.asked) == 9  # three rounds of three effects, the maximum


def test_a_transformation_belongs_to_the_effect_given_most_often(tmp_path: Path) -> None:
    replies = {
        "easier": "1. drop a term\n2. turn it round\n3. scale all of it",
        "equivalent": "1. turn it round\n2. scale all of it\n3. scale all of it",
        "harder": "1. nest it deeper",
    }
    backend = FakeBackend(lambda prompt, rng: replies[prompt.rsplit(" ", 1)[-1]])
    write(TASK, backend, settings(), tmp_path, seed=0)
    library = open_library(TASK, settings(), tmp_path)
    assert "scale all of it" in library.equivalent
    assert "scale all of it" not in library.easier
    assert "turn it round" not in (*library.easier, *library.equivalent, *library.harder)  # a tie: dropped


def test_rejected_lines_are_recorded(tmp_path: Path) -> None:
    write(TASK, FakeBackend(lambda prompt, rng: "1. integrate(x, x)\n2. drop a term"), settings(), tmp_path, seed=0)
    rejected = json.loads((tmp_path / FILE).read_text())["rejected"]
    assert {row["text"] for row in rejected} == {"1. integrate(x, x)"}
    assert {row["effect"] for row in rejected} == set(EFFECTS)


def test_the_same_seed_writes_the_same_library(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(TASK, FakeBackend(inventive), settings(), tmp_path / name, seed)
    texts = [(tmp_path / name / FILE).read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_the_default_library_can_serve_every_request() -> None:
    assert open_library(TASK, settings("default"), Path("nowhere")) == default(TASK)
    for effect in EFFECTS:
        texts = default(TASK).of(effect)
        assert len(texts) == len({text.casefold() for text in texts}) >= 5
        assert all(
            [text for _, text in read_list(f"1. {line}")] == [line] for line in texts
        )  # each would be read from a reply unchanged
    everything = [text for effect in EFFECTS for text in default(TASK).of(effect)]
    assert len(everything) == len(set(everything))


def test_lists_in_the_recipe_are_a_library(tmp_path: Path) -> None:
    library = open_library(TASK, settings("{easier: [a, b, c, d, e], equivalent: [f, g, h, i, j]}"), tmp_path)
    assert library == Library("recipe", tuple("abcde"), tuple("fghij"), ())


def test_the_library_of_another_run_can_be_reused(tmp_path: Path) -> None:
    write(TASK, FakeBackend(inventive), settings(), tmp_path, seed=0)
    own = open_library(TASK, settings(), tmp_path)
    again = open_library(TASK, settings(str(tmp_path / FILE)), tmp_path / "elsewhere")
    assert (again.easier, again.equivalent, again.harder) == (own.easier, own.equivalent, own.harder)
    assert again.source == str(tmp_path / FILE)


def test_a_library_too_short_for_the_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"default: has 12 equivalent .* variants.suggestions asks for up to 15"):
        open_library(TASK, settings("default", most=15), tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"easier": []}', '{"source": "x", "easier": [1]}'])
def test_an_unreadable_library_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "library.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as refused:
        open_library(TASK, settings(str(path)), tmp_path)
    assert str(refused.value).startswith(f"variants.transformations {path}: ")


def test_values_that_are_not_lists_of_text_are_refused(tmp_path: Path) -> None:
    for easier in ([1], "drop a term"):
        write_json(tmp_path / FILE, {"source": "model", "easier": easier, "equivalent": [], "harder": []})
        with pytest.raises(UserError, match="each effect must be a list"):
            open_library(TASK, settings(str(tmp_path / FILE)), tmp_path)
