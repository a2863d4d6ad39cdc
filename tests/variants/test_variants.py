"""The variant tree: which requests are made, which variants are kept, and resuming after a kill."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from math import ceil
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ladder_lite import variants
from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import VariantSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.variants import Growth, Writer
from ladder_lite.variants.transformations import open_library
from tests.support.commands import run_command
from tests.support.fakes import FakeBackend, Script, silent_bar
from tests.support.problems import TASK, problem

FILES = ("problems.jsonl", "rejected.jsonl", "rounds.jsonl")
PROMPT = re.compile(r"(easier|equivalent) as (\w+): ([\w, -]+): integrate\((.*),(\w+)\)")


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "time", SimpleNamespace(monotonic=lambda: 0.0))


ROOTS = [problem("x**3+sin(x)"), problem("x*exp(x)"), problem("log(x)")]


@lru_cache
def settings(**changes: object) -> VariantSettings:
    defaults = {"per_root": 6, "depth": 2, "per_prompt": 1, "suggestions": [3, 5], "temperature": [0.8, 1.4]}
    defaults |= {"adaptive": "null"}
    return load_recipe("tiny", [f"variants.{key}={value}" for key, value in (defaults | changes).items()]).variants


def grow(
    script: Script,
    folder: Path,
    chosen: VariantSettings,
    roots: Iterable[Problem] = ROOTS,
    tests: Iterable[Problem] = (),
    seed: int = 0,
) -> tuple[list[Problem], FakeBackend]:
    backend = FakeBackend(script)
    writer = writing(backend, chosen, seed, {"a benchmark": list(tests)})
    return variants.grow(writer, list(roots), folder, silent_bar()), backend


def writing(
    backend: FakeBackend, chosen: VariantSettings, seed: int = 0, held_out: Mapping[str, list[Problem]] | None = None
) -> Writer:
    return Writer(
        TASK, cast(Backend, backend), chosen, open_library(TASK, chosen, Path("nowhere")), held_out or {}, seed
    )


def multiply(prompt: str, rng: Random) -> str:
    """A new variant, made by multiplying the integrand of the prompt by something random."""
    found = PROMPT.fullmatch(prompt)
    assert found, prompt
    return f"integrate({found[4]}*({rng.randrange(2, 10**6)}+x), x)"


def repeat_and_err(prompt: str, rng: Random) -> str:  # noqa: ARG001
    """Sometimes a new variant, often a repeated or unreadable one, sometimes two at once."""
    new = f"integrate({rng.randrange(2, 40)}*x, x)"
    return rng.choice([new, new, f"{new} and {new}", "integrate(x*exp(x), x)", "integrate(x*, x)", "nothing"])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


# --- what is asked for


@pytest.mark.parametrize(("per_root", "depth"), [(1, 1), (5, 1), (6, 2), (5, 3), (2, 3)])
def test_every_tree_gets_its_quota_at_every_depth(tmp_path: Path, per_root: int, depth: int) -> None:
    bar = silent_bar(per_root * len(ROOTS))
    backend = FakeBackend(multiply)
    chosen = settings(per_root=per_root, depth=depth)
    tree = variants.grow(writing(backend, chosen), ROOTS, tmp_path, bar)
    assert tree == variants.load(tmp_path)
    assert bar.task.completed == bar.task.total == len(tree) == len({variant.id for variant in tree})
    so_far = [ceil(per_root * level / depth) for level in range(depth + 1)]
    for one in ROOTS:
        depths = Counter(variant.depth for variant in tree if variant.root_id == one.id)
        expected = {level: so_far[level] - so_far[level - 1] for level in range(1, depth + 1)}
        assert depths == {level: n for level, n in expected.items() if n}
    by_id = {problem.id: problem for problem in (*ROOTS, *tree)}
    for variant in tree:
        parent = by_id[variant.parent_id or ""]
        assert (parent.root_id, parent.depth) == (variant.root_id, variant.depth - 1)
        assert str(variant.data["integrand"]).startswith(f"{parent.data['integrand']}*(")  # the reply to its prompt
    assert variants.summarize_tree(tmp_path)["by_depth"] == {str(level): 3 * n for level, n in expected.items() if n}


def test_fewer_requests_are_made_if_a_reply_has_several_variants(tmp_path: Path) -> None:
    three = lambda prompt, rng: " ".join(multiply(prompt, rng) for _ in range(3))  # noqa: E731
    _, backend = grow(three, tmp_path, settings(per_root=7, depth=1, per_prompt=3))
    assert [row["requests"] for row in read_jsonl(tmp_path / "rounds.jsonl")] == [9, 0, 0, 0, 0]
    assert len(backend.prompts) == 9
    assert {call.n for call in backend.asked} == {1}


def test_a_round_asks_only_for_the_roots_that_lack_variants(tmp_path: Path) -> None:
    silent_about_log = lambda prompt, rng: "no" if "log" in prompt else multiply(prompt, rng)  # noqa: E731
    tree, backend = grow(silent_about_log, tmp_path, settings(per_root=4, depth=2))
    assert Counter(variant.root_id for variant in tree) == {ROOTS[0].id: 4, ROOTS[1].id: 4}
    by_round = [row["requests"] for row in read_jsonl(tmp_path / "rounds.jsonl")]
    # A third of the requests brought nothing, so more requests are made for each missing variant. A root without
    # variants has no parents for the second level.
    assert by_round == [6, 3, 5, 7, 11, 4, 0, 0, 0, 0]
    assert sum("log" in prompt for prompt in backend.prompts) == 2 + 3 + 5 + 7 + 11


@pytest.mark.parametrize(("easier", "equivalent"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_suggestions_come_from_the_right_library(tmp_path: Path, easier: float, equivalent: float) -> None:
    chosen = settings(per_root=40, depth=1, mix=f"{{easier: {easier}, equivalent: {equivalent}}}")
    tree, backend = grow(multiply, tmp_path, chosen)
    found = [match for prompt in backend.prompts if (match := PROMPT.fullmatch(prompt))]
    assert len(found) == len(backend.prompts) == len(tree) == 120
    for match in found:
        suggestions = match[3].split(", ")
        assert len(set(suggestions)) == len(suggestions)
        assert set(suggestions) <= set(getattr(chosen.transformations, match[1]))
    assert {match[3].count(",") + 1 for match in found} == {3, 4, 5}
    assert {match[2] for match in found} == set(chosen.personas)
    assert {match[1] for match in found} == {
        name for name, share in (("easier", easier), ("equivalent", equivalent)) if share
    }
    asked = Counter((match[1], match[3], match[4]) for match in found)
    integrands = {one.id: one.data["integrand"] for one in ROOTS}
    kept = Counter((v.requested, ", ".join(v.transforms), integrands[v.parent_id or ""]) for v in tree)
    assert kept == asked


def test_temperatures_cycle_and_personas_rotate(tmp_path: Path) -> None:
    chosen = settings(per_root=10, depth=2, max_new_tokens=33, batch_size=5, personas="[euler, gauss, noether]")
    _, backend = grow(multiply, tmp_path, chosen, ROOTS[:1])
    rounds = [call for call in backend.asked if call.prompts]
    assert [len(call.prompts) for call in rounds] == [5, 5]  # a whole round in one call, so that batches are full
    temperatures = [
        temperature for call in rounds for temperature in cast(tuple[float, ...], call.sampling.temperature)
    ]
    assert temperatures == pytest.approx(
        [0.8, 1.0, 1.2, 1.4, 0.8, 1.0, 1.2, 1.4, 0.8, 1.0]
    )  # the cycle goes on across rounds
    personas = [match[2] for prompt in backend.prompts if (match := PROMPT.fullmatch(prompt))]
    assert personas == ["euler"] * 4 + ["gauss"] * 4 + ["noether"] * 2
    assert {(c.sampling.top_p, c.sampling.max_new_tokens, c.sampling.batch_size) for c in rounds} == {(1.0, 33, 5)}


def test_a_round_makes_more_requests_if_few_variants_were_kept(tmp_path: Path) -> None:
    half = lambda prompt, rng: multiply(prompt, rng) if rng.random() < 0.5 else "no"  # noqa: E731
    tree, _ = grow(half, tmp_path, settings(per_root=100, depth=1), ROOTS[:1])
    rows = read_jsonl(tmp_path / "rounds.jsonl")
    assert rows[0]["requests"] == 100
    share = rows[0]["kept"] / 100
    assert rows[1]["requests"] == ceil((100 - rows[0]["kept"]) / share)
    assert len(tree) >= 100
    never, backend = grow(lambda prompt, rng: "no", tmp_path / "never", settings(per_root=4, depth=1), ROOTS[:1])
    assert (never, len(backend.prompts)) == ([], 4 + 4 * 40)  # at most ten times what is missing


def test_no_two_calls_share_a_seed(tmp_path: Path) -> None:
    seeds: list[int] = []
    for seed in range(3):
        _, backend = grow(multiply, tmp_path / str(seed), settings(depth=3), seed=seed)
        seeds += [call.sampling.seed for call in backend.asked]
    assert len(set(seeds)) == len(seeds)


# --- what is kept

ROOT, OTHER, TEST = problem("x**2+sin(x)"), problem("exp(x)"), problem("cos(3*x)+x")
REPLIES: list[tuple[str, list[str], list[str]]] = [  # reply, kept, reasons in order
    ("Nothing comes to mind.", [], ["unreadable"]),
    ("integrate(x**2, (x, 0, 1))", ["x**2"], []),
    ("integrate(x**2, x, 0, 1, 2)", [], ["unreadable"]),
    ("integrate(3, x)", [], ["not_one_variable"]),
    ("integrate(1/(x-x), x)", [], ["undefined"]),
    ("integrate(x**99999, x)", [], ["too_large"]),
    ("integrate(sin(x)+x*x, x)", [], ["equal_to_parent"]),
    ("integrate(t**2+sin(t), t)", [], ["equal_to_parent"]),
    ("integrate(exp(2*x)/exp(x), x)", [], ["duplicate"]),  # another root
    ("integrate(x+cos(-3*x), x)", [], ["test_problem"]),
    ("integrate(t+cos(3*t), t)", [], ["test_problem"]),
    ("integrate(tan(x), x)", ["tan(x)"], []),
    ("integrate(tan(x), x), integrate(sin(x)/cos(x), x)", ["tan(x)"], ["duplicate"]),
    ("1. integrate(2*x, x) 2. integrate(x, x) 3. integrate(x*, x)", ["2*x", "x"], ["unreadable"]),
]


@pytest.mark.parametrize(("reply", "kept", "reasons"), REPLIES, ids=[reply for reply, _, _ in REPLIES])
def test_a_variant_is_rejected_with_its_reason(tmp_path: Path, reply: str, kept: list[str], reasons: list[str]) -> None:
    script = lambda prompt, rng: reply if "x**2+sin(x)" in prompt else "none"  # noqa: E731
    chosen = settings(per_root=1, depth=1)
    tree, backend = grow(script, tmp_path, chosen, [ROOT, OTHER], [TEST])
    assert [variant.data["integrand"] for variant in tree] == kept
    rejected = read_jsonl(tmp_path / "rejected.jsonl")
    about_root = [row for row in rejected if row["parent_id"] == ROOT.id]
    assert [row["reason"] for row in about_root if row["round"] == 0] == reasons
    assert {row["depth"] for row in rejected} == {1}
    written = re.sub(r"\bt\b", "x", reply)  # the variable t is renamed to x
    assert all(row["text"] in reply or row["text"] in written for row in about_root)
    counted = variants.summarize_tree(tmp_path)
    n_duplicates = sum(row["reason"] == "duplicate" for row in rejected)
    assert counted["reasons"] == Counter(row["reason"] for row in rejected)
    assert (counted["kept"], counted["duplicates"]) == (len(kept), n_duplicates)
    assert counted["rejected"] == len(rejected) - n_duplicates
    assert counted["by_depth"] == ({"1": len(kept)} if kept else {})
    assert counted["requests"] == len(backend.prompts)
    assert counted["tokens"] == sum(len(script(prompt, Random())) for prompt in backend.prompts)
    assert counted["seconds"] == 0


@pytest.mark.parametrize(("up_to_factor", "reason"), [("true", "test_problem"), ("false", None)])
def test_a_multiple_of_a_test_problem_is_rejected_if_multiples_count_as_equal(
    tmp_path: Path, up_to_factor: str, reason: str | None
) -> None:
    chosen = settings(per_root=1, depth=1, equal_up_to_factor=up_to_factor)
    tree, _ = grow(lambda prompt, rng: "integrate(-2*x-2*cos(3*x), x)", tmp_path, chosen, [ROOT], [TEST])
    assert [variant.data["integrand"] for variant in tree] == ([] if reason else ["-2*x-2*cos(3*x)"])
    rejected = read_jsonl(tmp_path / "rejected.jsonl")
    assert {(row["reason"], row["equal_to"]) for row in rejected} == ({(reason, "a benchmark")} if reason else set())


def test_no_variant_that_grows_during_training_is_a_test_problem(tmp_path: Path) -> None:
    adaptive = settings(adaptive="{start: 4, every: 5, requests: 6}")
    assert adaptive.adaptive
    writer = writing(FakeBackend(lambda *_: "integrate(cos(3*x)+x, x)"), adaptive, held_out={"a benchmark": [TEST]})
    growth = Growth(writer, ROOTS, [], adaptive.adaptive, tmp_path)
    growth.rewind(0)
    assert growth.grow(5, ROOTS, ROOTS) == []
    assert {row["reason"] for row in read_jsonl(tmp_path / "rejected.jsonl")} == {"test_problem"}


def test_a_repeated_root_that_is_a_test_problem_is_not_a_leak(tmp_path: Path) -> None:
    grow(lambda prompt, rng: "integrate(x**2+sin(x), x)", tmp_path, settings(per_root=1, depth=1), [ROOT], [ROOT, TEST])
    assert {row["reason"] for row in read_jsonl(tmp_path / "rejected.jsonl")} == {"equal_to_parent"}


def test_a_model_that_repeats_itself_is_asked_a_bounded_number_of_times(tmp_path: Path) -> None:
    tree, _ = grow(lambda prompt, rng: "integrate(2*x, x)", tmp_path, settings(per_root=4, depth=2), [ROOT])
    assert [variant.data["integrand"] for variant in tree] == ["2*x"]
    rounds = read_jsonl(tmp_path / "rounds.jsonl")
    assert [row["depth"] for row in rounds] == [1] * variants.MAX_ROUNDS + [2] * variants.MAX_ROUNDS
    asked = [row["requests"] for row in rounds]
    assert asked == [2, 2, 4, 8, 10, 3, 30, 30, 30, 30]  # the yield is 1 in 2, then 1 in 4, ..., and at least 1 in 10
    reasons = Counter((row["depth"], row["reason"]) for row in read_jsonl(tmp_path / "rejected.jsonl"))
    assert reasons == {(1, "duplicate"): 25, (2, "equal_to_parent"): 123}


# --- seeds and kills


@pytest.mark.parametrize("script", [multiply, repeat_and_err])
def test_the_seed_decides(tmp_path: Path, script: Callable[[str, Random], str]) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        grow(script, tmp_path / name, settings(), seed=seed)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "same")
    assert bytes_of(tmp_path / "one")["problems.jsonl"] != bytes_of(tmp_path / "other")["problems.jsonl"]


class Killed(BaseException):
    """Stands for a kill of the process."""


def kill_while_writing(monkeypatch: pytest.MonkeyPatch, number: int, share: float) -> None:
    """Kill the process during append number `number`, after a share of its bytes has been written."""
    left = [number]

    def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        before = path.stat().st_size if path.exists() else 0
        append_jsonl(path, rows)
        left[0] -= 1
        if left[0] < 0:
            if path.exists():
                written = path.stat().st_size - before
                with path.open("r+b") as file:
                    file.truncate(before + min(int(share * (written + 1)), written))
            raise Killed

    monkeypatch.setattr(variants, "append_jsonl", append)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("numbers", [(0, 1, 2), (4, 7, 8), (15, 16, 17)], ids=["first", "middle", "second level"])
def test_growing_cut_anywhere_ends_with_the_same_files(tmp_path: Path, numbers: tuple[int, ...], share: float) -> None:
    chosen = settings(per_root=5, depth=2)
    whole, _ = grow(repeat_and_err, tmp_path / "whole", chosen, tests=[TEST])
    for number in numbers:  # the number of the append: problems, rejected and rounds, in turn
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            kill_while_writing(patch, number, share)
            with pytest.raises(Killed):
                grow(repeat_and_err, folder, chosen, tests=[TEST])
        n_rounds = len(read_jsonl(folder / "rounds.jsonl"))
        assert n_rounds == (number + (share == 1.0)) // 3
        tree, backend = grow(repeat_and_err, folder, chosen, tests=[TEST])
        assert tree == whole
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
        assert len(backend.asked) == 2 * variants.MAX_ROUNDS - n_rounds


def test_growing_survives_two_kills_while_sampling(tmp_path: Path) -> None:
    whole, backend = grow(repeat_and_err, tmp_path / "whole", settings())
    n_replies = len(backend.prompts)
    assert n_replies > 10

    def killed_after(n: int) -> Callable[[str, Random], str]:
        left = [n]

        def reply(prompt: str, rng: Random) -> str:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return repeat_and_err(prompt, rng)

        return reply

    for n in (n_replies // 2, 0):
        with pytest.raises(Killed):
            grow(killed_after(n), tmp_path / "cut", settings())
    assert grow(repeat_and_err, tmp_path / "cut", settings())[0] == whole
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


# --- rounds in parts


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "PART_TOKENS", 4 * settings().max_new_tokens)


@pytest.mark.usefixtures("_small_parts")
def test_a_long_round_is_sampled_in_parts(tmp_path: Path) -> None:
    _, backend = grow(multiply, tmp_path, settings())
    assert [row["requests"] for row in read_jsonl(tmp_path / "rounds.jsonl")] == [9, 0, 0, 0, 0, 9, 0, 0, 0, 0]
    assert [len(call.prompts) for call in backend.asked if call.prompts] == [4, 4, 1, 4, 4, 1]
    assert len({call.sampling.seed for call in backend.asked}) == len(backend.asked)
    assert not (tmp_path / "replies.jsonl").exists()
    assert (
        sum(row["n_tokens"] for row in read_jsonl(tmp_path / "rounds.jsonl"))
        == variants.summarize_tree(tmp_path)["tokens"]
    )


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("number", range(12))
def test_a_round_cut_between_parts_ends_with_the_same_files(tmp_path: Path, number: int, share: float) -> None:
    whole, backend = grow(repeat_and_err, tmp_path / "whole", settings(), tests=[TEST])
    with pytest.MonkeyPatch.context() as patch:
        kill_while_writing(patch, number, share)
        with pytest.raises(Killed):
            grow(repeat_and_err, tmp_path / "cut", settings(), tests=[TEST])
    parts = read_jsonl(tmp_path / "cut" / "replies.jsonl")
    finished = {row["round"] for row in read_jsonl(tmp_path / "cut" / "rounds.jsonl")}
    taken_over = sum(row["round"] not in finished for row in parts)
    again, after = grow(repeat_and_err, tmp_path / "cut", settings(), tests=[TEST])
    assert again == whole
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert after.asked == backend.asked[len(backend.asked) - len(after.asked) :]
    if number < 2:  # killed in the first round, which has parts of 4, 4 and 1 requests
        assert taken_over == number + (share == 1.0)
        assert len(after.asked) == len(backend.asked) - taken_over


@pytest.mark.usefixtures("_small_parts")
def test_a_budget_ends_a_round_between_parts(tmp_path: Path) -> None:
    now = [0.0]

    def minute(prompt: str, rng: Random) -> str:
        now[0] += 60.0
        return multiply(prompt, rng)

    whole, _ = grow(multiply, tmp_path / "whole", settings())
    backend = FakeBackend(minute)
    writer = writing(backend, settings())._replace(deadline=Deadline.after("7m", lambda: now[0]))
    with pytest.raises(OutOfTime):
        variants.grow(writer, ROOTS, tmp_path / "cut", silent_bar())
    assert len(backend.prompts) == 4
    again, backend = grow(multiply, tmp_path / "cut", settings())
    assert again == whole
    assert len(backend.prompts) == 18 - 4
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.usefixtures("_small_parts")
def test_rewinding_forgets_unfinished_parts(tmp_path: Path) -> None:
    growth, tree, _ = growing(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        kill_while_writing(patch, 0, 1.0)
        with pytest.raises(Killed):
            growth.grow(5, ROOTS, tree[:2])
    assert len(read_jsonl(tmp_path / "grown" / "replies.jsonl")) == 1
    again, _, backend = growing(tmp_path)
    again.grow(5, ROOTS[:1], tree[2:])  # training took another path, with other stuck problems
    assert len(backend.prompts) == 6


def test_no_round_of_tiny_is_sampled_in_parts() -> None:
    recipe = load_recipe("tiny")
    chosen, n_roots = recipe.variants, len(TASK.problems("train"))
    assert chosen.adaptive
    most = (
        n_roots * ceil(chosen.adaptive.start / chosen.depth) * 10
    )  # the most requests of a round, if almost nothing was kept before
    assert most * chosen.max_new_tokens <= variants.PART_TOKENS


def test_a_finished_tree_is_not_grown_again(tmp_path: Path) -> None:
    tree, _ = grow(multiply, tmp_path, settings())
    before = bytes_of(tmp_path)
    again, backend = grow([], tmp_path, settings())
    assert (again, backend.asked, bytes_of(tmp_path)) == (tree, [], before)


# --- growing while training


def growing(folder: Path, script: Script = multiply, **changes: object) -> tuple[Growth, list[Problem], FakeBackend]:
    """A growth over a tree of two levels, the tree, and the scripted model."""
    chosen = settings(**({"per_root": 20, "depth": 2, "adaptive": "{start: 4, every: 5, requests: 6}"} | changes))
    backend = FakeBackend(multiply)
    tree = variants.grow(writing(backend, chosen), ROOTS, folder / "variants", silent_bar())
    assert chosen.adaptive
    backend = FakeBackend(script)
    growth = Growth(writing(backend, chosen), ROOTS, tree, chosen.adaptive, folder / "grown")
    growth.rewind(0 if not (folder / "grown").exists() else 100)
    return growth, tree, backend


def requests(backend: FakeBackend) -> list[tuple[str, str]]:
    """The effect and the parent's integrand of each request."""
    return [(match[1], match[4]) for prompt in backend.prompts if (match := PROMPT.fullmatch(prompt))]


