"""LADDER and TTRL in one file: a small language model teaches itself to integrate, with a verifier as its only teacher.

    python recipes/ladder_in_one_file.py        # about four minutes on a CPU; no GPU, no network

The method of the paper (arXiv 2503.00735), in the order in which it runs:

1. Variants: the model writes easier variants of ten integrals that it cannot solve, and variants of these variants.
2. GRPO: it is trained on the variants. A numerical verifier rewards right answers.
3. Evaluation: it solves test integrals that it has never seen.
4. TTRL: for one test integral that it still cannot solve, steps 1 and 2 are repeated. Then the weights are rolled back.

With seeds 0, 1 and 2, pass@1 rises from 0 % to 53, 54 and 38 %. TTRL solves its problem with seed 0, not with 1 and 2.

TRL trains, transformers samples, and `ladder_lite.verify` reads integrals and verifies answers. The rest of the package
is not used. `python -m ladder_lite.recipe tiny` runs the full version of the method: any model, with or without a GPU,
problems drawn by pass rate, a control, ablations, checkpoints and a report.
"""

import argparse
import json
import random
import re
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

import ladder_lite
from ladder_lite.verify import verify
from ladder_lite.verify.expressions.replies import Written, read_integrals
from ladder_lite.verify.rules.fingerprints import Index, fingerprints
from ladder_lite.verify.rules.validity import fault, is_zero

PROBLEMS = Path(__file__).parents[1] / "benchmarks" / "tiny.jsonl"  # 10 to train on, 100 to test on, as in the paper
MAX_TOKENS = 120  # length limit of a reply; the longest integrals have about 100 tokens


class Policy:
    """The embedded model, a Llama with 1.8 million weights and 94 words, with the LoRA adapter that is trained."""

    def __init__(self, seed: int) -> None:
        set_seed(seed)  # for the adapter's initial weights and all random draws
        folder = Path(ladder_lite.__file__).parent / "tiny"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))

    def sample(self, prompts: list[str], temperature: float) -> list[str]:
        """Sample one reply to each prompt."""
        replies = []
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "max_new_tokens": MAX_TOKENS}
        for start in range(0, len(prompts), 50):
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + 50]]
            texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            inputs = self.tokenizer(
                texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
            )
            tokens = self.model.generate(**inputs, **settings)
            replies += self.tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return replies


# 1. Variants: prompt, read, reject ------------------------------------------------------------------------------------

PERSONAS = ["euler", "gauss", "leibniz", "noether", "kovalevskaya"]
TRANSFORMATIONS = {  # in the paper, the model writes these lists; the embedded model only knows these words
    "easier": ["keep-one", "keep-two", "halve", "drop-one", "drop-two", "unit-factors", "low-powers", "swap-function"],
    "equivalent": ["new-numbers", "flip-signs", "new-factors", "reorder", "swap-function"],
}


def variant_prompt(integrand: str, persona: str) -> str:
    """Return a prompt for one variant (in the paper, for ten) that suggests three to five transformations."""
    effect = "easier" if random.random() < 0.7 else "equivalent"  # the paper's mix in its MIT experiment
    suggestions = random.sample(TRANSFORMATIONS[effect], random.randint(3, 5))
    return f"{effect} as {persona}: {', '.join(suggestions)}: integrate({integrand},x)"


