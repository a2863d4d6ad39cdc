"""What the recipes `llama3b` and `qwen7b` take on one GPU: do they fit, was it foreseen, how fast, whose time is it.

    python benchmarks/gpu.py                         # everything: hours on a small card
    python benchmarks/gpu.py --only 'fit-*'          # some arms; the others keep their figures
    python benchmarks/gpu.py --rehearse              # tiny models on a CPU; measures nothing

Needs 22 GB of disk and no network: the models have the exact shapes of Llama 3.2 3B and DeepSeek-R1-Distill-Qwen-7B
and random weights, prompts and replies have the full length that the recipe allows. Each arm is a process of its own,
and one that fails is a row with its error:

    fit-RECIPE          32 completions a step below 7.3 and 14.5 GiB, of which the CUDA context is counted as 0.45
    memory-RECIPE-M     peaks of generation and of training with micro-batches of M, against those of memory.py
    speed-RECIPE-ours   the recipe's step, the parts it consists of, and how much of it is this package's own code;
                        replies are generated as many at once as memory allows, which --cap can make as on a small card
    speed-RECIPE-plain  the same step on plain TRL, peft and bitsandbytes: NF4, LoRA, checkpointing, SDPA, micro-batch

Steps of `fit` and `memory` have fewer completions than the recipe's: accumulating more takes time and no memory.
Writes benchmarks/results/gpu.json, on a GPU only. The first real model is measured by its recipe, which leaves table
and curve in its folder:

    python -m ladder_lite.recipe smollm model.load_in_4bit=true model.backend=unsloth --run-dir runs/smollm-4bit

with `model.id=` a local folder or GGUF file where the hub cannot be reached.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import random_models
import typer
from gpu_arm import Arm
from rich.console import Console
from rich.table import Table

from ladder_lite.config import load_recipe
from ladder_lite.memory import CARDS, CUDA_CONTEXT_BYTES, GIB
from ladder_lite.run_dir import versions

HERE = Path(__file__).parent
CAPS_GIB = {"llama3b": CARDS[8], "qwen7b": CARDS[16]}
SETTINGS = {1: 8, 4: 16, 8: 32}  # micro-batch: completions of a step, and so replies generated at once
FIT_COMPLETIONS = 32
WITHIN, FASTER, SMALLER, OWN = 0.10, 1.5, 0.60, 0.02  # the bars
UNSEEN = "not measured: no GPU"
LENGTHS_FORCED = (
    *("task.stop=[]", "task.thinking=false", "task.select=null", "grpo.plateau=null"),
    *("grpo.trl.mask_truncated_completions=false", "grpo.trl.save_steps=100000"),
)
REHEARSAL = (
    *("model.max_prompt_length=24", "grpo.trl.max_completion_length=16", "grpo.trl.num_generations=4"),
    "grpo.trl.optim=adamw_torch",  # the 8-bit one wants a GPU
)
Row = dict[str, Any]


def main(
    models_dir: Annotated[Path, typer.Option(help="Folder for the random models.")] = Path("runs/models"),
    only: Annotated[str, typer.Option(help="Arms by pattern, separated by commas.")] = "*",
    steps: Annotated[int, typer.Option(min=2, help="Steps of the speed arms; the first is not counted.")] = 3,
    completions: Annotated[int | None, typer.Option(help="Of a step of the speed arms; default: the recipe's.")] = None,
    cap: Annotated[float | None, typer.Option(help="GiB for speed-RECIPE-ours; default: all there are.")] = None,
    backend: Annotated[str, typer.Option(help="Loader of our arms: unsloth or transformers.")] = "unsloth",
    minutes: Annotated[float, typer.Option(help="For one arm, at most.")] = 60.0,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny models on a CPU.")] = False,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "gpu.json",
) -> None:
    arms = _arms(models_dir, steps, completions, cap, "transformers" if rehearse else backend, rehearse)
    chosen = [name for name in arms if any(fnmatch(name, pattern) for pattern in only.split(","))]
    if not chosen:
        raise typer.BadParameter(f"none of {', '.join(arms)}", param_hint="--only")
    card = {} if rehearse else _run("card", minutes, rehearse)
    if not rehearse and "name" not in card:
        raise typer.BadParameter("there is no GPU here; --rehearse does without one")
    figures: Row = {"command": "", "card": card | _driver(), "versions": versions(), "arms": {}}
    if not rehearse:
        figures["arms"] = _recorded(out, figures)
    figures["command"] = " ".join(["python", *sys.argv])
    rows: dict[str, Row] = figures["arms"]
    for name in chosen:
        arm = arms[name]
        ours = rows.get(name.replace("-plain", "-ours"), {})
        if arm.kind == "plain" and "micro_batch" in ours:
            arm = replace(arm, changes=[*arm.changes, *_batch(ours["micro_batch"], ours["completions"])])
        typer.echo(f"{name} ...", err=True)
        random_models.make(models_dir, arm.recipe, tiny=rehearse)
        rows[name] = _run(json.dumps(asdict(arm)), minutes, rehearse)
        if not rehearse:
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures, arms)


def _arms(
    models: Path, steps: int, completions: int | None, cap: float | None, backend: str, rehearse: bool
) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for recipe, cap_gib in CAPS_GIB.items():
        trl = load_recipe(recipe).grpo.trl
        largest = 4 if rehearse else trl["per_device_train_batch_size"]
        whole = completions or largest * (2 if rehearse else trl["gradient_accumulation_steps"])
        common = [f"model.backend={backend}", *LENGTHS_FORCED, *(REHEARSAL if rehearse else ())]

        def arm(
            kind: str,
            micro_batch: int,
            completions: int,
            steps: int = 2,
            cap_gib: float | None = None,
            apart: bool = False,
            recipe: str = recipe,
            common: list[str] = common,
        ) -> Arm:
            changes = [*common, f"grpo.trl.max_steps={steps}", *_batch(micro_batch, completions)]
            model = random_models.folder(models, recipe, tiny=rehearse)
            return Arm(kind, recipe, str(model), changes, cap_gib, apart)

        arms[f"fit-{recipe}"] = arm("ours", largest, 8 if rehearse else FIT_COMPLETIONS, cap_gib=cap_gib)
        for micro_batch, at_once in SETTINGS.items():
            name = f"memory-{recipe}-{micro_batch}"
            arms[name] = arm("ours", micro_batch, 8 if rehearse else at_once, apart=True)
        for kind in ("ours", "plain"):
            limit = cap if kind == "ours" else None
            arms[f"speed-{recipe}-{kind}"] = arm(kind, largest, whole, 2 if rehearse else steps, limit)
    return arms


def _batch(micro_batch: int, completions: int) -> list[str]:
    return [
        f"grpo.trl.per_device_train_batch_size={micro_batch}",
        f"grpo.trl.gradient_accumulation_steps={completions // micro_batch}",
    ]


def _run(spec: str, minutes: float, rehearse: bool) -> Row:
    """What a process prints as its last JSON object, or its last words as the error."""
    command = [sys.executable, str(HERE / "gpu_arm.py"), spec]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if rehearse else {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {minutes:g} minutes"}
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and objects:
        row: Row = json.loads(objects[-1])
        return row
    typer.echo(done.stderr[-4000:], err=True)
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"error": words[-1][:300] if words else f"exit code {done.returncode}"}


def _driver() -> Row:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"driver": listing.splitlines()[0].strip()}


def _recorded(out: Path, figures: Row) -> dict[str, Row]:
    """The arms that were measured before, on the same card and with the same versions."""
    if not out.exists():
        return {}
    recorded: Row = json.loads(out.read_text())
    if any(recorded[key] != figures[key] for key in ("card", "versions")):
        raise typer.BadParameter(f"{out} has figures of another card or other versions", param_hint="--out")
    arms: dict[str, Row] = recorded["arms"]
    return arms


# --- what it comes to


def judge(rows: dict[str, Row], arms: dict[str, Arm]) -> list[tuple[str, str, str, str]]:
    """(what, figure, bar, whether it is met) for every bar of which an arm was run."""
    verdicts: list[tuple[str, str, str, str]] = []
    for name, row in rows.items():
        kind, recipe, *rest = name.split("-")
        if kind == "fit":
            verdicts.append(_fit(name, row, arms[name].cap_gib))
        elif kind == "memory":
            verdicts += _foreseen(name, row)
        elif rest == ["ours"]:
            verdicts += _against_plain(f"speed-{recipe}", row, rows.get(f"speed-{recipe}-plain"))
            verdicts.append(_own_share(name, row))
    return verdicts


def _fit(name: str, row: Row, cap_gib: float | None) -> tuple[str, str, str, str]:
    bar = f"trains within {cap_gib} GiB"
    if "error" in row:
        return name, row["error"], bar, "not met"
    if not row["peaks"]:
        return name, f"micro-batch {row['micro_batch']}", bar, UNSEEN
    found = f"{_gib(_peak(row))} GiB and CUDA's {_gib(row['context_bytes'])}, micro-batch {row['micro_batch']}"
    found = "; ".join([f"{found}, {row['replies_at_once']} replies at once", *row["said"]])
    return name, found, bar, _met(_peak(row) <= row["cap_gib"] * GIB - CUDA_CONTEXT_BYTES)


def _foreseen(name: str, row: Row) -> list[tuple[str, str, str, str]]:
    bar = f"within {WITHIN:.0%} of the prediction"
    if "error" in row:
        return [(name, row["error"], bar, "not measured")]
    verdicts = []
    for phase, parts in row["predicted"].items():
        predicted = sum(parts.values())
        if not row["peaks"]:
            verdicts.append((f"{name}, {phase}", f"{_gib(predicted)} GiB predicted", bar, UNSEEN))
            continue
        peak = row["peaks"][phase]
        ratio = peak["reserved"] / predicted
        found = f"{ratio:.2f} = {_gib(peak['reserved'])} of {_gib(predicted)} GiB predicted"
        found += f" (allocated {_gib(peak['allocated'])})"
        verdicts.append((f"{name}, {phase}", found, bar, _met(abs(ratio - 1) <= WITHIN)))
    return verdicts


def _against_plain(name: str, ours: Row, plain: Row | None) -> list[tuple[str, str, str, str]]:
    bars = f"at least {FASTER} times as fast", f"at most {SMALLER:.0%} of the memory"
    for side, row in (("ours", ours), ("plain", plain or {"error": "not run"})):
        if "error" in row:
            return [(name, f"{side}: {row['error']}", bar, "not measured") for bar in bars]
    assert plain is not None
    seconds = [row["median"]["seconds"] for row in (ours, plain)]
    found = f"{seconds[1] / seconds[0]:.2f} = {seconds[1]:.1f} s plain / {seconds[0]:.1f} s {ours['loader']}"
    found += f" below {ours['cap_gib']} GiB" if ours["cap_gib"] else ""
    if any(ours[key] != plain[key] for key in ("micro_batch", "completions", "prompt_tokens", "reply_tokens")):
        return [(name, f"{found}, but other batches", bar, "not measured") for bar in bars]
    if not ours["peaks"]:
        return [(name, found, bars[0], UNSEEN), (name, "-", bars[1], UNSEEN)]
    faster, share = _met(seconds[1] >= FASTER * seconds[0]), _peak(ours) / _peak(plain)
    sizes = f"{share:.2f} = {_gib(_peak(ours))} GiB {ours['loader']} / {_gib(_peak(plain))} GiB plain"
    return [(name, found, bars[0], faster), (name, sizes, bars[1], _met(share <= SMALLER))]


def _own_share(name: str, row: Row) -> tuple[str, str, str, str]:
    """The share of verification, data and logging, counted over the steps but the first."""
    bar = f"own code at most {OWN:.0%} of a step"
    if "error" in row:
        return name, row["error"], bar, "not measured"
    part, own_s = row["median"], _own_s(row)
    share = own_s / part["seconds"]
    found = f"{share:.1%} = {own_s:.2f} s of {part['seconds']:.1f} s (verification {part['verify']:.2f} s)"
    return name, found, bar, _met(share <= OWN) if row["peaks"] else UNSEEN


def _own_s(row: Row) -> float:
    """Seconds of a step in verification, rows and prompts, tokens to texts and back, and logging."""
    part = row["median"]
    return float(part["verify"] + part["data"] + part["log"] + part["roll_out"] - part["generate"])


def _peak(row: Row) -> int:
    return max(int(peak["reserved"]) for peak in row["peaks"].values())


def _met(met: bool) -> str:
    return "met" if met else "not met"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _print(figures: Row, arms: dict[str, Arm]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    card = figures["card"]
    if "name" in card:
        driver = card.get("driver", "unknown")
        console.print(f"{card['name']}, capability {card['capability']}, {card['gib']:.1f} GiB, driver {driver}")
    steps = Table("arm", "loader", "micro-batch", "completions", "tokens", "s a step", "generation", "own", "peak GiB")
    for name, row in figures["arms"].items():
        if "error" in row:
            steps.add_row(name, row["error"])
            continue
        part = row["median"]
        own = f"{_own_s(row):.3f}" if "predicted" in row else "-"
        lengths = f"{row['prompt_tokens']} + {row['reply_tokens']}"
        seconds = [f"{part['seconds']:.2f}", f"{part['generate']:.2f}", own]
        peak = _gib(_peak(row)) if row["peaks"] else "-"
        sizes = [str(row["micro_batch"]), str(row["completions"])]
        steps.add_row(name, f"{row['loader']} {row['dtype']}", *sizes, lengths, *seconds, peak)
    bars = Table("arm", "figure", "bar", "verdict")
    for verdict in judge(figures["arms"], arms):
        bars.add_row(*verdict)
    console.print(steps, bars)


if __name__ == "__main__":
    typer.run(main)
