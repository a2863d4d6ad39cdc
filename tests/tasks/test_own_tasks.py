"""Tasks other than integration: found by name, checked by the contract tests, trained, solved and reported."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.problems import Problem, load_problems
from ladder_lite.tasks import Reason, Rejected, VariantRequest, known_tasks, load_task, plain_task, statement
from ladder_lite.tasks.check import check
from tests.support.commands import run_command

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("own_tasks.py")
EQUATIONS = ROOT / "recipes/equations"
WORDS = plain_task(f"{FILE}:Backwards")
REQUEST = VariantRequest("easier", "a teacher", ("a shorter word",), 2)
HOUSE = WORDS.read("house")


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers in which each byte is a token."""
    make = runpy.run_path(str(ROOT / "benchmarks/gpu/random_models.py"))["make"]
    folder: Path = make(tmp_path_factory.mktemp("models"), "llama3b", tiny=True)
    return folder


# --- the contract


@pytest.mark.parametrize(
    "name", ["integration", f"{FILE}:Backwards", f"{EQUATIONS / 'equations.py'}:Equations"], ids=lambda n: n[-12:]
)
def test_a_sound_task_passes(name: str) -> None:
    results = list(check(name))
    assert [result for result in results if result[1] is not None] == []
    assert len(results) > 20
    assert results[-1] == ("reproducible", None)


def test_the_contract_is_also_checked_on_a_problem_set() -> None:
    results = list(check("integration", "mit_bee"))
    assert [result for result in results if result[1] is not None] == []


@pytest.mark.parametrize(
    ("broken", "test", "fault"),
    [
        ("RejectsGold", "gold answers", "'elppa' is not accepted for apple"),
        ("AcceptsAnything", "garbage", "gets a reward of 1.0"),
        ("IgnoresTheProblem", "other answers", "every answer of another example is accepted"),
        ("Hangs", "hostile text: digits", "did not end within"),
        ("CrashesOnHostileText", "hostile text: a lone surrogate", "UnicodeEncodeError: "),
        ("EndsTheProcess", "hostile text: brackets", "ended the whole process"),
        ("UnequalKeys", "keys", "is not equal to apple"),
        ("HashedKeys", "reproducible", "differ in another process"),
        ("OneKeyForAll", "keys", "has the key of "),
        ("GradesChange", "gold answers", "different results"),
        ("RewardsGarbage", "garbage", "gets a reward of 0.01"),
        ("DropsReplies", "hostile text: digits", "`parse_variants` returns nothing"),
        ("UnnamedValues", "examples", "no field is called length"),
        ("WritesTwoLines", "statements", "not one line"),
        ("NoExamples", "examples", "fewer than 3 problems"),
        ("CrashesOnHostileProblem", "hostile text: a power", "RecursionError"),
    ],
)
def test_a_broken_task_is_found(monkeypatch: pytest.MonkeyPatch, broken: str, test: str, fault: str) -> None:
    monkeypatch.setattr("ladder_lite.tasks.check._LIMIT_S", 8.0)
    faults = {name: found for name, found in check(f"{FILE}:{broken}") if found is not None}
    assert fault in faults[test]
    names_where = "own_tasks.py:" in str(faults[test])
    assert names_where or broken != "CrashesOnHostileText"


def test_a_set_without_answers_or_without_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"word": "house"}\n')
    ((name, fault),) = check(f"{FILE}:Backwards", str(tmp_path / "rows.jsonl"))
    assert (name, str(fault)[:12]) == ("examples", "fewer than 3")
    with pytest.raises(UserError, match="cannot read this problem set"):
        list(check(f"{FILE}:Backwards", str(tmp_path / "absent.jsonl")))


def test_the_command_exits_with_1_for_a_broken_task() -> None:
    sound, broken = (run_command("tasks", "check", f"{FILE}:{name}") for name in ("Backwards", "RejectsGold"))
    assert (sound.returncode, sound.stderr, broken.returncode, broken.stderr) == (0, "", 1, "")
    assert "ok      gold answers\n" in sound.stdout
    assert "FAILED  gold answers: 'elppa' is not accepted" in broken.stdout


def test_the_readme_quotes_the_example_and_its_output() -> None:
    text = (ROOT / "ladder_lite/tasks/README.md").read_text()
    task, recipe = ((EQUATIONS / name).read_text() for name in ("equations.py", "equations.yaml"))
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    code, settings = (next(block for kind, block in blocks if kind == wanted) for wanted in ("python", "yaml"))
    assert code in task
    assert all(line in recipe.splitlines() for line in settings.splitlines())
    (shown,) = (block for _, block in blocks if block.startswith("$ python -m ladder_lite.tasks check"))
    command, _, output = shown.partition("\n")
    assert run_command("tasks", *command.split()[4:], cwd=ROOT).stdout == output


