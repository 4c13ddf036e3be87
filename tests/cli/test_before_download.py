"""What is said of an official model before its files are here, without asking the hub."""

import json
import shutil
import socket
import struct
import time
from itertools import accumulate, pairwise
from math import prod
from types import SimpleNamespace

import huggingface_hub
import pytest
from clips import make_clip
from commands import errors, run, warnings
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from official import TRANSFORMERS, official
from PIL import Image
from support import scheduler_config

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.lora import main as lora
from mlx_cogvideo.pipeline.estimates import estimate_memory
from mlx_cogvideo.pipeline.pipeline import CogVideoXPipeline
from mlx_cogvideo.pipeline.planned import open_to_plan
from mlx_cogvideo.training.estimates import estimate_training_memory
from mlx_cogvideo.training.settings import TrainingSettings
from mlx_cogvideo.video import write_video

COMMIT = "0" * 40
ITEMSIZE = {"F16": 2, "BF16": 2, "F32": 4}
DRY = ["--prompt", "a cat", "--dry-run"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, in a folder from which nothing reaches a network."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *repo, **options: download(*repo, cache_dir=folder, **options),
    )
    monkeypatch.chdir(tmp_path)
    return folder


def write_header(file, dtype: str, shapes: dict) -> None:
    """Writes a safetensors file whose tensors are a hole in the file."""
    ends = list(accumulate((ITEMSIZE[dtype] * prod(s) for s in shapes.values()), initial=0))
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for (name, shape), offsets in zip(shapes.items(), pairwise(ends), strict=True)
    }
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + ends[-1])


