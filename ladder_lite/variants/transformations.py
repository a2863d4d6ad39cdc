"""The library of transformations: short descriptions of changes to an integral, sorted by what they do to it.

The paper lets the base model write it before any variant (section on variant generation); each variant request then
suggests a few. `variants.transformations` of a recipe says where it comes from: `model`, `default` (`default.json`,
written by hand for models that cannot write one), a `library.json` of another run, or lists in the recipe itself.
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

EFFECTS: tuple[Effect, ...] = ("easier", "equivalent", "harder")
FILE = "library.json"

SIZE = 20
"""Transformations of each effect that the model is asked to come up with."""

_PER_REPLY = 10
_N_REPLIES = 4
_MAX_ROUNDS = 3
_MAX_WORDS = 16
_MAX_CHARS = 120


@dataclass(frozen=True, slots=True)
class Library:
    """Transformations by effect. `source` is "model", "default", "model and default", "recipe" or a file's path."""

    source: str
    easier: tuple[str, ...]
    equivalent: tuple[str, ...]
    harder: tuple[str, ...]

    def of(self, effect: Effect) -> tuple[str, ...]:
        """The transformations that have an effect."""
        texts: tuple[str, ...] = getattr(self, effect)
        return texts

    @staticmethod
    def read(path: Path) -> "Library":
        """The library of a file such as `write` leaves; UserError where there is none."""
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            lists = [row[effect] for effect in EFFECTS]
            if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
                raise TypeError("each effect must be a list of texts")
            return Library(str(row["source"]), *map(tuple, lists))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"variants.transformations {path}: no library can be read there ({error})") from error


DEFAULT = Library.read(Path(__file__).with_name("default.json"))
"""For models that cannot write a library; `harder` is for the record, the paper dropped harder variants."""


def open_library(settings: VariantSettings, folder: Path) -> Library:
    """The library that a recipe names; for `model`, the one that `write` left in the folder.

    UserError where the file of another run cannot be used.
    """
    chosen = settings.transformations
    if isinstance(chosen, Transformations):
        return Library("recipe", chosen.easier, chosen.equivalent, ())
    if chosen == "default":
        library = DEFAULT
    elif chosen == "model":
        library = Library.read(folder / FILE)
    else:
        library = replace(Library.read(Path(chosen)), source=chosen)
    for effect in EFFECTS[:2]:  # harder ones are never asked for
        if getattr(settings.mix, effect) and len(library.of(effect)) < settings.suggestions[1]:
            raise UserError(
                f"variants.transformations {chosen}: has {len(library.of(effect))} {effect} ones, and "
                f"variants.suggestions asks for up to {settings.suggestions[1]}; lower it or name a longer library"
            )
    return library


def write(task: Task, backend: Backend, settings: VariantSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Let the model write its library into the folder's `library.json`; returns how it went, for `done.json`.

    Each effect is asked for in rounds, at temperatures across the recipe's range, until there are `SIZE` distinct
    ones. Where fewer come than a request suggests, `DEFAULT` fills up, and `source` says so.
    """
    lowest, highest = settings.temperature
    temperatures = tuple(lowest + (highest - lowest) * step / (_N_REPLIES - 1) for step in range(_N_REPLIES))
    votes: dict[str, Counter[Effect]] = defaultdict(Counter)  # by normalized text: how often for which effect
    texts: dict[str, str] = {}
    rejected: list[dict[str, str]] = []
    n_tokens = 0
    for number in range(_MAX_ROUNDS):
        for effect in EFFECTS:
            if len(_sorted(votes, texts)[effect]) >= SIZE:
                continue
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
    found = _sorted(votes, texts)
    filled = {
        effect: own if len(own) >= settings.suggestions[1] else list(dict.fromkeys([*own, *DEFAULT.of(effect)]))
        for effect, own in found.items()
    }
    source = "model" if filled == found else "model and default"
    library = Library(source, *map(tuple, filled.values()))
    write_json(folder / FILE, {**asdict(library), "rejected": rejected})
    written = {effect: len(texts) for effect, texts in found.items()}
    return {"source": source, "written": written, "rejected": len(rejected), "tokens": n_tokens}


def read_list(text: str) -> Iterator[tuple[str, str | None]]:
    """Each line of a reply with the transformation it describes, None where it describes none.

    Where the reply holds list items, other lines are prose around them and are passed over.
    """
    lines = [line.strip() for line in text[:20_000].splitlines() if line.strip()]
    items = [line for line in lines if _MARKER.match(line)]
    for line in items or lines:
        yield line[:_MAX_CHARS], _clean(line)


_MARKER = re.compile(r"(?:\(?\d{1,2}[.):]|[-*\u2022\u2013])\s+")
_FORMULA = re.compile(r"\\int|∫|integra(?:te|l)\s*\(|[=\\{}$<>]")


def _clean(line: str) -> str | None:
    """A line as a short description in plain words, None where it is none."""
    text = _MARKER.sub("", line, count=1)
    text = re.sub(r"[*_`\"“”]+", "", text).strip()
    if len(text) > _MAX_CHARS or len(text.split()) > _MAX_WORDS:  # "Lower the exponent: for instance ..."
        text = re.split(r"[:;.]\s|\s[-\u2013\u2014]\s|\s\(", text)[0]
    text = text.strip(" .,;:!-")
    if not 2 <= len(text.split()) <= _MAX_WORDS or len(text) > _MAX_CHARS:
        return None
    if _FORMULA.search(text) or not text.isprintable() or not text[0].isalpha() or line.endswith((":", "?")):
        return None
    return text[0].lower() + text[1:]


def _normalized(text: str) -> str:
    return " ".join(word for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the"))


def _sorted(votes: Mapping[str, Counter[Effect]], texts: Mapping[str, str]) -> dict[Effect, list[str]]:
    """The texts by the effect they were given for most often; one given for two equally often says nothing."""
    found: dict[Effect, list[str]] = {effect: [] for effect in EFFECTS}
    for key, counts in votes.items():
        (effect, most), *others = counts.most_common()
        if not others or others[0][1] < most:
            found[effect].append(texts[key])
    return found
