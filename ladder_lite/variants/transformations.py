"""The library of transformations: short descriptions of changes to a problem, sorted by their effect.

In the paper the base model writes it before any variant (section on variant generation); each variant request then
suggests a few of them. A recipe sets its source by `variants.transformations`: `model`, `default` (the task's own, for
models that cannot write one), the path of another run's `library.json`, or lists in the recipe.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from ladder_lite.config import Transformations, VariantSettings
from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_json
from ladder_lite.models import Backend, Sampling
from ladder_lite.tasks import Effect, Task
from ladder_lite.tasks.task import LIST_MARKER

EFFECTS: tuple[Effect, ...] = ("easier", "equivalent", "harder")
FILE = "library.json"

SIZE = 20
"""Distinct transformations of each effect at which the model is no longer asked for more."""

# A round samples 4 replies for each effect and asks each for 10 transformations, so one round usually suffices.
_PER_REPLY = 10
_N_REPLIES = 4
_MAX_ROUNDS = 3
# What is longer is an explanation or a worked example, not a transformation.
_MAX_WORDS = 16
_MAX_CHARS = 120


@dataclass(frozen=True, slots=True)
class Library:
    """Transformations by effect. `source` is "model", "default", "model and default", "recipe" or a file path."""

    source: str
    easier: tuple[str, ...]
    equivalent: tuple[str, ...]
    harder: tuple[str, ...]

    def of(self, effect: Effect) -> tuple[str, ...]:
        """The transformations with this effect."""
        texts: tuple[str, ...] = getattr(self, effect)
        return texts

    @staticmethod
    def read(path: Path) -> "Library":
        """Read a library from a file that `write` left. Raises UserError if it cannot be read."""
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            lists = [row[effect] for effect in EFFECTS]
            if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
                raise TypeError("each effect must be a list of texts")
            return Library(str(row["source"]), *map(tuple, lists))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"variants.transformations {path}: not a readable library ({error})") from error


def default(task: Task) -> Library:
    """The task's own library, for models that cannot write one."""
    return Library("default", *(tuple(task.transformations.get(effect, ())) for effect in EFFECTS))


def open_library(task: Task, settings: VariantSettings, folder: Path) -> Library:
    """The library of a recipe; for the source `model`, the one that `write` left in the folder.

    Raises UserError if a file cannot be read, or if the library is too short for `variants.suggestions`.
    """
    chosen = settings.transformations
    if isinstance(chosen, Transformations):
        return Library("recipe", chosen.easier, chosen.equivalent, ())
    if chosen == "default":
        library = default(task)
    elif chosen == "model":
        library = Library.read(folder / FILE)
    else:
        library = replace(Library.read(Path(chosen)), source=chosen)
    # Lists in the recipe were checked when it was loaded (config/schema.py); files and the model's are checked here.
    for effect in EFFECTS[:2]:  # without "harder", which is never asked for
        if getattr(settings.mix, effect) and len(library.of(effect)) < settings.suggestions[1]:
            raise UserError(
                f"variants.transformations {chosen}: has {len(library.of(effect))} {effect} ones, but "
                f"variants.suggestions asks for up to {settings.suggestions[1]}; lower it or name a longer library"
            )
    return library


