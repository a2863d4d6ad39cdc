"""Problems and problem sets."""

import hashlib
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.install import shipped
from ladder_lite.problems import Problem, dataset, load_problems
from ladder_lite.tasks import load_task, plain_task
from ladder_lite.tasks.integration import paper_sets
from ladder_lite.tasks.integration.lists import clean, write_rows

DATA: dict[str, str | None] = {"integrand": "2*x", "variable": "x", "lower": None, "upper": None}
ROOT = Path(__file__).parents[2]


def test_a_tree_survives_json_as_flat_rows() -> None:
    root = Problem.root("integration", DATA)
    child = Problem.child(root, {**DATA, "integrand": "x"}, ("drop a factor",), "easier")
    grandchild = Problem.child(child, {**DATA, "integrand": "1"}, (), "equivalent")
    assert (root.root_id, root.parent_id, root.depth, root.requested) == (root.id, None, 0, "root")
    assert (grandchild.root_id, grandchild.parent_id, grandchild.depth) == (root.id, child.id, 2)
    for problem in (root, child, grandchild):
        assert Problem.from_row(json.loads(json.dumps(problem.to_row()))) == problem
    assert len({root, child, grandchild, Problem.root("integration", DATA)}) == 3


def test_the_id_depends_on_task_and_data_only() -> None:
    root = Problem.root("integration", DATA)
    assert re.fullmatch("[0-9a-f]{16}", root.id)
    reordered = dict(reversed(DATA.items()))
    assert Problem.root("integration", reordered).id == root.id
    assert Problem.child(root, DATA, ("reorder",), "equivalent").id == root.id
    others = [Problem.root("other", DATA), *(Problem.root("integration", {**DATA, key: "3"}) for key in DATA)]
    assert len({root.id, *(other.id for other in others)}) == 6


def write(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_row_belongs_to_its_split_or_to_both(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"integrand": "1", "split": "train"},
        "",
        {"integrand": "t", "variable": "t", "lower": "0", "upper": "pi", "split": "test", "answer": "pi**2/2"},
        {"integrand": "3"},
    )
    train, test = load_problems(path, "train"), load_problems(path, "test")
    assert [problem.data["integrand"] for problem in train] == ["1", "3"]
    assert [problem.data for problem in test] == [
        {"integrand": "t", "variable": "t", "lower": "0", "upper": "pi"},
        {"integrand": "3", "variable": "x", "lower": None, "upper": None},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'integrand'", ":2: not a JSON object: "),
        ("[1]", ":2: not a JSON object: [1]"),
        ({"integrnd": "x"}, ':2: unknown key "integrnd"; did you mean integrand?'),
        ({"integrand": 3}, ':2: "integrand" must be text, but is 3'),
        ({"integrand": "2", "lower": 0, "upper": "1"}, ':2: "lower" must be text, but is 0'),
        ({"variable": "x"}, ':2: "integrand" is missing'),
        ({"integrand": " "}, ':2: "integrand" is missing'),
        ({"integrand": "2", "lower": "0"}, ':2: give both "lower" and "upper", or neither'),
        ({"integrand": "2", "split": "dev"}, ':2: "split" must be "train", "test" or "probe", but is "dev"'),
        ({"integrand": "2", "variable": "2x"}, ':2: "variable" must be a name, but is "2x"'),
        ({"integrand": "1", "answer": "x"}, ":2: the same problem as in line 1; remove one"),
        ({"integrand": "2", "steps": "3"}, ':2: "steps" must be a whole number, but is "3"'),
        ({"integrand": "2", "steps": True}, ':2: "steps" must be a whole number, but is true'),
        ({"integrand": "2", "source": 7}, ':2: "source" must be text, but is 7'),
        ('{"integrand": ' + "[" * 100_000, ":2: not a JSON object: "),
    ],
)
def test_a_refused_row_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path, {"integrand": "1"}, row)
    with pytest.raises(UserError) as refused:
        load_problems(path, "train")
    assert str(refused.value).startswith(path + message)


