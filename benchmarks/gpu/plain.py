"""Measure plain TRL, peft and bitsandbytes, used as documented: NF4, LoRA, gradient checkpointing, SDPA.

Started by `measure.py` with the loader `plain`.
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from workload import Clock, Finding, Findings, ForcedTask, Measurements, Sizes, take_peaks

from ladder_lite.config.schema import Recipe
from ladder_lite.models import prepare_environment


class Plain:
    """The timed steps of a recipe's model with plain TRL."""

    def __init__(self, recipe: Callable[..., Recipe], sizes: Sizes, findings: Findings) -> None:
        lengths = sizes.micro_batches[0], sizes.timed_completions, sizes.timed_reply
        self.recipe, self.findings = recipe(*lengths), findings
        self.measurements: Measurements = {"load": (20, self.load), "timed": (40, self.timed)}

    def load(self) -> Finding:
        """Load the model in 4 bits."""
        prepare_environment()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        self.gpu = torch.cuda.is_available()
        dtype, device = (torch.bfloat16, "cuda") if self.gpu else (torch.float32, "cpu")
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": {"": device}}
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
        self.model = AutoModelForCausalLM.from_pretrained(self.recipe.model.id, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.recipe.model.id, padding_side="left")
        return {"dtype": str(dtype), "peaks": take_peaks()}

    def timed(self) -> Finding:
        """Time steps with the rewards and lengths of `measure.py`."""
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        task, findings, clock, lengths = ForcedTask(self.recipe, self.tokenizer), self.findings, Clock(), list[float]()

        def reward(completions: Sequence[Any], row: Sequence[int], **_: Any) -> list[float | None]:
            texts = [completion[0]["content"] for completion in completions]
            return [task.grade(task.problems[index], text).reward for index, text in zip(row, texts, strict=True)]

        class StepTimes(TrainerCallback):
            def on_log(self, _args: Any, _state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                if "loss" in logs:
                    lengths.append(logs["completions/mean_length"])
                    clock.end_step()
                    control.should_training_stop |= clock.steps[-1]["seconds"] > findings.left()

        rows = Dataset.from_list([{"prompt": prompt, "row": index} for index, prompt in enumerate(task.prompts)])
        changes = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        changes |= {"bf16": self.gpu, "use_cpu": not self.gpu}
        with tempfile.TemporaryDirectory() as run:
            config = GRPOConfig(**self.recipe.grpo.trl | changes | {"output_dir": run})
            options = {"train_dataset": rows, "processing_class": self.tokenizer, "callbacks": [StepTimes()]}
            lora = LoraConfig(task_type="CAUSAL_LM", **self.recipe.model.lora)
            trainer = GRPOTrainer(self.model, reward, args=config, peft_config=lora, **options)
            take_peaks()  # resets them
            trainer.train()
        summary = clock.summary(self.recipe, config.per_device_train_batch_size)
        return summary | {"peaks": take_peaks(), "n_tokens": round(lengths[-1] * self.recipe.grpo.completions_per_step)}
