"""How fast processes exchange arrays, and how fast each division of a step is: an estimate."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Self

import mlx.core as mx

from ..checkpoints.components import DTYPES
from ..checkpoints.model_configurations import ModelConfigurations, official_model
from ..checkpoints.variants import VARIANTS
from ..diffusion.division import Division, divide
from ..distributed import Distributed, Processes
from ..errors import InvalidInputError
from ..pipeline.geometry import Geometry
from ..pipeline.resolver import model_geometry
from .speed import Ceilings, step_seconds

SECONDS = 0.2
"""Time from which on an exchange says how fast the link is."""
LARGEST = 2**26
"""Bytes that a process gives to an exchange at most."""


def measure_link(distributed: Distributed) -> float:
    """Bytes that a process receives in a second while all exchange.

    All processes must call it.
    """
    count, seconds = 2**18, 0.0
    while count < LARGEST and seconds < SECONDS:
        count *= 2
        array = mx.zeros(count, mx.uint8)
        mx.eval(array)
        _mean(distributed, 0.0)  # so that all begin together
        start = time.perf_counter()
        mx.eval(distributed.all_gather(array))
        # The same everywhere, so that all stop at the same size.
        seconds = _mean(distributed, time.perf_counter() - start)
    return (distributed.size - 1) * count / seconds


def _mean(distributed: Distributed, number: float) -> float:
    """The mean over all processes. Sums of a ring may hang (ml-explore/mlx#4475)."""
    return distributed.all_gather(mx.array(number)).mean().item()


@dataclass(frozen=True)
class Work:
    """A step with what it takes.

    Attributes:
        steps: seconds that each process would take for it alone.
        block_bytes: bytes of the keys and values of all tokens of a text in one block.
        velocity_bytes: bytes of the velocity of a text.
        blocks: number of blocks.
        tokens: number of tokens.
        texts: 2 with guidance.
        link: bytes that a process receives in a second.
    """

    steps: tuple[float, ...]
    block_bytes: int
    velocity_bytes: int
    blocks: int
    tokens: int
    texts: int
    link: float

    @classmethod
    def of(
        cls,
        model: ModelConfigurations,
        geometry: Geometry,
        machines: Sequence[Ceilings],
        link: float,
        *,
        texts: int = 2,
    ) -> Self:
        """The work of a model's step on machines of these speeds."""
        config = model.configs["transformer"]
        tokens = config.token_count(geometry.latent_shape)
        steps = (step_seconds(model, geometry, each, batch=texts) for each in machines)
        itemsize = DTYPES[machines[0].dtype].size
        bytes_of_block = 2 * tokens * config.dim * itemsize
        velocity = prod(geometry.latent_shape) * itemsize
        return cls(tuple(steps), bytes_of_block, velocity, config.num_layers, tokens, texts, link)

    def seconds(self, division: Division) -> float:
        """How long a step takes that processes divide like this.

        In a ring, which can't be divided, each process gets the keys and values of all others.
        """
        size = division.size
        rows = [
            count
            for half in range(division.halves)
            for count in division.token_counts(half, self.tokens)
        ]
        texts = self.texts / division.halves
        # Of three processes with guidance one has nothing to do.
        working = zip(self.steps, rows, strict=False)
        computed = max(step * texts / self.texts * row / self.tokens for step, row in working)
        blocks = self.blocks if division.splits_tokens else 0
        given = texts * (blocks * self.block_bytes + self.velocity_bytes) * max(rows) / self.tokens
        return computed + (size - 1) * given / self.link

    def divisions(self) -> Iterator[tuple[str, Division]]:
        """The divisions that are worth a thought, with the options that choose them."""
        size = len(self.steps)
        equal = Processes(size)
        shares = tuple(float(f"{min(self.steps) / each:.2g}") for each in self.steps)
        for options, processes in (
            ("--split guidance", replace(equal, split="guidance")),
            ("--split tokens", replace(equal, split="tokens")),
            (
                f"--split tokens --shares {' '.join(f'{share:g}' for share in shares)}",
                replace(equal, split="tokens", shares=shares),
            ),
        ):
            if processes.shares is not None and min(shares) > 0.8:
                continue
            try:
                yield options, divide(processes, self.texts == 2)
            except InvalidInputError:
                continue


def compared(work: Work) -> list[tuple[str, float]]:
    """The options of each division and the seconds of a step with it, the fastest first."""
    found = [(options, work.seconds(division)) for options, division in work.divisions()]
    return sorted(found, key=lambda each: each[1])


def report_together(distributed: Distributed, ceilings: Sequence[Ceilings]) -> dict[str, Any]:
    """Measures the link between processes, and estimates a step of each official model.

    All processes must call it.

    Args:
        ceilings: what this machine reaches with each dtype.

    Returns:
        JSON: ``link`` in bytes a second, the ``machines``' ceilings, and ``steps``: for each model
        the seconds of a step on the first machine alone, and by the options that divide it.
    """
    link = measure_link(distributed)
    rates = [[each.matmul, each.attention, each.bandwidth] for each in ceilings]
    of_all = distributed.all_gather(mx.array(rates)).tolist()
    best = max(range(len(ceilings)), key=lambda i: ceilings[i].matmul)
    dtype = ceilings[int(distributed.all_gather(mx.array(best))[0].item())].dtype
    machines = [
        Ceilings(dtype, *rows[[each.dtype for each in ceilings].index(dtype)]) for rows in of_all
    ]
    steps = []
    for variant in VARIANTS:
        model = official_model(variant)
        work = Work.of(model, model_geometry(model), machines, link)
        ways = [{"options": options, "seconds": seconds} for options, seconds in compared(work)]
        steps.append({"variant": variant.alias, "alone": work.steps[0], "together": ways})
    return {"link": link, "machines": [asdict(each) for each in machines], "steps": steps}