def test_the_printed_statement_is_part_of_the_problem_and_notes_are_not(tmp_path: Path) -> None:
    notes = {"id": "q1", "technique": "parts", "steps": 3, "source": "an exam", "note": "hard", "answer": "x**2"}
    path = write(tmp_path, {"integrand": "2*x", **notes}, {"integrand": "3*x", "printed": "three x"})
    plain, printed = load_problems(path, "train")
    assert plain == Problem.root("integration", DATA)
    assert printed.data == {**DATA, "integrand": "3*x", "printed": "three x"}
    task = load_task(load_recipe("tiny").task)
    assert task.fingerprints(printed) == task.fingerprints(Problem.root("integration", {**DATA, "integrand": "3*x"}))
    assert Problem.from_row(json.loads(json.dumps(printed.to_row()))) == printed


def test_a_set_becomes_a_dataset(tmp_path: Path) -> None:
    full = {"id": "q1", "integrand": "t", "variable": "t", "lower": "0", "upper": "1", "answer": "1/2"}
    full |= {"technique": "powers", "printed": "∫ t dt", "source": "an exam"}
    path = write(tmp_path, {**full, "steps": 2}, {"integrand": "x"}, {"integrand": "3", "split": "test"})
    found = dataset(path, "train")
    columns = ["id", "integrand", "variable", "lower", "upper", "printed", "answer", "technique", "source"]
    assert found.column_names == columns
    assert found.to_list() == [full, {**dict.fromkeys(full), "integrand": "x", "variable": "x"}]
    assert len(dataset("tiny", "test")) == 100
    with pytest.raises(UserError, match="no problem for the split"):
        dataset(write(tmp_path, {"integrand": "1", "split": "train"}), "test")


def test_missing_and_empty_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='unknown problem set "tyni"; did you mean tiny'):
        load_problems("tyni", "test")
    with pytest.raises(UserError, match=r"cannot read this problem set .*No such file"):
        load_problems(str(tmp_path / "absent.jsonl"), "test")
    with pytest.raises(UserError, match="cannot read this problem set"):
        load_problems(str(tmp_path / ""), "test")
    with pytest.raises(UserError, match='no problem for the split "test"'):
        load_problems(write(tmp_path, {"integrand": "1", "split": "train"}), "test")


