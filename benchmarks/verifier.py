"""Compare the verifier with others: speed, wrong verdicts, and memory under 10,000 adversarial answers.

    python benchmarks/verifier.py                                 # sums of the tiny recipe's techniques
    python benchmarks/verifier.py --integrands variants.jsonl     # others, such as integrands a language model wrote
    python benchmarks/verifier.py --baseline 1176488 --reading variants.jsonl      # also against an earlier commit
    python benchmarks/verifier.py --baseline 1176488 --quick --no-judges           # a minute, for development

Each line of `--integrands` contains {"question": "integrate(f, x)"} or {"integrand": "f"}. SymPy's `integrate` provides
the antiderivatives, with a limit of 3 s. Integrands that it cannot integrate, or whose antiderivative needs functions
that the verifier does not know, are left out and counted. `--pairs` names a file for the pairs; if it exists, the pairs
are read from it.

The following verifiers, called judges, are compared on the same pairs in the same run:

- ours strict: this package;
- ours paper: this package with the paper's protocol;
- SymPy symbolic: `simplify(diff(F) - f) == 0` after parsing both, with a limit of 5 s;
- Math-Verify: compares the answer with the expanded antiderivative, both in LaTeX (`pip install
  math-verify[antlr4_13_2]`; left out if it is not installed).

They take turns on blocks of pairs, so that a busy machine slows them all down equally. Times are processor times. SymPy
and Math-Verify only get answers that our parser accepts, because they would execute others or hang; all others count as
rejected by them.

Speed is measured on answers to benchmarks/undergrad.jsonl: in groups, as in training (eight different answers to one
integrand in a row, half of them right); singly (one answer to each integrand); and again (a group that has just been
graded). With `--baseline`, the package of that commit grades the same answers in another process, and the two processes
alternate. The fastest round counts for each answer. `--reading` names a JSON lines file of {"question": text} with
integrals as language models write them. It measures how fast they are read, and which are refused.

Writes benchmarks/results/verifier.json. With `--no-judges`, the figures of the judges in that file are kept.
"""

import ast
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from io import BytesIO
from itertools import compress, islice
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import psutil
import sympy
import tiny_corpus as corpus
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ladder_lite
from ladder_lite.verify import Protocol, verify
from ladder_lite.verify.expressions.functions import ELEMENTARY, SPECIAL, SPELLINGS
from ladder_lite.verify.expressions.parse import ExpressionError, parse, without_constant

HERE = Path(__file__).parent
CASES = HERE.parent / "tests" / "data" / "verifier_cases.jsonl"
POOL = HERE / "undergrad.jsonl"
X = sympy.Symbol("x", real=True)  # real, as in our verifier; otherwise SymPy cannot simplify Abs, sign and sqrt(x**2)
NAMES: dict[str, Any] = {name: getattr(sympy, name) for name in ELEMENTARY.keys() | SPECIAL if hasattr(sympy, name)}
NAMES |= {alias: NAMES[name] for alias, name in SPELLINGS.items() if name in NAMES}
NAMES |= {"e": sympy.E, "i": sympy.I, "x": X}
# The exceptions that SymPy raises when it cannot handle an expression.
GIVES_UP = (TimeoutError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError, LookupError)
GIVES_UP += (sympy.PolynomialError,)
BLOCK = 20  # number of answers before the next judge or process takes its turn


class Pair(NamedTuple):
    """An integrand, a right answer, and a wrong one."""

    integrand: str
    right: str
    wrong: str


Judge = Callable[[str, str, str], bool]  # integrand, answer, gold -> verdict


