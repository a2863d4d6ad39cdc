"""What an engine is given and returns."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.stopping import Stopping


class Request(NamedTuple):
    """A prompt, as token ids, that wants one reply; `lean` seeds its random numbers with `id`."""

    id: int
    prompt: Sequence[int]
    temperature: float


class Reply(NamedTuple):
    """The tokens sampled for request `id`, including the one that ended the reply, and their log-probabilities.

    `logprobs` is None unless `Sampling.logprobs` asks for them. Padding may follow the reply.
    """

    id: int
    tokens: list[int]
    logprobs: list[float] | None


class Engine(Protocol):
    """Samples replies from one model."""

    name: str

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, stopping: Stopping, at_once: int
    ) -> Iterator[Reply]:
        """Yield one reply per request, in any order; at most `at_once` replies are generated at the same time.

        The temperatures are those of the requests. Raises torch.OutOfMemoryError if that many do not fit; the replies
        yielded before are valid.
        """
