"""When a reply ends: at an end token of the model, or with a stop text of the task."""

import functools
from collections.abc import Sequence
from typing import Any


class Stopping:
    """Ends replies at `ends`, the end and padding tokens, and where their text contains one of the `stop` texts."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._ends, self.stop = tokenizer, ends, stop
        # Decoding is slow, so it is left to tokens that contain the last character of a stop text.
        last_characters = "".join(sorted({text[-1] for text in stop}))
        self._completing = _tokens_with(tokenizer, last_characters) if stop else frozenset[int]()
        # A stop text has at most as many tokens as characters, not counting tokens that decode to nothing.
        self.tail_length = max((len(text) for text in stop), default=0) + 4

    def has_ended(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token of a reply ends it."""
        return tokens[-1] in self._ends or self.completes_stop_text(tokens)

    def completes_stop_text(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token of a reply completes a stop text; `tail_length` tokens of it are enough."""
        if tokens[-1] not in self._completing:
            return False
        tail = self._tokenizer.decode(tokens[-self.tail_length :])
        return any(text in tail for text in self.stop)


@functools.lru_cache(maxsize=4)
def _tokens_with(tokenizer: Any, characters: str) -> frozenset[int]:
    """Return the tokens of the vocabulary whose text contains one of the characters."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if not set(characters).isdisjoint(text))
