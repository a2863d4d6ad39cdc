"""LADDER's training on several GPUs: exported variants and the verifier in plain TRL, with vLLM in server mode.

    python -m ladder_lite.export runs/qwen7b-s0 --format variants --out variants
    CUDA_VISIBLE_DEVICES=0,1 trl vllm-serve --model Qwen/Qwen2.5-7B-Instruct --tensor_parallel_size 2
    CUDA_VISIBLE_DEVICES=2,3 accelerate launch recipes/trl_on_many_gpus.py variants/variants.jsonl

vLLM generates on the first two GPUs. accelerate trains a copy of the model on each of the others; a model that does not
fit on one needs an accelerate configuration with FSDP or DeepSpeed. Of ladder_lite, only the verifier is used.
Tested with `--cpu`; it has not been run on several GPUs.
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from ladder_lite.verify import reward

SYSTEM = "Write the antiderivative of the integrand in Python syntax between <answer> and </answer>."


def main() -> None:
    """Train a model with GRPO on exported variants."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("variants", help="variants.jsonl, as written by ladder_lite.export")
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", default="trl-ladder")
    parser.add_argument("--cpu", action="store_true", help="try the script without GPU and vLLM")
    options = parser.parse_args()

    def ask(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        return {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["integrand"]}]}

    # The reward function takes the columns integrand, variable, lower and upper, and skips unverifiable problems.
    rows = load_dataset("json", data_files=options.variants, split="train").map(ask)
    config = GRPOConfig(
        output_dir=options.out,
        use_vllm=not options.cpu,
        vllm_mode="server",
        use_cpu=options.cpu,
        bf16=not options.cpu,
        max_steps=options.steps,
        num_generations=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        max_completion_length=256,
        learning_rate=2e-5,
        report_to="none",
    )
    lora = LoraConfig(r=32, target_modules="all-linear")
    trainer = GRPOTrainer(options.model, reward, config, rows, peft_config=lora)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
