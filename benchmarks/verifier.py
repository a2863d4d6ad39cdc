"""The verifier against others: rate, wrong verdicts, and memory under 10,000 adversarial answers.

    python benchmarks/verifier.py                                 # sums of the tiny recipe's techniques
    python benchmarks/verifier.py --integrands variants.jsonl     # others, such as integrands a language model wrote

A line of `--integrands` holds {"question": "integrate(f, x)"} or {"integrand": "f"}. Antiderivatives are SymPy's
(`integrate`, given 3 s); integrands that it leaves open, or that our functions cannot express, are left out and
counted.
`--pairs` names a file that keeps the pairs, so that another run need not find them again.

Compared on the same pairs in the same run: ours strict; ours paper, the published protocol; SymPy symbolic,
`simplify(diff(F) - f) == 0` after parsing both, given 5 s; and Math-Verify, the expanded antiderivative as gold against
the answer, both in LaTeX (`pip install math-verify[antlr4_13_2]`; left out where it is not installed). Blocks of pairs
alternate between them, so that a busy machine slows all. Times are the processor's. SymPy and Math-Verify are shown
only answers that our reader admits, because they would run or hang on others; those count as rejected by them.

Writes benchmarks/results/verifier.json.
"""

import ast
import json
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any, NamedTuple

import psutil
import sympy
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ladder_lite.expressions import ExpressionError, parse
from ladder_lite.functions import ELEMENTARY, SPECIAL, SPELLINGS
from ladder_lite.spelling import without_constant
from ladder_lite.tiny import corpus
from ladder_lite.verify import Protocol, verify

HERE = Path(__file__).parent
CASES = HERE.parent / "tests" / "data" / "verifier_cases.jsonl"
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
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "verifier.json",
) -> None:
    found, left_out = _pairs(integrands, pairs)
    if not found:
        raise typer.BadParameter("no integrand with an antiderivative in it", param_hint="--integrands")
    verify("sin(x)/x", "Si(x)")  # imports SciPy
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one core of {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in ("numpy", "scipy", "sympy", "math-verify")},
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


# --- pairs ----------------------------------------------------------------------------------------------------------

WRONG = ("{}+x/7", "{}+sin(x)/50", "1.001*({})+x/1000", "({})*(1+x/1000)+x/1000")


def _pairs(integrands: Path | None, file: Path | None) -> tuple[list[Pair], dict[str, int]]:
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        return [Pair(*pair) for pair in kept["pairs"]], kept["left_out"]
    pairs: list[Pair] = []
    left_out = {"no integrand of ours": 0, "open after 3 s": 0, "functions not of ours": 0}
    texts = list(dict.fromkeys(_integrands(integrands)))
    Random(0).shuffle(texts)
    for text in track(texts, "antiderivatives by SymPy", console=Console(stderr=True)):
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
    table = Table("judge", "answers/s", "median ms", "x SymPy", "right rejected", "wrong accepted", "labelled errors")
    for name, row in figures["judges"].items():
        labelled = f"{row['labelled_right_rejected']} + {row['labelled_wrong_accepted']} of {row['labelled']}"
        rate, ratio = f"{row['answers_per_s']:,.0f}", f"{row['rate_over_sympy']:.1f}"
        counts = [f"{row[key]} of {row['pairs']}" for key in ("right_rejected", "wrong_accepted")]
        table.add_row(name, rate, f"{row['median_ms']:.2f}", ratio, *counts, labelled)
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
