"""The structure of the package: rooms that import downwards only."""

import ast
import io
import tokenize
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ladder_lite
from ladder_lite.runs import layout

PACKAGE = Path(ladder_lite.__file__).parent
INNER = ("verify.expressions", "verify.numerics", "verify.rules", "report.drawing")
MOST_ROOMS = 22


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        found[".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    inner = next((name for name in INNER if module.startswith(f"{name}.") or module == name), None)
    return inner or module.partition(".")[0]


def imports(path: Path) -> set[str]:
    """The package's modules that a module imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.removeprefix("ladder_lite.") for name in node.names if "ladder_lite." in name.name}
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "ladder_lite":
            module = node.module.removeprefix("ladder_lite").lstrip(".")
            for name in node.names:
                inner = f"{module}.{name.name}".lstrip(".")
                found.add(inner if inner in MODULES else module)
    return found - {"", "__init__"}


@pytest.mark.parametrize("of", [room, str], ids=["rooms", "modules"])
def test_imports_have_no_circles(of: "type[str]") -> None:
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        graph[of(module)] |= {of(name) for name in imports(path)} - {of(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_verifier_imports_nothing_of_the_rest() -> None:
    for module, path in MODULES.items():
        if module.startswith("verify") and module != "verify.__main__":
            assert {name for name in imports(path) if not name.startswith("verify")} == set(), module


def test_there_are_few_rooms() -> None:
    assert len({path.parent for path in MODULES.values()} - {PACKAGE}) <= MOST_ROOMS


def code_lines(text: str, node: ast.AST | None = None) -> int:
    """Lines of a module, or of one of its functions, that are neither blank, comment nor docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {at for token in tokens if token.type not in empty for at in range(token.start[0], token.end[0] + 1)}
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            lines -= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return sum(node is None or node.lineno <= at <= node.end_lineno for at in lines)  # type: ignore[attr-defined]


def test_trl_is_imported_after_the_model_is_loaded() -> None:
    """Unsloth, which loads the model, must patch TRL first: `grpo.train` imports the trainer when it is called."""
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert "ladder_lite.train.trainer" not in at_top, module


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert code_lines(text) <= 350
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if code_lines(text, node) > 80] == []


def test_the_files_of_a_run_are_named_in_its_layout_alone() -> None:
    files = {name for name in vars(layout).values() if isinstance(name, str) and name.endswith((".json", ".jsonl"))}
    for module, path in MODULES.items():
        constants = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        texts = {node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        named = {text for text in texts if text.rpartition("/")[2] in files}
        assert module == "runs.layout" or not named, module