def main(
    integrands: Annotated[Path | None, typer.Option(help="JSON lines; default: generated sums.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="File for the pairs; read if it exists.")] = None,
    n: Annotated[int, typer.Option(help="Maximum number of pairs for the comparison.")] = 300,
    adversarial: Annotated[int, typer.Option(help="Number of adversarial answers.")] = 10_000,
    baseline: Annotated[str | None, typer.Option(metavar="COMMIT", help="Also measure this commit's speed.")] = None,
    reading: Annotated[Path | None, typer.Option(help="JSON lines of integrals to read.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of speed measurements.")] = 3,
    quick: Annotated[bool, typer.Option(help="Few answers, one round.")] = False,
    judges: Annotated[bool, typer.Option(help="Compare with other verifiers.")] = True,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "verifier.json",
) -> None:
    """Compare the verifier with others: speed, wrong verdicts, and memory under adversarial answers."""
    if quick:
        n, adversarial, rounds = min(n, 40), min(adversarial, 500), 1
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() and not judges else {}
    figures |= {
        "command": " ".join(["python", sys.argv[0], *(Path(word).name for word in sys.argv[1:])]),
        "machine": f"one core of {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in ("numpy", "scipy", "sympy", "math-verify")},
    }
    with _versions(baseline) as versions:
        figures["baseline"] = baseline
        figures["speed"] = _speed(versions, rounds, 60 if quick else None)
        if reading is not None:
            figures["reading"] = _reading(versions, reading, rounds, 500 if quick else None)
    if judges:
        all_pairs, left_out = _pairs(integrands, pairs, 2 * n if quick else None)
        if not all_pairs:
            raise typer.BadParameter("no integrand in it has an antiderivative", param_hint="--integrands")
        verify("sin(x)/x", "Si(x)")  # imports SciPy
        figures |= {
            "source": integrands.name if integrands else "tiny techniques",
            "left_out": left_out,
            "adversarial": _adversarial(adversarial),  # first, because the rest fills the memory with SymPy's caches
            "all_pairs": _all_pairs(all_pairs),
            "judges": _compare(all_pairs[:n]),
        }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# --- speed, compared with a baseline --------------------------------------------------------------------------------

# Right and wrong answers, made from the integrand f, a right answer F, a number k and another integral's answer.
RIGHT_FORMS = ("{F}", "{F}+C", "{k}+{F}", "2*({F})/2", "({F})-{k}/7", "-(-({F})+{k})", "({F})*x/x", "3*(({F})/3)+pi")
WRONG_FORMS = ("2*({F})", "-({F})", "{f}", "({F})+x/{k}", "x*({f})/2", "({F})/{k}", "{other}", "({F})+sin(x)/50")
WARM_UP = [[case["integrand"], case["answer"]] for case in map(json.loads, CASES.read_text().splitlines())]

Timed = list[tuple[float, Any]]  # (milliseconds, result) of each job
Run = Callable[[str, list[list[str]]], dict[str, Timed]]  # (job, arguments) -> results by version


@contextmanager
def _versions(baseline: str | None) -> Iterator[dict[str, Path]]:
    """Yield the folders of the packages to measure, by name: `new`, and `baseline` if a commit is given."""
    new = Path(ladder_lite.__file__).parent.parent
    if baseline is None:
        yield {"new": new}
        return
    with TemporaryDirectory() as folder:
        command = ["git", "-C", str(HERE.parent), "archive", baseline, "ladder_lite"]
        archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield {"new": new, "baseline": Path(folder)}


@contextmanager
def _workers(versions: dict[str, Path]) -> Iterator[Run]:
    """Start a new process for each version, so that no integrand is cached; yield a function that runs jobs in each.

    Blocks of jobs alternate between the processes.
    """
    command = [sys.executable, str(HERE / "verifier_worker.py")]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"PYTHONPATH": str(folder)},
                )
            )
            for folder in versions.values()
        ]

        def run(job: str, arguments: list[list[str]]) -> dict[str, Timed]:
            results: dict[str, Timed] = {name: [] for name in versions}
            turns = list(zip(versions, workers, strict=True))
            for start in range(0, len(arguments), BLOCK):
                block = json.dumps({"job": job, "arguments": arguments[start : start + BLOCK]})
                turns.reverse()  # neither version is always the first
                for name, worker in turns:
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    worker.stdin.write(block + "\n")
                    worker.stdin.flush()
                    results[name] += json.loads(worker.stdout.readline())
            return results

        run("verify", WARM_UP)  # imports SciPy and mpmath
        yield run


