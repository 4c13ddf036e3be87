"""Hub ids and aliases with a local cache and a stubbed hub, without network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from commands import errors, generate
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import filter_repo_objects

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError, ModelNotFoundError
from mlx_cogvideo.checkpoints import (
    BUNDLED,
    DEMO_PATH,
    SHARED_KEY,
    component_folder,
    default_model,
    hub_id,
    model_identity,
    resolve_model,
)
from mlx_cogvideo.cli.check import main as check
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.generate import main as generate_command
from mlx_cogvideo.cli.lora import main as lora

REPO = "someone/CogVideoX-tiny"
COMMIT = "0" * 40


def make_cache(folder) -> None:
    """Makes a hub cache with the demo as `REPO`, like a download."""
    repo = folder / "models--someone--CogVideoX-tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / COMMIT).symlink_to(DEMO_PATH, target_is_directory=True)


def test_a_repository_in_the_cache_opens_without_the_network(tmp_path, monkeypatch):
    make_cache(tmp_path)
    download = huggingface_hub.snapshot_download

    def from_cache(repo, **options):
        return download(repo, cache_dir=tmp_path, **{**options, "local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    pipe = CogVideoXPipeline.from_pretrained(REPO)
    assert pipe.folder == tmp_path / "models--someone--CogVideoX-tiny" / "snapshots" / COMMIT
    assert pipe.configs["transformer"].num_layers > 0


@pytest.fixture
def requests(monkeypatch):
    """Records the requests to a stubbed hub, which returns the demo."""
    calls = []

    def answer(repo, *, allow_patterns, **options):
        calls.append((repo, allow_patterns, options))
        return str(DEMO_PATH)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return calls


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("2b", "THUDM/CogVideoX-2b"),
        ("5B", "THUDM/CogVideoX-5b"),
        ("5b-i2v", "THUDM/CogVideoX-5b-I2V"),
        ("1.5-5b", "THUDM/CogVideoX1.5-5B"),
        ("1.5-5b-i2v", "THUDM/CogVideoX1.5-5B-I2V"),
        ("CogVideoX-5b", "THUDM/CogVideoX-5b"),
        ("cogvideox1.5-5b-i2v", "THUDM/CogVideoX1.5-5B-I2V"),
        ("zai-org/CogVideoX-2b", "THUDM/CogVideoX-2b"),
        ("thudm/cogvideox-5B-i2v", "THUDM/CogVideoX-5b-I2V"),
        ("someone/CogVideoX-5b", "someone/CogVideoX-5b"),
        ("someone/else", "someone/else"),
    ],
)
def test_aliases_and_ids_are_requested_from_the_hub(requests, name, repo):
    assert resolve_model(name) == DEMO_PATH
    assert requests[0][0] == repo


def test_an_official_model_is_taken_under_the_owner_that_the_cache_has(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--zai-org--CogVideoX-5b").mkdir()
    assert [hub_id(name) for name in ("5b", "THUDM/CogVideoX-5b", "2b")] == [
        "zai-org/CogVideoX-5b",
        "zai-org/CogVideoX-5b",
        "THUDM/CogVideoX-2b",
    ]
    (tmp_path / "models--THUDM--CogVideoX-5b").mkdir()
    assert hub_id("5b") == "THUDM/CogVideoX-5b"


def test_a_folder_with_the_name_of_an_official_model_wins(requests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("CogVideoX-5b", "zai-org/CogVideoX-5b"):
        Path(name).mkdir(parents=True)
        assert resolve_model(name) == Path(name)
    assert requests == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("5b-i2w", "5b-i2v"), ("cogvideox5b", "CogVideoX-5b"), ("dmo", "demo")],
)
def test_a_wrong_short_name_is_answered_by_the_nearest(name, meant):
    with pytest.raises(ModelNotFoundError) as error:
        hub_id(name)
    assert str(error.value) == f"no model {name!r}: did you mean {meant}?"


@pytest.mark.parametrize("name", ["~nobody-here/model", "~nobody-here"])
def test_the_home_of_an_unknown_user_is_no_model(name):
    with pytest.raises(ModelNotFoundError, match=f"no model '{name}'"):
        CogVideoXPipeline.from_pretrained(name)
    with pytest.raises(ModelNotFoundError, match=f"no adapter '{name}'"):
        CogVideoXPipeline.from_pretrained("demo").load_lora(name)


def test_a_damaged_cache_is_one_line(monkeypatch):
    def fail(*_, **__):
        b"\xff".decode()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=r"couldn't be fetched \('utf-8' codec"):
        resolve_model(REPO)


def test_a_revision_is_requested_and_without_download_only_from_the_cache(requests):
    resolve_model(REPO, "v1", download=False)
    assert requests[0][2] == {"revision": "v1", "local_files_only": True}


def test_only_the_needed_files_are_requested(requests):
    resolve_model(REPO)
    patterns = requests[0][1]
    wanted = [
        "model_index.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/spiece.model",
        "scheduler/scheduler_config.json",
    ]
    unwanted = ["README.md", "transformer/diffusion_pytorch_model.bin", "assets/video.mp4"]
    filtered = filter_repo_objects([*wanted, *unwanted], allow_patterns=patterns)
    assert list(filtered) == wanted


def test_the_demo_and_folders_need_no_hub(requests, tmp_path):
    assert resolve_model("demo") == DEMO_PATH
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path
    assert requests == []


def refusal(kind: type, status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None, text="")
    return kind("", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            refusal(hub_errors.RepositoryNotFoundError, 404),
            "nor a repository",
        ),
        (refusal(hub_errors.GatedRepoError, 403), "accept its licence"),
        (refusal(hub_errors.RevisionNotFoundError, 404), "has no revision"),
        (hub_errors.LocalEntryNotFoundError("offline"), "can't be reached"),
        (hub_errors.OfflineModeIsEnabled("offline"), "can't be reached"),
        (refusal(hub_errors.HfHubHTTPError, 503), "status 503"),
    ],
    ids=["unknown", "gated", "revision", "unreachable", "offline", "server error"],
)
def test_what_the_hub_refuses_is_one_line_with_advice(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        resolve_model(REPO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "nonsense", "./missing", "/missing/folder", "a/b/c"])
def test_an_unknown_name_lists_the_known_ones(requests, name):
    with pytest.raises(ModelNotFoundError, match="hub id or one of demo, demo-i2v, 2b"):
        resolve_model(name)
    assert requests == []


@pytest.mark.parametrize(
    "name", ["ckpts/5b-", "ckpts/5b.", "x/a..b", "models/a--b", "a/b.git", "a/-b", "a/" + "b" * 97]
)
def test_a_name_that_the_hub_cant_have_is_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert generate("a.mp4", "--model", name) == 1
    assert convert(["--model", name]) == 1
    assert generate("a.mp4", "--model", "demo", "--lora", name) == 1
    lines = errors(capsys.readouterr().err)
    assert len(lines) == 3
    assert all(f"'{name}' is no folder here, and can't be" in line for line in lines)


@pytest.mark.parametrize("name", ["ckpt/model.safetensors", "model.gguf", "a.pt", "a/b/c.bin"])
def test_a_file_in_place_of_a_model_is_named_as_one(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    assert generate("a.mp4", "--model", name) == 1
    assert "give a folder, a hub id or one of" in capsys.readouterr().err
    (tmp_path / name).touch()
    assert generate("a.mp4", "--model", name) == 1
    assert f"{name} is a file: give the folder" in capsys.readouterr().err


def put(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (["x/transformer/config.json"], "x/transformer", "give the folder around it, x"),
        (["x/vae/config.json"], "x", "its folder transformer is missing"),
        (["x/config.json"], "x", "move its files into a folder transformer, and give --base"),
        (["x/5b/transformer/config.json"], "x", "did you mean x/5b?"),
        (["x/readme.txt"], "x", "it has no folder transformer"),
        (
            ["models--me--tiny/snapshots/0/transformer/config.json"],
            "models--me--tiny",
            "part of the hub's cache: give me/tiny",
        ),
        (["x/1/mp_rank_00_model_states.pt"], "x", "convert it first"),
        (["demo/readme.txt"], "./demo", "demo is no model folder"),
    ],
    ids=["a part", "no transformer", "root", "above", "other", "cache", "sat", "alias"],
)
def test_a_folder_that_is_no_model_gets_advice(tmp_path, monkeypatch, capsys, files, name, message):
    monkeypatch.chdir(tmp_path)
    put(*files)
    assert generate("a.mp4", "--model", name) == 1
    (error,) = errors(capsys.readouterr().err)
    assert message in error


EMPTY = {
    generate_command: "--model --base --lora --image --video -o --replay --prompt-file --resume "
    "--show --config",
    convert: "--model --base --lora --text-encoder --mlx-path --revision --info --upload-repo",
    lora: "--data --model --base --adapter-path --cache --prior-prompts --config",
    check: "--model --base --report",
}


@pytest.mark.parametrize(
    ("command", "option"),
    [(c, option) for c, options in EMPTY.items() for option in options.split()],
)
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(tmp_path, monkeypatch, capsys, command, option, name):
    """As a path it would be the current folder; a script with an unset variable gives it."""
    monkeypatch.chdir(tmp_path)
    needed = ["--data", "clips"] if command is lora and option != "--data" else []
    assert command([*needed, option, name]) == 2
    (error,) = errors(capsys.readouterr().err)
    assert option in error and ("empty" in error or "takes an adapter" in error)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_is_refused_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = CogVideoXPipeline.from_pretrained("demo")
    with pytest.raises(ModelNotFoundError, match="empty"):
        pipe.load_lora("")
    with pytest.raises(ModelNotFoundError, match="empty"):
        CogVideoXPipeline.from_pretrained(" ")
    with pytest.raises(InvalidInputError, match="video must be a file; its name is empty"):
        pipe("a", video="", num_frames=9, height=32, width=48)


def test_the_default_is_mlx_model_or_else_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_model() == DEMO_PATH
    (tmp_path / "mlx_model").mkdir()
    assert default_model().resolve() == tmp_path / "mlx_model"


def test_the_image_to_video_demo_shares_components_with_the_other():
    folder = resolve_model("demo-i2v")
    assert folder == BUNDLED["demo-i2v"] and not (folder / "vae").exists()
    assert component_folder(folder, "vae").samefile(DEMO_PATH / "vae")
    assert model_identity(folder, folder)["name"] == "demo-i2v"
    assert (folder / "latent_rgb.json").read_text() == (DEMO_PATH / "latent_rgb.json").read_text()


def test_components_that_another_folder_shares_are_found_and_copied(tmp_path):
    shutil.copytree(DEMO_PATH, tmp_path / "whole")
    folder = tmp_path / "part"
    shutil.copytree(DEMO_PATH / "transformer", folder / "transformer")
    index = json.loads((DEMO_PATH / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, SHARED_KEY: "../whole"}))
    pipe = CogVideoXPipeline.from_pretrained(folder)
    arguments = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}
    video = np.asarray(pipe("a red circle", **arguments))
    assert (
        video == np.asarray(CogVideoXPipeline.from_pretrained("demo")("a red circle", **arguments))
    ).all()
    assert model_identity(folder, folder)["sha256"] == model_identity("demo", DEMO_PATH)["sha256"]

    copy = tmp_path / "copy"
    assert convert(["--hf-path", str(folder), "--mlx-path", str(copy), "-q", "8"]) == 0
    assert (copy / "vae").is_dir() and (copy / "tokenizer" / "spiece.model").is_file()
    assert SHARED_KEY not in json.loads((copy / "model_index.json").read_text())