def test_an_adaptive_tree_starts_small(tmp_path: Path) -> None:
    _, tree, _ = growing(tmp_path)
    assert Counter(variant.root_id for variant in tree) == {one.id: 4 for one in ROOTS}


def test_stuck_problems_get_easier_children_and_the_frontier_equivalent_ones(tmp_path: Path) -> None:
    growth, tree, backend = growing(tmp_path, mix="{easier: 0.5, equivalent: 0.5}", adaptive=MANY)
    stuck, frontier = ROOTS[0], ROOTS[1]
    new = growth.grow(5, [stuck], [frontier])
    asked = requests(backend)
    integrands = {"easier": stuck.data["integrand"], "equivalent": frontier.data["integrand"]}
    assert len(asked) == len(new) == 30
    assert {effect for effect, _ in asked} == {"easier", "equivalent"}
    assert all(integrand == integrands[effect] for effect, integrand in asked)
    parents = {"easier": stuck.id, "equivalent": frontier.id}
    assert all((variant.parent_id, variant.depth) == (parents[variant.requested], 1) for variant in new)
    assert not {variant.id for variant in new} & {variant.id for variant in tree}


MANY = "{start: 4, every: 5, requests: 30}"


@pytest.mark.parametrize(
    ("mix", "n_stuck", "n_frontier", "expected"),
    [
        ("{easier: 1.0, equivalent: 0.0}", 1, 1, {"easier"}),
        ("{easier: 1.0, equivalent: 0.0}", 0, 1, set()),
        ("{easier: 0.0, equivalent: 1.0}", 1, 1, {"equivalent"}),
        ("{easier: 0.7, equivalent: 0.3}", 0, 1, {"equivalent"}),
        ("{easier: 0.7, equivalent: 0.3}", 1, 0, {"easier"}),
        ("{easier: 0.7, equivalent: 0.3}", 0, 0, set()),
    ],
)
def test_growth_follows_the_mix_and_the_available_problems(
    tmp_path: Path, mix: str, n_stuck: int, n_frontier: int, expected: set[str]
) -> None:
    growth, _, backend = growing(tmp_path, mix=mix, adaptive=MANY)
    grown = growth.grow(5, ROOTS[:n_stuck], ROOTS[1 : 1 + n_frontier])
    assert {effect for effect, _ in requests(backend)} == expected
    assert bool(grown) == bool(expected)


