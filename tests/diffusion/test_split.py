"""How several processes divide a step, without any others."""

import hashlib

import mlx.core as mx
import numpy as np
import pytest

from mlx_cogvideo import CogVideoXPipeline, GenerationError, InvalidInputError
from mlx_cogvideo.diffusion.division import ONE_PROCESS, Division, divide
from mlx_cogvideo.diffusion.split import Split
from mlx_cogvideo.distributed import Distributed, Processes
from mlx_cogvideo.pipeline.estimates import estimate_memory

PROMPT = "a red circle moves right on a white background"
SIZE = {"num_frames": 9, "height": 48, "width": 48, "num_inference_steps": 4, "seed": 1}


@pytest.mark.parametrize("tokens", [7, 106, 17776])
@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 1), (2, 1), (1, 2, 3, 4), (1000, 1, 1)])
def test_each_process_has_tokens_about_as_its_share(tokens, shares):
    counts = Division(shares).token_counts(0, tokens)
    assert sum(counts) == tokens and min(counts) >= 1
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - tokens * share / sum(shares)) <= len(shares)


@pytest.mark.parametrize(
    ("size", "guided", "split", "shares", "halves", "splits_tokens"),
    [
        (1, True, None, None, 1, False),
        (2, True, None, None, 2, False),
        (2, False, None, None, 1, True),
        (2, True, "tokens", None, 1, True),
        (2, True, None, (2, 1), 1, True),
        (3, True, None, None, 1, True),
        (3, True, "guidance", None, 2, False),
        (4, True, None, None, 2, True),
        (4, True, None, (2, 1, 2, 1), 2, True),
        (4, True, "tokens", None, 1, True),
    ],
)
def test_what_is_divided(size, guided, split, shares, halves, splits_tokens):
    division = divide(Processes(size, split, shares), guided)
    assert (division.halves, division.splits_tokens) == (halves, splits_tokens)
    texts = 2 if guided else 1
    done = [text for rank in range(size) for text in division.for_texts(texts).texts(rank, texts)]
    assert sorted(set(done)) == list(range(texts)), "each text is computed"


def test_a_step_without_guidance_is_left_to_one_of_two_and_divided_by_four():
    two, four = divide(Processes(2), True), divide(Processes(4), True)
    assert [two.for_texts(1).texts(rank, 1) for rank in range(2)] == [[], [0]]
    assert four.for_texts(1).members(0) == range(4)


@pytest.mark.parametrize(
    ("processes", "guided", "words"),
    [
        (
            Processes(2, None, (1.0, 2.0, 3.0)),
            True,
            "one number for each of the 2 processes; got 3",
        ),
        (Processes(2, "guidance", (2.0, 1.0)), True, "leave out --split guidance"),
        (Processes(2, "guidance"), False, "use --split tokens"),
        (Processes(5, "guidance"), True, "an even number of processes; these are 5"),
    ],
)
def test_what_cant_be_divided_is_refused(processes, guided, words):
    with pytest.raises(InvalidInputError, match=words):
        divide(processes, guided)


@pytest.mark.parametrize("cache", [None, "teacache", "first-block"])
def test_one_process_exchanges_nothing(monkeypatch, cache):
    def fail(*_, **__):
        raise AssertionError("an exchange")

    for name in ("all_gather", "all_sum", "all_max", "all_min", "send", "recv", "init"):
        monkeypatch.setattr(mx.distributed, name, fail)
    pipe = CogVideoXPipeline.from_pretrained("demo")
    assert pipe.request(PROMPT).division == ONE_PROCESS
    pipe(PROMPT, output_type="latent", cache=cache, **SIZE)


def test_a_process_needs_memory_for_its_part():
    def need(processes: Processes, **settings) -> int:
        pipe = CogVideoXPipeline.from_pretrained("demo")
        pipe.processes = processes
        request = pipe.request(PROMPT, num_frames=49, height=96, width=96, **settings)
        return estimate_memory(pipe, request)["denoise"]

    one = need(Processes(), sequential_guidance=True)
    assert need(Processes(2)) == one < need(Processes(), sequential_guidance=False)
    assert need(Processes(4)) < one
    assert need(Processes(2, "tokens"), guidance_scale=1) < need(Processes(), guidance_scale=1)


class Others(Distributed):
    """A process whose others have `rest`, in exchanges of arrays of that shape, or digests."""

    def __init__(self, rest: mx.array):
        super().__init__()
        self.rank, self.size, self._rest = 1, 2, rest

    def all_gather(self, array: mx.array) -> mx.array:
        if array.shape == self._rest.shape:
            return mx.stack([self._rest, array])
        digest = hashlib.sha256(np.array(self._rest).tobytes()).digest()[:8]
        return mx.stack([mx.array(np.frombuffer(digest, np.uint32)), array])


def agreed(difference: float, step: int = 10) -> list[mx.array]:
    own, x0 = mx.ones((1, 2, 2, 2, 4)), mx.zeros((1, 2, 2, 2, 4))
    rest = mx.concatenate([(own + difference).flatten(), x0.flatten()])
    return list(Split(Division((1, 1)), Others(rest)).agreed(own, x0, step))


def test_latents_that_differ_by_rounding_become_those_of_the_main_process():
    assert agreed(2**-20)[0].max().item() == 1 + 2**-20
    assert agreed(0)[0].max().item() == 1
    assert agreed(2**-20, step=9)[0].max().item() == 1, "compared in some steps only"


def test_latents_that_differ_more_end_the_run():
    with pytest.raises(GenerationError, match=r"after step 10 .* differ by 0\.5"):
        agreed(0.5)


class Other(Distributed):
    """A process whose other one gives `rest` in each exchange."""

    def __init__(self, rest: list[int]):
        super().__init__()
        self.size, self._rest = 2, mx.array(rest)

    def all_gather(self, array: mx.array) -> mx.array:
        return mx.stack([self._rest, array])


def test_a_step_is_bad_for_all_if_it_is_for_one():
    """Else one would go on to the next video while the other still takes steps of this one."""
    assert Split(Division((1, 1)), Other([1, 3])).all(True, 3)
    assert not Split(Division((1, 1)), Other([0, 3])).all(True, 3)
    assert not Split(Division((1, 1)), Other([1, 3])).all(False, 3)
    with pytest.raises(GenerationError, match="the processes take different steps"):
        Split(Division((1, 1)), Other([1, 4])).all(True, 3)
