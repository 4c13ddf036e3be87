"""Batches that are drawn from several data sets by their weights."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from trainers import sample_numbers, write_samples

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.distributed import Distributed
from mlx_cogvideo.training.batches import Batches
from mlx_cogvideo.training.clips import Clip
from mlx_cogvideo.training.data_sets import hold_out_share
from mlx_cogvideo.training.digests import content_digests
from mlx_cogvideo.training.layouts import DataSet
from mlx_cogvideo.training.prepare import Sample
from mlx_cogvideo.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


def weighted(folder: Path, *weights: float | None) -> list[Sample]:
    """Two samples of a first data set, and four of a second one."""
    samples = write_samples(folder, 6)
    sets = [DataSet(Path(name), weight) for name, weight in zip("ab", weights, strict=True)]
    return [
        replace(sample, clip=replace(sample.clip, data_set=sets[number >= 2]))
        for number, sample in enumerate(samples)
    ]


def drawn(pipe, samples, count: int, size: int = 1, first: int = 0, **options) -> list[list[int]]:
    """The samples of some batches."""
    settings = TrainingSettings(batch_size=size, caption_dropout=0, **options)
    batches = Batches(pipe, samples, samples[0].text, settings)
    return [sample_numbers(batches.draw(number)) for number in range(first, first + count)]


def test_the_weight_is_the_share_of_the_batches(pipe, tmp_path):
    found = [number for (number,) in drawn(pipe, weighted(tmp_path, 3, 1), 400)]
    # Three standard deviations of 400 draws.
    assert 0.75 - 0.065 < sum(number < 2 for number in found) / 400 < 0.75 + 0.065
    # In each data set, all samples are drawn before one is drawn again.
    for members in ({0, 1}, {2, 3, 4, 5}):
        own = [number for number in found if number in members]
        for first in range(0, len(own) - len(members), len(members)):
            assert {*own[first : first + len(members)]} == members


def test_a_batch_is_of_one_data_set_and_drawn_by_its_number(pipe, tmp_path):
    samples = weighted(tmp_path, 1, 1)
    found = drawn(pipe, samples, 20, size=2)
    assert {len({number < 2 for number in batch}) for batch in found} == {1}
    assert {batch[0] < 2 for batch in found} == {True, False}
    assert drawn(pipe, samples, 8, size=2, first=12) == found[12:]
    assert drawn(pipe, samples, 20, size=2, seed=1) != found


def test_data_sets_without_weights_are_drawn_as_one(pipe, tmp_path):
    found = drawn(pipe, weighted(tmp_path, None, None), 24)
    assert found == drawn(pipe, write_samples(tmp_path, 6), 24)
    assert Counter(number for (number,) in found) == dict.fromkeys(range(6), 4)


def test_several_processes_draw_what_one_would(pipe, tmp_path):
    samples = weighted(tmp_path, 2, 1)
    settings = TrainingSettings(caption_dropout=0)
    each = [
        Batches(pipe, samples, samples[0].text, settings, (), Distributed(Peers(rank)))
        for rank in range(2)
    ]
    for number, expected in enumerate(drawn(pipe, samples, 12, size=2)):
        assert [sample_numbers(batches.draw(number))[0] for batches in each] == expected


class Peers:
    """Two processes, of which only rank and number are asked for."""

    def __init__(self, rank: int):
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return 2


def test_only_the_ratio_of_weights_counts_for_a_digest(tmp_path):
    digests = [
        content_digests(None, "", weighted(tmp_path, *weights), [])["clips"]
        for weights in ((2, 1), (4, 2), (1, 2), (None, None))
    ]
    assert digests[0] == digests[1] and len({*digests}) == 3
    assert digests[3] == content_digests(None, "", write_samples(tmp_path, 6), [])["clips"]


def test_about_a_share_is_held_out_and_no_clip_leaves_it_when_others_are_added():
    clips = [Clip(Path(f"{number}.mp4"), "") for number in range(1000)]

    def held_out(count: int) -> set[Path]:
        found = hold_out_share(clips[:count], 0.1, 0, lambda clip: clip.path.name)
        assert {clip.path for clip in found} == {clip.path for clip in clips[:count]}
        return {clip.path for clip in found if clip.held_out}

    # Three standard deviations.
    assert 100 - 29 < len(held_out(1000)) < 100 + 29
    before = held_out(20)
    for count in range(21, 120):
        after = held_out(count)
        assert before <= after <= before | {clips[count - 1].path}
        before = after