def test_problems_without_children_come_first_and_the_deepest_get_none(tmp_path: Path) -> None:
    growth, tree, backend = growing(tmp_path, mix="{easier: 1.0, equivalent: 0.0}")
    first_level = [variant for variant in tree if variant.depth == 1]
    n_children = Counter(variant.parent_id for variant in tree)
    growth.grow(5, tree, [])
    asked = [integrand for _, integrand in requests(backend)]
    assert set(asked) <= {str(variant.data["integrand"]) for variant in first_level}
    counts = {str(variant.data["integrand"]): n_children[variant.id] for variant in first_level}
    assert [counts[integrand] for integrand in asked] == sorted(counts.values())[: len(asked)]


def test_growth_ends_when_the_tree_is_full(tmp_path: Path) -> None:
    growth, tree, backend = growing(tmp_path, per_root=6)
    for step in range(5, 50, 5):
        tree += growth.grow(step, ROOTS, [])
    assert 18 <= len(tree) < 18 + 6
    assert len(requests(backend)) == 6


@pytest.mark.parametrize("script", [multiply, repeat_and_err])
def test_growth_after_a_kill_is_the_same(tmp_path: Path, script: Script) -> None:
    def steps(growth: Growth, tree: list[Problem], *numbers: int) -> list[Problem]:
        return [variant for number in numbers for variant in growth.grow(number, [*ROOTS, *tree], tree[:2])]

    growth, tree, _ = growing(tmp_path / "whole", script)
    whole = steps(growth, tree, 5, 10, 15)
    growth, tree, _ = growing(tmp_path / "cut", script)
    steps(growth, tree, 5, 10)
    again, _, _ = growing(tmp_path / "cut", script)
    left = again.rewind(7)  # the last checkpoint was of step 7
    assert [step for step, _ in left] == [5] * len(left)
    assert [variant for _, variant in left] + steps(again, tree, 10, 15) == whole
    assert bytes_of(tmp_path / "cut" / "grown") == bytes_of(tmp_path / "whole" / "grown")


