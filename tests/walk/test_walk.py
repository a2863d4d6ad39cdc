"""The walk: Unsloth's loader, kernels and GRPO trainer on a CPU, compared with transformers and TRL.

Run it with .ci/walk, which installs Unsloth, or in an environment that has Unsloth, Triton and cut_cross_entropy:

    pytest tests/walk

Small random models of both recipes' families get the same adapters and the same forced rollouts from both loaders.
Weights are float32, so the two differ by rounding alone.
"""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.walk import random_model

Result = dict[str, Any]

pytestmark = pytest.mark.timeout(1800)  # the first test waits for all programs

_RECIPES = ("llama3b", "qwen7b")
_PROGRAM = Path(__file__).with_name("walk.py")
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    """What the programs found, by recipe and loader; two of them run at a time."""
    folder = tmp_path_factory.mktemp("walk")
    models = {recipe: random_model.write(folder / "models", recipe) for recipe in _RECIPES}
    runs = [(recipe, loader) for loader in ("unsloth", "transformers") for recipe in _RECIPES]

    def run(recipe: str, loader: str) -> Result:
        path = folder / f"{recipe}-{loader}.json"
        program = [sys.executable, str(_PROGRAM), recipe, loader, str(models[recipe]), str(path)]
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        return result

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(runs, threads.map(run, *zip(*runs, strict=True)), strict=True))


@pytest.fixture(params=_RECIPES)
def loaders(request: pytest.FixtureRequest, results: dict[tuple[str, str], Result]) -> tuple[Result, Result]:
    """The results of Unsloth and of transformers for one recipe."""
    return results[request.param, "unsloth"], results[request.param, "transformers"]


def _part(name: str, *loaders: Result) -> list[Result]:
    parts: list[Result] = [result[name] for result in loaders]
    for part in parts:
        if "error" in part:
            pytest.fail(part["error"], pytrace=False)
    return parts


def _assert_equal_steps(ours: list[Result], theirs: list[Result], norm: float = 1e-4) -> None:
    """Unsloth's steps are TRL's, KL apart: Unsloth's is a mean over replies and TRL's over tokens.

    The KL that counts is a part of the loss.
    """
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["n_tokens"] == other["n_tokens"]
        assert one["reward"] == other["reward"]
        assert abs(other["loss"]) > 1e-2
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
        assert one["kl"] == pytest.approx(other["kl"], rel=0.5, abs=1e-6)


def test_models_say_the_same(loaders: tuple[Result, Result]) -> None:
    ours, theirs = _part("loading", *loaders)
    assert ours["attention"] == "LlamaAttention_fast_forward"  # of both families
    assert theirs["attention"] in ("LlamaAttention.forward", "Qwen2Attention.forward")
    assert ours["adapter"] == theirs["adapter"]
    assert ours["dtype"] == theirs["dtype"] == "torch.float32"
    ours, theirs = (_flat(part["logits"]) for part in (ours, theirs))
    assert max(map(abs, theirs)) > 5
    assert ours == pytest.approx(theirs, abs=1e-4)


def _flat(values: Any) -> list[float]:
    return [each for value in values for each in _flat(value)] if isinstance(values, list) else [values]


def test_adapters_come_back_bit_by_bit(loaders: tuple[Result, Result]) -> None:
    for part in _part("adapters", *loaders):
        assert part["changed"]
        assert part["restored"]
        assert part["loaded"]


def test_replies_are_the_same_and_follow_the_adapter(loaders: tuple[Result, Result]) -> None:
    ours, theirs = _part("sampling", *loaders)
    for name in ("start", "other", "random"):
        assert ours[name] == theirs[name]
    assert theirs["start"] != theirs["other"]
    assert theirs["other"] != theirs["random"]
    (loading,) = _part("loading", loaders[0])
    assert ours["copies"] in (0, len(loading["adapter"]))  # of which none was used again


def test_steps_are_the_same(loaders: tuple[Result, Result]) -> None:
    ours, theirs = _part("training", *loaders)
    assert len(ours["steps"]) == 3
    _assert_equal_steps(ours["steps"], theirs["steps"])
    assert ours["steps"][0]["kl"] < 1e-6
    for step in ours["steps"][1:]:
        assert step["kl"] > 1e-3
    assert set(ours["passes"]) == {"packed"}
    assert ours["training_pass"].startswith("packed")


def test_training_that_is_resumed_takes_the_same_step(loaders: tuple[Result, Result]) -> None:
    for part in _part("training", *loaders):
        for step, resumed in zip(part["steps"], part["resumed"], strict=True):
            assert [resumed[key] for key in ("loss", "grad_norm", "kl")] == pytest.approx(
                [step[key] for key in ("loss", "grad_norm", "kl")], rel=1e-6
            )
        assert part["resumed"][2]["seconds"] != part["steps"][2]["seconds"]  # it was taken again


def test_a_reply_of_padding_alone_does_no_harm(loaders: tuple[Result, Result]) -> None:
    ours, theirs = _part("padding", *loaders)
    assert all(math.isfinite(ours["steps"][0][key]) for key in ("loss", "grad_norm", "kl"))
    _assert_equal_steps(ours["steps"], theirs["steps"])


def test_packed_sequences_are_apart(loaders: tuple[Result, Result]) -> None:
    (part,) = _part("packing", loaders[0])
    assert part["kept"] < 1e-4
    assert part["ignored"] > 1.5  # the models are such that Unsloth's self-check has something to find


def test_attention_across_packed_sequences_is_noticed(loaders: tuple[Result, Result]) -> None:
    (ours,) = _part("leaking", loaders[0])
    (theirs,) = _part("training", loaders[1])
    _assert_equal_steps(ours["steps"], theirs["steps"][:1], norm=5e-3)
    assert ours["steps"][0]["kl"] < 1e-6
    assert ours["passes"][0] == "packed"  # the memory test's, which is checked
    assert set(ours["passes"][1:]) == {"padded"}
    assert ours["training_pass"].startswith("padded")


@pytest.mark.parametrize("name", ["short_of_memory", "short_of_memory_in_check"])
def test_less_at_a_time_where_memory_is_short_and_packed_all_the_same(
    loaders: tuple[Result, Result], name: str
) -> None:
    (ours,) = _part(name, loaders[0])
    (theirs,) = _part("training", loaders[1])
    assert "out of memory: going on with a micro-batch of 2 instead of 4" in ours["said"]
    assert ours["passes"] == ["packed, out of memory", "padded, out of memory", "packed", "packed", "packed"]
    _assert_equal_steps(ours["steps"], theirs["steps"][:1])
    assert not [mark for mark in ours["marks"] if "unsafe" in mark]
    assert ours["training_pass"].startswith("packed")