def grow_tree(policy: Policy, roots: list[str], tests: list[str], count: int, depth: int) -> list[str]:
    """Request `count` variants: of the roots, of these variants, and so on. Return the usable ones."""
    known: Index[str] = Index()
    for integrand in (*roots, *tests):  # known from the start, so that no variant equals a root or a test problem
        read_variants(f"integrate({integrand},x)", known)
    tree, parents = [], roots
    for _ in range(depth):
        children = []
        for temperature in (0.8, 1.0, 1.2, 1.4):  # temperatures and personas rotate, for diversity
            chosen = random.choices(parents, k=count // depth // 4)
            prompts = [variant_prompt(parent, PERSONAS[i % len(PERSONAS)]) for i, parent in enumerate(chosen)]
            for reply in policy.sample(prompts, temperature):
                children += read_variants(reply, known)
        tree += children
        parents = children
    return tree


def read_variants(reply: str, known: Index[str]) -> list[str]:
    """Return the usable new integrands in a reply, and add them to the known ones."""
    variants = []
    for piece in read_integrals(reply, "x"):
        if not isinstance(piece, Written) or piece.lower or piece.upper:
            continue  # unreadable, or a definite integral
        if fault(asdict(piece)) or is_zero(asdict(piece)):
            continue  # not a real function of x, or zero
        keys = fingerprints(asdict(piece))  # equal for equal functions, however they are written
        if known.find(keys) is None:
            known.add(keys, piece.integrand)
            variants.append(piece.integrand)
    return variants


# 2. GRPO with verified rewards ----------------------------------------------------------------------------------------


def solve_prompt(integrand: str) -> str:
    """Return a prompt for an antiderivative."""
    return f"solve integrate({integrand},x)"


def reward(integrand: str, reply: str) -> float | None:
    """Return 1 for a right answer, 0 for a wrong or missing one, None if the integrand itself cannot be verified."""
    answer = re.search(r".*<answer>(.*?)</answer>", reply, re.DOTALL)  # the greedy .* selects the last answer
    return verify(integrand, answer[1] if answer else "").reward


def batch_rewards(completions: list[Any], integrand: list[str], **_: Any) -> list[float | None]:
    """Return the rewards of a batch of TRL; `integrand` is a column of the training set."""
    return [reward(f, completion[0]["content"]) for f, completion in zip(integrand, completions, strict=True)]


def make_trainer(policy: Policy, variants: list[str], steps: int, seed: int, test: str | None = None) -> GRPOTrainer:
    """Return TRL's trainer for the adapter, with the variants as its training set.

    Each step draws 8 variants and samples a group of 8 answers to each. The advantage of an answer is its reward minus
    the mean of its group, divided by the group's standard deviation. The step makes answers with a positive advantage
    more likely and those with a negative one less likely. A zero-variance group, whose answers are all right or all
    wrong, teaches nothing. On the ten training integrals alone, all groups would be all wrong: hence the variants.
    """
    config = GRPOConfig(
        max_steps=steps,  # the paper: about 250, and 100 for TTRL
        num_generations=8,
        per_device_train_batch_size=64,
        max_completion_length=MAX_TOKENS,
        temperature=1.1,  # a little higher than in the evaluation, so that the answers of a group keep differing
        scale_rewards="group",  # divide by the standard deviation, as in the paper
        loss_type="dr_grpo",  # every token has the same weight, whatever the length of its answer
        epsilon=0.2,  # the paper clips the ratio, but does not give its value
        beta=0.0,  # the paper has a KL term of 0.001; without it, no reference model has to run
        learning_rate=4e-3,  # large, for a small adapter; it must decay early, or the model gets worse again
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2.0},
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        seed=seed,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        output_dir=tempfile.gettempdir(),
    )
    rows = [{"prompt": [{"role": "user", "content": solve_prompt(f)}], "integrand": f} for f in variants]
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=batch_rewards,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        callbacks=[Progress(policy, test)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Progress(TrainerCallback):
    """Prints a line after each step. For TTRL, it also tries the test problem, which is not in the training set."""

    def __init__(self, policy: Policy, test: str | None) -> None:
        self.policy, self.test = policy, test

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Print the mean reward of a step from TRL's logs."""
        if "reward" in logs:
            line = f"  step {state.global_step}: {logs['reward']:.0%} of the answers to variants right"
            if self.test:
                line += f", {evaluate(self.policy, [self.test], 20)[self.test]:.0%} of 20 answers to the problem itself"
            print(line, flush=True)


# 3. Evaluation --------------------------------------------------------------------------------------------------------


def evaluate(policy: Policy, integrands: list[str], n: int) -> dict[str, float]:
    """Sample `n` answers to each integral at temperature 1, and return the share of right answers to each."""
    replies = iter(policy.sample([solve_prompt(f) for f in integrands for _ in range(n)], temperature=1.0))
    return {f: sum(reward(f, next(replies)) or 0 for _ in range(n)) / n for f in integrands}


# 4. TTRL --------------------------------------------------------------------------------------------------------------


def learn_problem(policy: Policy, problem: str, tests: list[str], seed: int) -> None:
    """Train on variants of one test problem, answer it, and roll the weights back.

    In the paper, a problem counts as solved if the verifier accepts an answer at any step. The most frequent answer of
    the trained model, which is printed too, is chosen without the verifier.
    """
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters() if weight.requires_grad}
    print(f"TTRL on {problem}: {evaluate(policy, [problem], 100)[problem]:.0%} of 100 answers right before")
    tree = grow_tree(policy, [problem], tests, count=80, depth=2)  # the paper: 800 variants
    make_trainer(policy, tree, 20, seed, problem).train()
    replies = policy.sample([solve_prompt(problem)] * 100, temperature=1.0)
    answer, votes = Counter(replies).most_common(1)[0]
    print(f"TTRL: {sum(reward(problem, reply) or 0 for reply in replies):.0f} of 100 answers right after")
    print(f"the most frequent one ({votes} of 100) is {'right' if reward(problem, answer) else 'wrong'}: {answer}")
    policy.model.load_state_dict(before, strict=False)  # another problem would start from LADDER's weights again


def main() -> None:
    """Run LADDER, and TTRL on one test problem that LADDER leaves unsolved."""
    parser = argparse.ArgumentParser(description="LADDER and TTRL with the embedded model")
    parser.add_argument("--steps", type=int, default=100, help="GRPO steps of LADDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    roots, tests = ([p["integrand"] for p in problems if p["split"] == split] for split in ("train", "test"))
    policy = Policy(options.seed)
    print(f"base model: {mean(evaluate(policy, tests, 10).values()):.1%} pass@1 on {len(tests)} test problems")
    tree = grow_tree(policy, roots, tests, count=480, depth=3)  # the paper: 5,000 variants
    print(f"LADDER: {len(tree)} variants, such as {', '.join(random.sample(tree, 3))}")
    tree = sorted(tree, key=len)[: len(tree) // 2]  # long variants are slow, and hardly ever solved in so few steps
    make_trainer(policy, tree, options.steps, options.seed).train()
    rates = evaluate(policy, tests, 10)
    unsolved = [integrand for integrand, rate in rates.items() if rate == 0]
    print(f"LADDER: {mean(rates.values()):.1%} pass@1; {len(unsolved)} problems not solved in 10 tries")
    if unsolved:
        learn_problem(policy, random.choice(unsolved), tests, options.seed)


if __name__ == "__main__":
    main()
