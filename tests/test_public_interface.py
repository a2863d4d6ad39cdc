"""The public interface: names of conditions, files of a run folder, keys of every JSON output.

Names may be added but never removed. They are listed here as they were first published.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.jsonl import read_jsonl
from ladder_lite.recipe import run_recipe
from ladder_lite.report import write_comparison, write_report
from ladder_lite.solve import Solver
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live
from ladder_lite.train import divergence
from ladder_lite.variants import transformations
from tests.support.commands import run_command
from tests.support.fakes import FakeBackend
from tests.support.finished_run import build_run, model_of_run, problem_set, revise_recipe

NAMED = {
    *("conditions", "techniques", "methods", "training", "depths", "by_depth", "reasons", "held_out", "written"),
    *("held_out_sets", "rejected", "steps_by_condition", "environment", "recipes", "versions", "probes"),
}
"""Objects whose keys are names of conditions, sets, libraries and so on. In a path, a star replaces such a key."""


def keys(value: Any, path: str = "") -> set[str]:
    """Return the paths of all keys of a JSON value, such as `conditions.*.pass@1`."""
    if isinstance(value, list):
        return set().union(*(keys(item, path) for item in value))
    if not isinstance(value, dict):
        return set()
    if path.rpartition(".")[2] in NAMED or path == "probes.*":  # there, the keys are techniques
        return set().union(*(keys(item, f"{path}.*") for item in value.values()))
    paths = {key: f"{path}.{key}" if path else key for key in value}
    return set(paths.values()).union(*(keys(item, paths[key]) for key, item in value.items()))


def words(text: str, parent: str = "") -> set[str]:
    """Split a text into words, and prefix each with the path of its parent."""
    return {f"{parent}.{word}" if parent else word for word in text.split()}


def intervals(text: str, parent: str = "") -> set[str]:
    """Return the paths of words that are a number with an interval: the word with `value`, `low` and `high`."""
    return words(text, parent).union(*(words("value low high", word) for word in words(text, parent)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all kinds of conditions, and its report."""
    path = tmp_path_factory.mktemp("runs") / "full"
    build_run(path, full=True)
    write_report(path)
    return path


# --- names

CONDITIONS = {"base", "rl_without_variants", "ladder", "ladder_ttrl", "ttrl", "ladder_pass100"}
ABLATIONS = {"ladder_10", "ladder_25", "ladder_50", "ladder_static"}
RECIPES = {"tiny", "exam", "smollm", "llama3b", "qwen7b"}

STAGE = words("begun.json done.json")
TREE = words("problems.jsonl rejected.jsonl rounds.jsonl")
EVALUATION = words("attempts.jsonl greedy/attempts.jsonl")
PROBED = {*EVALUATION, "probe/attempts.jsonl"}
LOGS = words("metrics.jsonl attempts.jsonl curve.jsonl pass_rates.jsonl")
TRAINING = {*STAGE, *LOGS, "adapter/adapter_model.safetensors", *(f"variants/{name}" for name in TREE)}
TEST_TIME = {
    *STAGE,
    *(f"ID/{name}" for name in STAGE),
    *(f"ID/variants/{name}" for name in TREE),
    *(f"ID/train/{name}" for name in (*LOGS, "probes.jsonl")),
    *(f"ID/eval/{name}" for name in EVALUATION),
}
FILES = {
    *words("recipe.resolved.yaml versions.json report.json report.md report.html accuracy.png ttrl.png"),
    *(f"variants/{name}" for name in STAGE | TREE),
    *(f"conditions/base/eval/{name}" for name in STAGE | PROBED),
    *(f"conditions/rl_without_variants/eval/{name}" for name in STAGE | EVALUATION),
    *(f"conditions/ladder/eval/{name}" for name in STAGE | PROBED),
    *(f"conditions/ladder_10/eval/{name}" for name in STAGE | EVALUATION),
    *(f"conditions/ladder_static/eval/{name}" for name in STAGE | EVALUATION),
    *(f"conditions/ladder_ttrl/eval/{name}" for name in STAGE | EVALUATION),
    *(f"conditions/ttrl/eval/{name}" for name in STAGE | EVALUATION),
    *(f"conditions/rl_without_variants/train/{name}" for name in TRAINING if not name.startswith("variants/")),
    *(f"conditions/ladder/train/{name}" for name in TRAINING),
    *(f"conditions/ladder_10/train/{name}" for name in TRAINING if not name.startswith("variants/")),
    *(f"conditions/ladder_static/train/{name}" for name in TRAINING if not name.startswith("variants/")),
    *(f"conditions/ladder_static/variants/{name}" for name in STAGE | TREE),
    *(f"conditions/ladder_ttrl/problems/{name}" for name in TEST_TIME),
    *(f"conditions/ttrl/problems/{name}" for name in TEST_TIME),
    *(f"conditions/ladder_pass100/problems/{name}" for name in STAGE),
    *(f"conditions/ladder_pass100/problems/ID/{name}" for name in (*STAGE, "attempts.jsonl")),
}


