"""Export of what a run made: the adapter, the merged model, GGUF files for llama.cpp, or the variants as a data set.

    python -m ladder_lite.export runs/llama3b-s0 --format adapter
    python -m ladder_lite.export runs/llama3b-s0 --format merged --push you/llama3b-ladder
    python -m ladder_lite.export runs/llama3b-s0 --format gguf --quantization q4_k_m
    python -m ladder_lite.export runs/llama3b-s0 --format variants --push you/llama3b-variants

A merged model is read back and compared with base and adapter on test problems; one that does not match is deleted.
The output folder appears only once it is complete.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ladder_lite.config import EMBEDDED, Recipe, condition_of
from ladder_lite.doctor.checks import on_hub
from ladder_lite.errors import UserError, first_line
from ladder_lite.jsonl import append_jsonl, write_json
from ladder_lite.runs import Run, layout, open_run, read_json
from ladder_lite.tasks import load_task

if TYPE_CHECKING:
    from huggingface_hub import CardData

Format = Literal["adapter", "merged", "gguf", "variants"]

# fmt: off
Quantization = Literal[
    "f32", "bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q5_k", "q4_k_m", "q4_k_s", "q4_1",
    "q4_0", "q4_k", "q3_k_l", "q3_k_m", "q3_k_s", "q3_k_xs", "q2_k_l", "q2_k",
]
# fmt: on
"""The quantizations of Unsloth's exporter that need no importance matrix."""

_N_PROMPTS = 4
"""Test problems on which the merged model is compared with base and adapter."""