@pytest.mark.parametrize("path", sorted(shipped("benchmarks").glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_shipped_set_loads(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for split in {row.get("split", "test") for row in rows}:
        problems = load_problems(path.stem, split)
        assert len(problems) == sum(row.get("split", split) == split for row in rows)


@pytest.mark.parametrize(
    "line", [" " * 9000 + "x", '""' + " " * 9000 + "x", "a" * 9000 + " " * 9000, "a:" + " " * 9000]
)
def test_no_line_takes_long_to_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\nx**2\n")
    started = time.process_time()
    kept, _ = clean(tmp_path / "list.txt")
    assert {"integrand": "x**2", "variable": "x", "lower": None, "upper": None} in kept
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("out", "rejected", "message"),
    [
        (".", None, "cannot be written (it is a folder); name a file"),
        ("a", "a", "the list, --out and --rejected must be different files"),
        ("list.txt", None, "the list, --out and --rejected must be different files"),
        ("list.txt/x", None, "name a file in a folder"),
    ],
)
def test_an_invalid_target_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, rejected: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("x**2\n")
    with pytest.raises(UserError) as refused:
        clean(Path("list.txt"), Path(out), Path(rejected) if rejected else None)
    assert message in str(refused.value)
    assert Path("list.txt").read_text() == "x**2\n"


def test_a_list_whose_name_is_too_long_is_named() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        clean(Path("x" * 300))


def test_the_question_is_read_if_the_integrand_is_null(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"question": "integrate(x**2, x)", "integrand": null}]')
    assert [data["integrand"] for data in clean(tmp_path / "list.json")[0]] == ["x**2"]


def test_held_out_problems_are_those_of_all_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_LITE_CACHE", str(tmp_path))
    sets = plain_task("integration").held_out()
    assert sorted(sets) == ["exam", "mit_bee", "smollm", "tiny", "undergrad"]
    assert len(sets["exam"]) == 60  # without its probe, which only runs that use it hold out
    assert len(sets["tiny"]) == 100
    assert len(sets["undergrad"]) == 359  # a set without splits counts as a whole
    assert len(sets["mit_bee"]) == 18  # of the 20 of 2025; two have a printed statement
    write_rows(tmp_path / "ladder-paper.jsonl", [{"integrand": "x**3", "split": "test"}, {"integrand": "x"}])
    assert [problem.data["integrand"] for problem in plain_task("integration").held_out()["ladder-paper"]] == [
        "x**3",
        "x",
    ]


def test_the_wheel_has_every_problem_set_and_recipe() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included["recipes"] == "ladder_lite/_recipes"
    for path in (ROOT / "benchmarks").glob("*.jsonl"):
        assert included[f"benchmarks/{path.name}"] == f"ladder_lite/_benchmarks/{path.name}"


# --- lists from elsewhere

QUESTIONS = [
    "integrate(x**2, x)",
    "integrate(t*exp(t), t)",
    "integrate(x**2, (x, 0, 1))",
    "integrate(2*x*x/2, x)",
    "integrate(x/0*, x)",
    "integrate(sqrt(-1-x**2), x)",
    "integrate(7, x)",
    "integrate(x, (x, 1, 1))",
    "integrate(x*y, x)",
    "integrate(x**99999, x)",
]
KEPT: list[dict[str, str | None]] = [
    {"integrand": "x**2", "variable": "x", "lower": None, "upper": None},
    {"integrand": "t*exp(t)", "variable": "t", "lower": None, "upper": None},
    {"integrand": "x**2", "variable": "x", "lower": "0", "upper": "1"},
]
REASONS = {"unreadable": 2, "undefined": 1, "not_one_variable": 1, "bad_bounds": 1, "too_large": 1}


def as_fields(question: str) -> dict[str, str]:
    inside = question.removeprefix("integrate(").removesuffix(")")
    integrand, _, limits = inside.partition(", ")
    names = limits.strip("()").split(", ")
    return {"integrand": integrand, "variable": names[0]} | dict(zip(("lower", "upper"), names[1:], strict=False))


FORMATS: dict[str, Callable[[list[str]], str]] = {
    "JSON lines of questions": lambda q: "\n".join(json.dumps({"question": one, "id": 3}) for one in q),
    "JSON lines of fields": lambda q: "\r\n".join(json.dumps(as_fields(one) | {"answer": "?"}) for one in q),
    "JSON lines with blank ones": lambda q: "\ufeff\n" + "\n\n".join(json.dumps({"question": one}) for one in q),
    "JSON list of texts": json.dumps,
    "JSON list of objects": lambda q: json.dumps([as_fields(one) for one in q], indent=2),
    "JSON object with a list": lambda q: json.dumps({"set": "a", "problems": q}),
    "CSV of questions": lambda q: "id,Question\n" + "\n".join(f'{n},"{one}"' for n, one in enumerate(q)),
    "CSV of one column": lambda q: "question\n" + "\n".join(f'"{one}"' for one in q),
    "CSV of fields": lambda q: (
        "integrand;variable;lower;upper\n"
        + "\n".join(
            ";".join(as_fields(one).get(k, "") for k in ("integrand", "variable", "lower", "upper")) for one in q
        )
    ),
    "text": "\n".join,
    "a numbered text": lambda q: "\n".join(f"{n}. {one}" for n, one in enumerate(q, start=1)),
    "a list in Python": lambda q: "# all\nBASIC = [\n" + "".join(f'    "{one}",\n' for one in q) + "]\n",
    "JSON lines of texts": lambda q: "\n".join(json.dumps(one) for one in q),
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_content_decides_the_format_of_a_list(tmp_path: Path, form: str) -> None:
    path, out, rejected = tmp_path / "list.dat", tmp_path / "new" / "out.jsonl", tmp_path / "rejected.jsonl"
    path.write_text(FORMATS[form](QUESTIONS), encoding="utf-8", newline="")
    kept, summary = clean(path, out, rejected)
    own = {"JSON lines of fields": [{"answer": "?"}] * 3, "CSV of questions": [{"id": str(n)} for n in (0, 1, 2)]}
    notes = own.get(form, [{}] * 3)
    expected = [data | note for data, note in zip(KEPT, notes, strict=True)]
    assert kept == expected
    assert summary.pop("seconds") > 0
    assert summary == {"read": 10, "kept": 3, "duplicates": 1, "rejected": REASONS}
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected
    rows = [json.loads(line) for line in rejected.read_text().splitlines()]
    lines = [row["line"] for row in rows]
    assert lines == sorted(lines)
    first, *others = rows
    assert (first["reason"], first["line"] > first["duplicate_of"]) == ("duplicate", True)
    assert "2*x*x/2" in first["text"]
    assert [row["reason"] for row in others] == [
        *("unreadable", "undefined", "not_one_variable", "bad_bounds", "unreadable", "too_large")
    ]
    assert len(load_problems(str(out), "train")) == 3
    assert not list(tmp_path.rglob("*.tmp"))


LINES = [  # a line of text, and the integrand kept from it
    ("x**2*exp(x)", "x**2*exp(x)"),
    ("1. $\\int x e^x\\,dx$", "x*e**x"),
    ('"integrate(x, x)",', "x"),
    ("'x*sin(x)'", "x*sin(x)"),
    ("integrate(log(x)/x**2, x", "log(x)/x**2"),
    ("Evaluate ∫ x² dx.", "x**(2)"),
    ("integrate(x, x) + C", "x"),
    ("integrate(x, x) + integrate(x**2, x)", None),
    ("2*integrate(x, x)", None),
    ("integrate(x, x).subs(x, 2)", None),
    ("integrate(x, x), integrate(x**2, x)", None),
    ("an integral", None),
    ("{'question': 'integrate(x, x)'}", "x"),
    ("9" * 30_000, None),
]


@pytest.mark.parametrize(("line", "integrand"), LINES, ids=[line[:30] for line, _ in LINES])
def test_a_line_of_text(tmp_path: Path, line: str, integrand: str | None) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{line}\nsin(x)\n", encoding="utf-8")
    kept, summary = clean(path)
    assert [data["integrand"] for data in kept] == [integrand, "sin(x)"][integrand is None :]
    assert summary["read"] == 2


def test_multiples_are_duplicates_up_to_a_factor(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("x**2\n-3*x**2\nx**2/7\nx**3\n")
    assert clean(path)[1]["kept"] == 4
    assert [data["integrand"] for data in clean(path, up_to_factor=True)[0]] == ["x**2", "x**3"]


def test_invalid_utf8_and_json_reject_their_line_only(tmp_path: Path) -> None:
    path, rejected = tmp_path / "list.jsonl", tmp_path / "rejected.jsonl"
    lines = [b'{"question": "integrate(x, x)"}', b'{"question": "integrate(\xff\xfe, x)"}', b"{broken", b"[1]", b"3"]
    lines += [b'{"integrand": 3}', b'{"integrand": "x", "lower": [1]}', b"null", b'{"other": 1}', b"[" * 5000]
    path.write_bytes(b"\n".join(lines))
    kept, summary = clean(path, rejected=rejected)
    assert len(kept) == 1
    assert (summary["read"], summary["rejected"]) == (10, {"unreadable": 8, "too_large": 1})
    assert [json.loads(line)["line"] for line in rejected.read_text().splitlines()] == list(range(2, 11))


def test_an_unclosed_csv_field_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('question\nx**2\n"' + "integrate(x, x)\n" * 20_000)
    kept, summary = clean(path)
    assert len(kept) == 1
    assert summary["read"] == summary["kept"] + summary["duplicates"] + sum(summary["rejected"].values())
    assert summary["rejected"]["unreadable"] >= 1


BAD_FILES = [
    (None, "No such file"),
    (b"", "has no problems"),
    (b"\n\n[\n]\n# nothing\n", "has no problems"),
    (b"\x7fELF\0\0", "binary file"),
    ("integrate(x, x)".encode("utf-16"), "binary file"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_file_that_is_not_a_list_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        clean(path)


def test_folders_in_place_of_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("x\n")
    for files in ((tmp_path,), (path, tmp_path), (path, path / "out.jsonl"), (path, None, tmp_path)):
        with pytest.raises(UserError, match="name a "):
            clean(*files)
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.txt"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ladder_lite.problems", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), **environment}
    )


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(QUESTIONS), encoding="utf-8")
    shown = run("clean", str(path))
    *rows, summary = [json.loads(line) for line in shown.stdout.splitlines()]
    assert (shown.returncode, shown.stderr, rows, summary["kept"]) == (0, "", KEPT, 3)
    quiet = run("clean", str(path), "--out", str(tmp_path / "out.jsonl"), "--up-to-factor")
    assert len(quiet.stdout.splitlines()) == 1
    assert load_problems(str(tmp_path / "out.jsonl"), "test") == load_problems(write(tmp_path, *KEPT), "test")
    for arguments in (("clean", str(tmp_path)), ("clean",), ("fetch", "ladder-papr"), ("fetch",)):
        wrong = run(*arguments)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1), wrong.stderr
        assert wrong.stderr.startswith("error: ")


