"""Rebuild the embedded model from a seed, on a CPU: tokenizer, weights and scores.

    python benchmarks/tiny_pretrain.py --out FOLDER

Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` can load. The text comes from `tiny_corpus.py`. The loss
covers the replies only, not the prompts.
"""

import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import tiny_corpus as corpus
import typer

from ladder_lite import errors
from ladder_lite.jsonl import write_json
from ladder_lite.terminal import Bar, Live, clock_time, percent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

STEPS = 1400
BATCH_SIZE = 64
WARM_UP_STEPS = 50
MUON_RATE = 0.02
ADAM_RATE = 3e-3
POOL = 16
"""Number of batches that are drawn together and sorted by length, so that batches contain little padding."""

SPECIAL = ("<pad>", "<unk>", "<bos>", "<end>", "<system>", "<user>", "<assistant>")
WORDS = (
    *("solve", "easier", "equivalent", "as", ":", ",", "integrate(", ",x)", "<answer>", "</answer>"),
    *corpus.PERSONAS,
    *dict.fromkeys(name for library in corpus.TRANSFORMATIONS.values() for name in library),
    *("sin(", "cos(", "sinh(", "cosh(", "exp(", "log(", "atan(", "asin(", "sqrt(", "x", "x)", "x*"),
    *("**", "*", "/", "/(", "+", "-", "(", ")", *"0123456789"),
    *(form.format(digit) for form in ("{}*", "/{}", "**{}") for digit in range(10)),
)
"""Operators are joined to their digits: this saves a third of the tokens, and of the time to sample and train."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build a tokenizer of whole words. Other text becomes `<unk>`, and the backend raises an error that names it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL, *WORDS)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    # A regular expression takes the first alternative that matches, so longer words come first.
    longest_first = [re.escape(word) for word in sorted(words, key=len, reverse=True)]
    # Half of a power sign is not a product sign: 3** is split into 3 and **, not into 3* and *.
    pattern = "|".join(rf"{word}(?!\*)" if word.endswith(r"\*") and word != r"\*\*" else word for word in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pattern), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    """Build an untrained Llama with 1.8 million weights."""
    import transformers

    transformers.set_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(seed: int, steps: int, bar: Bar) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """Build the tokenizer and train the model on `steps` batches of the corpus; the same seed gives the same text."""
    import torch
    from torch.nn.functional import cross_entropy

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizers = {
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0): MUON_RATE,  # needs half of AdamW's steps here
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0): ADAM_RATE,
    }
    model.train()
    for step, (tokens, labels) in enumerate(islice(_batches(tokenizer, seed), steps)):
        # Linear warm-up, constant for the first half of the steps, linear decay to 0 in the second half.
        factor = min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (0.5 * steps))
        for optimizer, rate in optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * factor
        logits = model(tokens).logits[:, :-1]  # (batch, length - 1, vocabulary): each position predicts the next token
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set(step + 1, loss=loss.item())
    return model.eval(), tokenizer


def held_out() -> set[Any]:
    """Return the keys of all training and test integrals of the recipe, which the corpus must not contain."""
    return {corpus.key(terms) for _, terms in corpus.benchmark()}


def _batches(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Iterator[tuple[Tensor, Tensor]]":
    """Yield batches of token ids and labels, both (BATCH_SIZE, length); the loss ignores labels of -100."""
    from transformers import DataCollatorForSeq2Seq

    right_padded = build_tokenizer()  # the model's own tokenizer pads on the left, for generation
    right_padded.padding_side = "right"
    collate = DataCollatorForSeq2Seq(right_padded, pad_to_multiple_of=8)  # few different shapes: kernels are cached
    stream = corpus.examples(seed, held_out())
    rng = Random(seed)
    while True:
        texts = []
        for example in islice(stream, POOL * BATCH_SIZE):
            prompt = f"<bos><user>{example.prompt}<end><assistant>"
            prompt_ids, reply_ids = tokenizer([prompt, f"{example.reply}<end>"], add_special_tokens=False).input_ids
            texts.append({"input_ids": prompt_ids + reply_ids, "labels": [-100] * len(prompt_ids) + reply_ids})
        texts.sort(key=lambda text: len(text["labels"]))
        pool = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
        rng.shuffle(pool)  # else the model would see short texts before long ones, again and again
        for batch in pool:
            padded = collate(batch)
            yield padded["input_ids"], padded["labels"]


def score(folder: Path, n_problems: int = 200) -> dict[str, Any]:
    """Return pass@1 with 95 % intervals of the model in a folder, on new integrals, by number of terms (1 to 7)."""
    from ladder_lite.config import load_recipe
    from ladder_lite.evaluate import Sampler
    from ladder_lite.evaluate.scores import summarize
    from ladder_lite.models import load_backend
    from ladder_lite.problems import Problem
    from ladder_lite.tasks import load_task

    recipe = load_recipe("tiny", [f"model.id={folder.resolve()}"])
    task, backend = load_task(recipe.task), load_backend(recipe)
    rng = Random("score")
    scores = {}
    for n_terms in (1, 2, 3, 5, 7):
        texts = [corpus.integrand(corpus.draw_terms(rng, n_terms)) for _ in range(n_problems)]
        data = [{"integrand": text, "variable": "x", "lower": None, "upper": None} for text in texts]
        problems = [Problem.root("integration", row) for row in data]
        attempts = Sampler(task, backend, recipe.eval, n_terms).sample(problems, 4)
        scores[f"{n_terms} terms"] = summarize(attempts, 1)["pass@1"]
    return scores


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the model; it is created.")],
    seed: Annotated[int, typer.Option(help="Seed of the text and of the initial weights.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Number of batches to train on.")] = STEPS,
) -> None:
    """Rebuild the embedded model from a seed, on a CPU."""
    started = time.monotonic()
    with Live() as live:
        with live.progress("pretrain", steps) as bar:
            model, tokenizer = pretrain(seed, steps, bar)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        with live.progress("score", None):
            scores = score(out)
        write_json(out / "scores.json", {"seed": seed, "steps": steps, "pass@1": scores})
        for name, value in scores.items():
            live.say(f"{name}: pass@1 {percent(value['value'])} ({percent(value['low'])} to {percent(value['high'])})")
        live.say(f"{out}: rebuilt in {clock_time(time.monotonic() - started)}")


if __name__ == "__main__":
    errors.run(app)