# --- finding a task


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("integratoin", "no such task; did you mean integration?"),
        ("no_such_module:Task", "cannot be imported (ModuleNotFoundError"),
        ("no_such_file.py:Task", "cannot be imported (FileNotFoundError"),
        (f"{FILE}:Forwards", "cannot be imported (AttributeError"),
        (f"{FILE}:MisnamedFields", "`fields` must name at least one field and none of answer, "),
        (f"{FILE}:MisnamedOptional", "`optional` must name some of them"),
        (f"{FILE}:NoFields", "`fields` must name at least one field"),
        ("json:JSONDecoder", "not a subclass of ladder_lite.tasks.Task"),
        ("json:dumps", "not a subclass"),
    ],
)
def test_a_name_that_is_no_task_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"task\.name ") as refused:
        load_task(load_recipe("tiny", [f"task.name={name}"]).task)
    assert message in str(refused.value)


def test_a_task_of_another_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backwards.py").write_bytes(FILE.read_bytes())
    (tmp_path / "backwards-1.0.dist-info").mkdir()
    (tmp_path / "backwards-1.0.dist-info/METADATA").write_text("Name: backwards\nVersion: 1.0\n")
    (tmp_path / "backwards-1.0.dist-info/entry_points.txt").write_text(
        "[ladder_lite.tasks]\nwords = backwards:Backwards\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "words" in known_tasks()
    assert plain_task("words").statement(HOUSE) == "house"
    assert plain_task("backwards:Backwards").statement(HOUSE) == "house"


def test_a_report_without_the_file_of_the_task_shows_the_values() -> None:
    assert statement(Problem.root("gone.py:Words", {"word": "house", "ending": None})) == "house"


# --- the defaults of a task


def test_a_text_is_the_only_field_or_a_json_object() -> None:
    equations = plain_task(f"{EQUATIONS / 'equations.py'}:Equations")
    assert equations.read("x = 3").data == {"equation": "x = 3"}
    assert WORDS.read('{"word": "tree", "ending": "s"}').data == {"word": "tree", "ending": "s"}
    assert WORDS.read("tree", ending="s").data == {"word": "tree", "ending": "s"}
    wrong = {
        '{"word": 3}': "word is not a text",
        "{": "not JSON",
        "{" * 5_000: "not JSON",
        '{"ending": "s"}': "word is missing",
        '{"word": ""}': "word is missing",
        '{"word": "a", "wrod": "b"}': "no field is called wrod",
        '{"word": "\\ud800"}': "word has half a character",
    }
    for text, why in wrong.items():
        with pytest.raises(UserError, match=rf"is not a word \({why}\); write one such as"):
            WORDS.read(text)
        (rejected,) = WORDS.parse_variants(text, HOUSE, REQUEST)
        assert isinstance(rejected, Rejected)
    with pytest.raises(UserError, match=r'"x" is not an equation \(not an equation\); write one such as "2\*x'):
        equations.read("x")
    with pytest.raises(UserError, match="no field is called lower"):
        equations.read("x = 3", lower="0")


def test_variants_are_list_items_or_lines() -> None:
    read = WORDS.parse_variants
    items = read("Here are two:\n1. tree\n2) house of cards\n", HOUSE, REQUEST)
    assert [part.data["word"] for part in items if isinstance(part, Problem)] == ["tree", "house of cards"]
    lines = read("tree\n\n" + "long" * 20, HOUSE, REQUEST)
    assert [part.reason if isinstance(part, Rejected) else part.transforms for part in lines] == [
        REQUEST.suggestions,
        "not a word",
    ]
    assert read(" \n", HOUSE, REQUEST) == [Rejected(" \n", "word is missing")]


@pytest.mark.parametrize(
    ("reply", "reward", "reason"),
    [
        ("<answer>esuoh</answer>", 1.0, Reason.CORRECT),
        ("<answer>house</answer> no: <answer> ESUOH </answer>", 1.0, Reason.CORRECT),
        ("<answer>house</answer>", 0.0, Reason.WRONG),
        ("<answer> </answer>", 0.0, Reason.NO_ANSWER),
        ("esuoh", 0.0, Reason.NO_ANSWER),
    ],
)
def test_a_reply_is_graded_by_its_last_answer(reply: str, reward: float, reason: Reason) -> None:
    grade = WORDS.grade(HOUSE, reply)
    assert (grade.reward, grade.reason) == (reward, reason)


def test_answers_are_the_same_by_their_key() -> None:
    equations = plain_task(f"{EQUATIONS / 'equations.py'}:Equations")
    asked = equations.read("4*x = 2")
    assert equations.same_answers(asked, ["1/2", "2", "x = 2/4", "half", "2"]) == [0, 1, 0, None, 1]
    grades = [equations.grade(asked, f"<answer>{text}</answer>") for text in ("2/4", "2", "half", "1/0")]
    assert [grade.reason for grade in grades] == [
        Reason.CORRECT,
        Reason.WRONG,
        Reason.UNPARSEABLE,
        Reason.UNPARSEABLE,
    ]


def test_a_row_is_checked_by_the_task(tmp_path: Path) -> None:
    path, name = tmp_path / "rows.jsonl", f"{EQUATIONS / 'equations.py'}:Equations"
    path.write_text('{"equation": "x = 1", "answer": "1", "technique": "none"}\n{"equation": "x = x"}\n')
    task = plain_task(name)
    with pytest.raises(UserError) as refused:
        task.load(str(path), "train")
    assert str(refused.value) == f"{path}:2: not one solution"
    first, _ = load_problems(str(path), "train", name)
    assert task.notes(str(path))[first.id].technique == "none"
    with pytest.raises(UserError, match="Give the path of a file"):
        task.load("exam", "train")
    path.write_text('{"integrand": "x"}\n')
    with pytest.raises(UserError, match='unknown key "integrand"'):
        task.load(str(path), "train")


# --- a whole run, with a random model


def test_the_example_trains_as_written(tmp_path: Path, random_llama: Path) -> None:
    """As `tasks/README.md` runs it, from the folder of the repository. The model can write few characters but these."""
    model = shutil.copytree(random_llama, tmp_path / "model")
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    config = json.loads((model / "generation_config.json").read_text())
    config["suppress_tokens"] = [number for text, number in vocabulary.items() if text not in "x=12Ċ"]  # Ċ: a newline
    (model / "generation_config.json").write_text(json.dumps(config))
    result = run_command(
        "recipe",
        *(EQUATIONS.relative_to(ROOT) / "equations.yaml", "--smoke", "--full", "--run-dir", tmp_path / "run"),
        *(f"model.id={model}", "model.engine=generate"),  # `lean` does not read `suppress_tokens`
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["conditions"]) == {"base", "rl_without_variants", "ladder", "ladder_ttrl"}
    assert all(entry["n_problems"] == 50 for entry in report["conditions"].values())
    variants = {row["id"]: row["data"]["equation"] for row in read_jsonl(tmp_path / "run/variants/problems.jsonl")}
    assert all("x" in text and "=" in text for text in variants.values())
    trained_on = {row["problem_id"] for row in read_jsonl(tmp_path / "run/conditions/ladder/train/attempts.jsonl")}
    assert trained_on & variants.keys()


def test_words_go_through_all_commands(tmp_path: Path, random_llama: Path) -> None:
    rows = [
        {"word": "apple", "answer": "elppa", "split": "train"},
        {"word": "tree", "ending": "s", "answer": "eerts", "split": "train"},
        {"word": "house", "answer": "esuoh", "split": "test", "technique": "short"},
        {"word": "ladder", "ending": "!", "answer": "reddal!", "split": "test", "technique": "long"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "words.py").write_bytes(FILE.read_bytes())
    prompts = [f"task.prompts.{name}='{{problem}} {{word}}'" for name in ("solve", "easier", "equivalent")]
    settings = ["task.name=words.py:Backwards", "task.train=rows.jsonl", "task.test=rows.jsonl", *prompts]
    recipe = [EQUATIONS / "equations.yaml", "--smoke", "--full", "--run-dir", "run"]
    result = run_command("recipe", *recipe, *settings, f"model.id={random_llama}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not solved (max steps): " in result.stdout
    # Random bytes are words, so the model's variants were kept and trained on.
    with (tmp_path / "words.py").open("a") as file:
        file.write("# edited\n")
    resumed = run_command("recipe", *recipe, *settings, f"model.id={random_llama}", cwd=tmp_path)
    assert "words.py has changed since this run began; stages that are done keep" in resumed.stdout
    assert (tmp_path / "run/task.py").read_bytes().endswith(b"# edited\n")
    variants = read_jsonl(tmp_path / "run/variants/problems.jsonl")
    assert {row["requested"] for row in variants} == {"easier"}
    trained_on = {row["problem_id"] for row in read_jsonl(tmp_path / "run/conditions/ladder/train/attempts.jsonl")}
    assert trained_on & {row["id"] for row in variants}
    markdown = (tmp_path / "run/report.md").read_text()
    assert "`ladder, !`" in markdown
    assert "integra" not in markdown.lower()
    evaluated = run_command("evaluate", "run", "--problems", "rows.jsonl", "--samples", "1", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["conditions"]["base"]["techniques"].keys() == {"short", "long"}
    solved = run_command("solve", "tree", "--model", "run", "--samples", "1", "--json", cwd=tmp_path)
    assert (solved.returncode, list(json.loads(solved.stdout))[:3]) == (1, ["word", "ending", "verified"])
    assert run_command("export", "run", "--format", "variants", "--out", "data", cwd=tmp_path).returncode == 0
    card = (tmp_path / "data/README.md").read_text()
    assert "- `word`: a word\n" in card
    assert "Words that the model" in card
    assert read_jsonl(tmp_path / "data/variants.jsonl")[0].keys() >= {"word", "ending", "answer", "pass_rate"}


# --- reasoning-gym


def gym(name: str, **sources: str) -> "list[str]":
    return [f"task.name=reasoning_gym:{name}", *(f"task.{split}={source}" for split, source in sources.items())]


def test_reasoning_gym_is_an_extra() -> None:
    """Without the package, one line says how to get it."""
    code = (
        "import sys; sys.modules['reasoning_gym'] = None; from ladder_lite.tasks import plain_task\n"
        "try: plain_task('reasoning_gym:chain_sum')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.startswith("UserError task.name reasoning_gym:chain_sum: needs reasoning-gym")
    assert "pip install 'ladder_lite[reasoning-gym]'" in result.stdout


class TestReasoningGym:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

    def test_splits_differ_and_are_the_same_each_time(self) -> None:
        task = plain_task("reasoning_gym:chain_sum")
        train, test = task.load("8", "train"), task.load("8", "test")
        assert train == task.load("8", "train")
        assert len(train) == 8
        keys = [
            {task.key(problem) for problem in task.load(f"{n} level=2", split)}
            for n, split in ((50, "train"), (40, "test"))
        ]
        assert len(keys[0] & keys[1]) < 10  # "1 + 5 =" may come up twice, but neighbouring seeds share all but one
        gold_answers = task.notes("8")
        for problem in (*train, *test):
            gold = gold_answers[problem.id].answer
            assert task.grade(problem, f"<answer>{gold}</answer>").reward == 1.0
            assert task.grade(problem, "<answer>ten</answer>").reward == 0.0

    @pytest.mark.parametrize(
        ("name", "source", "message"),
        [
            ("chain_sums", "5", "no such task; did you mean chain_sum?"),
            ("chain_sum", "many", '"many" is not a source such as "50 level=2" (invalid literal'),
            ("chain_sum", "5 terms=3", "unexpected keyword argument 'terms'"),
            ("acre", "5 level=1", "No curriculum registered"),
            ("boxnet", "3", "verifier rejects its own answer"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, name: str, source: str, message: str) -> None:
        with pytest.raises(UserError) as refused:
            plain_task(f"reasoning_gym:{name}").load(source, "train")
        assert message in str(refused.value)

    def test_given_variants_are_of_the_level_below_and_marked(self) -> None:
        task = plain_task("reasoning_gym:chain_sum")
        (root,) = task.load("1 level=2", "train")
        for effect, level in (("easier", "1"), ("equivalent", "2")):
            request = VariantRequest(effect, "a teacher", (), 3)  # type: ignore[arg-type]
            text = task.given_variants(root, request, "seed")
            assert text == task.given_variants(root, request, "seed") != task.given_variants(root, request, "other")
            variants = [part for part in task.parse_variants(text or "", root, request) if isinstance(part, Problem)]
            assert [variant.data["level"] for variant in variants] == [level] * 3
            assert all("not written by the model" in variant.transforms[0] for variant in variants)
        (plain,) = task.load("1", "train")
        with pytest.raises(UserError, match="variants need a level"):
            task.given_variants(plain, REQUEST, "seed")

    def test_ladder_trains_on_given_variants(self, tmp_path: Path, random_llama: Path) -> None:
        settings = [*gym("chain_sum", train="'3 level=2'", test="'2 level=2'"), f"model.id={random_llama}"]
        settings += [f"task.prompts.{name}='{{question}}'" for name in ("solve", "easier", "equivalent")]
        recipe = [EQUATIONS / "equations.yaml", "--smoke", "--run-dir", tmp_path / "run"]
        result = run_command("recipe", *recipe, *settings)
        assert result.returncode == 0, result.stderr
        rows = read_jsonl(tmp_path / "run/variants/problems.jsonl")
        assert {row["data"]["level"] for row in rows} == {"1"}
        assert sum(row["n_tokens"] for row in read_jsonl(tmp_path / "run/variants/rounds.jsonl")) == 0
        assert "given by the task" in (tmp_path / "run/report.md").read_text()
        report = json.loads((tmp_path / "run/report.json").read_text())
        assert report["variants"]["tokens"] == 0 < report["variants"]["kept"]
