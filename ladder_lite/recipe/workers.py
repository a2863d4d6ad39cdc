"""Run the stages of one or more runs in several processes at once, with Ray.

    python -m ladder_lite.recipe llama3b --workers auto                 # a worker for each GPU
    python -m ladder_lite.recipe tiny --workers 2 --seeds 0,1
    python -m ladder_lite.recipe llama3b --workers 8 --ray auto         # on a running Ray cluster

The unit of work is a stage, or the part of a stage for one test problem. The driver, which is the process of the
command, hands out those whose dependencies are done. A worker runs one at a time, in the run folder, exactly as a run
without workers does; done.json is the only result. So a run may be killed, resumed, and continued with another number
of workers. All nodes of a cluster must see the folder under the same path.
"""

import logging
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.errors import UserError, environment_error, first_line
from ladder_lite.jsonl import append_jsonl
from ladder_lite.recipe import stages
from ladder_lite.recipe.experiment import Experiment
from ladder_lite.runs import RunDir, layout
from ladder_lite.terminal import Live, clock_time, show

_POLL_S = 1.0
_TRIES = 2  # from the same checkpoint: a worker may be killed with its machine, but a second death is the job's own
_START_S = 120.0  # until Ray has started all workers
_LOCK_S = 300.0  # NFS keeps the lock of a machine that has lost its power for a minute or two


class Job(NamedTuple):
    """A stage, or a stage's part for one problem, of one of the runs."""

    run: int
    stage: str


class Workers(NamedTuple):
    """How many workers, and the address of Ray's cluster; None for this machine."""

    number: int | Literal["auto"]
    address: str | None = None

    @classmethod
    def parse(cls, number: str | None, address: str | None) -> Self | None:
        """The workers that --workers and --ray ask for. Raises UserError for a malformed number."""
        if number is None and address is None:
            return None
        if number is None:
            raise UserError("--ray needs --workers, the number of processes to start there")
        if number != "auto" and not (number.isdecimal() and int(number)):
            raise UserError(f"--workers {number}: must be a positive integer or auto")
        return cls("auto" if number == "auto" else int(number), address)


def run_on_workers(experiments: Sequence[Experiment], only: str | None, workers: Workers, live: Live) -> None:
    """Run the stages of all conditions, or of `only` one, in all runs.

    Raises UserError if a stage does, if two workers die of the same stage without a new checkpoint, or if there is no
    such cluster, and OutOfTime at the deadline; each once all workers have ended what they were doing.
    """
    plan = Plan(experiments, only)
    if not len(plan):  # Ray takes seconds to start
        return
    ray = _join_ray(workers.address)
    try:
        Pool(ray, workers.number, plan, live).run()
    finally:
        live.show_panel(None)
        ray.shutdown()  # ends all workers, whatever they are doing


class Plan:
    """The jobs that are left, each with those that it waits for."""

    def __init__(self, experiments: Sequence[Experiment], only: str | None) -> None:
        self.experiments = experiments
        self._waits_for: dict[Job, set[Job]] = {}
        self._rank: Counter[Job] = Counter()
        self._opened: set[Job] = set()
        for run, experiment in enumerate(experiments):
            graph = stages.dependencies(experiment.recipe)
            for stage in experiment.stages(only):
                job = Job(run, stage)
                if self._is_done(job):
                    experiment.run_stage(stage)  # only raises UserError if it was done with other settings
                    continue
                self._waits_for[job] = {Job(run, each) for each in graph[stage]} & self._waits_for.keys()
                self._rank[job] = len(stages.dependents(experiment.recipe, [stage]))
                experiment.context.ran_a_stage = True

    def __len__(self) -> int:
        """The stages that are left; parts are not counted, because their number is not known from the start."""
        return len(self._waits_for) - self.n_parts

    @property
    def n_parts(self) -> int:
        """The parts that are left of the stages whose turn has come."""
        return sum(bool(layout.split_stage(job.stage)[2]) for job in self._waits_for)

    def next(self, taken: Collection[Job], run: int | None) -> Job | None:
        """The job to start next, None if all that are left wait: preferably of this run, and one that many wait for."""
        ready = [job for job, waits_for in self._waits_for.items() if not waits_for and job not in taken]
        job = max(ready, key=lambda job: (job.run == run, self._rank[job]), default=None)
        if job is None or job in self._opened:
            return job
        # Which problems TTRL tries is known only now. When all of them are done, the stage itself sums them up.
        self._opened.add(job)
        parts = [Job(job.run, part) for part in self.experiments[job.run].parts(job.stage)]
        left = [part for part in parts if not self._is_done(part)]
        self._waits_for |= {job: set(left), **{part: set() for part in left}}
        self._rank.update(dict.fromkeys(left, self._rank[job]))
        self._opened.update(left)
        return self.next(taken, run)

    def path(self, job: Job) -> Path:
        """The run folder of a job."""
        return self.experiments[job.run].context.run.path

    def name(self, job: Job) -> str:
        """The job's stage, with the seed if there are several runs."""
        seed = f"seed {self.experiments[job.run].recipe.seed}: " if len(self.experiments) > 1 else ""
        return seed + job.stage.removeprefix(f"{layout.CONDITIONS}/")

    def finish(self, job: Job) -> None:
        """Remove a job that is done."""
        self._waits_for.pop(job, None)
        for waits_for in self._waits_for.values():
            waits_for.discard(job)

    def drop(self, run: int) -> None:
        """Remove all jobs of a run."""
        self._waits_for = {job: waits_for for job, waits_for in self._waits_for.items() if job.run != run}

    def _is_done(self, job: Job) -> bool:
        return (self.path(job) / job.stage / layout.DONE).exists()


