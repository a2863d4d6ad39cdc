"""A trained run as something to use elsewhere: the adapter, the merged model, or GGUF files for llama.cpp and Ollama.

    python -m ladder_lite.export runs/llama3b-s0 --format adapter
    python -m ladder_lite.export runs/llama3b-s0 --format merged --push you/llama3b-ladder
    python -m ladder_lite.export runs/llama3b-s0 --format gguf --quantization q4_k_m

The merged model is read again and compared with base and adapter on test problems; what does not match is not kept.
Nothing half-written is left either: a folder appears under its name when all of it is there.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ladder_lite.config import EMBEDDED, Recipe
from ladder_lite.doctor.checks import on_hub
from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_json
from ladder_lite.runs import layout, open_run, read_json
from ladder_lite.tasks import Messages

Format = Literal["adapter", "merged", "gguf"]

QUANTIZATIONS = (
    *("f32", "bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q5_k"),
    *("q4_k_m", "q4_k_s", "q4_1", "q4_0", "q4_k", "q3_k_l", "q3_k_m", "q3_k_s", "q3_k_xs", "q2_k_l", "q2_k"),
)
"""Those of Unsloth's exporter that need no importance matrix."""

_N_PROMPTS = 4
"""Test problems on which merged model and adapter are compared."""
_RESERVE_BYTES = 64 * 2**20
"""For the tokenizer and the card."""


