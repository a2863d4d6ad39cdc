"""The trainer: that it holds what the recipe says whatever the libraries think, and trains the same in any portions."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import trl

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import GrpoSettings
from ladder_lite.config.trl_settings import SETTINGS, recorded
from ladder_lite.errors import UserError
from ladder_lite.models import Backend, Rollout, Sampling, load_backend
from ladder_lite.models.unsloth_checks import forget_self_checks, training_pass
from ladder_lite.problems import Problem
from ladder_lite.tasks import load_task
from ladder_lite.tasks.integration import IntegrationTask
from ladder_lite.train import grpo, trainer
from ladder_lite.train.state import Training, TrainingState
from ladder_lite.verify import Grade, Reason
from tests.support.problems import problem

RECIPE = load_recipe(
    "tiny",
    [
        "grpo.rows=uniform",
        "grpo.trl.max_steps=1",
        "grpo.trl.per_device_train_batch_size=8",
        "grpo.trl.num_generations=4",
        "grpo.trl.max_completion_length=40",
    ],
)
PROBLEMS = [problem(f"cos({n}*x)") for n in range(2, 8)]

TASK = load_task(RECIPE.task)
DEFAULTS = {name: field["default"] for name, field in recorded()["GRPOConfig"].items()}


class ByLetters(IntegrationTask):
    """Groups have signal: a reply is right by its letters, whatever it says."""

    def grade(self, _problem: Problem, text: str) -> Grade:
        even = sum(text.encode()) % 2 == 0
        return Grade(float(even), Reason.CORRECT if even else Reason.WRONG, text)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend(RECIPE)


def settings(**trl_settings: Any) -> GrpoSettings:
    return RECIPE.grpo.model_copy(update={"trl": RECIPE.grpo.trl | trl_settings})


def train(backend: Backend, folder: Path, chosen: GrpoSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train from the weights that the backend has, put them back, and return the trained ones."""
    before = backend.snapshot()
    grpo.train(Training(ByLetters(RECIPE.task), backend, chosen, folder, 0, say=say), PROBLEMS, lambda *_: False)
    after = backend.snapshot()
    backend.restore(before)
    return after


def build(backend: Backend, folder: Path, chosen: GrpoSettings) -> "trl.GRPOTrainer":
    training = Training(load_task(RECIPE.task), backend, chosen, folder, 0)
    state = TrainingState(training, PROBLEMS, None, lambda *_: False)
    return trainer.Trainer(training, state, 8, probe_first=False)


# --- settings


def test_every_setting_of_the_installed_trl_has_its_defaultrecorded() -> None:
    fields = {field.name for field in dataclasses.fields(trl.GRPOConfig) if field.init}
    assert fields - DEFAULTS.keys() == {"parallelism_config"}  # an object, for several GPUs
    assert DEFAULTS.keys() <= fields


def test_what_the_loop_sets_a_recipe_may_not(backend: Backend, tmp_path: Path) -> None:
    asked = {name: f"the recipe's {name}" for name in DEFAULTS}
    chosen = settings(**asked | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1})
    wanted = trainer.settings_of(Training(TASK, backend, chosen, tmp_path, 0), 4)
    overruled = {name for name in DEFAULTS if wanted[name] != chosen.trl[name]}
    loops = {name for name, setting in SETTINGS.items() if setting.owner == "loop"}
    adapted = {"per_device_train_batch_size", "gradient_accumulation_steps"}  # to memory, their product stays
    assert overruled - adapted - {"mask_truncated_completions"} <= loops  # the last is done with the rollouts


