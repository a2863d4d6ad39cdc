"""The paper's results (Simonds and Yoshiyama, LADDER, arXiv 2503.00735 v3), which reports show apart from their own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ladder_lite.config import Recipe

TITLE = "Simonds and Yoshiyama, LADDER, arXiv 2503.00735 v3"


class Quoted(NamedTuple):
    """A share that the paper reports, as text and as the range of its bar from `low` to `high`."""

    words: str  # ASCII, for the terminal's table
    low: float
    high: float


class Published(NamedTuple):
    """One of the paper's experiments: its pass@1 by condition, and what else it measured on the same problems."""

    results: Mapping[str, Quoted]
    others: Mapping[str, Quoted]
    subject: str  # the model, for the caption of a figure
    caption: str  # of the terminal's table
    notes: tuple[str, ...]  # paragraphs of Markdown below the report's table


def _share(points: float) -> Quoted:
    return Quoted(f"{points:g} %", points / 100, points / 100)


PAPER: Mapping[str, Published] = {
    "undergraduate": Published(
        {
            "base": _share(1),
            "rl_without_variants": Quoted("<= 3 %", 0.0, 0.03),
            "ladder": _share(82),
            "ladder_ttrl": Quoted("90 %*", 0.9, 0.9),
        },
        {},
        "Llama 3.2 3B; 90 % is from a 7B model on the MIT exam",
        "paper: arXiv 2503.00735, Llama 3.2 3B (* a 7B model, MIT exam)",
        (
            f"The paper's column is from {TITLE}: Llama 3.2 3B on 100 undergraduate integrals (base: pass@10 2 %; GRPO "
            "on the ten training problems: never above 3 %, 0 % within 30 steps; LADDER: 82 % after about 250 steps).",
            r"\* From another experiment: DeepSeek-R1-Distill-Qwen-7B on the 20 problems of the MIT Integration Bee "
            "2025 qualifying exam, 73 % with LADDER and 90 % with TTRL after LADDER.",
        ),
    ),
    "mit": Published(
        {"base": _share(50), "ladder": _share(73), "ladder_ttrl": _share(90)},
        {
            "GPT-4o": _share(42),
            "o1": _share(80),
            "typical contestant": Quoted("15 to 30 %", 0.15, 0.30),
            "qualifying mark": Quoted("about 73 %", 0.73, 0.73),
        },
        "R1-Distill-Qwen-7B",
        "paper: arXiv 2503.00735, R1-Distill-Qwen-7B, MIT exam of 2025",
        (
            f"The paper's column is from {TITLE}: DeepSeek-R1-Distill-Qwen-7B on the 20 problems of the MIT "
            "Integration Bee 2025 qualifying exam, whose transcription differs from ours in places. For TTRL, a "
            "problem counts as solved if a right answer appears at any step.",
        ),
    ),
    "smoke": Published({}, {}, "", "a smoke test: its numbers mean nothing", ()),
    "own": Published({}, {}, "", "", ("The paper has no results on test problems like these.",)),
}
"""The paper's two experiments, and runs that are not comparable with either. `experiment_of` chooses one for a run."""

VARIANTS = "In the paper's Figure 3, accuracy keeps rising with the number of variants, more slowly past 6,000."
TEST_TIME = (
    "In the paper, on the MIT exam with a 7B model, TTRL solves 3 to 4 more of 20 problems, each in 3 to 30 "
    "steps. TTRL without LADDER solves none of the hard ones in 100. LADDER's pass@100 stays below TTRL (Figure 6)."
)


def experiment_of(recipe: Recipe) -> str:
    """Return the key of `PAPER` for a run, by its test set and by whether it was a smoke test."""
    settings, smoke = recipe.model_dump(mode="json"), recipe.smoke
    # Most of its settings, not all: overrides may have changed some.
    if 2 * sum(_setting(settings, key) == value for key, value in smoke.items()) > len(smoke):
        return "smoke"
    test_set = recipe.task.test if recipe.task.name == "integration" else ""
    if test_set in ("exam", "mit_bee", "mit_train"):
        return "mit"
    return "undergraduate" if test_set in ("tiny", "undergrad", "ladder-paper") else "own"


def _setting(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings
