"""A step of the one-file version equals the package's: same rewards, advantages, loss and gradient on the same rows."""

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ladder_lite.config.load import load_recipe
from ladder_lite.install import shipped
from ladder_lite.models import Backend, Rollout
from ladder_lite.problems.attempts import Completion
from ladder_lite.train.state import Training, TrainingState
from ladder_lite.train.trainer import Trainer
from tests.support.problems import TASK, problem

FILE = shipped("recipes") / "ladder_in_one_file.py"
PLAIN = ["grpo.rows=uniform", "grpo.refill=null", "grpo.base_rollouts=null", "grpo.trl.max_steps=1"]
RECIPE = load_recipe("tiny", PLAIN)

# By integrand, a group of 8 replies: one right reply in the first group, two in the second, and so on up to eight.
RIGHT, WRONG = "<answer>{}</answer>", "<answer>3*{}-x</answer>"
NO_ANSWER = "x**2/2"
ANSWERS = {
    "cos(2*x)": "sin(2*x)/2",
    "x**3": "x**4/4",
    "exp(5*x)": "exp(5*x)/5",
    "sin(3*x)+x**2": "(-cos(3*x)/3)+x**3/3",
    "7*x": "7*x**2/2",
    "5*cos(4*x)": "5*sin(4*x)/4",
    "1/(x+2)": "log(x+2)",
    "cosh(x)": "sinh(x)",
}
GROUPS = {
    integrand: [(RIGHT if i < n_right else NO_ANSWER if i == 7 else WRONG).format(answer) for i in range(8)]
    for n_right, (integrand, answer) in enumerate(ANSWERS.items(), start=1)
}


@dataclass
class Step:
    """What a trainer computes from the groups, by integrand."""

    rewards: dict[str, list[float]] = field(default_factory=dict)
    advantages: dict[str, list[float]] = field(default_factory=dict)
    loss: float = 0.0
    grad_norm: float = 0.0


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ladder_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy(one_file: ModuleType) -> Any:
    """The one-file version's model, with an adapter that is not zero."""
    policy = one_file.Policy(seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def integrand_of(prompt: str) -> str:
    return prompt.partition("integrate(")[2].rpartition(",x)")[0]


def integrands(built: Any, inputs: Sequence[dict[str, Any]]) -> list[str]:
    """The integrand of each completion of a step. The package's trainer gives TRL no prompts but only completions."""
    if isinstance(built, Trainer):
        groups = built.progress.trained
        return [str(built.progress.problems[group.row].data["integrand"]) for group in groups for _ in group.rollouts]
    return [integrand_of(row["prompt"][-1]["content"]) for row in inputs]


def first_step(built: Any, monkeypatch: pytest.MonkeyPatch) -> Step:
    """Train for one step and restore the adapter."""
    before = adapter_of(built.model)
    step = Step()
    calculate, score, compute = built._calculate_rewards, built._generate_and_score_completions, built.compute_loss

    def record(column: dict[str, list[float]], inputs: Sequence[dict[str, Any]], values: torch.Tensor) -> None:
        for integrand, value in zip(integrands(built, inputs), values.flatten().tolist(), strict=True):
            column.setdefault(integrand, []).append(value)

    def calculate_rewards(inputs: Any, *args: Any) -> Any:
        rewards = calculate(inputs, *args)
        record(step.rewards, inputs, rewards)
        return rewards

    def generate_and_score(inputs: Any) -> Any:
        batch = score(inputs)
        record(step.advantages, inputs, batch["advantages"])
        return batch

    def compute_loss(*args: Any, **named: Any) -> Any:
        loss = compute(*args, **named)
        step.loss += loss.item()
        return loss

    monkeypatch.setattr(built, "_calculate_rewards", calculate_rewards)
    monkeypatch.setattr(built, "_generate_and_score_completions", generate_and_score)
    monkeypatch.setattr(built, "compute_loss", compute_loss)
    built.train()
    step.grad_norm = built.state.log_history[0]["grad_norm"]
    built.model.load_state_dict(before, strict=False)
    return step


def step_of_file(one_file: ModuleType, policy: Any, monkeypatch: pytest.MonkeyPatch) -> Step:
    tokenizer = policy.tokenizer
    replies = {integrand: cycle(group) for integrand, group in GROUPS.items()}

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        prompts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        texts = [next(replies[integrand_of(prompt)]) + tokenizer.eos_token for prompt in prompts]
        encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return torch.cat([input_ids, encoded.input_ids], dim=1)

    with monkeypatch.context() as patch:
        patch.setattr(policy.model, "generate", generate)
        return first_step(one_file.make_trainer(policy, list(GROUPS), 1, seed=0), patch)


def trainer_of_package(backend: Backend, policy: Any, folder: Path) -> Trainer:
    backend.restore(adapter_of(policy.model))
    training = Training(TASK, backend, RECIPE.grpo, folder, 0)
    state = TrainingState(training, [problem(integrand) for integrand in GROUPS], None, lambda *_: False)
    return Trainer(training, state, 64, test_memory_first=False)


def step_of_package(backend: Backend, policy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    tokenizer = policy.tokenizer
    replies = {integrand: cycle(group) for integrand, group in GROUPS.items()}

    def reply_to(prompt: Any) -> Rollout:
        text = next(replies[integrand_of(prompt[-1]["content"])])
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        reply = tokenizer(text + tokenizer.eos_token).input_ids
        return Rollout(ids, reply, Completion(text, len(reply), truncated=False))

    monkeypatch.setattr(backend, "roll_out", lambda prompts, _: [reply_to(prompt) for prompt in prompts])
    # The replies are scripted, not sampled from the model.
    monkeypatch.setattr(backend, "check_rollouts", lambda *_: None)
    return first_step(trainer_of_package(backend, policy, folder), monkeypatch)


@pytest.fixture(scope="module")
def expected(module_backend: Backend, policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Step:
    """The package's step."""
    with pytest.MonkeyPatch.context() as patch:
        return step_of_package(module_backend, policy, tmp_path_factory.mktemp("training"), patch)


def differences(found: Step, expected: Step) -> set[str]:
    """The fields that differ by more than one part in 100,000."""

    def flat(value: Any) -> list[float]:
        return [number for integrand in GROUPS for number in value[integrand]] if isinstance(value, dict) else [value]

    pairs = [(name, flat(value), flat(asdict(expected)[name])) for name, value in asdict(found).items()]
    return {name for name, one, other in pairs if one != pytest.approx(other, rel=1e-5, abs=0)}


def test_the_step_equals_that_of_the_package(
    one_file: ModuleType, policy: Any, expected: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [sum(expected.rewards[integrand]) for integrand in GROUPS] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert abs(expected.loss) > 1e-4
    assert expected.grad_norm > 1e-4
    assert differences(step_of_file(one_file, policy, monkeypatch), expected) == set()


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"loss_type": "grpo"}, {"loss", "grad_norm"}),
        ({"scale_rewards": "none"}, {"advantages", "loss", "grad_norm"}),
        ({"scale_rewards": "batch"}, {"advantages", "loss", "grad_norm"}),
        ({"temperature": 1.0}, {"grad_norm"}),
        ({"max_completion_length": 100}, {"loss", "grad_norm"}),
    ],
    ids=["loss_type", "scale_rewards none", "scale_rewards batch", "temperature", "max_completion_length"],
)
def test_a_different_setting_changes_the_step(
    one_file: ModuleType,
    policy: Any,
    expected: Step,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    differing: set[str],
) -> None:
    config = one_file.GRPOConfig
    monkeypatch.setattr(one_file, "GRPOConfig", lambda **settings: config(**settings | change))
    assert differences(step_of_file(one_file, policy, monkeypatch), expected) == differing


def test_the_settings_equal_those_of_the_recipe(
    one_file: ModuleType, policy: Any, backend: Backend, tmp_path: Path
) -> None:
    """Includes settings that do not show in the first step, such as the clip range and the learning rate schedule."""
    package = trainer_of_package(backend, policy, tmp_path).args.to_dict()
    file = one_file.make_trainer(policy, list(GROUPS), 1, seed=0).args.to_dict()
    differing = {name for name in package if file[name] != package[name]}
    bookkeeping = ("output_dir", "save_", "logging_", "ignore_data_skip", "vllm_")
    assert {name for name in differing if not name.startswith(bookkeeping)} == set()


@pytest.mark.parametrize(
    "reply",
    [
        "<answer>sin(2*x)/2</answer>",
        "so <answer>cos(x)</answer> no <answer> sin(2*x)/2 </answer>",
        "<answer>sin(2*x)/2</answer> or <answer>cos(x)</answer>",
        "<answer>cos(x)<answer>sin(2*x)/2</answer></answer>",
        "<answer>sin(2*x)/2</answer><answer>cut",
        "<answer>sin(2*x)/2",
        "sin(2*x)/2",
        "<answer></answer>",
        "<answer>sin(2*x\n)/2</answer>",
        "",
    ],
)
@pytest.mark.parametrize("integrand", ["cos(2*x)", "cos(2*x)+", "log(-1-x**2)"])
def test_rewards_equal_those_of_the_package(one_file: ModuleType, integrand: str, reply: str) -> None:
    assert one_file.reward(integrand, reply) == TASK.grade(problem(integrand), reply).reward


def test_variants_are_valid_new_and_not_test_problems(one_file: ModuleType) -> None:
    known = ["exp(x)", "x+x", "2*cos(x)-cos(x)"]
    wrong = ["log(-1-x**2)", "0*x", "7", "a*x"]
    integrals = [f"integrate({integrand},x)" for integrand in ("cos(x)", *known, *wrong)]
    replies = cycle([*integrals, "integrate(x**2,(x,0,1))", "integrate(", "x", ""])
    policy = SimpleNamespace(sample=lambda prompts, _temperature: [next(replies) for _ in prompts])
    assert one_file.grow_tree(policy, ["exp(x)"], ["2*x"], count=80, depth=2) == ["cos(x)"]


def test_ttrl_rolls_the_weights_back(one_file: ModuleType, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = adapter_of(policy.model)

    def train() -> None:
        with torch.no_grad():
            for weight in policy.model.parameters():
                if weight.requires_grad:
                    weight += 1.0

    monkeypatch.setattr(one_file, "grow_tree", lambda *_, **__: list(GROUPS))
    monkeypatch.setattr(one_file, "make_trainer", lambda *_, **__: SimpleNamespace(train=train))
    monkeypatch.setattr(policy, "sample", lambda prompts, temperature: [NO_ANSWER] * len(prompts))
    one_file.learn_problem(policy, "cos(2*x)", [], seed=0)
    after = adapter_of(policy.model)
    assert all(weight.equal(after[name]) for name, weight in before.items())


def test_it_is_short_and_imports_only_the_verifier() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    shared = {module for module in modules if module.partition(".")[0] == "ladder_lite"}
    assert all(module.startswith("ladder_lite.verify") for module in shared)