def test_cleaning_is_fast_and_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "".join(f"integrate({n}*x*exp({m}*x) + sin(x)/{n + m}, x)\n" for n in range(1, 41) for m in range(1, 51))
    )
    started = time.process_time()
    _, summary = clean(path)
    assert (summary["kept"], time.process_time() - started < 4) == (2000, True)  # takes half a second
    code = "import sys; from pathlib import Path; from ladder_lite.tasks.integration.lists import clean"
    code += f"; clean(Path({str(path)!r}))"
    code += "; print({'torch', 'transformers', 'datasets', 'sympy', 'pooch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_shipped_set_is_read_without_losses(tmp_path: Path) -> None:
    kept, summary = clean(ROOT / "benchmarks" / "mit_bee.jsonl", tmp_path / "out.jsonl")
    assert (len(kept), summary["rejected"], summary["duplicates"]) == (54, {}, 0)


# --- the authors' lists

SOURCE = """# questions
import os
os.abort()
BASIC = [
    "integrate(x**2, x)",  # a comment
    "integrate(cosh(x)**2, (x, 0, 1))",
    'integrate(x**2, x)',
    "integrate(sin(x)cost(x), x)",
]
MORE = ("integrate(x*exp(x), x)", 3, BASIC, "integrate(1/x, (x, 1, 1))")
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The authors' repository as local files, and an empty cache."""
    folder = tmp_path / "there"
    folder.mkdir()
    hashes = {}
    for files in paper_sets._SETS.values():
        for split, file in files.items():
            text = SOURCE if split == "train" else 'TEST = ["integrate(x**2, x)"]\n'
            (folder / file).write_text(text)
            hashes[file] = hashlib.sha256(text.encode()).hexdigest()
    assert hashes.keys() == paper_sets._SHA256.keys()
    monkeypatch.setattr(paper_sets, "_SHA256", hashes)
    monkeypatch.setattr(paper_sets, "_URL", f"{folder}/")
    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, **_: copy_file)
    monkeypatch.setenv("LADDER_LITE_CACHE", str(tmp_path / "cache"))
    return folder


