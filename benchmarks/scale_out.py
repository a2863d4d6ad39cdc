"""Measure runs with workers (`--workers`): time, equality of results, killed workers, two nodes, simulated growth.

    python benchmarks/scale_out.py measure tiny --full      # one worker and two, of one thread each
    python benchmarks/scale_out.py measure tiny --seeds 0,1
    python benchmarks/scale_out.py chaos --times 20         # workers killed at random moments
    python benchmarks/scale_out.py cluster                  # two nodes of Ray on this machine
    python benchmarks/scale_out.py simulate RUN             # from the times of a run with one worker

Each adds its figures to benchmarks/results/scale-out.json. On a processor whose two cores share one, two processes do
not get twice as much done. `measure` therefore also times a loop of Python in one process and in two.
"""

import heapq
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Annotated, Any

import psutil
import typer

from ladder_lite.config import load_recipe
from ladder_lite.install import versions
from ladder_lite.jsonl import read_jsonl
from ladder_lite.recipe import stages
from ladder_lite.recipe.workers import Plan
from ladder_lite.runs import layout

RESULTS = Path(__file__).resolve().parent / "results" / "scale-out.json"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# What no two runs share: times and memory. The pictures and pages are made from the files that are compared.
NOISE = ("seconds", "verify_seconds", "peak_memory_bytes")
NOT_COMPARED = (layout.LOCK, layout.VERSIONS, layout.REPORT, "comparison.json")

app = typer.Typer(add_completion=False, rich_markup_mode=None)
Runs = Annotated[Path | None, typer.Option(help="A new folder, in which the runs are kept.")]


def differing_files(first: Path, second: Path) -> list[str]:
    """The result files of two run folders that differ or that only one of them has, apart from times and memory."""
    contents = [
        {
            str(path.relative_to(folder)): _content(path)
            for path in folder.rglob("*")
            if path.suffix in (".json", ".jsonl", ".safetensors", ".yaml")
            and path.name not in NOT_COMPARED
            and layout.WORKERS not in path.relative_to(folder).parts
        }
        for folder in (first, second)
    ]
    names = sorted(contents[0].keys() | contents[1].keys())
    return [name for name in names if contents[0].get(name) != contents[1].get(name)]


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [_without_noise(row) for row in read_jsonl(path)]
    return _without_noise(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_noise(each) for key, each in value.items() if key not in NOISE}
    return [_without_noise(each) for each in value] if isinstance(value, list) else value


