"""`--dry-run`: without torch, without a network, without touching the run folder; what it counts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ladder_lite.config.load import list_recipes, load_recipe
from ladder_lite.models.memory import CARDS, USABLE, Setup, generate_parts, read_shape, total
from ladder_lite.recipe.dry_run import outlook, render

# Blocks the network and reports which of the heavy libraries were imported.
PROGRAM = """
import atexit, runpy, socket, sys
def refuse(*_, **__):
    raise RuntimeError("the network was touched")
socket.socket.connect = socket.getaddrinfo = refuse
heavy = ("torch", "transformers", "trl", "huggingface_hub", "matplotlib")
atexit.register(lambda: print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr))
sys.argv = ["recipe", *sys.argv[1:]]
runpy.run_module("ladder_lite.recipe", run_name="__main__", alter_sys=True)
"""

STEPS, TTRL_STEPS = 100, 40
"""Of a training of tiny, and of TTRL for a problem."""

LEARNED = 6 * TTRL_STEPS
"""Steps of TTRL in all."""


def _run(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def _outlook(name: str, *overrides: str, run: Path = Path("absent")) -> dict[str, Any]:
    return outlook(load_recipe(name, overrides), run)


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_every_recipe_is_foretold_without_torch_and_network(tmp_path: Path, name: str) -> None:
    result = _run(tmp_path, name, "--dry-run", "--json")
    assert result.stderr.splitlines() == ["[]"]
    assert list(tmp_path.iterdir()) == []  # no run folder
    told = json.loads(result.stdout)
    assert told["recipe"] == name
    assert {"model", "parameters", "steps", "completions_per_step"} <= set(told)
    assert [card["gib"] for card in told["cards"]] == list(CARDS.values())
    for card in told["cards"]:
        assert {"fits", "micro_batch", "num_generations", "max_completion_length"} <= set(card)
        assert sum(card["parts"].values()) == card["predicted_peak_bytes"]["train"]
        assert sum(card["generate_parts"].values()) == card["predicted_peak_bytes"]["generate"]
        if card["fits"]:
            assert card["micro_batch"] * card["accumulation"] == told["completions_per_step"]
            assert max(card["predicted_peak_bytes"].values()) <= card["gib"] * 2**30


def test_the_table_is_printed_without_touching_anything(tmp_path: Path) -> None:
    result = _run(tmp_path, "tiny", "--dry-run")
    assert result.returncode == 0
    assert all(f"{card} GB" in result.stdout for card in CARDS)
    assert "groups of 8, 64 completions a step" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_alone_is_one_line_of_help(tmp_path: Path) -> None:
    result = _run(tmp_path, "tiny", "--json")
    assert result.returncode == 2
    assert "--dry-run" in result.stderr
    assert len(result.stderr.splitlines()) == 2  # and what PROGRAM prints


def test_steps_and_tokens_of_tiny() -> None:
    told = _outlook("tiny")
    assert told["steps_by_condition"] == {"rl_without_variants": STEPS, "ladder": STEPS, "ladder_ttrl": LEARNED}
    assert told["steps"] == 2 * STEPS + LEARNED
    # 10 samples and a greedy answer for 100 tests after three conditions, a look before and one every 10 steps of two
    # trainings; 6 problems of TTRL with as many answers in the end and 8 tries a step; and as many tokens again for
    # LADDER.
    answers = 3 * 11 * 100 + 2 * (1 + STEPS // 10) * 100 + 6 * (11 + TTRL_STEPS * 8)
    of_one = (TTRL_STEPS * (64 + 8) + 80) * 120
    assert told["tokens"]["training"] == (2 * STEPS + LEARNED) * 64 * 120
    assert told["tokens"]["evaluation"] == answers * 120 + 6 * of_one
    assert told["tokens"]["variants"] == (10 * 100 + 6 * 80) * 120
    assert told["tokens"]["total"] == sum(told["tokens"][name] for name in ("training", "evaluation", "variants"))


@pytest.mark.parametrize(
    ("conditions", "steps"),
    [
        ("[base]", {}),
        ("[ladder_ttrl]", {"ladder": STEPS, "ladder_ttrl": LEARNED}),
        ("[ladder]", {"ladder": STEPS}),
        ("[ladder_10]", {"ladder_10": STEPS}),
        ("[ttrl]", {"ladder": STEPS, "ladder_ttrl": LEARNED, "ttrl": LEARNED}),
    ],
)
def test_conditions_bring_the_training_they_start_from(conditions: str, steps: dict[str, int]) -> None:
    assert _outlook("tiny", f"conditions={conditions}")["steps_by_condition"] == steps


def test_an_arm_is_evaluated_whatever_its_name() -> None:
    told = [
        _outlook("tiny", f"ablations.{name}={{share: 0.5}}", f"conditions=[{name}]")["tokens"]
        for name in ("half", "half_for_ttrl")
    ]
    assert told[0] == told[1]


def test_what_an_arm_changes_must_fit_too() -> None:
    longer = "ablations.longer={grpo.trl.max_completion_length: 4000}"
    told = [_outlook("llama3b", longer, f"conditions=[{name}]") for name in ("ladder", "longer")]
    assert [each["max_completion_length"] for each in told] == [told[0]["max_completion_length"], 4000]
    peaks = [[card["predicted_peak_bytes"]["train"] for card in each["cards"]] for each in told]
    assert all(longer > plain for plain, longer in zip(*peaks, strict=True))


def test_ttrl_on_all_problems_counts_every_test_problem() -> None:
    assert _outlook("tiny", "ttrl.problems=all")["steps_by_condition"]["ladder_ttrl"] == 100 * TTRL_STEPS


def test_counts_of_a_set_that_is_not_at_hand_are_unknown(tmp_path: Path) -> None:
    absent = tmp_path / "absent.jsonl"
    told = _outlook("tiny", f"task.test={absent}", "ttrl.problems=all")
    assert told["steps"] is None
    assert told["tokens"]["total"] is None
    assert told["steps_by_condition"]["ladder"] == STEPS
    console = Console(width=200, record=True)
    console.print(render(told))
    assert "unknown (a problem set is not fetched)" in console.export_text()


def test_settings_of_ttrl_that_take_more_are_those_that_must_fit() -> None:
    longer = _outlook("smollm", "ttrl.trl={max_completion_length: 512}")
    assert longer["max_completion_length"] == 512
    assert _outlook("smollm", "ttrl.trl={max_completion_length: 16}")["max_completion_length"] == 64


def test_what_ttrl_changes_counts_for_ttrl_alone() -> None:
    plain = _outlook("tiny")
    told = _outlook("tiny", "ttrl.trl={per_device_train_batch_size: 16, max_completion_length: 200, max_steps: 5}")
    assert told["steps_by_condition"] == plain["steps_by_condition"] | {"ladder_ttrl": 6 * 5}
    assert told["tokens"]["training"] == 2 * STEPS * 64 * 120 + 6 * 5 * 16 * 200
    tries, resampled = 8 * 120, {steps: steps * rollouts + 80 * 120 for steps, rollouts in ((40, 7680), (5, 3200))}
    fewer = (TTRL_STEPS - 5) * 2 * tries + resampled[40] - resampled[5]  # tries, and LADDER's answers in their place
    assert told["tokens"]["evaluation"] == plain["tokens"]["evaluation"] - 6 * fewer
    assert (told["completions_per_step"], told["num_generations"]) == (64, 8)
    for card in told["cards"]:
        assert card["micro_batch"] * card["accumulation"] == 64


def test_steps_of_ttrl_left_are_as_many_as_it_changes_them_to(tmp_path: Path) -> None:
    _measure(tmp_path, "ladder/train", 3.0, 3.0)
    assert _outlook("tiny", "ttrl.trl={max_steps: 5}", run=tmp_path)["seconds_left"] == 3.0 * (2 * STEPS - 2 + 6 * 5)


def test_a_card_on_which_ttrl_alone_does_not_fit_is_too_small() -> None:
    card = _outlook("smollm", "ttrl.trl={max_completion_length: 300000}")["cards"][0]
    assert card["micro_batch"] == 32
    assert not card["fits"]
    assert card["predicted_peak_bytes"]["train"] > card["gib"] * 2**30


def test_answers_and_variants_are_generated_in_batches_that_leave_a_reserve() -> None:
    recipe = load_recipe("qwen7b", ["eval.batch_size=500", "variants.batch_size=500"])
    setup = Setup.of(read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, "unsloth")
    for card in outlook(recipe, Path("absent"))["cards"][1:]:
        usable, length = USABLE * card["gib"] * 2**30, recipe.model.max_prompt_length
        for batch, settings, top_p in (
            (card["eval_batch"], recipe.eval, recipe.eval.top_p),
            (card["variants_batch"], recipe.variants, 1.0),
        ):
            assert total(generate_parts(setup, batch, length, settings.max_new_tokens, top_p)) <= usable
            assert total(generate_parts(setup, batch + 1, length, settings.max_new_tokens, top_p)) > usable


def test_a_card_that_is_too_small_shows_the_smallest_batches() -> None:
    told = _outlook("smollm", "grpo.trl.max_completion_length=300000")
    card = told["cards"][0]
    assert not card["fits"]
    assert card["micro_batch"] is None
    assert card["predicted_peak_bytes"]["train"] > card["gib"] * 2**30
    console = Console(width=200, record=True)
    console.print(render(told))
    assert "too small" in console.export_text()


def _measure(run: Path, stage: str, *seconds: float, done: bool = False) -> None:
    folder = run / "conditions" / stage
    folder.mkdir(parents=True)
    rows = [json.dumps({"step": step, "seconds": value}) for step, value in enumerate(seconds, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if done:
        (folder / "done.json").write_text("{}")


def test_time_left_follows_from_the_steps_measured(tmp_path: Path) -> None:
    assert _outlook("tiny", run=tmp_path)["seconds_left"] is None
    _measure(tmp_path, "rl_without_variants/train", 2.0)
    assert _outlook("tiny", run=tmp_path)["seconds_left"] is None  # one step is no pace
    _measure(tmp_path, "ladder/train", 3.0, 30.0)
    assert _outlook("tiny", run=tmp_path)["seconds_left"] == 3.0 * (2 * STEPS - 3 + LEARNED)
    (tmp_path / "conditions/rl_without_variants/train/done.json").write_text("{}")  # it ended on a plateau
    assert _outlook("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + LEARNED)
    _measure(tmp_path, "ladder_ttrl/problems/a/train", 3.0)
    assert _outlook("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + LEARNED - 1)
    (tmp_path / "conditions/ladder_ttrl/problems/a/done.json").write_text("{}")  # solved
    assert _outlook("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + 5 * TTRL_STEPS)
    console = Console(width=200, record=True)
    console.print(render(_outlook("tiny", run=tmp_path)))
    assert "Time left: at most 14:54" in console.export_text()