def copy_file(url: str, output_file: str, _pooch: Any) -> None:
    Path(output_file).write_bytes(Path(url).read_bytes())


@pytest.mark.parametrize("name", paper_sets.NAMES)
def test_a_published_set_is_fetched_once_and_loaded_by_name(published: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: not fetched yet; run python -m ladder_lite.problems fetch {name}"):
        load_problems(name, "train")
    path, counts = paper_sets.fetch(name)
    assert path == tmp_path / "cache" / f"{name}.jsonl"
    train = {"kept": 3, "repeats": 1, "rejected": {"unreadable": 1, "bad_bounds": 1}}
    assert counts == {"train": train, "test": {"kept": 1, "repeats": 0, "rejected": {}}}
    task = load_task(load_recipe("tiny", [f"task.train={name}", f"task.test={name}"]).task)
    assert [problem.data["integrand"] for problem in task.problems("train")] == ["x**2", "cosh(x)**2", "x*exp(x)"]
    assert [problem.data["integrand"] for problem in task.problems("test")] == ["x**2"]
    for file in published.iterdir():
        file.unlink()
    assert paper_sets.fetch(name) == (path, counts)  # from the cache


def test_a_missing_or_changed_file_is_refused(published: Path, tmp_path: Path) -> None:
    (published / "test_questions.py").write_text("TEST = []")
    with pytest.raises(UserError, match="not the file that was published"):
        paper_sets.fetch("ladder-paper")
    (published / "test_questions.py").unlink()
    with pytest.raises(UserError, match="cannot be downloaded"):
        paper_sets.fetch("ladder-paper")
    assert not (tmp_path / "cache" / "ladder-paper.jsonl").exists()


def test_fetching_without_a_network_is_one_line(tmp_path: Path) -> None:
    proxies = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    found = run("fetch", "ladder-paper", LADDER_LITE_CACHE=str(tmp_path), **proxies)
    assert (found.returncode, found.stdout) == (2, "")
    assert re.fullmatch(
        r"error: https://\S+train_questions.py: cannot be downloaded to \S+ \(\w+\); .*\n", found.stderr
    )
    assert not list(tmp_path.glob("*.jsonl"))