def _speed(versions: dict[str, Path], rounds: int, limit: int | None) -> dict[str, Any]:
    groups = _groups(limit)
    parts = {
        "groups": [answer for group in groups for answer in group],
        # The k-th answer of the k-th integrand.
        "singly": [group[k % len(group)] for k, group in enumerate(groups)],
        "again": [answer for group in groups for answer in [*group, *group]],
    }
    figures: dict[str, Any] = {}
    for part, answers in parts.items():
        results = _timed(versions, "verify", [[f, text] for f, text, _ in answers], rounds, part)
        size = len(groups[0])
        # In "again", only the second grading of each group counts.
        counted = [part != "again" or k % (2 * size) >= size for k in range(len(answers))]
        right = [form in RIGHT_FORMS for _, _, form in answers]
        masks = {"all": counted, "right": [], "wrong": []}
        for k, counts in enumerate(counted):
            masks["right"].append(counts and right[k])
            masks["wrong"].append(counts and not right[k])
        by_kind = {
            kind: {name: list(compress(timed, mask)) for name, timed in results.items()} for kind, mask in masks.items()
        }
        figures[part] = {kind: _rates(timed) for kind, timed in by_kind.items()}
        for key, kind, accepted in (("right_rejected", "right", False), ("wrong_accepted", "wrong", True)):
            figures[part][key] = {
                name: sum((reward == 1) is accepted for _, reward in timed) for name, timed in by_kind[kind].items()
            }
    return figures


def _timed(versions: dict[str, Path], job: str, arguments: list[list[str]], rounds: int, what: str) -> dict[str, Timed]:
    """Return the fastest time of each job over the rounds; each round runs in new processes."""
    results: list[dict[str, Timed]] = []
    for _ in track(range(rounds), what, console=Console(stderr=True)):
        with _workers(versions) as run:
            results.append(run(job, arguments))
    return {
        name: [(min(ms for ms, _ in times), times[0][1]) for times in zip(*(r[name] for r in results), strict=True)]
        for name in versions
    }


def _groups(limit: int | None) -> list[list[tuple[str, str, str]]]:
    """Return (integrand, answer, form) of eight answers to each integrand of the pool, four of them right."""
    rng = Random(0)
    rows = [json.loads(line) for line in POOL.read_text(encoding="utf-8").splitlines()]
    groups = []
    for row in rng.sample(rows, limit or len(rows)):
        f, right, other = row["integrand"], row["answer"], rng.choice(rows)["answer"]
        forms = rng.sample(RIGHT_FORMS, 4) + rng.sample(WRONG_FORMS, 4)
        rng.shuffle(forms)
        groups.append([(f, form.format(f=f, F=right, k=rng.randint(2, 99), other=other), form) for form in forms])
    return groups


def _rates(results: dict[str, Timed]) -> dict[str, Any]:
    ms = {name: [ms for ms, _ in timed] for name, timed in results.items()}
    rates = {f"{name}_per_s": len(times) / sum(times) * 1e3 for name, times in ms.items()}
    medians = {f"{name}_median_ms": median(times) for name, times in ms.items()}
    figures: dict[str, Any] = {"n": len(ms["new"]), **rates, **medians}
    if "baseline" in ms:
        figures["new_over_baseline"] = sum(ms["baseline"]) / sum(ms["new"])
        figures["median_new_over_baseline"] = median(ms["baseline"]) / median(ms["new"])
    return figures


def _reading(versions: dict[str, Path], file: Path, rounds: int, limit: int | None) -> dict[str, Any]:
    texts = list(dict.fromkeys(json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()))
    texts = texts[:limit]
    results = _timed(versions, "read", [[text] for text in texts], rounds, "reading")
    faults = {name: [fault for _, fault in timed] for name, timed in results.items()}
    figures = {
        "source": file.name,
        **_rates(results),
        "refused": {name: Counter(fault for fault in row if fault) for name, row in faults.items()},
    }
    if "baseline" in faults:
        changed = list(zip(texts, faults["new"], faults["baseline"], strict=True))
        figures["newly_refused"] = [(text, new) for text, new, old in changed if new and not old]
        figures["newly_read"] = [(text, old) for text, new, old in changed if old and not new]
    return figures


