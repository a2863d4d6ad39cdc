"""`--dry-run`: what it counts, without torch, without a network and without writing to the run folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ladder_lite.config.load import list_recipes, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.models.memory import CARDS, USABLE, Setup, generate_parts, total
from ladder_lite.models.shape import read_shape
from ladder_lite.recipe.dry_run import predict, render
from tests.support.commands import run_command

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

STEPS, TTRL_STEPS = 130, 40
"""Steps of a training run of tiny, and of TTRL on one problem."""

ROLLOUTS = 2 * 64 + 2 * 8
"""The most in a step: `grpo.refill` may sample twice as many completions as are trained on; then the base model's."""

ALL_TTRL_STEPS = 6 * TTRL_STEPS
"""Steps of TTRL on all its problems."""


def _run(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def _predict(name: str, *overrides: str, run: Path = Path("absent")) -> dict[str, Any]:
    return predict(load_recipe(name, overrides), run)


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_dry_run_of_every_recipe_needs_no_torch_and_no_network(tmp_path: Path, name: str) -> None:
    result = _run(tmp_path, name, "--dry-run", "--json")
    assert result.stderr.splitlines() == ["[]"]
    assert list(tmp_path.iterdir()) == []  # no run folder
    found = json.loads(result.stdout)
    assert found["recipe"] == name
    assert {"model", "parameters", "steps", "completions_per_step"} <= set(found)
    assert [card["gib"] for card in found["cards"]] == list(CARDS.values())
    for card in found["cards"]:
        assert {"fits", "micro_batch", "num_generations", "max_completion_length"} <= set(card)
        assert sum(card["parts"].values()) == card["predicted_peak_bytes"]["train"]
        assert sum(card["generate_parts"].values()) == card["predicted_peak_bytes"]["generate"]
        if card["fits"]:
            assert card["micro_batch"] * card["accumulation"] == found["completions_per_step"]
            assert max(card["predicted_peak_bytes"].values()) <= card["gib"] * 2**30


def test_a_probe_and_the_base_model_take_tokens() -> None:
    off = ("task.probe=null", "ttrl.probe_every=null", "grpo.base_rollouts=null")
    with_both, without = (
        _predict("exam")["tokens"],
        _predict("exam", *off)["tokens"],
    )
    after_training = 2 * 10  # base and LADDER answer each problem ten times
    during_ttrl = 2 * 10 * (1 + TTRL_STEPS // 10)  # two conditions, ten problems, every ten steps and at the end
    resampled = 10 * TTRL_STEPS * 16  # as many as TTRL's, those of the base model included
    assert with_both["evaluation"] - without["evaluation"] == (320 * (after_training + during_ttrl) + resampled) * 120
    steps = 150 + 2 * 10 * TTRL_STEPS
    assert with_both["training"] - without["training"] == steps * 16 * 120


def test_the_table_is_printed_and_no_file_is_written(tmp_path: Path) -> None:
    result = _run(tmp_path, "llama3b", "--dry-run", "--profile", "kaggle")
    assert result.returncode == 0
    assert all(f"{card} GB" in result.stdout for card in CARDS)
    assert "4-bit weights 1.4" in result.stdout
    assert "Groups of 8, 32 completions a step" in result.stdout
    assert "The profile changes " in result.stdout
    assert "grpo.trl.max_steps=100" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_model_needs_no_card(tmp_path: Path) -> None:
    text = _run(tmp_path, "tiny", "--dry-run").stdout
    assert text.startswith("tiny: the embedded model, which needs no GPU.\n")
    assert not any(word in text for word in ("GB", "GiB", "T4", "weights"))
    assert "Steps: at most 500" in text


def test_hours_on_a_card_follow_from_tokens_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_LITE_CACHE", str(tmp_path))
    found = _predict("llama3b")
    rate = 60 * 3.2e9 / found["parameters"]
    assert found["t4_hours"]["ladder"] == int(250 * 64 * 1024 / rate / 3600) == 76
    console = Console(width=200, record=True)
    console.print(render(found))
    assert (
        "Hours on a T4, an estimate: at most rl_without_variants 76, ladder 76, ladder_ttrl 152."
        in console.export_text()
    )
    assert _predict("smollm")["t4_hours"] == {}  # too small for that rate
    absent = _predict("qwen7b", "task.test=ladder-paper", "ttrl.problems=all")["t4_hours"]
    assert absent["ladder_ttrl"] is None


def test_json_without_dry_run_is_a_usage_error(tmp_path: Path) -> None:
    result = _run(tmp_path, "tiny", "--json")
    assert result.returncode == 2
    assert "--dry-run" in result.stderr
    assert len(result.stderr.splitlines()) == 2  # the error, and the list that PROGRAM prints


def test_steps_and_tokens_of_tiny() -> None:
    found = _predict("tiny")
    assert found["steps_by_condition"] == {"rl_without_variants": STEPS, "ladder": STEPS, "ladder_ttrl": ALL_TTRL_STEPS}
    assert found["steps"] == 2 * STEPS + ALL_TTRL_STEPS
    # 100 tests: 10 samples and a greedy answer after each of three conditions; in two training runs one answer before
    # the first step and one every 13 steps. 6 problems of TTRL: 11 answers at the end and 8 tries per step. Resampling
    # LADDER takes as many tokens as TTRL.
    answers = 3 * 11 * 100 + 2 * (1 + STEPS // 13) * 100 + 6 * (11 + TTRL_STEPS * 8)
    ttrl_tokens_each = (TTRL_STEPS * (ROLLOUTS + 8) + 80) * 120
    assert found["tokens"]["training"] == (2 * STEPS + ALL_TTRL_STEPS) * ROLLOUTS * 120
    assert found["tokens"]["evaluation"] == answers * 120 + 6 * ttrl_tokens_each
    assert found["tokens"]["variants"] == (10 * 100 + 6 * 80) * 120
    assert found["tokens"]["total"] == sum(found["tokens"][name] for name in ("training", "evaluation", "variants"))


@pytest.mark.parametrize(
    ("conditions", "steps"),
    [
        ("[base]", {}),
        ("[ladder_ttrl]", {"ladder": STEPS, "ladder_ttrl": ALL_TTRL_STEPS}),
        ("[ladder]", {"ladder": STEPS}),
        ("[ladder_10]", {"ladder_10": STEPS}),
        ("[ttrl]", {"ladder": STEPS, "ladder_ttrl": ALL_TTRL_STEPS, "ttrl": ALL_TTRL_STEPS}),
    ],
)
def test_steps_include_the_training_of_conditions_that_are_needed(conditions: str, steps: dict[str, int]) -> None:
    assert _predict("tiny", f"conditions={conditions}")["steps_by_condition"] == steps


def test_an_ablation_is_evaluated_whatever_its_name() -> None:
    found = [
        _predict("tiny", f"ablations.{name}={{share: 0.5}}", f"conditions=[{name}]")["tokens"]
        for name in ("half", "half_for_ttrl")
    ]
    assert found[0] == found[1]


def test_changes_of_an_ablation_count_for_memory() -> None:
    longer = "ablations.longer={grpo.trl.max_completion_length: 4000}"
    found = [_predict("llama3b", longer, f"conditions=[{name}]") for name in ("ladder", "longer")]
    assert [each["max_completion_length"] for each in found] == [found[0]["max_completion_length"], 4000]
    peaks = [[card["predicted_peak_bytes"]["train"] for card in each["cards"]] for each in found]
    assert all(longer > default for default, longer in zip(*peaks, strict=True))


def test_ttrl_on_all_problems_counts_every_test_problem() -> None:
    assert _predict("tiny", "ttrl.problems=all")["steps_by_condition"]["ladder_ttrl"] == 100 * TTRL_STEPS


def test_counts_of_a_set_that_is_not_fetched_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_LITE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot read this problem set"):
        _predict("tiny", "task.test=absent.jsonl")
    found = _predict("tiny", "task.test=ladder-paper", "ttrl.problems=all")
    assert found["steps"] is None
    assert found["tokens"]["total"] is None
    assert found["steps_by_condition"]["ladder"] == STEPS
    console = Console(width=200, record=True)
    console.print(render(found))
    assert "unknown (a problem set is not fetched)" in console.export_text()


def test_the_longer_completions_of_ttrl_count_for_memory() -> None:
    longer = _predict("smollm", "ttrl.trl={max_completion_length: 512}")
    assert longer["max_completion_length"] == 512
    assert _predict("smollm", "ttrl.trl={max_completion_length: 16}")["max_completion_length"] == 48


def test_changes_of_ttrl_count_for_ttrl_only() -> None:
    default = _predict("tiny")
    found = _predict("tiny", "ttrl.trl={per_device_train_batch_size: 16, max_completion_length: 200, max_steps: 5}")
    assert found["steps_by_condition"] == default["steps_by_condition"] | {"ladder_ttrl": 6 * 5}
    assert found["tokens"]["training"] == 2 * STEPS * ROLLOUTS * 120 + 6 * 5 * (2 * 16 + 2 * 8) * 200
    tries, resampled = (
        8 * 120,
        {steps: steps * rollouts + 80 * 120 for steps, rollouts in ((40, 144 * 120), (5, 48 * 200))},
    )
    fewer = (
        (TTRL_STEPS - 5) * 2 * tries + resampled[40] - resampled[5]
    )  # fewer tries, and fewer tokens for resampling LADDER
    assert found["tokens"]["evaluation"] == default["tokens"]["evaluation"] - 6 * fewer
    assert (found["completions_per_step"], found["num_generations"]) == (64, 8)
    for card in found["cards"]:
        assert card["micro_batch"] * card["accumulation"] == 64


def test_only_is_predicted_alone(tmp_path: Path) -> None:
    shown = run_command("recipe", "tiny", "--only", "ladder_random", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["steps_by_condition"] == {"ladder_random": STEPS}


def test_an_ablation_of_ttrl_is_predicted_with_its_own_settings() -> None:
    long, direct = (
        _predict("tiny", f"ablations.it={{{changes}}}", "conditions=[ladder_ttrl, it]")
        for changes in ("ttrl.max_steps: 400, ttrl.samples_per_step: 2", "ttrl.train_on: problem")
    )
    without = _predict("tiny", "conditions=[ladder_ttrl]")
    assert long["steps_by_condition"] == without["steps_by_condition"] | {"it": 6 * 400}
    assert long["tokens"]["evaluation"] - without["tokens"]["evaluation"] == 6 * (10 + 1 + 400 * 2) * 120
    assert long["tokens"]["variants"] - without["tokens"]["variants"] == 6 * 80 * 120
    assert direct["tokens"]["variants"] == without["tokens"]["variants"]


def test_time_left_uses_the_max_steps_of_ttrl(tmp_path: Path) -> None:
    _measure(tmp_path, "ladder/train", 3.0, 3.0)
    assert _predict("tiny", "ttrl.trl={max_steps: 5}", run=tmp_path)["seconds_left"] == 3.0 * (2 * STEPS - 2 + 6 * 5)


def test_a_card_too_small_for_ttrl_alone_is_too_small() -> None:
    card = _predict("smollm", "ttrl.trl={max_completion_length: 300000}")["cards"][0]
    assert card["micro_batch"] == 16
    assert not card["fits"]
    assert card["predicted_peak_bytes"]["train"] > card["gib"] * 2**30


def test_answers_and_variants_are_generated_in_batches_that_leave_a_reserve() -> None:
    recipe = load_recipe("qwen7b", ["eval.batch_size=500", "variants.batch_size=500"])
    setup = Setup.of(read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, "unsloth")
    for card in predict(recipe, Path("absent"))["cards"][1:]:
        usable, length = USABLE * card["gib"] * 2**30, recipe.model.max_prompt_length
        for batch, settings, top_p in (
            (card["eval_batch"], recipe.eval, recipe.eval.top_p),
            (card["variants_batch"], recipe.variants, 1.0),
        ):
            assert total(generate_parts(setup, batch, length, settings.max_new_tokens, top_p)) <= usable
            assert total(generate_parts(setup, batch + 1, length, settings.max_new_tokens, top_p)) > usable


def test_a_card_that_is_too_small_shows_the_smallest_batches() -> None:
    found = _predict("smollm", "grpo.trl.max_completion_length=300000")
    card = found["cards"][0]
    assert not card["fits"]
    assert card["micro_batch"] is None
    assert card["predicted_peak_bytes"]["train"] > card["gib"] * 2**30
    console = Console(width=200, record=True)
    console.print(render(found))
    assert "too small" in console.export_text()


def _measure(run: Path, stage: str, *seconds: float, done: bool = False) -> None:
    folder = run / "conditions" / stage
    folder.mkdir(parents=True)
    rows = [json.dumps({"step": step, "seconds": value}) for step, value in enumerate(seconds, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if done:
        (folder / "done.json").write_text("{}")


def test_time_left_follows_from_measured_steps(tmp_path: Path) -> None:
    assert _predict("tiny", run=tmp_path)["seconds_left"] is None
    _measure(tmp_path, "rl_without_variants/train", 2.0)
    assert _predict("tiny", run=tmp_path)["seconds_left"] is None  # one step is not enough for a pace
    _measure(tmp_path, "ladder/train", 3.0, 30.0)
    assert _predict("tiny", run=tmp_path)["seconds_left"] == 3.0 * (2 * STEPS - 3 + ALL_TTRL_STEPS)
    (tmp_path / "conditions/rl_without_variants/train/done.json").write_text("{}")  # done early, on a plateau
    assert _predict("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + ALL_TTRL_STEPS)
    _measure(tmp_path, "ladder_ttrl/problems/a/train", 3.0)
    assert _predict("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + ALL_TTRL_STEPS - 1)
    (tmp_path / "conditions/ladder_ttrl/problems/a/done.json").write_text("{}")  # solved
    assert _predict("tiny", run=tmp_path)["seconds_left"] == 3.0 * (STEPS - 2 + 5 * TTRL_STEPS)
    console = Console(width=200, record=True)
    console.print(render(_predict("tiny", run=tmp_path)))
    assert "Time left: at most 16:24" in console.export_text()