def test_the_settings_that_trl_rewrites_are_the_ones_known(tmp_path: Path) -> None:
    given = DEFAULTS | {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    config = trl.GRPOConfig(**given)
    rewritten = {name for name, value in given.items() if trainer._plain(getattr(config, name)) != value}
    assert all(not SETTINGS[name].compared for name in rewritten)


def test_what_a_patched_config_overrules_is_set_back(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Patched(trl.GRPOConfig):
        def __post_init__(self) -> None:  # as Unsloth's does with loss_type dr_grpo
            super().__post_init__()
            self.scale_rewards = "none"

    monkeypatch.setattr(trl, "GRPOConfig", Patched)
    built = build(backend, tmp_path, settings())
    assert (built.args.scale_rewards, built.scale_rewards) == ("group", "group")


@pytest.mark.parametrize(("name", "attribute"), [("beta", "beta"), ("epsilon", "epsilon_low")])
def test_what_a_patched_trainer_overrules_stops_the_run(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, attribute: str
) -> None:
    begin = trl.GRPOTrainer.__init__

    def overrule(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        setattr(self, attribute, 0.125)

    monkeypatch.setattr(trl.GRPOTrainer, "__init__", overrule)
    with pytest.raises(UserError, match=rf"grpo\.trl\.{name} is 0\.\d, and the trainer holds 0\.125"):
        build(backend, tmp_path, settings())


def test_a_model_with_an_engine_of_vllm_is_trained_as_unsloth_insists(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> tuple[Any, ...]:
        wanted = trainer.settings_of(Training(TASK, backend, settings(), tmp_path, 0), 8)
        return wanted["use_vllm"], wanted["top_k"], wanted["vllm_mode"], wanted["vllm_importance_sampling_correction"]

    assert held() == (False, 0, "colocate", False)
    monkeypatch.setattr(backend.trainable()[0], "vllm_engine", object(), raising=False)
    assert held() == (True, -1, "colocate", False)


def test_what_unsloth_prints_is_not_shown(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Config(trl.GRPOConfig):
        def __post_init__(self) -> None:
            print("Unsloth: The Dr GRPO paper recommends setting `scale_rewards` to False!")
            super().__post_init__()

    begin = trl.GRPOTrainer.__init__

    def begin_with_a_word(self: Any, *args: Any, **kwargs: Any) -> None:
        print("Unsloth: We now expect `per_device_train_batch_size` to be a multiple of `num_generations`")
        begin(self, *args, **kwargs)

    monkeypatch.setattr(trl, "GRPOConfig", Config)
    monkeypatch.setattr(trl.GRPOTrainer, "__init__", begin_with_a_word)
    build(backend, tmp_path, settings())
    assert capsys.readouterr().out == ""


def test_what_trl_refuses_is_one_line(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grpo\.trl: TRL takes no such settings \(nope is not a valid OptimizerNames"):
        build(backend, tmp_path, settings(optim="nope"))


def test_a_setting_that_the_installed_trl_lacks_is_not_dropped(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grpo\.trl\.from_tomorrow: the installed TRL has no such setting"):
        build(backend, tmp_path, settings(from_tomorrow=1))


# --- steps


def test_a_step_is_the_same_in_smaller_portions(backend: Backend, tmp_path: Path) -> None:
    whole = train(backend, tmp_path / "whole", settings())
    portions = settings(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    parts = train(backend, tmp_path / "parts", portions)
    before = backend.snapshot()
    moved = max(float((whole[name] - before[name]).abs().max()) for name in before)
    apart = max(float((whole[name] - parts[name]).abs().max()) for name in before)
    assert moved > 0
    assert apart < 0.05 * moved


def test_a_probe_leaves_no_trace(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(backend, tmp_path / "plain", settings())
    probed: list[int] = []
    checkpoints: list[bool] = []  # activations are, in layers that train
    longest, compute_loss = trainer._longest, trl.GRPOTrainer.compute_loss

    def note(prompt_length: int, completion_length: int, *more: Any) -> dict[str, Any]:
        probed.append(prompt_length + completion_length)
        return longest(prompt_length, completion_length, *more)

    def look(self: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        checkpoints.append(all(module.training for module in model.modules()))
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "_longest", note)
    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", look)
    monkeypatch.setattr(grpo, "_has_to_probe", lambda _backend: True)
    after = train(backend, tmp_path / "probed", settings())
    assert probed == [RECIPE.model.max_prompt_length + 40]
    assert checkpoints == [True, True]  # in the probe as in the step
    assert all(weight.equal(plain[name]) for name, weight in after.items())
    logs = [(tmp_path / folder / "attempts.jsonl").read_text() for folder in ("plain", "probed")]
    assert logs[0] == logs[1]


def test_a_probe_shows_a_mask_that_is_wrong(backend: Backend) -> None:
    """With one token repeated, rows would say the same whatever each attends to."""
    model, tokenizer = backend.trainable()
    rows = trainer._longest(20, 10, n=8, group_size=4, tokenizer=tokenizer)
    prompts, replies = ([tuple(ids) for ids in rows[name]] for name in ("prompt_ids", "completion_ids"))
    assert [len(set(prompts[:4])), len(set(prompts[4:])), len(set(prompts))] == [1, 1, 2]
    assert len(set(replies)) == 8
    assert {len(prompt) for prompt in prompts} == {20}
    assert {len(reply) for reply in replies} == {10}
    assert not set(tokenizer.all_special_ids) & {token for ids in prompts + replies for token in ids}
    first, second = (torch.tensor([*prompts[at], *replies[at]]) for at in (0, 4))
    packed, alone = model(torch.cat([first, second])[None]).logits[0, 30:], model(second[None]).logits[0]
    gap = (packed.log_softmax(-1) - alone.log_softmax(-1)).abs().max()
    assert gap.item() > 1.5  # Unsloth gives its packed pass up above 0.7


def test_a_reply_of_padding_alone_trains_nothing(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_out, tokenizer = backend.roll_out, backend.trainable()[1]

    def trained_with(token: int | None) -> dict[str, Any]:
        def begin_with_padding(prompts: Any, sampling: Sampling) -> list[Rollout]:
            rollouts = roll_out(prompts, sampling)
            if not sampling.logprobs:
                empty = backend._rollout(rollouts[0].prompt_ids, [tokenizer.pad_token_id], ())
                rollouts[0] = empty if token is None else empty._replace(completion_ids=[token])
            return rollouts

        monkeypatch.setattr(backend, "roll_out", begin_with_padding)
        return train(backend, tmp_path / str(token), settings())

    as_it_comes = trained_with(None)
    other = trained_with(tokenizer.encode("x", add_special_tokens=False)[0])
    assert all(weight.equal(other[name]) for name, weight in as_it_comes.items())
    first = json.loads((tmp_path / "None" / "attempts.jsonl").read_text().splitlines()[0])
    assert (first["text"], first["n_tokens"], first["truncated"]) == ("", 0, True)


def test_truncated_replies_teach_nothing_where_they_are_masked(backend: Backend, tmp_path: Path) -> None:
    before = backend.snapshot()
    short = {"max_completion_length": 3}  # no answer ends so soon
    taught = train(backend, tmp_path / "taught", settings(**short))
    masked = train(backend, tmp_path / "masked", settings(**short, mask_truncated_completions=True))
    assert any(not weight.equal(before[name]) for name, weight in taught.items())
    assert all(weight.equal(before[name]) for name, weight in masked.items())


def test_what_a_stop_text_ended_is_not_masked(backend: Backend, tmp_path: Path) -> None:
    plain = train(backend, tmp_path / "plain", settings(max_completion_length=120))
    masked = train(backend, tmp_path / "masked", settings(max_completion_length=120, mask_truncated_completions=True))
    assert '"truncated": true' not in (tmp_path / "plain" / "attempts.jsonl").read_text()
    assert all(weight.equal(plain[name]) for name, weight in masked.items())


# --- memory that does not suffice


def out_of_memory_above(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's trainer fails on micro-batches of more than `largest`, as on a GPU that is full."""
    import torch

    compute_loss = trl.GRPOTrainer.compute_loss

    def fail(self: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        if len(inputs["completion_ids"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", fail)


def test_out_of_memory_halves_the_micro_batch(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portions = settings(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    expected = train(backend, tmp_path / "parts", portions)
    out_of_memory_above(2, monkeypatch)
    said: list[str] = []
    found = train(backend, tmp_path / "found", settings(), said.append)
    assert all(weight.equal(expected[name]) for name, weight in found.items())
    assert said == [
        "out of memory: going on with a micro-batch of 4 instead of 8",
        "out of memory: going on with a micro-batch of 2 instead of 4",
    ]
    assert len((tmp_path / "found" / "attempts.jsonl").read_text().splitlines()) == 8


def test_a_smaller_micro_batch_has_unsloth_check_its_packed_pass_again(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Unsloth does: it gives its packed pass up when that runs out of memory, and the padded one runs out too."""
    model, _ = backend.trainable()
    compute_loss = trl.GRPOTrainer.compute_loss
    packed: list[int] = []

    def loss_of_unsloth(self: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        if len(inputs["completion_ids"]) > 2:
            model._unsloth_seq_packing_grad_unsafe_T = 300
            raise torch.OutOfMemoryError("CUDA out of memory")
        if not hasattr(model, "_unsloth_seq_packing_grad_unsafe_T"):
            model._unsloth_seq_packing_grad_ok = True
            packed.append(len(inputs["completion_ids"]))
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", loss_of_unsloth)
    said: list[str] = []
    train(backend, tmp_path, settings(max_steps=2), said.append)
    assert packed == [2] * 8
    assert [words for words in said if "pass" in words] == ["Unsloth's training pass: packed"]
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["training_pass"] for step in steps] == ["packed", "packed"]
    forget_self_checks(model)


@pytest.mark.parametrize(
    ("concluded", "expected"),
    [
        ({}, "padded"),
        ({"grad_ok": True}, "packed"),
        ({"grad_ok": True, "grad_verified_T": 900, "nograd_ok": False}, "packed"),
        ({"grad_ok": True, "grad_unsafe_T": 700}, "padded from 700 tokens on"),
        ({"grad_unsafe_T": 700}, "padded from 700 tokens on"),
        ({"grad_ok": False}, "padded, as the packed pass failed"),
        ({"grad_ok": True, "grouper": {"shape": (900, 90)}}, "packed, with one prompt for each group"),
    ],
)
def test_the_pass_that_unsloth_trains_with(concluded: dict[str, Any], expected: str) -> None:
    model = torch.nn.Linear(1, 1)
    for name, value in concluded.items():
        kind = "prefix_grouper_grad_verified" if name == "grouper" else f"seq_packing_{name}"
        setattr(model, f"_unsloth_{kind}", value)
    model._unsloth_prefix_grouper_grad_unsafe = set()
    model._unsloth_gradient_checkpointing = "unsloth"
    assert training_pass(model).startswith(expected)
    forget_self_checks(model)
    assert [name for name in vars(model) if name.startswith("_unsloth")] == ["_unsloth_gradient_checkpointing"]


def test_a_single_completion_that_does_not_fit_is_refused(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match=r"not even one completion .* lower grpo.trl.max_completion_length"):
        train(backend, tmp_path, settings())