def write_official(folder, alias: str, tokenizer_folder):
    """Writes an official model as the hub has it, except that the weights' files are holes."""
    name, deep = alias.replace("-", "_"), alias.startswith("1.5")
    half = "F16" if alias == "2b" else "BF16"
    vae = {} if alias == "2b" else {"scaling_factor": 0.7, "invert_scale_latents": deep}
    for component, config, stem, keys in (
        ("transformer", TRANSFORMERS[name], "diffusion_pytorch_model", name),
        ("vae", vae, "diffusion_pytorch_model", "vae"),
        ("text_encoder", {}, "model", "t5_v1_1_xxl_encoder"),
    ):
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps(config))
        # An assumption, as in checkpoints/official.py.
        dtype = "F32" if deep and component != "transformer" else half
        write_header(folder / component / f"{stem}.safetensors", dtype, official(keys))
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = scheduler_config(snr_shift_scale=3.0 if alias == "2b" else 1.0)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def cached(cache, repo: str):
    """Where a download of a repository goes, and makes it known as the newest."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def lines(captured) -> dict[str, str]:
    """The lines of a plan by their titles."""
    return dict(line.split(None, 1) for line in captured.err.splitlines() if " " in line)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.alias)
def test_the_answers_are_those_of_the_downloaded_folder(
    cache, tmp_path, tokenizer_folder, variant, capsys
):
    folder = write_official(tmp_path / "official", variant.alias, tokenizer_folder)
    planned, whole = open_to_plan(variant.alias), CogVideoXPipeline.from_pretrained(folder)
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert planned.to_download == pytest.approx(files, rel=2e-4)
    assert planned.configs == whole.configs and planned.dtype == whole.dtype
    for pipe in (planned, whole):
        assert sum(map(pipe.weight_bytes, pipe.configs)) > 2**33
    image = {"image": "cat.png"} if variant.alias.endswith("i2v") else {}
    Image.fromarray(make_clip(1, 48, 72)[0]).save("cat.png")
    both = [pipe.request("a cat", seed=1, **image) for pipe in (planned, whole)]
    assert both[0].to_dict() == both[1].to_dict()
    assert estimate_memory(planned, both[0]) == estimate_memory(whole, both[1])
    training = [
        [
            estimate_training_memory(pipe, pipe.geometry(), TrainingSettings(fine_tune_type=kind))
            for kind in ("lora", "full")
        ]
        for pipe in (planned, whole)
    ]
    assert training[0] == training[1]
    results = []
    for model in (variant.alias, str(folder)):
        assert convert(["--model", model, "-q", "4", "--mlx-path", "new", "--dry-run"]) == 0
        printed = capsys.readouterr().err.splitlines()
        results.append([line for line in printed if "->" in line])
    assert results[0] == results[1] and len(results[0]) == 3


@pytest.mark.parametrize("name", ["5b", "THUDM/CogVideoX-5b", "zai-org/CogVideoX-5b"])
def test_a_dry_run_answers_before_the_download(cache, capsys, name):
    since = time.monotonic()
    assert run("--model", name, *DRY) == 0
    assert time.monotonic() - since < 5
    said = lines(capsys.readouterr())
    assert said["download"].startswith(f"19.6 GiB into {cache}, ")
    assert said["download"].endswith(" free")
    assert "encode" in said["memory"] and "denoise" in said["memory"]
    assert said["time"].startswith("unknown: ") and "measures this machine" in said["time"]
    assert not cache.exists()


def test_every_task_is_planned(cache, capsys):
    Image.fromarray(make_clip(1, 48, 72)[0]).save("cat.png")
    write_video("long.mp4", make_clip(25, 48, 64), 8)
    (cache.parent / "prompts.txt").write_text("a cat\na dog\n")
    assert run("--model", "5b-i2v", "--image", "cat.png", *DRY) == 0
    assert "source" in lines(capsys.readouterr())["memory"]
    longer = ["--frames", 17, "--extend", 1]
    assert run("--model", "5b", "--video", "long.mp4", *longer, *DRY) == 0
    assert lines(capsys.readouterr())["video"].startswith("25 frames, 2 windows of 17")
    assert run("--model", "2b", "--prompt-file", "prompts.txt", "--dry-run") == 0
    assert "and 1 more" in lines(capsys.readouterr())["output"]
    assert run("--model", "5b", "--memory-limit", 2, *DRY) == 2
    assert "the limit is 2.0 GiB" in capsys.readouterr().err


def test_only_what_is_missing_is_to_be_downloaded(cache, tmp_path, tokenizer_folder, capsys):
    whole = write_official(tmp_path / "official", "5b", tokenizer_folder)
    here = cached(cache, "THUDM/CogVideoX-5b")
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.move(whole / name, here / name)
    assert run("--model", "5b", *DRY) == 0
    assert lines(capsys.readouterr())["download"].startswith("10.4 GiB into ")
    # A part of the transformer, too: 4 GiB of a shard.
    (here / "transformer").mkdir()
    shard = here / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    with shard.open("wb") as stream:
        stream.truncate(4 * 2**30)
    assert run("--model", "5b", *DRY) == 0
    assert lines(capsys.readouterr())["download"].startswith("6.4 GiB into ")
    shutil.rmtree(here / "transformer")
    shutil.move(whole / "transformer", here / "transformer")
    assert run("--model", "5b", *DRY) == 0
    assert "download" not in lines(capsys.readouterr())


def test_a_base_is_known_as_well(cache, capsys):
    shutil.copytree(DEMO_PATH / "tokenizer", "mine/tokenizer")
    assert run("--model", "mine", "--base", "2b", *DRY) == 0
    assert lines(capsys.readouterr())["download"].startswith("12.4 GiB into ")
    assert convert(["--model", "mine", "--base", "2b", "--dry-run"]) == 0
    assert lines(capsys.readouterr())["download"].startswith("12.4 GiB into ")


def test_an_adapter_of_the_hub_is_not_checked(cache, capsys):
    assert run("--model", "5b", "--lora", "some/adapter", 0.5, *DRY) == 0
    assert "some/adapter isn't in the local cache" in warnings(capsys.readouterr().err)[0]
    assert convert(["--lora", "some/adapter", "--dry-run"]) == 0
    assert "some/adapter isn't in the local cache" in warnings(capsys.readouterr().err)[0]


def test_another_model_is_not_known_before_its_download(cache, capsys):
    for command in (lambda *a: run(*a, "--prompt", "a"), lambda *a: convert([*a])):
        assert command("--model", "some/model", "--dry-run") == 1
        assert "isn't in the local cache: without --dry-run" in capsys.readouterr().err


def test_a_training_is_planned(cache, capsys):
    (cache.parent / "data").mkdir()
    write_video("data/a.mp4", make_clip(9, 48, 64), 8)
    (cache.parent / "data" / "a.txt").write_text("a cat")
    size = ["--frames", "9", "--dry-run"]
    assert lora(["--model", "2b", "--data", "data", *size]) == 0
    said = lines(capsys.readouterr())
    assert said["download"].startswith("12.4 GiB into ") and "train" in said["memory"]


def small_disk(monkeypatch, free: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))


def test_a_dry_run_warns_of_a_small_disk(cache, monkeypatch, capsys):
    small_disk(monkeypatch, 20 * 2**30)
    assert run("--model", "5b", *DRY) == 0
    assert not any("the disk of" in line for line in warnings(capsys.readouterr().err))
    # The download fits, and the result beside it doesn't.
    assert convert(["-q", "4", "--dry-run"]) == 0
    (warning,) = warnings(capsys.readouterr().err)
    assert "has 20.0 GiB free and the download needs 19.6 GiB and the result" in warning
    assert "6.9 GiB (6.5 GiB are missing)" in warning
    small_disk(monkeypatch, 10 * 2**30)
    assert run("--model", "5b", *DRY) == 0
    assert any("set HF_HOME to another disk" in line for line in warnings(capsys.readouterr().err))


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub that has the 5B, which is never downloaded; returns the requests for files."""
    asked = []

    def answer(repo, *, local_files_only=False, dry_run=False, **_):
        if local_files_only:
            raise hub_errors.LocalEntryNotFoundError("empty")
        if dry_run:
            return [SimpleNamespace(will_download=True, file_size=21 * 10**9)]
        asked.append(repo)
        raise hub_errors.LocalEntryNotFoundError("the end of this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return asked


COMMANDS = {
    "generate": lambda: run("--model", "5b", "--prompt", "a cat"),
    "convert": lambda: convert(["--model", "5b", "-q", "4"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_says_what_it_needs_before_it_downloads(hub, command, monkeypatch, capsys):
    small_disk(monkeypatch, 100 * 2**30)
    assert COMMANDS[command]() == 1
    said = lines(capsys.readouterr())
    assert said["download"].endswith("100.0 GiB free")
    assert "memory" in said if command == "generate" else "transformer" in said
    assert hub == ["THUDM/CogVideoX-5b"]
    # What can't be made isn't worth a download.
    small_disk(monkeypatch, 2**30)
    assert COMMANDS[command]() == 1
    (error,) = errors(capsys.readouterr().err)
    assert "has 1.0 GiB free and the download needs 19.6 GiB" in error
    assert run("--model", "5b", "--prompt", "a", "--frames", 8) == 2
    assert hub == ["THUDM/CogVideoX-5b"]
