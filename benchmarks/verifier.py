"""The verifier against others: rate, wrong verdicts, and memory under 10,000 adversarial answers.

    python benchmarks/verifier.py                                 # sums of the tiny recipe's techniques
    python benchmarks/verifier.py --integrands variants.jsonl     # others, such as integrands a language model wrote
    python benchmarks/verifier.py --baseline 1176488 --reading variants.jsonl      # and against the package of a commit
    python benchmarks/verifier.py --baseline 1176488 --quick --no-judges           # a minute, for development

A line of `--integrands` holds {"question": "integrate(f, x)"} or {"integrand": "f"}. Antiderivatives are SymPy's
(`integrate`, given 3 s); integrands that it leaves open, or that our functions cannot express, are left out and
counted.
`--pairs` names a file that keeps the pairs, so that another run need not find them again.

Compared on the same pairs in the same run: ours strict; ours paper, the published protocol; SymPy symbolic,
`simplify(diff(F) - f) == 0` after parsing both, given 5 s; and Math-Verify, the expanded antiderivative as gold against
the answer, both in LaTeX (`pip install math-verify[antlr4_13_2]`; left out where it is not installed). Blocks of pairs
alternate between them, so that a busy machine slows all. Times are the processor's. SymPy and Math-Verify are shown
only answers that our reader admits, because they would run or hang on others; those count as rejected by them.

Speed is measured on answers to benchmarks/undergrad.jsonl: in groups, eight different answers to one integrand after
another, as training grades them, half of them right; singly, one answer to each integrand; and again, a group that was
graded just before. With `--baseline` the package of that commit grades the same answers in a process of its own, block
by block in turn; of each answer the fastest of the rounds counts. `--reading` names JSON lines of {"question": text},
integrals as language models write them, and measures how fast they are read, and what is refused.

Writes benchmarks/results/verifier.json; with `--no-judges` the figures of others stay as they were in it.
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
X = sympy.Symbol("x", real=True)  # as ours takes it: SymPy then knows Abs, sign and sqrt(x**2)
NAMES: dict[str, Any] = {name: getattr(sympy, name) for name in ELEMENTARY.keys() | SPECIAL if hasattr(sympy, name)}
NAMES |= {alias: NAMES[name] for alias, name in SPELLINGS.items() if name in NAMES}
NAMES |= {"e": sympy.E, "i": sympy.I, "x": X}
# The ways in which SymPy fails.
GIVES_UP = (TimeoutError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError, LookupError)
GIVES_UP += (sympy.PolynomialError,)
BLOCK = 20


class Pair(NamedTuple):
    """An integrand, a right answer, and a wrong one."""

    integrand: str
    right: str
    wrong: str


Judge = Callable[[str, str, str], bool]  # integrand, answer, gold -> verdict


def main(
    integrands: Annotated[Path | None, typer.Option(help="JSON lines; default: generated sums.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Keeps the pairs, or holds them already.")] = None,
    n: Annotated[int, typer.Option(help="Pairs at most.")] = 300,
    adversarial: Annotated[int, typer.Option(help="Adversarial answers in a row.")] = 10_000,
    baseline: Annotated[str | None, typer.Option(metavar="COMMIT", help="Measure speed against its package.")] = None,
    reading: Annotated[Path | None, typer.Option(help="JSON lines of integrals to read.")] = None,
    rounds: Annotated[int, typer.Option(help="Of the measurements of speed.")] = 3,
    quick: Annotated[bool, typer.Option(help="Few answers, one round.")] = False,
    judges: Annotated[bool, typer.Option(help="Compare with other verifiers.")] = True,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "verifier.json",
) -> None:
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
        found, left_out = _pairs(integrands, pairs, 2 * n if quick else None)
        if not found:
            raise typer.BadParameter("no integrand with an antiderivative in it", param_hint="--integrands")
        verify("sin(x)/x", "Si(x)")  # imports SciPy
        figures |= {
            "source": integrands.name if integrands else "tiny techniques",
            "left_out": left_out,
            "adversarial": _adversarial(adversarial),  # first: what follows fills the memory with SymPy's caches
            "all_pairs": _all_pairs(found),
            "judges": _compare(found[:n]),
        }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# --- speed, beside a baseline ---------------------------------------------------------------------------------------

RIGHT_FORMS = ("{F}", "{F}+C", "{k}+{F}", "2*({F})/2", "({F})-{k}/7", "-(-({F})+{k})", "({F})*x/x", "3*(({F})/3)+pi")
WRONG_FORMS = ("2*({F})", "-({F})", "{f}", "({F})+x/{k}", "x*({f})/2", "({F})/{k}", "{other}", "({F})+sin(x)/50")
WARM_UP = [[case["integrand"], case["answer"]] for case in map(json.loads, CASES.read_text().splitlines())]

Timed = list[tuple[float, Any]]  # milliseconds, and what came of it
Run = Callable[[str, list[list[str]]], dict[str, Timed]]  # job, arguments -> for each version


@contextmanager
def _versions(baseline: str | None) -> Iterator[dict[str, Path]]:
    """The folders of the packages to measure by name: `new`, and `baseline` if there is one."""
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
    """Processes that have no integrand in their caches; blocks alternate between them."""
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
            found: dict[str, Timed] = {name: [] for name in versions}
            turns = list(zip(versions, workers, strict=True))
            for start in range(0, len(arguments), BLOCK):
                block = json.dumps({"job": job, "arguments": arguments[start : start + BLOCK]})
                turns.reverse()
                for name, worker in turns:
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    worker.stdin.write(block + "\n")
                    worker.stdin.flush()
                    found[name] += json.loads(worker.stdout.readline())
            return found

        run("verify", WARM_UP)  # imports SciPy and mpmath
        yield run


def _speed(versions: dict[str, Path], rounds: int, most: int | None) -> dict[str, Any]:
    groups = _groups(most)
    parts = {
        "groups": [answer for group in groups for answer in group],
        # Of the k-th integrand the k-th answer.
        "singly": [group[k % len(group)] for k, group in enumerate(groups)],
        "again": [answer for group in groups for answer in [*group, *group]],
    }
    figures: dict[str, Any] = {}
    for part, answers in parts.items():
        found = _timed(versions, "verify", [[f, text] for f, text, _ in answers], rounds, part)
        size = len(groups[0])
        counts = [part != "again" or k % (2 * size) >= size for k in range(len(answers))]
        right = [form in RIGHT_FORMS for _, _, form in answers]
        kinds = {"all": counts, "right": [], "wrong": []}
        for k, chosen in enumerate(counts):
            kinds["right"].append(chosen and right[k])
            kinds["wrong"].append(chosen and not right[k])
        chosen_of = {
            kind: {name: list(compress(timed, chosen)) for name, timed in found.items()}
            for kind, chosen in kinds.items()
        }
        figures[part] = {kind: _rates(timed) for kind, timed in chosen_of.items()}
        for key, kind, accepted in (("right_rejected", "right", False), ("wrong_accepted", "wrong", True)):
            figures[part][key] = {
                name: sum((reward == 1) is accepted for _, reward in timed) for name, timed in chosen_of[kind].items()
            }
    return figures


def _timed(versions: dict[str, Path], job: str, arguments: list[list[str]], rounds: int, what: str) -> dict[str, Timed]:
    """Of each job the fastest round, each round in new processes."""
    found: list[dict[str, Timed]] = []
    for _ in track(range(rounds), what, console=Console(stderr=True)):
        with _workers(versions) as run:
            found.append(run(job, arguments))
    return {
        name: [(min(ms for ms, _ in times), times[0][1]) for times in zip(*(of[name] for of in found), strict=True)]
        for name in versions
    }


def _groups(most: int | None) -> list[list[tuple[str, str, str]]]:
    """For each integrand of the pool eight answers, four of them right: integrand, answer, its form."""
    rng = Random(0)
    rows = [json.loads(line) for line in POOL.read_text(encoding="utf-8").splitlines()]
    found = []
    for row in rng.sample(rows, most or len(rows)):
        f, right, other = row["integrand"], row["answer"], rng.choice(rows)["answer"]
        forms = rng.sample(RIGHT_FORMS, 4) + rng.sample(WRONG_FORMS, 4)
        rng.shuffle(forms)
        found.append([(f, form.format(f=f, F=right, k=rng.randint(2, 99), other=other), form) for form in forms])
    return found


def _rates(found: dict[str, Timed]) -> dict[str, Any]:
    ms = {name: [ms for ms, _ in timed] for name, timed in found.items()}
    rates = {f"{name}_per_s": len(times) / sum(times) * 1e3 for name, times in ms.items()}
    medians = {f"{name}_median_ms": median(times) for name, times in ms.items()}
    figures: dict[str, Any] = {"n": len(ms["new"]), **rates, **medians}
    if "baseline" in ms:
        figures["new_over_baseline"] = sum(ms["baseline"]) / sum(ms["new"])
        figures["median_new_over_baseline"] = median(ms["baseline"]) / median(ms["new"])
    return figures


def _reading(versions: dict[str, Path], file: Path, rounds: int, most: int | None) -> dict[str, Any]:
    texts = list(dict.fromkeys(json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()))
    texts = texts[:most]
    found = _timed(versions, "read", [[text] for text in texts], rounds, "reading")
    faults = {name: [fault for _, fault in timed] for name, timed in found.items()}
    figures = {
        "source": file.name,
        **_rates(found),
        "refused": {name: Counter(fault for fault in of if fault) for name, of in faults.items()},
    }
    if "baseline" in faults:
        changed = list(zip(texts, faults["new"], faults["baseline"], strict=True))
        figures["newly_refused"] = [(text, new) for text, new, old in changed if new and not old]
        figures["newly_read"] = [(text, old) for text, new, old in changed if old and not new]
    return figures


# --- pairs ----------------------------------------------------------------------------------------------------------

WRONG = ("{}+x/7", "{}+sin(x)/50", "1.001*({})+x/1000", "({})*(1+x/1000)+x/1000")


def _pairs(integrands: Path | None, file: Path | None, most: int | None) -> tuple[list[Pair], dict[str, int]]:
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        return [Pair(*pair) for pair in kept["pairs"]], kept["left_out"]
    pairs: list[Pair] = []
    left_out = {"no integrand of ours": 0, "open after 3 s": 0, "functions not of ours": 0}
    texts = list(dict.fromkeys(_integrands(integrands)))
    Random(0).shuffle(texts)
    for text in track(texts[:most], "antiderivatives by SymPy", console=Console(stderr=True)):
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
    """A text that our reader admits, and that is therefore safe, as SymPy's expression."""
    return sympy.sympify(text, locals=NAMES)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds of processor time."""

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
    """Our errors on all pairs."""
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
    """Answer and gold as a judge wants them."""
    if judge != "Math-Verify":
        return answer, gold
    return sympy.latex(_to_sympy(answer)), sympy.latex(sympy.expand(_to_sympy(gold)))


def _labelled() -> list[dict[str, Any]]:
    """The labelled answers to indefinite integrals; a right one of the same integral is the gold of each."""
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
    """An answer that our reader admits, in Python's notation and without `+ C`."""
    source = parse(text, constant_of_integration=True).source
    return ast.unparse(without_constant(ast.parse(source, mode="eval").body, "x"))


# --- adversarial answers --------------------------------------------------------------------------------------------


def _hostile(k: int, rng: Random) -> str:
    """The k-th of a row of answers that cost, or would if they were run; none repeats."""
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
    for k in range(-500, 0):  # caches fill
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
        rates = (f"{row.get(key, 0):,.0f}" for key in ("new_per_s", "baseline_per_s"))
        ratios = (f"{row.get(key, 0):.2f}" for key in ("new_over_baseline", "median_new_over_baseline"))
        table.add_row(part, kind, str(row["n"]), *rates, *ratios, f"{row['new_median_ms']:.3f}")
    Console().print(table)
    for part, row in figures["speed"].items():
        print(f"{part}: right rejected {row['right_rejected']}, wrong accepted {row['wrong_accepted']}")
    if reading:
        changed = {
            key: dict(Counter(why for _, why in reading.get(key, ()))) for key in ("newly_refused", "newly_read")
        }
        print(f"reading: refused { ({name: dict(of) for name, of in reading['refused'].items()}) }, {changed}")
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