def write(task: Task, backend: Backend, settings: VariantSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Let the model write its library into the folder's `library.json`; returns a summary for `done.json`.

    Each effect is asked for in rounds until there are `SIZE` distinct transformations. If there are fewer than
    `variants.suggestions` needs, the task's own are added, and `source` becomes "model and default".
    """
    # Temperatures across the recipe's range, one for each reply: 0.8, 1.0, 1.2, 1.4.
    lowest, highest = settings.temperature
    temperatures = tuple(lowest + (highest - lowest) * step / (_N_REPLIES - 1) for step in range(_N_REPLIES))
    # By normalized text: how often it was given for which effect, and how it was first written.
    votes: dict[str, Counter[Effect]] = defaultdict(Counter)
    texts: dict[str, str] = {}
    rejected: list[dict[str, str]] = []
    n_tokens = 0
    for number in range(_MAX_ROUNDS):
        for effect in EFFECTS:
            if len(_by_effect(votes, texts)[effect]) >= SIZE:
                continue
            # A generator for each round and effect: a round that is skipped does not shift the seeds of others.
            rng = Random(f"{seed}/transformations/{effect}/{number}")
            prompts = [task.transformations_prompt(effect, _PER_REPLY)] * _N_REPLIES
            sampling = Sampling(temperatures, 1.0, settings.max_new_tokens, settings.batch_size, rng.getrandbits(32))
            for (reply,) in backend.sample(prompts, 1, sampling):
                n_tokens += reply.n_tokens
                for line, text in read_list(task.strip_thinking(reply.text)):
                    if text is None:
                        rejected.append({"effect": effect, "text": line})
                    else:
                        key = _normalized(text)
                        texts.setdefault(key, text)
                        votes[key][effect] += 1
    written = _by_effect(votes, texts)
    filled = {
        effect: own if len(own) >= settings.suggestions[1] else list(dict.fromkeys([*own, *default(task).of(effect)]))
        for effect, own in written.items()
    }
    source = "model" if filled == written else "model and default"
    library = Library(source, *map(tuple, filled.values()))  # fields in the order of EFFECTS
    write_json(folder / FILE, {**asdict(library), "rejected": rejected})
    n_written = {effect: len(own) for effect, own in written.items()}
    return {"source": source, "written": n_written, "rejected": len(rejected), "tokens": n_tokens}


def read_list(text: str) -> Iterator[tuple[str, str | None]]:
    """Each line of a reply with the transformation that it describes, None if it describes none.

    If the reply has list items, all other lines are taken for prose around them and skipped.
    """
    # The text is a model's: it may be anything, of any length.
    lines = [line.strip() for line in text[:20_000].splitlines() if line.strip()]
    items = [line for line in lines if LIST_MARKER.match(line)]
    for line in items or lines:
        yield line[:_MAX_CHARS], _clean(line)


# A formula describes one problem; a transformation must apply to any.
_FORMULA = re.compile(r"\\int|∫|integra(?:te|l)\s*\(|[=\\{}$<>]")


def _clean(line: str) -> str | None:
    """A line as a short description in plain words, None if it is not one."""
    # "1) **Lower the exponent**." -> "lower the exponent"
    text = LIST_MARKER.sub("", line, count=1)
    text = re.sub(r"[*_`\"“”]+", "", text).strip()
    # Too long: keep what comes before an explanation, as in "Lower the exponent: for instance ...".
    if len(text) > _MAX_CHARS or len(text.split()) > _MAX_WORDS:
        text = re.split(r"[:;.]\s|\s[-\u2013\u2014]\s|\s\(", text)[0]
    text = text.strip(" .,;:!-")
    if not 2 <= len(text.split()) <= _MAX_WORDS or len(text) > _MAX_CHARS:  # one word, "simplify", says too little
        return None
    # Escape sequences are not printable; a line that ends with ":" introduces a list.
    if _FORMULA.search(text) or not text.isprintable() or not text[0].isalpha() or line.endswith((":", "?")):
        return None
    return text[0].lower() + text[1:]


def _normalized(text: str) -> str:
    # "Drop a term." and "drop the term" are the same.
    return " ".join(word for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the"))


def _by_effect(votes: Mapping[str, Counter[Effect]], texts: Mapping[str, str]) -> dict[Effect, list[str]]:
    """The texts by the effect for which they were given most often."""
    by_effect: dict[Effect, list[str]] = {effect: [] for effect in EFFECTS}
    for key, counts in votes.items():
        (effect, most), *others = counts.most_common()
        if not others or others[0][1] < most:  # in a tie the effect is unclear, and the text is dropped
            by_effect[effect].append(texts[key])
    return by_effect
