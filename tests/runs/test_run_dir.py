"""A run folder: its lock, what it refuses, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.errors import UserError
from ladder_lite.install import versions
from ladder_lite.runs.run_dir import RunDir

HOLD = """
import sys, time
from pathlib import Path
from ladder_lite.config.load import load_recipe
from ladder_lite.runs.run_dir import RunDir
run = RunDir.open(Path(sys.argv[1]), load_recipe("tiny"))
print("open", flush=True)
time.sleep(60)
"""


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("tiny")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny-s0"


def refusal(path: Path, recipe: Recipe, **options: bool) -> str:
    with pytest.raises(UserError) as refused:
        RunDir.open(path, recipe, **options)
    return str(refused.value)


def test_a_run_opens_again_with_the_same_recipe(path: Path, recipe: Recipe) -> None:
    with RunDir.open(path, recipe) as run:
        assert load_recipe(str(path / "recipe.resolved.yaml")) == recipe
        assert json.loads((path / "versions.json").read_text()) == versions()
        run.stage("variants", 1).finish({"kept": 3})
    with RunDir.open(path, recipe) as run:
        assert run.stage("variants", 1).done == {"kept": 3}


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=1", "was made with seed 0 and not 1;"),
        ("variants.mix={easier: 1.0, equivalent: 0.0}", "was made with variants.mix.easier 0.7 and not 1.0;"),
        ("grpo.plateau=null", "was made with grpo.plateau {"),
        ("ttrl.trl.beta=0.1", "was made with ttrl.trl.beta null and not 0.1;"),
    ],
)
def test_a_run_of_another_recipe_is_refused_and_unchanged(
    path: Path, recipe: Recipe, override: str, difference: str
) -> None:
    with RunDir.open(path, recipe) as run:
        run.stage("conditions/ladder_ttrl/problems/12ab", 1).finish({})
    before = (path / "recipe.resolved.yaml").read_text()
    message = refusal(path, load_recipe("tiny", [override]))
    assert difference in message
    assert "choose another --run-dir" in message
    assert (path / "recipe.resolved.yaml").read_text() == before


def test_settings_may_change_while_no_stage_is_done(path: Path, recipe: Recipe) -> None:
    """A first start that fails because of a setting must not claim the folder for it."""
    with RunDir.open(path, load_recipe("tiny", ["model.id=no/such-model"])) as run:
        run.stage("variants", "no/such-model").begin()  # then the model cannot be loaded
    with RunDir.open(path, recipe) as run:
        run.stage("variants", recipe.model.id).begin()
        (run.path / "variants" / "problems.jsonl").write_text("{}\n")
    other = load_recipe("tiny", ["model.id=other"])
    with RunDir.open(path, other) as run, pytest.raises(UserError, match="begun with other"):
        run.stage("variants", "other").begin()
    with RunDir.open(path, recipe) as run:
        run.stage("variants", recipe.model.id).begin()
        assert (run.path / "variants" / "problems.jsonl").exists()
        run.stage("variants", recipe.model.id).finish({})
    assert "was made with model.id" in refusal(path, other)


@pytest.mark.parametrize("override", ["grpo.trl.optim=sgd", "ttrl.max_steps=7"])
def test_settings_of_training_may_change_until_something_is_trained(path: Path, recipe: Recipe, override: str) -> None:
    """The variants may have taken hours when training fails because of a setting."""
    other = load_recipe("tiny", [override])
    with RunDir.open(path, recipe) as run:
        run.stage("variants", 1).finish({"kept": 3})
        run.stage("conditions/base/eval", 1).finish({})
    with RunDir.open(path, other) as run:
        assert run.stage("variants", 1).done == {"kept": 3}
        run.stage("conditions/ladder/train", override).finish({})
    assert load_recipe(str(path / "recipe.resolved.yaml")) == other
    assert f"was made with {override.partition('=')[0]}" in refusal(path, recipe)
    assert "was made with seed" in refusal(path, load_recipe("tiny", ["seed=1"]))


def test_a_kill_while_a_stage_is_removed_leaves_nothing_to_resume(
    path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        (folder / "done.json").unlink()
        raise KeyboardInterrupt

    with RunDir.open(path, recipe) as run:
        stage = run.stage("conditions/ladder/train", 1)
        stage.begin()
        (stage.path / "metrics.jsonl").write_text("{}\n")
        stage.finish({})
        monkeypatch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.clear()
        monkeypatch.undo()
        assert not stage.path.exists()
    with RunDir.open(path, recipe) as run:
        assert [entry.name for entry in (path / "conditions/ladder").iterdir()] == []
        assert list(path.rglob("metrics.jsonl")) == []
        stage.begin()
        stage.clear()
        assert not stage.path.exists()


def test_settings_that_decide_no_result_may_differ(path: Path, recipe: Recipe) -> None:
    RunDir.open(path, recipe).close()
    RunDir.open(path, load_recipe("tiny", ["description=reworded", "smoke={eval.k: 1}"])).close()


def test_redo_accepts_other_settings_and_affected_stages_refuse(path: Path, recipe: Recipe) -> None:
    with RunDir.open(path, recipe) as run:
        run.stage("variants", recipe.variants.per_root).finish({})
        run.stage("eval", recipe.eval.samples).finish({})
    changed = load_recipe("tiny", [f"eval.samples={recipe.eval.samples + 1}"])
    with RunDir.open(path, changed, redo=True) as run:
        assert run.stage("variants", changed.variants.per_root).done == {}
        stage = run.stage("eval", changed.eval.samples)
        with pytest.raises(UserError, match="--redo eval reruns it"):
            assert stage.done
        stage.clear()
        assert stage.done is None
    RunDir.open(path, changed).close()


@pytest.mark.parametrize("name", ["notes.txt", ".git", "adapter"])
def test_a_foreign_folder_is_refused_and_unchanged(path: Path, recipe: Recipe, name: str) -> None:
    path.mkdir(parents=True)
    (path / name).write_text("precious")
    assert f"not a run folder, it contains {name}; choose another --run-dir" in refusal(path, recipe)
    assert [entry.name for entry in path.iterdir()] == [name]


def test_a_run_killed_at_its_start_can_be_resumed(path: Path, recipe: Recipe) -> None:
    path.mkdir(parents=True)
    for name in ("run.lock", "versions.json", "recipe.resolved.yaml.123.tmp"):
        (path / name).write_text("{")
    RunDir.open(path, recipe).close()
    assert load_recipe(str(path / "recipe.resolved.yaml")) == recipe


@pytest.mark.parametrize("text", ["", "name: tiny\n", "{[", "\x00"])
def test_a_damaged_recipe_in_a_run_is_refused(path: Path, recipe: Recipe, text: str) -> None:
    RunDir.open(path, recipe).close()
    (path / "recipe.resolved.yaml").write_text(text)
    assert "recipe.resolved.yaml" in refusal(path, recipe)
    assert refusal(path, recipe, redo=True).endswith("choose another --run-dir)")
    assert (path / "recipe.resolved.yaml").read_text() == text


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "file").write_text("")  # not even root can create a folder below a file
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)):
        assert refusal(path, recipe).startswith(f"{path}: cannot write to this run folder (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(path: Path, recipe: Recipe) -> None:
    path.mkdir(parents=True)
    path.chmod(0o500)
    assert "cannot write to this run folder (Permission denied)" in refusal(path, recipe)


def test_two_processes_never_share_a_run_and_a_kill_releases_it(path: Path, recipe: Recipe) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        message = refusal(path, recipe)
        assert f"process {holder.pid} is working in this run folder (run.lock)" in message
        holder.send_signal(signal.SIGKILL)
    RunDir.open(path, recipe).close()


def test_a_stage_is_done_only_after_finish_and_only_for_its_inputs(path: Path, recipe: Recipe) -> None:
    with RunDir.open(path, recipe) as run:
        stage = run.stage("conditions/ladder/train", {"steps": 5, "rows": [1, 2]})
        assert stage.done is None
        stage.begin()
        stage.begin()
        assert stage.done is None
        stage.finish({"steps": 5, "loss": float("nan")})
        assert run.stage("conditions/ladder/train", {"rows": [1, 2], "steps": 5}).done == {"steps": 5, "loss": None}
        other = run.stage("conditions/ladder/train", {"steps": 6, "rows": [1, 2]})
        with pytest.raises(UserError, match=r"was done with other .* --redo conditions/ladder/train reruns it"):
            assert other.done
        with pytest.raises(UserError, match=r"was begun with other .* --redo conditions/ladder/train reruns it"):
            other.begin()


@pytest.mark.parametrize("marker", ["", "{", "[]", "{}", '"done"'])
def test_a_damaged_marker_is_refused(path: Path, recipe: Recipe, marker: str) -> None:
    with RunDir.open(path, recipe) as run:
        stage = run.stage("variants", 1)
        stage.finish({})
        (stage.path / "done.json").write_text(marker)
        with pytest.raises(UserError, match="--redo variants reruns"):
            assert stage.done


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "a/../../b"])
def test_a_stage_must_lie_within_its_run(path: Path, recipe: Recipe, name: str) -> None:
    with RunDir.open(path, recipe) as run, pytest.raises(ValueError, match="a path below the run folder"):
        run.stage(name, None)


def test_clear_does_not_follow_links_out_of_the_run(path: Path, recipe: Recipe, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "train").mkdir(parents=True)
    (outside / "train" / "precious").write_text("")
    with RunDir.open(path, recipe) as run:
        inside = run.stage("variants", 1)
        inside.begin()
        (inside.path / "link").symlink_to(outside)
        inside.clear()
        assert not inside.path.exists()
        (path / "conditions").symlink_to(outside)
        (path / "linked").symlink_to(outside)
        for name in ("conditions/train", "linked"):
            with pytest.raises(UserError, match="a link in the run folder; remove it by hand"):
                run.stage(name, 1).clear()
        run.stage("never/begun", 1).clear()
    assert (outside / "train" / "precious").exists()