def test_conditions_and_recipes_keep_their_names() -> None:
    assert set(load_recipe("tiny", [f"conditions=[{', '.join(CONDITIONS)}]"]).conditions) == CONDITIONS
    assert set(load_recipe("tiny").ablations) >= ABLATIONS
    assert {line.split()[0] for line in run_command("recipe", "--list").stdout.splitlines()} >= RECIPES


def test_files_of_a_run_keep_their_names(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert FILES - {re.sub(r"problems/[0-9a-f]{16}/", "problems/ID/", file) for file in files} == set()


# --- files of a run

ATTEMPT = words("problem_id index text n_tokens truncated reward reason answer detail")
INTERVALS = "pass@1 pass@2 greedy majority"
SUMMARY = {
    *words("n_problems n_tokens shares official techniques techniques.*.n_problems"),
    *intervals(INTERVALS),
    *words("solved wrong unreadable truncated", "shares"),
    *words("n_compared n_agree", "official"),
    *intervals("pass@1", "techniques.*"),
}
PROBE = {*words("n_problems n_tokens techniques.*.n_problems"), *intervals("pass@1", "techniques.*")}
VARIANTS_DONE = words(
    "digest kept duplicates rejected reasons held_out by_depth requests tokens seconds library held_out_sets "
    "tests_among_roots peak_memory_bytes"
)
TRAIN_DONE = words("digest steps seconds n_tokens n_verifier_calls stopped variants grown rollbacks peak_memory_bytes")
ROWS = {
    "versions.json": words("python platform ladder_lite torch transformers trl peft numpy scipy sympy"),
    "variants/problems.jsonl": {
        *words("round id task data root_id parent_id depth transforms requested"),
        *words("integrand variable lower upper", "data"),
    },
    "variants/rejected.jsonl": words("round text reason equal_to parent_id depth"),
    "variants/rounds.jsonl": words("round depth requests kept n_tokens seconds"),
    "variants/begun.json": {"digest"},
    "variants/done.json": VARIANTS_DONE,
    "conditions/base/eval/attempts.jsonl": ATTEMPT,
    "conditions/base/eval/done.json": {
        *SUMMARY,
        *words("digest seconds peak_memory_bytes"),
        *{f"probe.{key}" for key in PROBE},
    },
    "conditions/ladder_ttrl/eval/done.json": {*SUMMARY, *words("digest seconds peak_memory_bytes")},
    "conditions/ladder/train/metrics.jsonl": words(
        "step reward groups_without_signal n_tokens seconds verify_seconds loss learning_rate entropy stop grad_norm "
        "kl training_pass sampled_groups_without_signal n_rollouts n_base_rollouts solved_problems"
    ),
    "conditions/ladder/train/attempts.jsonl": {*ATTEMPT, "step"},
    "conditions/ladder/train/curve.jsonl": words("step pass@1 seconds"),
    "conditions/ladder/train/pass_rates.jsonl": words("problem_id tries right pass_rate low high state added_at"),
    "conditions/ladder/train/done.json": TRAIN_DONE,
    "conditions/ladder_ttrl/problems/done.json": words(
        "digest n_left attempted solved voted_right steps_to_solve problems steps seconds n_tokens rollbacks "
        "peak_memory_bytes n_verifier_calls"
    ),
    "conditions/ladder_ttrl/problems/*/done.json": words(
        "digest problem_id solved steps_to_solve steps seconds answer n_tokens n_variants stopped voted_answer "
        "voted_share voted_right root_id n_verifier_calls"
    ),
    "conditions/ladder_ttrl/problems/*/train/curve.jsonl": words("step pass@1 answer n_tokens seconds stop"),
    "conditions/ladder_ttrl/problems/*/train/probes.jsonl": {*PROBE, "step"},
    "conditions/ladder_pass100/problems/done.json": {
        *words("digest attempted solved n_tokens seconds peak_memory_bytes"),
        *intervals("pass@100"),
    },
    "conditions/ladder_pass100/problems/*/done.json": words(
        "digest problem_id n_samples n_right n_tokens ttrl_tokens first_right tokens_to_right solved pass@100"
    ),
    "conditions/ladder_pass100/problems/*/attempts.jsonl": ATTEMPT,
}


@pytest.mark.parametrize(("file", "expected"), ROWS.items(), ids=ROWS.keys())
def test_rows_of_a_run_keep_their_keys(run: Path, file: str, expected: set[str]) -> None:
    path = next(run.glob(file))
    values = read_jsonl(path) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    assert values
    for value in values if path.suffix == ".json" else values[:3]:
        assert expected - keys(value) == set()


def test_a_selection_and_references_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [{"integrand": f"{n}*x"} for n in range(2, 5)] + [{"integrand": "exp(-x**2)", "lower": "0", "upper": "1"}]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    select = ["task.select={samples: 1, train: 1, test: 3}", "conditions=[base]"]
    recipe = load_recipe("tiny", [f"task.train={pool}", f"task.test={pool}", *select])
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda _: FakeBackend(lambda *_: "<answer>x/7</answer>"))
    run_recipe(recipe, tmp_path / "run", Live())
    folder = tmp_path / "run/select"
    assert {path.name for path in folder.iterdir()} >= {*STAGE, "attempts.jsonl", "problems.jsonl"}
    done = {*words("digest pool failed n_problems shares n_tokens peak_memory_bytes"), *intervals("pass@1")}
    assert done - keys(json.loads((folder / "done.json").read_text())) == set()
    assert words("integrand variable lower upper split") - keys(read_jsonl(folder / "problems.jsonl")) == set()
    (reference,) = read_jsonl(tmp_path / "run/references.jsonl")
    assert words("integral reference") - keys(reference) == set()


