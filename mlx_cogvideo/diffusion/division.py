"""How several processes divide a step: which of them computes what.

There are two ways, which go together:

- Guidance: half of the processes compute the pass without the prompt, the others the pass with it.
- Tokens: each process computes its rows of the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from ..distributed import Processes
from ..errors import InvalidInputError

SPLITS = ("guidance", "tokens")
"""What the processes divide first."""


@dataclass(frozen=True)
class Division:
    """How processes divide the work of a step.

    Attributes:
        shares: the weight of each process's tokens, in any unit.
        halves: 2 where half of the processes compute each pass of guidance, else 1.
    """

    shares: tuple[float, ...] = (1.0,)
    halves: int = 1

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.shares)

    @property
    def splits_tokens(self) -> bool:
        return self.size // self.halves > 1

    def members(self, half: int) -> range:
        """The ranks of the processes of one half; of three with guidance, the last is idle."""
        count = self.size // self.halves
        return range(half * count, (half + 1) * count)

    def half(self, rank: int) -> int | None:
        """The half of a process; None is idle."""
        half = rank // (self.size // self.halves)
        return half if half < self.halves else None

    def for_texts(self, count: int) -> "Division":
        """The division of a step with so many texts: one without guidance has 1.

        Two processes leave such a step to one of them. More divide its tokens.
        """
        if count == 1 and self.halves == 2 and self.splits_tokens:
            return replace(self, halves=1)
        return self

    def half_of_text(self, text: int, count: int) -> int:
        """The half that computes a text; without guidance there is only the prompt's."""
        return text + self.halves - count if self.halves == 2 else 0

    def texts(self, rank: int, count: int) -> list[int]:
        """The texts, of so many, that a process computes."""
        own = self.half(rank)
        return [text for text in range(count) if self.half_of_text(text, count) == own]

    def token_counts(self, half: int, tokens: int) -> list[int]:
        """The number of tokens of each member of a half, at least one each."""
        shares = [self.shares[rank] for rank in self.members(half)]
        left, edges = len(shares), [0]
        for share in accumulate(shares):
            left -= 1
            edge = round(tokens * share / sum(shares))
            edges.append(min(max(edge, edges[-1] + 1), tokens - left))
        return [end - first for first, end in pairwise(edges)]

    def largest_share(self, tokens: int) -> int:
        """Tokens of the process that has most."""
        return max(max(self.token_counts(half, tokens)) for half in range(self.halves))


ONE_PROCESS = Division()


def divide(processes: Processes, guided: bool) -> Division:
    """Chooses a division: of the guidance, where it is possible and nothing else was asked for.

    Args:
        guided: whether the run has guidance.

    Raises:
        InvalidInputError: so many processes can't divide it as they were asked to.
    """
    size, shares = processes.size, processes.shares or (1.0,) * processes.size
    if len(shares) != size:
        raise InvalidInputError(
            f"--shares needs one number for each of the {size} processes; got {len(shares)}"
        )
    split = processes.split or _usual_split(processes, guided)
    if split == "guidance":
        _check_guidance(processes, guided)
    return Division(tuple(map(float, shares)), 2 if split == "guidance" else 1)


def _usual_split(processes: Processes, guided: bool) -> str:
    shares_of_two = processes.size == 2 and processes.shares is not None
    return "guidance" if guided and processes.size % 2 == 0 and not shares_of_two else "tokens"


def _check_guidance(processes: Processes, guided: bool) -> None:
    """Raises InvalidInputError unless processes can divide the passes of guidance."""
    size = processes.size
    if not guided:
        raise InvalidInputError("--split guidance needs a guidance above 1: use --split tokens")
    if size % 2 and size != 3:
        raise InvalidInputError(
            f"--split guidance needs an even number of processes; these are {size}"
        )
    if processes.shares is not None and size < 4:
        raise InvalidInputError("--shares divides tokens: leave out --split guidance")


def video_counts(counts: Sequence[int], text_length: int) -> list[int]:
    """How many of each process's tokens are video tokens."""
    edges = accumulate(counts, initial=0)
    return [end - min(max(first, text_length), end) for first, end in pairwise(edges)]
