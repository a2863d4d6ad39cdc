"""When a reply ends: at an end token of the model, or with a stop text of the task."""

import functools
from collections.abc import Sequence
from typing import Any

import torch


class Stopping:
    """Ends replies at `ends`, the end and padding tokens, and where their text contains one of the `stop` texts."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._ends, self._stop = tokenizer, ends, stop
        # Decoding is slow, so it is left to tokens that contain the last character of a stop text.
        self.may_complete = _tokens_with(tokenizer, "".join(sorted({text[-1] for text in stop})))
        # A stop text has at most as many tokens as characters, not counting tokens that decode to nothing.
        self._longest = max((len(text) for text in stop), default=0) + 4

    def has_ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last token of a reply ends it."""
        return tokens[-1] in self._ends or self.completes_stop_text(tokens)

    def completes_stop_text(self, tokens: Sequence[int]) -> bool:
        """Whether the last token of a reply completes a stop text."""
        last = tokens[-1]
        if last >= len(self.may_complete) or not self.may_complete[last]:  # models may have more tokens than tokenizers
            return False
        tail = self._tokenizer.decode(tokens[-self._longest :])
        return any(text in tail for text in self._stop)


@functools.cache
def _tokens_with(tokenizer: Any, characters: str) -> torch.Tensor:
    """For each token of the vocabulary, whether its text contains one of the characters."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([any(character in text for character in characters) for text in texts])