def test_a_library_of_transformations_keeps_its_names(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["task.prompts.transformations='list {count} that make it {effect}'"])
    settings = recipe.variants.model_copy(update={"transformations": "model"})
    backend = FakeBackend(lambda *_: "1. drop a term")
    summary = transformations.write(load_task(recipe.task), backend, settings, tmp_path, recipe.seed)
    assert words("source written tokens") - keys(summary) == set()
    (library,) = (json.loads(path.read_text()) for path in tmp_path.glob("library.json"))
    assert words("source easier equivalent harder") - keys(library) == set()


def test_a_rollback_keeps_its_keys(tmp_path: Path) -> None:
    divergence.roll_back(tmp_path, [1], divergence.Diverged(3, "no number", 2), 0.1)
    assert words("step reason back_to learning_rate") - keys(read_jsonl(tmp_path / "rollbacks.jsonl")) == set()


# --- reports

REPORT = {
    *words("recipe seed model experiment conditions variants curve training ttrl ttrl_without_ladder race differences"),
    *words("depths costs peak_memory_bytes versions probes lost"),
    *words("value low high", "probes.*.*"),
    *{f"conditions.*.{key}" for key in SUMMARY},
    *words("steps seconds variants", "conditions.*"),
    *words("kept rejected duplicates by_depth", "variants"),
    *words("condition step pass@1 seconds", "curve"),
    *words("steps groups_without_signal sampled_groups_without_signal entropy rollouts solved_problems", "training.*"),
    *words("right wrong unreadable refused unverifiable", "training.*.rollouts"),
    *words("n_left attempted solved steps_to_solve voted_right", "ttrl"),
    *words("n_left attempted solved steps_to_solve voted_right", "ttrl_without_ladder"),
    *words("problems methods", "race"),
    *words("solved tokens_to_solve spent", "race.methods.*"),
    *words("condition reference value low high n_problems", "differences"),
    *words("first last first.n first.pass_rate last.n last.pass_rate", "depths.*"),
    *words("stage n_tokens seconds peak_memory_bytes", "costs"),
}
COMPARED = words("condition reference value low high", "differences")
COMPARISON = {
    *words("runs means differences"),
    *{f"runs.conditions.*.{key}" for key in SUMMARY},
    *words("name path recipe seed model conditions", "runs"),
}


def test_report_json_keeps_its_keys(run: Path) -> None:
    assert REPORT - keys(json.loads((run / "report.json").read_text())) == set()


