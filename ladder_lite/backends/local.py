"""A model on this machine: transformers, a peft LoRA adapter, and 4-bit NF4 weights through bitsandbytes if asked for.

The embedded model, a folder and a model of the Hugging Face hub are loaded by the same lines.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from ladder_lite.attempts import Completion
from ladder_lite.backends import Adapter, Sampling
from ladder_lite.backends.gguf import as_folder
from ladder_lite.errors import UserError
from ladder_lite.settings import EMBEDDED, ModelSettings
from ladder_lite.tasks import Messages


class LocalBackend:
    """A causal language model with one LoRA adapter, on the GPU where there is one and on the CPU elsewhere."""

    def __init__(self, settings: ModelSettings, seed: int) -> None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer, model = _load(settings, self._device)
        transformers.set_seed(seed)  # the adapter's first matrices are random
        self._model: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings.lora))
        if settings.load_in_4bit:  # as TRL would when training begins: the adapter keeps one type throughout
            for _, weight in self._adapter_weights():
                weight.data = weight.data.to(torch.bfloat16)
        self._model.eval()

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt; prompts of like length are generated together."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted((len(ids), at) for at, ids in enumerate(encoded))
        jobs = [at for _, at in order for _ in range(n)]
        replies: list[list[Completion]] = [[] for _ in prompts]
        devices = [self._device] if self._device.type == "cuda" else []
        was_training = self._model.training
        self._model.eval()
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(sampling.seed)
            for start in range(0, len(jobs), sampling.batch_size):
                batch = jobs[start : start + sampling.batch_size]
                own = sampling.temperature
                temperature = [own[at] for at in batch] if isinstance(own, tuple) else own
                generated = self._generate([encoded[at] for at in batch], sampling, temperature)
                for at, completion in zip(batch, generated, strict=True):
                    replies[at].append(completion)
        self._model.train(was_training)
        return replies

    def check(self, prompts: Sequence[Messages]) -> None:
        """Encode every prompt; UserError names the first word that is not in the vocabulary."""
        for prompt in prompts:
            self._encode(prompt)

    def trainable(self) -> tuple[Any, Any]:
        """The peft model and its tokenizer."""
        return self._model, self._tokenizer

    def snapshot(self) -> Adapter:
        """A copy of the adapter's weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self._adapter_weights()}

    def restore(self, adapter: Adapter) -> None:
        """Put the weights of a snapshot back, bit by bit."""
        with torch.no_grad():
            for name, weight in self._adapter_weights():
                weight.copy_(adapter[name])

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        self._model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read the adapter of a folder that `save` wrote."""
        path = folder / "adapter_model.safetensors"
        try:
            result = set_peft_model_state_dict(self._model, load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot read this adapter ({reason}); train it again with --redo") from error
        if result.unexpected_keys:
            raise UserError(f"{path}: this adapter belongs to another model; train it again with --redo")

    def _adapter_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad)

    def _encode(self, prompt: Messages) -> list[int]:
        text = self._tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in encoding.input_ids:
            start, end = encoding.offset_mapping[encoding.input_ids.index(unknown)]
            raise UserError(f"the model has no word for {text[start:end]!r} in the prompt {prompt[-1]['content']!r}")
        return list(encoding.input_ids)

    def _generate(
        self, prompts: list[list[int]], sampling: Sampling, temperature: float | list[float]
    ) -> Iterator[Completion]:
        tokenizer = self._tokenizer
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._device)
        greedy = temperature == 0
        processors = []
        if isinstance(temperature, list):
            processors, temperature = [_Temperatures(temperature, self._device)], 1.0
        settings = transformers.GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            temperature=None if greedy else temperature,
            top_p=None if greedy else sampling.top_p,
            top_k=None if greedy else 0,  # transformers' own default would cut the distribution at 50 tokens
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        output = self._model.generate(**inputs, generation_config=settings, logits_processor=processors)
        for row in output[:, inputs.input_ids.shape[1] :].tolist():
            ended = tokenizer.eos_token_id in row
            tokens = row[: row.index(tokenizer.eos_token_id)] if ended else row
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            yield Completion(text, len(tokens) + ended, truncated=not ended)


class _Temperatures(transformers.LogitsProcessor):  # type: ignore[misc]
    """Divides the logits of each row of a batch by a temperature of its own; transformers knows one for all."""

    def __init__(self, temperatures: list[float], device: torch.device) -> None:
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores / self._temperatures


def _load(settings: ModelSettings, device: torch.device) -> tuple[Any, Any]:
    source = str(Path(__file__).parents[1] / "tiny") if settings.id == EMBEDDED else settings.id
    if source.endswith(".gguf"):
        source = str(as_folder(Path(source)))
    dtype = _dtype(settings, device)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if settings.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left")
        model = transformers.AutoModelForCausalLM.from_pretrained(source, device_map={"": device}, **options)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.id {settings.id}: cannot load this model ({reason}); "
            f'give the id of a hub model that can be reached, a local folder, or "{EMBEDDED}"'
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On some CPUs, bitsandbytes packs the weights when it first generates, and gradients no longer pass them.
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    return tokenizer, model


def _dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