# --- pairs ----------------------------------------------------------------------------------------------------------

WRONG = ("{}+x/7", "{}+sin(x)/50", "1.001*({})+x/1000", "({})*(1+x/1000)+x/1000")


def _pairs(integrands: Path | None, file: Path | None, limit: int | None) -> tuple[list[Pair], dict[str, int]]:
    """Return pairs for at most `limit` integrands, and the counts of those left out; read or write them in `file`."""
    if file is not None and file.exists():
        saved = json.loads(file.read_text())
        return [Pair(*pair) for pair in saved["pairs"]], saved["left_out"]
    pairs: list[Pair] = []
    left_out = {"no integrand of ours": 0, "open after 3 s": 0, "functions not of ours": 0}
    texts = list(dict.fromkeys(_integrands(integrands)))
    Random(0).shuffle(texts)
    for text in track(texts[:limit], "antiderivatives by SymPy", console=Console(stderr=True)):
        try:
            integrand = parse(text)
        except ExpressionError:
            left_out["no integrand of ours"] += 1
            continue
        try:
            with _at_most(3.0):
                antiderivative = sympy.integrate(_to_sympy(integrand.text), X)
        except GIVES_UP:
            antiderivative = sympy.nan
        if antiderivative.has(sympy.Integral, sympy.nan, sympy.zoo):
            left_out["open after 3 s"] += 1
            continue
        try:
            parse(str(antiderivative))
        except ExpressionError:
            left_out["functions not of ours"] += 1
            continue
        right = str(antiderivative)
        pairs.append(Pair(integrand.text, right, WRONG[len(pairs) % len(WRONG)].format(right)))
    if file is not None:
        file.write_text(json.dumps({"pairs": pairs, "left_out": left_out}))
    return pairs, left_out


def _integrands(file: Path | None) -> Iterator[str]:
    if file is None:
        rng = Random(0)
        for _ in range(400):
            yield corpus.integrand(corpus.draw_terms(rng, rng.choice([1, 1, 2, 3])))
        return
    for line in file.read_text().splitlines():
        row = json.loads(line)
        call = re.fullmatch(r"integrate\((.*), *x\)", row.get("question", ""))
        if call or "integrand" in row:
            yield call[1] if call else row["integrand"]