def export(run: Path, format_: Format, condition: str, out: Path, quantization: Quantization) -> list[str]:
    """Write the adapter of a condition in this format, or its variants, into the new folder `out`.

    Returns lines for the user. Raises UserError if the run has no such adapter, `out` is not empty, the disk is too
    small, the merged model does not match base and adapter, or Unsloth cannot run.
    """
    finished = open_run(run)
    recipe, adapter = finished.recipe, finished.adapter(condition)
    if adapter is None:
        raise UserError("--condition base: the base model has no adapter; name a condition that trained one")
    # done.json is written after the adapter: without it, the adapter's files may be incomplete.
    if not (adapter.parent / layout.DONE).exists():
        raise UserError(
            f"{adapter.parent}: training is not finished; run the recipe to its end, or name another --condition"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; name another folder with --out, or remove it")
    from ladder_lite.export import merging  # imports torch

    with _new_folder(out) as folder:
        if format_ == "variants":
            lines = _write_variants(finished, condition, folder)
        elif format_ == "adapter":
            lines = _copy_adapter(recipe, adapter, folder)
        elif format_ == "merged":
            task = load_task(recipe.task)
            prompts = [task.prompt(problem) for problem in task.problems("test")[:_N_PROMPTS]]
            lines = merging.save_merged(recipe, adapter, prompts, folder)
        else:
            lines = merging.save_gguf(recipe, adapter, folder, quantization)
        shutil.copyfile(run / layout.RECIPE, folder / layout.EXPORTED_RECIPE)
        card = _data_card(recipe, condition) if format_ == "variants" else _card(run, recipe, condition, format_)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return lines


def push(folder: Path, repo: str, repo_type: Literal["model", "dataset"] = "model") -> str:
    """Upload an exported folder to the hub and return its URL. A repository that does not exist yet is private."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi()
        # `private` applies to a new repository only: the visibility of an existing one is not changed.
        address = api.create_repo(repo, repo_type=repo_type, private=True, exist_ok=True)
        message = "Upload from ladder_lite"
        api.upload_folder(repo_id=repo, repo_type=repo_type, folder_path=folder, commit_message=message)
    # The hub's errors are subclasses of httpx.HTTPError. Without a network, or with HF_HUB_OFFLINE, huggingface_hub
    # raises a ConnectionError.
    except (httpx.HTTPError, HFValidationError, ConnectionError) as error:
        raise UserError(
            f"--push {repo}: the upload failed ({first_line(error)}); {folder} is complete, retry with "
            f"`hf upload {repo} {folder} --repo-type {repo_type}`"
        ) from error
    return str(address)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` at the end, or deleted if the block raises."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside `out`, so that both are on the same disk: renaming is then atomic, and nothing is copied.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        yield folder
        folder.replace(out)  # `out` may exist, but only as an empty folder


def _copy_adapter(recipe: Recipe, adapter: Path, folder: Path) -> list[str]:
    from ladder_lite.export.merging import check_space
    from ladder_lite.models.loading import load_tokenizer

    files = [adapter / layout.ADAPTER_CONFIG, adapter / layout.WEIGHTS]
    if missing := [path for path in files if not path.exists()]:
        raise UserError(f"{missing[0]}: missing, this adapter is damaged; train it again with --redo")
    check_space(folder, sum(path.stat().st_size for path in files))
    for path in files:
        shutil.copyfile(path, folder / path.name)
    # peft records what was loaded: a path on this machine for the embedded model, a 4-bit copy on the hub with
    # Unsloth. Whoever loads the adapter needs the recipe's model instead.
    if recipe.model.id == EMBEDDED or on_hub(recipe.model.id):
        config = json.loads(files[0].read_bytes())
        config["base_model_name_or_path"] = None if recipe.model.id == EMBEDDED else recipe.model.id
        write_json(folder / files[0].name, config)
    load_tokenizer(recipe.model).save_pretrained(folder)  # with its chat template
    return []


def _write_variants(run: Run, condition: str, folder: Path) -> list[str]:
    """Write `variants.jsonl`: the condition's tree, with pass rates and, where there is one, a verified answer."""
    train, own = layout.train(condition), layout.variants(condition)
    tree = own if (run.path / own).exists() else layout.VARIANTS
    written = [row for place in (tree, f"{train}/{layout.VARIANTS}") for row in run.rows(place, layout.PROBLEMS)]
    rates = {row["problem_id"]: row for row in run.rows(train, layout.PASS_RATES)}
    # The last answer that the verifier accepted, from the model as it was trained longest.
    right = [row for row in run.rows(train, layout.ATTEMPTS) if row["reason"] == "CORRECT"]
    answers = {row["problem_id"]: row["answer"] for row in right}
    rows = []
    for row in written:
        # Without tries, the pass rate is a guess from similar problems.
        rate = rates.get(row["id"], {})
        tried = {key: rate.get(key) if rate.get("tries") else None for key in ("tries", "right", "pass_rate")}
        kept = {key: row[key] for key in ("id", "parent_id", "root_id", "depth", "requested", "transforms")}
        rows.append({**row["data"], "answer": answers.get(row["id"]), **tried, **kept})
    if not rows or condition_of(condition, run.recipe.ablations).trains_on != "variants":
        raise UserError(f"{run.path}: {condition} was not trained on variants; name another --condition")
    append_jsonl(folder / "variants.jsonl", rows)
    n_answered = sum(row["answer"] is not None for row in rows)
    return [f"{len(rows):,} variants, {n_answered:,} of them with a verified answer"]


def _data_card(recipe: Recipe, condition: str) -> str:
    """Return the README.md of exported variants."""
    from huggingface_hub import DatasetCardData

    configs = [{"config_name": "default", "data_files": "variants.jsonl"}]
    data = DatasetCardData(tags=["ladder_lite", recipe.task.name], configs=configs)
    return _render("data_card.md.j2", data, recipe=recipe, condition=condition, task=load_task(recipe.task))


def _card(run: Path, recipe: Recipe, condition: str, format_: Format) -> str:
    """Return the README.md of an exported adapter or model, with results from the run's report if there is one."""
    from huggingface_hub import ModelCardData

    base = recipe.model.id
    tags = {"adapter": ["lora"], "gguf": ["gguf"]}.get(format_, [])
    data = ModelCardData(
        base_model=base if on_hub(base) else None,  # the hub rejects a card whose base model is a local path
        library_name="peft" if format_ == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["ladder_lite", "grpo", *tags],
    )
    report = read_json(run / layout.REPORT, f"python -m ladder_lite.report {run} writes it again")
    values = {
        "model": f"[{base}](https://huggingface.co/{base})" if on_hub(base) else f"`{base}`",
        "is_embedded": base == EMBEDDED,
        "results": report.get("conditions", {}),
    }
    return _render("model_card.md.j2", data, recipe=recipe, condition=condition, format=format_, **values)


def _render(template: str, metadata: "CardData", **values: object) -> str:
    """Return a card for the hub, which reads the metadata on top of it."""
    from jinja2 import StrictUndefined, Template

    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    card: Template = Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return card.render(metadata=metadata.to_yaml().strip(), **values)
