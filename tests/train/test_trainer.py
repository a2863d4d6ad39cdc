"""The trainer: it has the recipe's settings whatever the libraries change, and micro-batches do not affect a step."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import trl

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import GrpoSettings, Refill
from ladder_lite.config.trl_settings import SETTINGS, recorded
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Backend, Rollout, Sampling, load_backend
from ladder_lite.models.engines import Reply
from ladder_lite.models.shared_prompts import sharing_prompts
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
    """Grades a reply by the sum of its bytes, so that the rewards of a group differ."""

    def grade(self, _problem: Problem, text: str) -> Grade:
        even = sum(text.encode()) % 2 == 0
        return Grade(float(even), Reason.CORRECT if even else Reason.WRONG, text)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend(RECIPE)


def settings(**trl_settings: Any) -> GrpoSettings:
    return RECIPE.grpo.model_copy(update={"trl": RECIPE.grpo.trl | trl_settings})


def train(backend: Backend, folder: Path, chosen: GrpoSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train from the backend's weights, restore them, and return the trained ones."""
    before = backend.snapshot()
    grpo.train(Training(ByLetters(RECIPE.task), backend, chosen, folder, 0, say=say), PROBLEMS, lambda *_: False)
    after = backend.snapshot()
    backend.restore(before)
    return after


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a weight. After a step of plain SGD it shows differences of gradients.

    Adam would enlarge rounding errors in gradients that are almost 0.
    """
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def build(backend: Backend, folder: Path, chosen: GrpoSettings) -> trainer.Trainer:
    training = Training(load_task(RECIPE.task), backend, chosen, folder, 0)
    state = TrainingState(training, PROBLEMS, None, lambda *_: False)
    return trainer.Trainer(training, state, 8, test_memory_first=False)


# --- settings


def test_every_setting_of_the_installed_trl_is_recorded_with_its_default() -> None:
    fields = {field.name for field in dataclasses.fields(trl.GRPOConfig) if field.init}
    assert fields - DEFAULTS.keys() == {"parallelism_config"}  # an object, for several GPUs
    assert DEFAULTS.keys() <= fields


def test_only_settings_of_the_loop_overrule_a_recipe(backend: Backend, tmp_path: Path) -> None:
    of_recipe = {name: f"the recipe's {name}" for name in DEFAULTS}
    chosen = settings(**of_recipe | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1})
    settled = trainer.settings_of(Training(TASK, backend, chosen, tmp_path, 0), 4)
    overruled = {name for name in DEFAULTS if settled[name] != chosen.trl[name]}
    loops = {name for name, setting in SETTINGS.items() if setting.owner == "loop"}
    adapted = {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    }  # to the memory; their product stays the same
    assert overruled - adapted - {"mask_truncated_completions"} <= loops  # `roll_out` does the masking


def test_settings_that_trl_rewrites_are_not_compared(tmp_path: Path) -> None:
    given = DEFAULTS | {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    config = trl.GRPOConfig(**given)
    rewritten = {name for name, value in given.items() if trainer._without_enum(getattr(config, name)) != value}
    assert all(not SETTINGS[name].compared for name in rewritten)


def test_settings_that_a_patched_config_overrules_are_set_back(
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
def test_a_setting_that_a_patched_trainer_overrules_stops_the_run(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, attribute: str
) -> None:
    begin = trl.GRPOTrainer.__init__

    def overrule(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        setattr(self, attribute, 0.125)

    monkeypatch.setattr(trl.GRPOTrainer, "__init__", overrule)
    with pytest.raises(UserError, match=rf"grpo\.trl\.{name} is 0\.\d, .* 0\.125"):
        build(backend, tmp_path, settings())


def test_a_model_with_a_vllm_engine_has_the_settings_that_unsloth_requires(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_vllm() -> tuple[Any, ...]:
        settled = trainer.settings_of(Training(TASK, backend, settings(), tmp_path, 0), 8)
        names = ("use_vllm", "top_k", "vllm_mode", "vllm_importance_sampling_correction")
        return tuple(settled[name] for name in names)

    assert of_vllm() == (False, 0, "colocate", False)
    monkeypatch.setattr(backend.trainable()[0], "vllm_engine", object(), raising=False)
    assert of_vllm() == (True, -1, "colocate", False)


def test_unsloths_output_is_hidden(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Config(trl.GRPOConfig):
        def __post_init__(self) -> None:
            print("Unsloth: The Dr GRPO paper recommends setting `scale_rewards` to False!")
            super().__post_init__()

    begin = trl.GRPOTrainer.__init__

    def begin_with_output(self: Any, *args: Any, **kwargs: Any) -> None:
        print("Unsloth: We now expect `per_device_train_batch_size` to be a multiple of `num_generations`")
        begin(self, *args, **kwargs)

    monkeypatch.setattr(trl, "GRPOConfig", Config)
    monkeypatch.setattr(trl.GRPOTrainer, "__init__", begin_with_output)
    build(backend, tmp_path, settings())
    assert capsys.readouterr().out == ""


def test_settings_that_trl_refuses_give_one_line(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grpo\.trl: .*\(nope is not a valid OptimizerNames"):
        build(backend, tmp_path, settings(optim="nope"))


def test_a_recipe_setting_that_the_installed_trl_lacks_is_an_error(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grpo\.trl\.from_tomorrow: the installed TRL has no such setting"):
        build(backend, tmp_path, settings(from_tomorrow=1))


# --- steps


def test_micro_batches_do_not_change_a_step(backend: Backend, tmp_path: Path) -> None:
    whole = train(backend, tmp_path / "whole", settings(optim="sgd"))
    small = settings(optim="sgd", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    parts = train(backend, tmp_path / "parts", small)
    assert distance(whole, parts) < 1e-3 * distance(whole, backend.snapshot())


def test_a_micro_batch_has_whole_groups(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL would shuffle a step's completions first, so that few in a micro-batch had the same prompt."""
    prompts: list[torch.Tensor] = []
    compute_loss = trainer.Trainer.compute_loss

    def record(self: trainer.Trainer, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        prompts.append(inputs["prompt_ids"])
        return compute_loss(self, model, inputs, **options)

    monkeypatch.setattr(trainer.Trainer, "compute_loss", record)
    train(backend, tmp_path, settings(per_device_train_batch_size=4, gradient_accumulation_steps=4))
    assert len(prompts) == 4
    assert all((ids == ids[0]).all() for ids in prompts)
    assert len({tuple(ids[0].tolist()) for ids in prompts}) > 1


def test_dropped_groups_are_graded_but_not_trained_on(backend: Backend, tmp_path: Path) -> None:
    chosen = settings(max_steps=3).model_copy(update={"refill": Refill(pilot=2, limit=2)})
    train(backend, tmp_path, chosen)
    steps, attempts = (read_jsonl(tmp_path / name) for name in ("metrics.jsonl", "attempts.jsonl"))
    assert [step["n_rollouts"] for step in steps] == [
        sum(row["step"] == number for row in attempts) for number in (1, 2, 3)
    ]
    assert all(8 <= step["n_rollouts"] <= 16 for step in steps)
    assert any(step["groups_without_signal"] < step["sampled_groups_without_signal"] for step in steps)


@pytest.mark.parametrize("stop", [("</answer>",), ()])
def test_a_completion_is_encoded_as_it_was_sampled(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    built = build(backend, tmp_path, settings(max_completion_length=100))
    monkeypatch.setattr(built.training.task, "stop", stop)
    rollouts = built.sample(PROBLEMS, 0)
    assert not any(rollout.completion.truncated for rollout in rollouts)
    assert [built.encode(rollout.completion) for rollout in rollouts] == [each.completion_ids for each in rollouts]
    assert built.sample(PROBLEMS, 0) == rollouts
    assert built.sample(PROBLEMS, 1) != rollouts  # each wave has its own seed


def test_a_memory_test_leaves_no_trace(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(backend, tmp_path / "plain", settings())
    probed: list[int] = []
    checkpointing: list[bool] = []  # gradient checkpointing needs all modules in training mode
    longest, compute_loss = trainer._longest_batch, trl.GRPOTrainer.compute_loss

    def record(prompt_length: int, completion_length: int, *more: Any) -> dict[str, Any]:
        probed.append(prompt_length + completion_length)
        return longest(prompt_length, completion_length, *more)

    def record_mode(self: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        checkpointing.append(all(module.training for module in model.modules()))
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "_longest_batch", record)
    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", record_mode)
    monkeypatch.setattr(grpo, "_has_to_test_memory", lambda _backend: True)
    after = train(backend, tmp_path / "probed", settings())
    assert probed == [RECIPE.model.max_prompt_length + 40]
    assert checkpointing == [True, True]  # in the memory test as in the step
    assert all(weight.equal(plain[name]) for name, weight in after.items())
    logs = [(tmp_path / folder / "attempts.jsonl").read_text() for folder in ("plain", "probed")]
    assert logs[0] == logs[1]


def test_a_memory_test_reveals_a_wrong_attention_mask(backend: Backend) -> None:
    """If one token were repeated, the output would be the same with any mask."""
    model, tokenizer = backend.trainable()
    rows = trainer._longest_batch(20, 10, n=8, group_size=4, tokenizer=tokenizer)
    prompts, replies = ([tuple(ids) for ids in rows[name]] for name in ("prompt_ids", "completion_ids"))
    assert [len(set(prompts[:4])), len(set(prompts[4:])), len(set(prompts))] == [1, 1, 2]
    assert len(set(replies)) == 8
    assert {len(prompt) for prompt in prompts} == {20}
    assert {len(reply) for reply in replies} == {10}
    assert not set(tokenizer.all_special_ids) & {token for ids in prompts + replies for token in ids}
    first, second = (torch.tensor([*prompts[at], *replies[at]]) for at in (0, 4))
    packed, alone = model(torch.cat([first, second])[None]).logits[0, 30:], model(second[None]).logits[0]
    gap = (packed.log_softmax(-1) - alone.log_softmax(-1)).abs().max()
    assert gap.item() > 1.5  # above 0.7, Unsloth stops packing


def test_a_reply_of_padding_only_is_not_trained_on(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_out, tokenizer = backend.roll_out, backend.trainable()[1]

    def trained_with(token: int | None) -> dict[str, Any]:
        def begin_with_padding(prompts: Any, sampling: Sampling) -> list[Rollout]:
            rollouts = roll_out(prompts, sampling)
            if not sampling.logprobs:
                empty = backend._rollout(rollouts[0].prompt_ids, Reply(0, [tokenizer.pad_token_id], None), ())
                rollouts[0] = empty if token is None else empty._replace(completion_ids=[token])
            return rollouts

        monkeypatch.setattr(backend, "roll_out", begin_with_padding)
        return train(backend, tmp_path / str(token), settings())

    as_it_comes = trained_with(None)
    other = trained_with(tokenizer.encode("x", add_special_tokens=False)[0])
    assert all(weight.equal(other[name]) for name, weight in as_it_comes.items())
    first = json.loads((tmp_path / "None" / "attempts.jsonl").read_text().splitlines()[0])
    assert (first["text"], first["n_tokens"], first["truncated"]) == ("", 0, True)


def test_only_the_tokens_of_replies_are_scored(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL 1.16 would score those of prompts too, because there is no Triton."""
    utils = trl.trainer.utils
    if not hasattr(utils, "_ChunkedLogProbFunction"):
        pytest.skip("this TRL does not score in chunks")
    apply, scored = utils._ChunkedLogProbFunction.apply, []

    def record(hidden: Any, *rest: Any) -> Any:
        scored.append(len(hidden))
        return apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=record))
    train(backend, tmp_path, settings())
    # The last call is the loss, of the groups whose rewards differ.
    assert 0 < scored[-1] <= sum(row["n_tokens"] for row in read_jsonl(tmp_path / "attempts.jsonl"))


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_loss_reads_each_prompt_once(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    shared: list[Any] = []

    @contextmanager
    def record(model: Any, reply_length: int) -> Iterator[None]:
        shared.append(model)
        with sharing_prompts(model, reply_length):
            yield

    monkeypatch.setattr(trainer, "sharing_prompts", record)
    once = train(backend, tmp_path / "once", settings(beta=beta, optim="sgd"))
    assert shared
    assert all(model is backend.trainable()[0].get_base_model() for model in shared)
    monkeypatch.setattr(trainer, "sharing_prompts", lambda *_: nullcontext())
    plain = train(backend, tmp_path / "plain", settings(beta=beta, optim="sgd"))
    assert distance(plain, once) < 1e-4 * distance(plain, backend.snapshot())
    # Gradient checkpointing keeps no keys and values.
    monkeypatch.setattr(trainer, "sharing_prompts", record)
    shared.clear()
    train(backend, tmp_path / "checkpointing", settings(beta=beta, gradient_checkpointing=True))
    backend.trainable()[0].gradient_checkpointing_disable()  # TRL never does
    assert not shared


def test_masked_truncated_replies_are_not_trained_on(backend: Backend, tmp_path: Path) -> None:
    before = backend.snapshot()
    short = {"max_completion_length": 4}  # every reply is truncated
    taught = train(backend, tmp_path / "taught", settings(**short))
    masked = train(backend, tmp_path / "masked", settings(**short, mask_truncated_completions=True))
    assert any(not weight.equal(before[name]) for name, weight in taught.items())
    assert all(weight.equal(before[name]) for name, weight in masked.items())


def test_equal_rewards_teach_nothing(backend: Backend, tmp_path: Path) -> None:
    """In 32 bits, the mean of eight rewards of 0.1 is not 0.1, and Adam would make a full step of the difference."""

    class Wrong(IntegrationTask):
        def grade(self, _problem: Problem, text: str) -> Grade:
            return Grade(0.0, Reason.WRONG, text)

    before = backend.snapshot()
    trl_settings = {"num_generations": 8, "per_device_train_batch_size": 16, "max_steps": 2}
    chosen = settings(**trl_settings).model_copy(update={"format_reward": 0.1})
    steps = grpo.train(Training(Wrong(RECIPE.task), backend, chosen, tmp_path, 0), PROBLEMS, lambda *_: False)
    assert [step.reward for step in steps] == [pytest.approx(0.1), pytest.approx(0.1)]
    assert all(weight.equal(before[name]) for name, weight in backend.snapshot().items())


def test_a_trainer_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    in_16_bits = load_backend(load_recipe("tiny", ["model.dtype=bfloat16"]))  # for which accelerate adds a wrapper
    model, _ = in_16_bits.trainable()
    base = model.get_base_model()

    def added() -> list[Any]:
        hooks = dict(base.get_input_embeddings()._forward_hooks)
        return [hooks, *(module.__dict__.get("forward") for module in (model, base))]

    before = added()
    train(in_16_bits, tmp_path, settings(gradient_checkpointing=True))
    assert added() == before


def test_a_process_uses_one_gpu(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl.GRPOConfig, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 0) or 2), raising=False)
    assert build(backend, tmp_path, settings()).args.n_gpu == 1


def test_a_reply_that_ends_with_a_stop_text_is_not_masked(backend: Backend, tmp_path: Path) -> None:
    plain = train(backend, tmp_path / "plain", settings(max_completion_length=120))
    masked = train(backend, tmp_path / "masked", settings(max_completion_length=120, mask_truncated_completions=True))
    assert '"truncated": true' not in (tmp_path / "plain" / "attempts.jsonl").read_text()
    assert all(weight.equal(plain[name]) for name, weight in masked.items())


# --- out of memory


def out_of_memory_above(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL's trainer fail on micro-batches of more than `largest` completions, as on a full GPU."""
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
    small = settings(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    expected = train(backend, tmp_path / "parts", small)
    out_of_memory_above(2, monkeypatch)
    lines: list[str] = []
    actual = train(backend, tmp_path / "actual", settings(), lines.append)
    assert all(weight.equal(expected[name]) for name, weight in actual.items())
    assert lines == [
        "out of memory: going on with a micro-batch of 4 instead of 8",
        "out of memory: going on with a micro-batch of 2 instead of 4",
    ]
    assert len((tmp_path / "actual" / "attempts.jsonl").read_text().splitlines()) == 8


def test_unsloth_checks_its_packed_pass_again_with_a_smaller_micro_batch(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for Unsloth stops packing when memory runs out, in the padded pass as in the packed one."""
    model, _ = backend.trainable()
    compute_loss = trl.GRPOTrainer.compute_loss
    packed: list[int] = []

    def unsloth_loss(self: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        if len(inputs["completion_ids"]) > 2:
            model._unsloth_seq_packing_grad_unsafe_T = 300
            raise torch.OutOfMemoryError("CUDA out of memory")
        if not hasattr(model, "_unsloth_seq_packing_grad_unsafe_T"):
            model._unsloth_seq_packing_grad_ok = True
            packed.append(len(inputs["completion_ids"]))
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", unsloth_loss)
    lines: list[str] = []
    train(backend, tmp_path, settings(max_steps=2), lines.append)
    assert packed == [2] * 8
    assert [line for line in lines if "pass" in line] == ["Unsloth's training pass: packed"]
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["training_pass"] for step in steps] == ["packed", "packed"]
    forget_self_checks(model)


@pytest.mark.parametrize(
    ("results", "expected"),
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
def test_the_pass_that_unsloth_trains_with(results: dict[str, Any], expected: str) -> None:
    model = torch.nn.Linear(1, 1)
    for name, value in results.items():
        kind = "prefix_grouper_grad_verified" if name == "grouper" else f"seq_packing_{name}"
        setattr(model, f"_unsloth_{kind}", value)
    model._unsloth_prefix_grouper_grad_unsafe = set()
    model._unsloth_gradient_checkpointing = "unsloth"
    assert training_pass(model).startswith(expected)
    forget_self_checks(model)
    assert [name for name in vars(model) if name.startswith("_unsloth")] == ["_unsloth_gradient_checkpointing"]


def test_a_single_completion_that_does_not_fit_is_an_error(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match=r"not even one completion .* lower grpo.trl.max_completion_length"):
        train(backend, tmp_path, settings())