@dataclass
class _Worker:
    """What the driver knows of a worker."""

    number: int
    actor: Any
    ready: Any  # Ray's reference to the end of its start
    job: Job | None = None
    run: int | None = None  # of its last job: it still has that run's model
    began_at: float = field(default_factory=time.time)


class Pool:
    """Ray's workers. Raises UserError if the cluster has no room for so many."""

    def __init__(self, ray: Any, number: int | Literal["auto"], plan: Plan, live: Live) -> None:
        self._ray, self._plan, self._live = ray, plan, live
        resources = ray.cluster_resources()
        cores, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        if plan.experiments[0].recipe.model.device == "cpu":
            gpus = 0
        available, unit = (gpus, "GPU") if gpus else (cores, "core")
        count = min(available, len(plan)) if number == "auto" else number
        if not 1 <= count <= available:
            raise UserError(f"--workers {number}: each needs its own {unit}, and there are {available}")
        # Ray starts a process for each actor and hides the GPUs of the others from it.
        self._actor = ray.remote(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0)(StageRunner)
        self._n_threads = max(1, cores // count)
        self._workers = [self._start(each) for each in range(1, count + 1)]
        self._running: dict[Any, _Worker] = {}  # by Ray's reference to the outcome
        self._deaths = Counter[tuple[object, ...]]()  # by job and its checkpoints
        self._errors: list[UserError] = []
        ready, _ = ray.wait([each.ready for each in self._workers], num_returns=count, timeout=_START_S)
        if len(ready) < count:
            raise UserError(f"--workers {number}: only {len(ready)} could start; is the rest of the cluster in use?")

    def run(self) -> None:
        """Run all jobs of the plan."""
        stopped: OutOfTime | None = None
        total = len(self._plan)
        problems: dict[str, int] = {}
        with self._live.progress("stages", total) as bar:
            while True:
                for worker in self._workers:
                    taken = {each.job for each in self._running.values() if each.job}
                    is_free = worker.job is None and self._ray.wait([worker.ready], timeout=0)[0]
                    if is_free and not stopped and (job := self._plan.next(taken, worker.run)):
                        self._begin(worker, job)
                if not self._running:
                    if stopped or self._plan.next((), None) is None:
                        break
                    self._await_worker()
                    continue
                if self._live.panel_height is not None:
                    self._live.show_panel(self._panel())
                done, _ = self._ray.wait(list(self._running), timeout=_POLL_S)
                for reference in done:
                    stopped = self._end(reference) or stopped
                if problems or self._plan.n_parts:
                    problems = {"problems_left": self._plan.n_parts}
                bar.set(total - len(self._plan), **problems)
        if self._errors:
            raise self._errors[0]
        if stopped:
            raise stopped

    def _start(self, number: int) -> _Worker:
        actor = self._actor.remote(number, Path.cwd(), os.environ.get("OMP_NUM_THREADS"), self._n_threads)
        return _Worker(number, actor, actor.__ray_ready__.remote())

    def _await_worker(self) -> None:
        """Wait for one of the workers that replace lost ones; their machines may not have come back."""
        if not self._ray.wait([worker.ready for worker in self._workers], timeout=_START_S)[0]:
            raise UserError("all workers were lost, and none could be replaced; the same command resumes this run")

    def _begin(self, worker: _Worker, job: Job) -> None:
        worker.job, worker.run, worker.began_at = job, job.run, time.time()
        end = self._plan.experiments[job.run].context.deadline
        reference = worker.actor.run.remote(self._plan.path(job).resolve(), job.stage, end.left_s(), end.text)
        self._running[reference] = worker
        self._live.say(f"worker {worker.number} begins {show(self._plan.name(job))}")

    def _end(self, reference: Any) -> OutOfTime | None:
        """Take the outcome of a job; a worker that died is replaced, and the job is tried again."""
        worker = self._running.pop(reference)
        job, worker.job = worker.job, None
        assert job is not None
        outcome: UserError | OutOfTime | None = None
        death: Exception | None = None
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:  # a bug, with the traceback of the worker
            raise
        except self._ray.exceptions.RayError as error:
            death = error
        seconds, ended = time.time() - worker.began_at, "died" if death else "stopped" if outcome else "done"
        row = {"stage": job.stage, "worker": worker.number, "began_at": worker.began_at, "seconds": seconds}
        append_jsonl(self._plan.path(job) / layout.WORKERS / layout.JOBS, [row | {"ended": ended}])
        name = show(self._plan.name(job))
        self._live.say(f"worker {worker.number} {ended}: {name}, after {clock_time(seconds)}")
        if death:
            self._ray.kill(worker.actor)  # it may only be out of reach, and must not work on
            self._workers[worker.number - 1] = self._start(worker.number)
            state = job, *_checkpoints(self._plan.path(job) / job.stage)
            self._deaths[state] += 1
            if self._deaths[state] == _TRIES:
                why = f"its worker died {_TRIES} times ({first_line(death)}), often for lack of memory"
                log = _log(self._plan.path(job), worker.number)
                self._fail(job, UserError(f"{name}: {why}; see {log}, or take fewer --workers"))
        elif isinstance(outcome, UserError):
            self._fail(job, outcome)
        elif isinstance(outcome, OutOfTime):
            return outcome
        else:
            self._plan.finish(job)
        return None

    def _fail(self, job: Job, error: UserError) -> None:
        """Start no further stage of this run. What the other workers are doing is not lost."""
        self._errors.append(error)
        self._plan.drop(job.run)
        self._live.say(f"error: {show(str(error), 300)}; waiting for the other workers")

    def _panel(self) -> Table:
        """What each worker is doing: its stage, for how long, and the last line of its log."""
        table = Table.grid(padding=(0, 2))
        for worker in self._workers:
            if worker.job is not None:
                elapsed = clock_time(time.time() - worker.began_at)
                name = show(self._plan.name(worker.job), 40)
                log = _log(self._plan.path(worker.job), worker.number)
                lines = log.read_text(errors="replace").splitlines() if log.exists() else []
                table.add_row(f"worker {worker.number}", name, elapsed, show(lines[-1] if lines else "", 100))
        return table


class StageRunner:
    """A worker: an actor of Ray's, which runs one job at a time and keeps the model of its last run."""

    def __init__(self, number: int, folder: Path, chosen: str | None, n_threads: int) -> None:
        self._number, self._folder, self._n_threads = number, folder, n_threads
        self._experiment: Experiment | None = None
        self._deadline: Deadline | None = None
        # Ray has set this. Without it, a model that is small enough limits itself to one thread.
        os.environ.pop("OMP_NUM_THREADS", None)
        if chosen is not None:  # by the user
            os.environ["OMP_NUM_THREADS"] = chosen

    def run(self, path: Path, stage: str, left_s: float, budget: str) -> UserError | OutOfTime | None:
        """Run a stage of the run in this folder; return the UserError or OutOfTime that it raised, None if it is done.

        Ray would wrap them in errors of its own.
        """
        for folder in (self._folder, path):
            if not folder.exists():
                return UserError(f"{folder}: {platform.node()} has no such folder; all nodes must share it")
        os.chdir(self._folder)  # relative paths in a recipe are meant from the driver's folder
        self._deadline = self._deadline or Deadline(left_s, budget)
        try:
            with RunDir.join(path, stage, _LOCK_S) as run, _log(path, self._number).open("a") as file:
                live = Live(Console(file=file, highlight=False, force_interactive=False))
                experiment = self._experiment_of(run, live)
                experiment.context.live, experiment.context.deadline = live, self._deadline
                experiment.run_stage(stage)
        except (UserError, OutOfTime) as error:
            return error
        except OSError as error:
            if (line := environment_error(error)) is None:
                raise
            return UserError(line)
        return None

    def _experiment_of(self, run: RunDir, live: Live) -> Experiment:
        """That of the last job, with its model, if it was of the same run."""
        from ladder_lite.models import prepare_environment

        if self._experiment is not None and self._experiment.context.run.path == run.path:
            return self._experiment
        if self._experiment is not None:
            self._experiment.context.close()
        prepare_environment()
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self._n_threads)
        self._experiment = Experiment(run.recipe, run, live)
        return self._experiment


def _checkpoints(stage: Path) -> list[Path]:
    """A stage's checkpoints: a measure of its progress. Trees and evaluations have none."""
    folders = (each / layout.CHECKPOINTS for each in (stage, stage / layout.TRAIN))  # the second for a TTRL problem
    return sorted(path for folder in folders for path in folder.glob("checkpoint-*"))


def _log(path: Path, number: int) -> Path:
    return path / layout.WORKERS / f"{number}.log"


def _join_ray(address: str | None) -> Any:
    """Start Ray, or join a cluster."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--workers needs Ray: pip install 'ladder_lite[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        place = urlsplit(f"//{address or ''}")
        if place.port:  # Ray itself would wait for minutes
            socket.create_connection((place.hostname, place.port), timeout=10).close()
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        what = f"--ray {address or 'local'}: cannot join this cluster ({first_line(error)})"
        raise UserError(f"{what}; is it running, and does it need RAY_AUTH_MODE=token?") from error
    return ray
