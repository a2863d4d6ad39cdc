"""The files and folders of a run, by name.

    recipe.resolved.yaml, versions.json, run.lock, references.jsonl, report.*
    select/, transformations/, variants/                stages that conditions share
    conditions/CONDITION/variants/                      an ablation's own tree
    conditions/CONDITION/train/                         GRPO: logs, checkpoints, the adapter
    conditions/CONDITION/problems/PROBLEM/              TTRL or more samples, a folder for each test problem
    conditions/CONDITION/eval/                          answers to the test problems; greedy/ below it

A stage is named by its folder below the run's; its `done.json` is written last.
"""

RECIPE, VERSIONS, LOCK, REFERENCES = "recipe.resolved.yaml", "versions.json", "run.lock", "references.jsonl"
REPORT, REPORT_PAGE = "report.json", "report.html"

BEGUN, DONE = "begun.json", "done.json"
SELECT, TRANSFORMATIONS, VARIANTS, CONDITIONS = "select", "transformations", "variants", "conditions"
ADAPTER, CHECKPOINTS, GREEDY = "adapter", "checkpoints", "greedy"
TRAIN, EVAL = "train", "eval"
WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

ATTEMPTS = "attempts.jsonl"
METRICS, CURVE, PASS_RATES, ROLLBACKS = "metrics.jsonl", "curve.jsonl", "pass_rates.jsonl", "rollbacks.jsonl"
PROBLEMS, REJECTED, ROUNDS, REPLIES = "problems.jsonl", "rejected.jsonl", "rounds.jsonl", "replies.jsonl"


def variants(condition: str) -> str:
    """The stage of a tree that an ablation has to itself."""
    return f"{CONDITIONS}/{condition}/{VARIANTS}"


def train(condition: str) -> str:
    """The stage of a condition's training."""
    return f"{CONDITIONS}/{condition}/{TRAIN}"


def problems(condition: str, problem_id: str = "") -> str:
    """The stage of a condition about single test problems, or that of one of them."""
    return f"{CONDITIONS}/{condition}/problems{problem_id and f'/{problem_id}'}"


def evaluation(condition: str) -> str:
    """The stage of a condition's answers to the test problems."""
    return f"{CONDITIONS}/{condition}/{EVAL}"


def condition_name(stage: str) -> str | None:
    """The condition that a stage belongs to, None for one that conditions share."""
    first, _, below = stage.partition("/")
    return below.partition("/")[0] if first == CONDITIONS else None
