"""The names of the files and folders of a run: the only place that has them.

    recipe.resolved.yaml, versions.json, run.lock, references.jsonl and its .lock, report.*
    task.py                                             a copy of the file of a task that is not the package's own
    workers/                                            with --workers: their logs, locks, and jobs.jsonl, who did what
    trash/                                              a stage's folder that --redo is removing
    select/, transformations/, variants/                stages that conditions share
    conditions/CONDITION/variants/                      an ablation's own tree
    conditions/CONDITION/train/                         GRPO: logs, checkpoints, the adapter
    conditions/CONDITION/problems/PROBLEM/              TTRL or resampling, a folder for each test problem
    conditions/CONDITION/eval/                          sampled answers to the test problems; in greedy/, greedy ones
    conditions/CONDITION/eval/probe/                    sampled answers to the problems of `task.probe`

The name of a stage is the path of its folder within the run's; its `done.json` is written last. The names are a public
interface: they may be added to, but never renamed.
"""

# Of the run as a whole.
RECIPE, VERSIONS, LOCK, REFERENCES = "recipe.resolved.yaml", "versions.json", "run.lock", "references.jsonl"
REPORT, REPORT_PAGE, TRASH, TASK = "report.json", "report.html", "trash", "task.py"

# Markers of a stage (see `run_dir.Stage`), and folders.
BEGUN, DONE = "begun.json", "done.json"
SELECT, TRANSFORMATIONS, VARIANTS, CONDITIONS = "select", "transformations", "variants", "conditions"
ADAPTER, CHECKPOINTS, GREEDY, PROBE = "adapter", "checkpoints", "greedy", "probe"
TRAIN, EVAL, SINGLE_PROBLEMS = "train", "eval", "problems"
# peft's names for the files of an adapter.
WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

# Of what `ladder_lite.export` writes.
EXPORTED_RECIPE = "recipe.yaml"

# Of a run with workers.
WORKERS, JOBS = "workers", "jobs.jsonl"

# JSON lines: graded attempts, then the logs of a training run, then the files of a variant tree.
ATTEMPTS = "attempts.jsonl"
METRICS, CURVE, PROBES = "metrics.jsonl", "curve.jsonl", "probes.jsonl"
PASS_RATES, ROLLBACKS = "pass_rates.jsonl", "rollbacks.jsonl"
PROBLEMS, REJECTED, ROUNDS, REPLIES = "problems.jsonl", "rejected.jsonl", "rounds.jsonl", "replies.jsonl"


def variants(condition: str) -> str:
    """The stage of an ablation's own variant tree."""
    return f"{CONDITIONS}/{condition}/{VARIANTS}"


def train(condition: str) -> str:
    """The training stage of a condition."""
    return f"{CONDITIONS}/{condition}/{TRAIN}"


def problems(condition: str, problem_id: str = "") -> str:
    """The stage of a condition's single test problems, or its substage for one of them."""
    return f"{CONDITIONS}/{condition}/{SINGLE_PROBLEMS}{problem_id and f'/{problem_id}'}"


def evaluation(condition: str) -> str:
    """The stage of a condition's evaluation on the test problems."""
    return f"{CONDITIONS}/{condition}/{EVAL}"


def split_stage(stage: str) -> tuple[str | None, str, str]:
    """The condition of a stage, None if conditions share it; its folder's name; the problem's id of a substage."""
    # "conditions/ttrl/problems/0a1b" -> ("ttrl", "problems", "0a1b"); "variants" -> (None, "variants", "")
    if not stage.startswith(f"{CONDITIONS}/"):
        return None, stage, ""
    _, condition, folder, *problem_id = stage.split("/")
    return condition, folder, "".join(problem_id)