def export(run: Path, format_: Format, condition: str, out: Path, quantization: str) -> list[str]:
    """Write the adapter of a condition in that format into the new folder `out`; returns what there is to say.

    Raises UserError where the run has no such adapter, `out` holds something, the disk is too small, the merged model
    does not match, or Unsloth cannot run.
    """
    finished = open_run(run)
    recipe, adapter = finished.recipe(), finished.adapter(condition)
    if adapter is None:
        raise UserError("--condition base: the base model has no adapter; name a condition that trained one")
    if not (adapter.parent / layout.DONE).exists():
        raise UserError(
            f"{adapter.parent}: this training is not done; run the recipe to its end, or name another --condition"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there; name another folder with --out, or remove it")
    with _new_folder(out) as folder:
        if format_ == "adapter":
            lines = _copy_adapter(recipe, adapter, folder)
        elif format_ == "merged":
            lines = _merge(recipe, adapter, folder)
        else:
            lines = _convert(recipe, adapter, folder, quantization)
        shutil.copyfile(run / layout.RECIPE, folder / "recipe.yaml")
        (folder / "README.md").write_text(_card(run, recipe, condition, format_), encoding="utf-8")
    return lines


def push(folder: Path, repo: str) -> str:
    """Upload an exported folder to the hub, into a private repository unless it is there; returns its address."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi()
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload from ladder_lite")
    # The hub's own errors are httpx's; without a network, or told to do without, it raises ConnectionError.
    except (httpx.HTTPError, HFValidationError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--push {repo}: the hub did not take it ({reason}); {folder} is complete, `hf upload {repo} {folder}` "
            "tries again"
        ) from error
    return str(address)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that gets its name once all went well, and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        yield folder
        folder.replace(out)


def _copy_adapter(recipe: Recipe, adapter: Path, folder: Path) -> list[str]:
    from ladder_lite.export import merging

    files = [adapter / layout.ADAPTER_CONFIG, adapter / layout.WEIGHTS]
    if missing := [path for path in files if not path.exists()]:
        raise UserError(f"{missing[0]}: missing, this adapter is damaged; train it again with --redo")
    _make_room(folder, sum(path.stat().st_size for path in files))
    for path in files:
        shutil.copyfile(path, folder / path.name)
    if recipe.model.id == EMBEDDED or on_hub(recipe.model.id):  # not this machine's path, nor a 4-bit copy of the model
        config = json.loads(files[0].read_bytes())
        config["base_model_name_or_path"] = None if recipe.model.id == EMBEDDED else recipe.model.id
        write_json(folder / files[0].name, config)
    merging.save_tokenizer(recipe, folder)
    return []


def _merge(recipe: Recipe, adapter: Path, folder: Path) -> list[str]:
    from ladder_lite.export import merging

    prompts = _prompts(recipe)
    found = merging.save_merged(recipe, adapter, prompts, folder, lambda n_bytes: _make_room(folder, n_bytes))
    lines = [
        f"checked on {len(prompts)} prompts in {found.dtype}: logits differ from base and adapter by at most "
        f"{found.difference:.2g} (allowed {found.tolerance:.2g}; the adapter moves them by {found.effect:.2g}, the "
        f"largest is {found.largest:.3g})"
    ]
    if found.difference > found.effect / 2:
        lines.append(
            f"note: every layer holds the adapter, but {found.dtype} rounds the answers by about as much as the "
            "adapter changes them; --format adapter loses nothing"
        )
    if found.quantized is not None:
        lines.append(
            f"note: it was trained on 4-bit weights and merged into {found.dtype} ones, as it must be; its logits "
            f"differ from those of the 4-bit model by up to {found.quantized:.2g}"
        )
    return lines


def _convert(recipe: Recipe, adapter: Path, folder: Path, quantization: str) -> list[str]:
    from ladder_lite.export import merging

    files = merging.save_gguf(recipe, adapter, folder, quantization, lambda n_bytes: _make_room(folder, n_bytes))
    return [f"{path.name}: {path.stat().st_size / 2**30:.2f} GiB" for path in files]


def _prompts(recipe: Recipe) -> list[Messages]:
    from ladder_lite.tasks import load_task

    task = load_task(recipe.task)
    return [task.prompt(problem) for problem in task.problems("test")[:_N_PROMPTS]]


def _make_room(folder: Path, n_bytes: int) -> None:
    """UserError unless the disk has room for so much."""
    needed, free = n_bytes + _RESERVE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent.parent}: {needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} are free; "
            "free some space, or name a folder on another disk with --out"
        )


def _card(run: Path, recipe: Recipe, condition: str, format_: Format) -> str:
    """The README.md of the exported folder, with what the hub reads on top of it."""
    from huggingface_hub import ModelCardData

    base = recipe.model.id
    data = ModelCardData(
        base_model=base if on_hub(base) else None,  # the hub refuses a card that names a path there
        library_name="peft" if format_ == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[
            "ladder_lite",
            "grpo",
            *(["lora"] if format_ == "adapter" else []),
            *(["gguf"] if format_ == "gguf" else []),
        ],
    )
    what = {
        "adapter": "A LoRA adapter of",
        "merged": "A LoRA adapter merged into",
        "gguf": "GGUF files of an adapter of",
    }
    model = f"[{base}](https://huggingface.co/{base})" if on_hub(base) else f"`{base}`"
    where = ", the model that comes with ladder_lite" if base == EMBEDDED else ""
    lines = [
        "---",
        data.to_yaml().strip(),
        "---",
        "",
        f"# {recipe.name}: {condition}",
        "",
        f"{what[format_]} {model}{where}, trained by ladder_lite on problems whose answers a program verifies "
        f"(condition `{condition}` of the recipe `{recipe.name}`: {recipe.description}).",
        "",
        "`recipe.yaml` has every setting; `python -m ladder_lite.recipe recipe.yaml` trains it again.",
        "",
        *_accuracy(run, recipe, condition),
        f"- licence: that of {model} goes for what is made of it",
    ]
    if recipe.model.load_in_4bit and format_ != "adapter":
        lines.append(
            "- trained, and measured, on 4-bit (NF4) weights; merged into the unquantized ones, it answers a little "
            "differently"
        )
    return "\n".join(lines) + "\n"


def _accuracy(run: Path, recipe: Recipe, condition: str) -> list[str]:
    """What the run's report says of the condition and of the base model, if there is a report."""
    report = read_json(run / layout.REPORT, f"python -m ladder_lite.report {run} writes it again")
    lines = []
    for name, model in ((condition, "this model"), ("base", "the base model")):
        if (entry := report.get("conditions", {}).get(name)) is not None:
            first = entry["pass@1"]
            lines.append(
                f"- pass@1 of {model} on {entry['n_problems']} test problems of `{recipe.task.test}`: "
                f"{first['value']:.1%} (95 % interval {first['low']:.1%} to {first['high']:.1%})"
            )
    return lines