def test_new_variants_are_compared_with_all_earlier_ones(tmp_path: Path) -> None:
    growth, tree, _ = growing(tmp_path, lambda prompt, rng: f"integrate({tree[0].data['integrand']}, x)")
    assert growth.grow(5, ROOTS, []) == []
    assert {row["equal_to"] for row in read_jsonl(tmp_path / "grown" / "rejected.jsonl")} == {tree[0].id}


# --- the command line


def test_the_tree_of_one_integral_is_printed(tmp_path: Path) -> None:
    done = run_command(
        "variants", "integrate(x*exp(3*x), x)", "--n", "6", "--tries", "2", "--out", "tree", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    tree = variants.load(tmp_path / "tree")
    assert len(tree) >= 6
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("x*exp(3*x)  "))
    shown = [line.strip("│├└─ ") for line in lines[start + 1 : -1]]
    assert sorted(line.split("  ")[0] for line in shown) == sorted(str(variant.data["integrand"]) for variant in tree)
    assert all(re.fullmatch(r".*  (easier|equivalent)  (0|50|100) %", line) for line in shown)
    assert lines[-1].startswith(f"kept {len(tree)} (")

    again = run_command("variants", "x", "--out", "tree", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (2, "error: --out tree: not an empty folder; name a new one\n")


def test_a_third_of_the_variants_of_each_root() -> None:
    def child(root: Problem, text: str) -> Problem:
        return Problem.child(root, {**root.data, "integrand": text}, (), "easier")

    first, second = problem("2*sin(x)+3*exp(x)+4*log(x)+5*x**2"), problem("x*exp(x)")
    texts = [
        "x",
        "7*sin(x)+3*exp(x)+4*log(x)+5*x**2",
        "sin(x)+exp(x)",
        "exp(x)+tan(x)+tan(x)+tan(x)+tan(x)+tan(x)+tan(x)",
    ]
    texts += ["3*exp(x)+4*log(x)+5*x**2", "4*log(x)"]
    tree = [*(child(first, text) for text in texts), child(second, "2*x")]
    named = {
        third: [str(each.data["integrand"]) for each in variants.third_per_root(tree, [first, second], third)]
        for third in ("nearest", "farthest", "longest")
    }
    # Two of the six variants of one root, in the order of the tree, and at least one of the other's.
    assert named["nearest"] == [texts[1], texts[4], "2*x"]
    assert named["farthest"] == ["x", texts[5], "2*x"]
    assert named["longest"] == [texts[1], texts[3], "2*x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-x*("], 'error: "-x*(" is not an integral'),
        (["x*("], 'error: "x*(" is not an integral (unreadable); write one such as "x*sin(x)"\n'),
        (["x", "--recipe", "tyni"], 'error: unknown recipe "tyni"; did you mean tiny? '),
        (
            ["x", "--n", "0"],
            "error: Invalid value for '--n': ",
        ),
        (
            ["x", "variants.deth=1"],
            'error: override "variants.deth=1": unknown setting variants.deth; did you mean depth?',
        ),
        (["x", "model.device=cuda"], "error: GPU: neither PyTorch nor nvidia-smi sees a GPU, and model.device is cuda"),
    ],
)
def test_a_usage_error_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_command("variants", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