@app.command()
def measure(
    recipe: Annotated[str, typer.Argument(help="Recipe.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All conditions.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    runs: Runs = None,
) -> None:
    """Run a recipe with one worker and with two, of one thread each, and compare the results."""
    options = [recipe, *(settings or ()), *(["--full"] if full else []), *(["--seeds", seeds] if seeds else [])]
    with _folder(runs) as folder:
        seconds, folders = {}, {}
        for workers in (1, 2):
            started, folders[workers] = time.monotonic(), folder / f"{workers}-workers"
            _run(*options, "--workers", workers, "--run-dir", folders[workers])
            seconds[workers] = time.monotonic() - started
        differing = differing_files(folders[1], folders[2])
        single, double = (read_jsonl(each / layout.WORKERS / layout.JOBS) for each in folders.values())
    figures = {
        "seconds": seconds,
        "ratio": seconds[2] / seconds[1],
        # None with several seeds, which have a folder of their own.
        "simulated_ratio": _simulate(single, 2, recipe) / _simulate(single, 1, recipe) if single else None,
        "ttrl_seconds": {1: _ttrl_seconds(single), 2: _ttrl_seconds(double)},
        "loop_ratio": _loop_ratio(),
        "differing_files": differing,
    }
    _record(shlex.join(["measure", *options]), figures)


@app.command()
def chaos(
    times: Annotated[int, typer.Option(help="Number of runs.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    runs: Runs = None,
) -> None:
    """Kill a worker of two at a random moment, and compare the results with those of a run that was left alone."""
    rng, outcomes = Random(seed), []
    with _folder(runs) as folder:
        started = time.monotonic()
        _run("tiny", "--smoke", "--workers", 2, "--run-dir", folder / "whole")
        whole_s = time.monotonic() - started
        for number in range(times):
            moment, path = rng.uniform(0, whole_s), folder / str(number)
            with _running("tiny", "--smoke", "--workers", 2, "--run-dir", path) as process:
                time.sleep(moment)
                workers = [each for each in _descendants(process.pid) if "StageRunner" in "".join(_command(each))]
                if workers:
                    rng.choice(workers).kill()
                code = process.wait()
            died = sum(row["ended"] == "died" for row in read_jsonl(path / layout.WORKERS / layout.JOBS))
            outcomes.append(
                {
                    "killed_after_s": moment,
                    "workers_found": len(workers),
                    "jobs_died": died,
                    "exit_code": code,
                    "differing_files": differing_files(folder / "whole", path),
                }
            )
            print(outcomes[-1], flush=True)
    equal = sum(each["exit_code"] == 0 and not each["differing_files"] for each in outcomes)
    died = sum(bool(each["jobs_died"]) for each in outcomes)
    _record("chaos", {"runs": times, "ended_equal": equal, "lost_a_job": died, "each": outcomes})


@app.command()
def cluster(runs: Runs = None) -> None:
    """Run `tiny --smoke` on two nodes of Ray on this machine, with a core and a temporary folder each.

    Afterwards, it ends all processes of Ray on this machine.
    """
    ray, port = str(Path(sys.executable).with_name("ray")), "6399"
    start = [ray, "start", "--num-cpus", "1", "--disable-usage-stats"]
    os.environ["RAY_AUTH_MODE"] = "token"  # newer versions of Ray ask for one, and write it to the home folder
    with (
        _folder(runs) as folder,
        tempfile.TemporaryDirectory(prefix="a") as a,
        tempfile.TemporaryDirectory(prefix="b") as b,
    ):
        try:
            for node in (
                ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", a],
                ["--address", f"127.0.0.1:{port}", "--temp-dir", b],
            ):
                subprocess.run([*start, *node], check=True, stdout=subprocess.DEVNULL)
            _run("tiny", "--smoke", "--workers", 2, "--ray", f"127.0.0.1:{port}", "--run-dir", folder / "cluster")
        finally:
            subprocess.run([ray, "stop", "--force"], check=False, stdout=subprocess.DEVNULL)
        _run("tiny", "--smoke", "--workers", 1, "--run-dir", folder / "one")
        jobs = read_jsonl(folder / "cluster" / layout.WORKERS / layout.JOBS)
        figures = {
            "jobs_by_worker": {n: sum(row["worker"] == n for row in jobs) for n in (1, 2)},
            "differing_files": differing_files(folder / "one", folder / "cluster"),
        }
    _record("cluster", figures)


@app.command()
def simulate(
    run: Annotated[Path, typer.Argument(help="Run folder of a run with one worker.")],
    start_s: Annotated[float, typer.Option(help="Seconds until a worker has loaded its model.")] = 0.0,
) -> None:
    """Compute the speed-up of TTRL on 20 test problems with up to 16 workers, and on 1,000 with 64.

    Their times are those of the run's problems, repeated. The schedule is made by the same code as in a real run.
    """
    rows = read_jsonl(run / layout.WORKERS / layout.JOBS)
    by_stage = {row["stage"]: row for row in rows if row["ended"] == "done"}
    stage = layout.problems("ladder_ttrl")
    parts = [row["seconds"] for name, row in by_stage.items() if name.startswith(f"{stage}/")]
    if not parts:
        raise typer.BadParameter(f"{run}: no TTRL on single problems was recorded; run it with --workers 1")
    figures: dict[str, Any] = {"recorded_s": sorted(parts), "start_s": start_s}
    for n_problems, counts in ((20, (1, 2, 4, 8, 16)), (1000, (1, 64))):
        jobs = [{"stage": f"{stage}/{n}", "seconds": parts[n % len(parts)]} for n in range(n_problems)]
        jobs.append({"stage": stage, "seconds": by_stage[stage]["seconds"]})
        totals = {count: start_s + _simulate(jobs, count) for count in counts}
        speedups = {count: totals[1] / total for count, total in totals.items()}
        figures[f"{n_problems}_problems"] = {"seconds": totals, "speedup": speedups}
    _record("simulate", figures)


def _ttrl_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """The time from the start of TTRL on the first problem to its end on the last one."""
    problems = [row for row in rows if row["stage"].startswith(f"{layout.problems('ladder_ttrl')}/")]
    ends = [row["began_at"] + row["seconds"] for row in problems]
    return max(ends) - min(row["began_at"] for row in problems) if problems else 0.0


def _simulate(rows: Sequence[dict[str, Any]], n_workers: int, name: str = "tiny") -> float:
    """The seconds that jobs with these times take on so many workers, in the order of `Plan`."""
    seconds = {row["stage"]: row["seconds"] for row in rows}
    recipe = load_recipe(name)
    graph = [stage for stage in stages.dependencies(recipe) if stage in seconds]

    def parts(stage: str) -> list[str]:
        return [name for name in seconds if name.startswith(f"{stage}/") and layout.split_stage(name)[2]]

    with tempfile.TemporaryDirectory() as empty:
        context = SimpleNamespace(run=SimpleNamespace(path=Path(empty)), ran_a_stage=False)
        experiment: Any = SimpleNamespace(recipe=recipe, context=context, stages=lambda _: graph, parts=parts)
        plan, now, working = Plan([experiment], None), 0.0, []
        while True:
            while len(working) < n_workers and (job := plan.next([each for _, each in working], 0)):
                heapq.heappush(working, (now + seconds[job.stage], job))
            if not working:
                return now
            now, job = heapq.heappop(working)
            plan.finish(job)


def _loop_ratio() -> float:
    """The time of two busy processes that share a work, divided by that of one; 0.5 on two whole cores."""

    def seconds(n_processes: int) -> float:
        with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
            pool.map(_count, [1] * n_processes, chunksize=1)  # until then, the processes import this module
            started = time.monotonic()
            pool.map(_count, [100_000_000 // n_processes] * n_processes, chunksize=1)
            return time.monotonic() - started

    return seconds(2) / seconds(1)


def _count(n: int) -> int:
    total = 0
    for number in range(n):
        total += number
    return total


@contextmanager
def _folder(runs: Path | None) -> Iterator[Path]:
    if runs:
        runs.mkdir(parents=True)  # a run that is found done takes no time, and no worker of it can be killed
        yield runs
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _command_line(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "ladder_lite.recipe", *map(str, arguments)]


def _run(*arguments: object) -> None:
    subprocess.run(_command_line(arguments), check=True, env=os.environ | ONE_THREAD)


@contextmanager
def _running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(_command_line(arguments), env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL) as process:
        yield process


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


def _record(name: str, figures: dict[str, Any]) -> None:
    """Add figures to the results and print them."""
    machine = f"{psutil.cpu_count()} cores, {psutil.cpu_count(logical=False)} physical ones"
    used = versions() | {"ray": version("ray")}
    entry = {"command": f"python benchmarks/scale_out.py {name}", "machine": machine, **figures, "versions": used}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: entry}, indent=1) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    app()