def test_comparison_json_keeps_its_keys(tmp_path: Path) -> None:
    """Compare runs that differ only in their seed, which are averaged, and then runs with different settings."""
    runs = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, path in enumerate(runs):
        build_run(path, seed)
    means = {
        *words("runs seeds conditions differences", "means"),
        *words("value low high values", "means.conditions.*"),
        *{f"means.{key}" for key in COMPARED},
    }
    for expected in (COMPARISON | means, COMPARISON | COMPARED | {"differences.run"}):
        write_comparison(runs, tmp_path / "comparison")
        assert expected - keys(json.loads((tmp_path / "comparison/comparison.json").read_text())) == set()
        revise_recipe(runs[1], "grpo.eval_every=99")


# --- commands

DRY_RUN = {
    *words("recipe model parameters loader max_prompt_length max_completion_length num_generations"),
    *words("completions_per_step cards steps steps_by_condition tokens seconds_left"),
    *words("variants training evaluation total", "tokens"),
    *words("card_gb gib fits predicted_peak_bytes micro_batch accumulation generation_batch variants_batch", "cards"),
    *words("eval_batch max_completion_length num_generations parts generate_parts", "cards"),
    *words("train generate", "cards.predicted_peak_bytes"),
    *words("weights lora lora_gradients optimizer activations one_layer cuda_context workspaces", "cards.parts"),
    *words("weights lora optimizer kv_cache one_layer cuda_context workspaces", "cards.generate_parts"),
    *words("parts.fragmentation generate_parts.fragmentation", "cards"),
}
DOCTOR = {
    *words("ladder_lite commit versions machine torch gpus loader unsloth recipes caches hub environment checks"),
    *words("cores cpu memory_total_gib memory_available_gib disk_free_gib", "machine"),
    *words("cuda gpus", "torch"),
    *words("models", "caches"),
    *words("token reachable", "hub"),
    *words("name ok detail remedy", "checks"),
}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A function that runs a command with --json in this process, and returns the JSON value that it prints.

    In this process, a test can replace the model by a scripted one.
    """

    def run(room: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", [room, *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"ladder_lite.{room}", run_name="__main__")
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return json.loads(out)

    return run


def test_an_evaluation_keeps_its_keys(run: Path, printed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda _: model_of_run())
    evaluation = printed("evaluate", run, "--problems", problem_set())
    expected = {
        *words("run problems split samples seed conditions"),
        *{f"conditions.*.{key}" for key in SUMMARY | intervals("over_base")},
    }
    assert expected - keys(evaluation) == set()
    assert set(evaluation["conditions"]) == {"base", "rl_without_variants", "ladder", "ladder_10", "ladder_static"}


def test_a_solution_keeps_its_keys(printed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Solver, "backend", FakeBackend(lambda *_: "<answer>x**3/3</answer>"))
    expected = words("integrand verified answer latex attempts steps seconds")
    assert expected - keys(printed("solve", "x**2")) == set()


def test_a_dry_run_keeps_its_keys(tmp_path: Path) -> None:
    dry_run = json.loads(run_command("recipe", "tiny", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert DRY_RUN - keys(dry_run) == set()
    assert set(dry_run["steps_by_condition"]) == {"rl_without_variants", "ladder", "ladder_ttrl"}


def test_the_doctors_page_keeps_its_keys() -> None:
    page = json.loads(run_command("doctor", "--json").stdout)
    assert DOCTOR - keys(page) == set()
    assert "problem sets" in page["caches"]


def test_cleaned_problems_keep_their_keys(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("2*x\nx+x\nx*\n")
    done = run_command("problems", "clean", "list.txt", "--rejected", "rejected.jsonl", cwd=tmp_path)
    *rows, summary = map(json.loads, done.stdout.splitlines())
    assert words("integrand variable lower upper") - keys(rows) == set()
    assert words("read kept duplicates rejected seconds") - keys(summary) == set()
    rejected = read_jsonl(tmp_path / "rejected.jsonl")
    assert words("line text reason duplicate_of") - keys(rejected) == set()


def test_graded_lines_keep_their_keys(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"id": "a", "integrand": "x", "answer": "x**2/2"}\n{}\n')
    graded, malformed = map(json.loads, run_command("verify", "lines.jsonl", cwd=tmp_path).stdout.splitlines())
    assert words("id correct reason ms") - keys(graded) == set()
    assert words("id correct reason ms error") - keys(malformed) == set()
    assert (graded["id"], graded["reason"], malformed["reason"]) == ("a", "CORRECT", "MALFORMED_LINE")