def _to_sympy(text: str) -> Any:
    """Convert a text to a SymPy expression. It must have passed our parser, because SymPy's parser executes it."""
    return sympy.sympify(text, locals=NAMES)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds` of processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def _all_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the errors of our strict protocol on all pairs."""
    rejected = [(f, right) for f, right, _ in pairs if verify(f, right).reward != 1.0]
    accepted = [(f, wrong) for f, _, wrong in pairs if verify(f, wrong).reward == 1.0]
    return {"n": len(pairs), "right_rejected": rejected, "wrong_accepted": accepted}


# --- judges ---------------------------------------------------------------------------------------------------------


def _ours(protocol: Protocol) -> Judge:
    return lambda integrand, answer, _gold: verify(integrand, answer, protocol=protocol).reward == 1.0


def _symbolic(integrand: str, answer: str, _gold: str) -> bool:
    try:
        with _at_most(5.0):
            return bool(sympy.simplify(sympy.diff(_to_sympy(answer), X) - _to_sympy(integrand)) == 0)
    except GIVES_UP:
        return False


def _judges() -> dict[str, Judge]:
    judges = {"ours strict": _ours("strict"), "ours paper": _ours("paper"), "SymPy symbolic": _symbolic}
    try:
        import math_verify
    except ImportError:
        return judges

    def gold_against_answer(_integrand: str, answer: str, gold: str) -> bool:
        config = [math_verify.LatexExtractionConfig()]
        read = [math_verify.parse(f"${text}$", extraction_config=config) for text in (gold, answer)]
        return bool(math_verify.verify(*read))

    return judges | {"Math-Verify": gold_against_answer}


def _compare(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    judges = _judges()
    ms: dict[str, list[float]] = {name: [] for name in judges}
    right: dict[str, int] = dict.fromkeys(judges, 0)
    blocks = iter(pairs)
    progress = Console(stderr=True)
    for _ in track(range(0, len(pairs), BLOCK), "right answers", console=progress):
        block = list(islice(blocks, BLOCK))
        for name, judge in judges.items():
            for integrand, answer, _ in block:
                answer, gold = _notation(name, answer, answer)
                started = time.process_time()
                right[name] += judge(integrand, answer, gold)
                ms[name].append((time.process_time() - started) * 1e3)
    figures: dict[str, dict[str, Any]] = {}
    labelled = _labelled()
    # Only the right answers are timed (above); the wrong ones are only judged.
    for name, judge in judges.items():
        accepted = [judge(f, *_notation(name, wrong, gold)) for f, gold, wrong in track(pairs, name, console=progress)]
        verdicts = [(case["accept"], _verdict(name, judge, case)) for case in labelled]
        figures[name] = {
            "answers_per_s": len(pairs) / sum(ms[name]) * 1e3,
            "median_ms": median(ms[name]),
            "rate_over_sympy": sum(ms["SymPy symbolic"]) / sum(ms[name]),
            "median_over_sympy": median(ms["SymPy symbolic"]) / median(ms[name]),
            "pairs": len(pairs),
            "right_rejected": len(pairs) - right[name],
            "wrong_accepted": sum(accepted),
            "labelled": len(labelled),
            "labelled_right_rejected": sum(accept and not verdict for accept, verdict in verdicts),
            "labelled_wrong_accepted": sum(verdict and not accept for accept, verdict in verdicts),
        }
    return figures


def _notation(judge: str, answer: str, gold: str) -> tuple[str, str]:
    """Return answer and gold in the notation of a judge: LaTeX for Math-Verify, with the gold expanded."""
    if judge != "Math-Verify":
        return answer, gold
    return sympy.latex(_to_sympy(answer)), sympy.latex(sympy.expand(_to_sympy(gold)))


def _labelled() -> list[dict[str, Any]]:
    """Return the labelled answers to indefinite integrals, with the gold of each.

    The gold is an answer to the same integral that is labelled as right or, if there is none, SymPy's antiderivative.
    """
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    cases = [case for case in cases if case.get("lower") is None]
    golds = {case["integrand"]: case["answer"] for case in reversed(cases) if case["accept"]}
    for case in cases:
        with _at_most(5.0):
            case["gold"] = golds.get(case["integrand"]) or str(sympy.integrate(_to_sympy(case["integrand"]), X))
    return cases


def _verdict(name: str, judge: Judge, case: dict[str, Any]) -> bool:
    answer, gold = case["answer"], case["gold"]
    if not name.startswith("ours"):
        try:
            answer, gold = (_without_constant(text) for text in (answer, gold))
            answer, gold = _notation(name, answer, gold)
        except (ExpressionError, *GIVES_UP):
            return False
    return judge(case["integrand"], answer, gold)


def _without_constant(text: str) -> str:
    """Return an answer that our parser accepts, in Python's notation and without `+ C`."""
    source = parse(text, constant_of_integration=True).source
    return ast.unparse(without_constant(ast.parse(source, mode="eval").body, "x"))


# --- adversarial answers --------------------------------------------------------------------------------------------


def _hostile(k: int, rng: Random) -> str:
    """Return the k-th of an endless sequence of different answers that are expensive or, if executed, dangerous."""
    forms = (
        lambda: f"__import__('os').system('echo {k}')",
        lambda: f"{k}**9**9**9",
        lambda: "(" * (k % 900) + "x" + ")" * (k % 900),
        lambda: "+".join(f"floor({k}*x/{i})" for i in range(1, 120)),
        lambda: "+".join(f"sqrt((x-{i})**2+{k})" for i in range(60)),
        lambda: "*".join(f"gamma(x+{k}/{i})" for i in range(1, 60)),
        lambda: f"polylog(2,{k}*" * 15 + "x" + ")" * 15,
        lambda: "exp(" * (k % 75) + f"x+{k}" + ")" * (k % 75),
        lambda: f"sin(x)+tanh({k}*(x-{k % 17}))",
        lambda: f"factorial({k}*10**6)",
        lambda: f"x^{k}^x^{k}^x",
        lambda: r"\frac{" * (k % 300) + "x" + "}{2}" * (k % 300),
        lambda: "|" * (k % 999),
        lambda: f"Integral(cos(t)+{k},(t,0,x))",
        lambda: bytes(rng.randrange(256) for _ in range(300)).decode("latin-1"),
        lambda: "".join(rng.choice("x0123456789+-*/()^., sincoelgtaqr") for _ in range(200)),
    )
    return forms[k % len(forms)]()


def _adversarial(n: int) -> dict[str, Any]:
    rng = Random(1)
    process = psutil.Process()
    for k in range(-500, 0):  # fill the caches before memory is measured
        verify("cos(x)", _hostile(abs(k) + n, rng))
    before, accepted, slowest = process.memory_info().rss, 0, (0.0, "")
    for k in track(range(n), "adversarial answers", console=Console(stderr=True)):
        answer = _hostile(k, rng)
        started = time.process_time()
        accepted += verify("cos(x)", answer).reward != 0.0
        slowest = max(slowest, ((time.process_time() - started) * 1e3, answer[:60]))
    grown = (process.memory_info().rss - before) / 2**20
    return {"n": n, "accepted": accepted, "grown_mib": grown, "slowest_ms": slowest[0], "slowest": slowest[1]}


def _print(figures: dict[str, Any]) -> None:
    table = Table("answers", "which", "n", "new/s", "baseline/s", "new/baseline", "by medians", "new median ms")
    rows = [(part, kind, row[kind]) for part, row in figures["speed"].items() for kind in ("all", "right", "wrong")]
    if reading := figures.get("reading"):
        rows.append(("reading", reading["source"], reading))
    for part, kind, row in rows:
        rates = (f"{row.get(key, 0):,.0f}" for key in ("new_per_s", "baseline_per_s"))  # 0 without a baseline
        ratios = (f"{row.get(key, 0):.2f}" for key in ("new_over_baseline", "median_new_over_baseline"))
        table.add_row(part, kind, str(row["n"]), *rates, *ratios, f"{row['new_median_ms']:.3f}")
    Console().print(table)
    for part, row in figures["speed"].items():
        print(f"{part}: right rejected {row['right_rejected']}, wrong accepted {row['wrong_accepted']}")
    if reading:
        changed = {
            key: dict(Counter(fault for _, fault in reading.get(key, ()))) for key in ("newly_refused", "newly_read")
        }
        refused = {name: dict(counts) for name, counts in reading["refused"].items()}
        print(f"reading: refused {refused}, {changed}")
    if "judges" in figures:
        _print_judges(figures)


def _print_judges(figures: dict[str, Any]) -> None:
    table = Table(
        "judge",
        "answers/s",
        "median ms",
        "x SymPy",
        "by medians",
        "right rejected",
        "wrong accepted",
        "labelled errors",
    )
    for name, row in figures["judges"].items():
        labelled = f"{row['labelled_right_rejected']} + {row['labelled_wrong_accepted']} of {row['labelled']}"
        rate = f"{row['answers_per_s']:,.0f}"
        ratios = (f"{row[key]:.1f}" for key in ("rate_over_sympy", "median_over_sympy"))
        counts = [f"{row[key]} of {row['pairs']}" for key in ("right_rejected", "wrong_accepted")]
        table.add_row(name, rate, f"{row['median_ms']:.2f}", *ratios, *counts, labelled)
    Console().print(table)
    row = figures["all_pairs"]
    print(
        f"all {row['n']} pairs: ours strict rejects {len(row['right_rejected'])} right answers and accepts "
        f"{len(row['wrong_accepted'])} wrong ones; left out: {figures['left_out']}"
    )
    row = figures["adversarial"]
    print(
        f"{row['n']:,} adversarial answers: {row['accepted']} accepted, memory grew by {row['grown_mib']:.1f} MiB, "
        f"slowest {row['slowest_ms']:.0f} ms ({row['slowest']!r})"
    )


if __name__ == "__main__":
    typer.run(main)
