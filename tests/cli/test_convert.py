"""``python -m mlx_cogvideo.convert`` from the outside: what it writes, prints and returns."""

import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from adapters import make_adapter
from commands import errors, generate
from huggingface_hub import errors as hub_errors
from uploads import FakeHub

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.convert import main
from mlx_cogvideo.cli.main import main as mlx_cogvideo
from mlx_cogvideo.video import read_record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, made the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def test_the_usual_command_makes_a_model_that_generate_uses_by_default(folder, capsys):
    assert run("--model", "demo", "--quantize", 4) == 0
    captured = capsys.readouterr()
    assert captured.out == "mlx_model\n"
    assert "20 attention at 4 bits (affine, groups of 64, 20.5 dB)" in captured.err
    assert generate("video.mp4") == 0
    assert "model    mlx_model, float32" in capsys.readouterr().err
    assert read_record("video.mp4")["model"]["name"] == "mlx_model"


@pytest.mark.parametrize("arguments", [["-q"], ["--q-bits", 4], ["-q", "4", "--q-mode", "affine"]])
def test_four_bits_can_be_requested_by_several_options(folder, arguments):
    assert run("--hf-path", "demo", "--mlx-path", "small", "--quiet", *arguments) == 0
    assert CogVideoXPipeline.from_pretrained("small").weight_bytes("transformer") < 3_000_000


def test_bits_group_size_mode_and_recipe_can_be_set(folder, capsys):
    arguments = ["--q-bits", 6, "--q-group-size", 32, "--quant-predicate", "uniform"]
    assert run("--model", "demo", *arguments, "--components", "transformer") == 0
    logged = capsys.readouterr().err
    assert "11 AdaLN at 6 bits (affine, groups of 32" in logged
    assert "T5" not in logged
    assert run("--model", "demo", "-q", "--q-mode", "mxfp8", "--mlx-path", "b") == 2
    assert "mxfp8 has 8 bits; got 4" in errors(capsys.readouterr().err)[0]
    assert run("--model", "demo", "--q-mode", "mxfp8", "--mlx-path", "b") == 0


def test_info_prints_what_a_folder_holds(folder, capsys):
    assert run("--model", "demo", "-q", 8, "--quiet") == 0
    assert run("--model", "mlx_model", "--dequantize", "--mlx-path", "back", "--quiet") == 0
    capsys.readouterr()
    assert run("--info", "mlx_model") == 0
    printed = capsys.readouterr().out
    assert "transformer       3 MiB   8.70  11 AdaLN at 8 bits (affine, groups of 64" in printed
    assert run("--info", "back") == 0
    assert "transformer       6 MiB  16.00  none" in capsys.readouterr().out
    assert run("--info", DEMO_PATH) == 0


def test_a_dry_run_writes_nothing(folder, capsys):
    assert run("--model", "demo", "-q", "--dry-run") == 0
    captured = capsys.readouterr()
    assert "transformer        6 MiB ->     2 MiB, 5.80 bits a weight" in captured.err
    assert captured.out == ""
    assert list(folder.iterdir()) == []


@pytest.fixture
def hub(monkeypatch):
    """A hub that has the demo as THUDM/CogVideoX-5b, 9 MiB to download into an empty cache.

    Returns its requests: repository, whether it is a dry run, and whether weights are requested.
    """
    asked = []
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))

    def answer(repo, *, allow_patterns, dry_run=False, local_files_only=False, **_):
        if local_files_only:
            raise hub_errors.LocalEntryNotFoundError("empty")
        asked.append((repo, dry_run, "*/*.safetensors" in allow_patterns))
        files = [SimpleNamespace(will_download=True, file_size=9 * 2**20)]
        return files if dry_run else str(DEMO_PATH)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return asked


def test_the_5b_is_pulled_from_the_hub_by_default(folder, hub, capsys):
    assert run("-q") == 0
    repo = "THUDM/CogVideoX-5b"
    assert (repo, False, True) in hub
    logged = capsys.readouterr().err
    assert "download 9 MiB into " in logged
    assert f"hf cache rm model/{repo} frees its disk space" in logged


def test_a_dry_run_asks_no_hub(folder, hub, capsys):
    assert run("-q", "--dry-run") == 0
    assert hub == []
    assert "transformer     10.4 GiB ->   3.3 GiB" in capsys.readouterr().err


def test_a_model_that_cannot_be_used_is_refused_before_its_weights_are_downloaded(
    folder, hub, monkeypatch, capsys
):
    monkeypatch.setattr("mlx_cogvideo.checkpoints.tokenizer.T5Tokenizer.size", 1000)
    assert run("-q") == 1
    assert "1000 pieces, and text_encoder" in errors(capsys.readouterr().err)[0]
    assert all(dry_run or not weights for _, dry_run, weights in hub)


def test_a_disk_too_small_for_the_download_is_noticed_first(folder, hub, monkeypatch, capsys):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert run("-q") == 1
    assert "has 1 MiB free and the download needs 9 MiB" in errors(capsys.readouterr().err)[0]
    assert all(dry_run for _, dry_run, _ in hub)


@pytest.mark.parametrize("name", ["small", "my models/small"])
def test_the_card_s_command_names_the_folder_and_runs(folder, capsys, name):
    Path(name).parent.mkdir(exist_ok=True)
    assert run("--model", "demo", "-q", "--mlx-path", name) == 0
    card = (folder / name / "README.md").read_text()
    (line,) = (line for line in card.splitlines() if line.startswith("mlx-cogvideo "))
    assert shlex.split(line)[:3] == ["mlx-cogvideo", "generate", "--model"]
    assert mlx_cogvideo([*shlex.split(line)[1:], "--dry-run"]) == 0
    assert f"model    {name}, float32" in capsys.readouterr().err


def test_an_upload_has_a_card_with_the_repository_in_it(folder, monkeypatch, capsys):
    hub = FakeHub(monkeypatch)
    assert run("--model", "demo", "-q", "--upload-repo", "tiny") == 0
    files = [path for path in (folder / "mlx_model").rglob("*") if path.is_file()]
    assert len(hub.files["me/tiny"]) == len(files) > 10
    assert "--model me/tiny" in hub.files["me/tiny"]["README.md"].decode()


def test_an_upload_has_no_path_of_this_machine(folder, monkeypatch):
    hub = FakeHub(monkeypatch)
    source, adapter = shutil.copytree(DEMO_PATH, folder / "own"), make_adapter(folder / "style")
    assert run("--model", source, "--lora", adapter, 0.5, "--upload-repo", "me/tiny") == 0
    files = hub.files["me/tiny"]
    for name in ("README.md", "conversion.json"):
        text = files[name].decode()
        assert "own" in text and "style" in text and str(folder) not in text


def test_nothing_is_converted_for_an_upload_that_must_fail(folder, monkeypatch, capsys):
    hub = FakeHub(monkeypatch)
    hub.login = hub_errors.LocalTokenNotFoundError("no token")
    assert run("--model", "demo", "-q", "--upload-repo", "me/tiny") == 1
    (error,) = errors(capsys.readouterr().err)
    assert "nobody is logged in to upload to me/tiny: run hf auth login" in error
    assert not (folder / "mlx_model").exists()


def test_a_failed_upload_says_how_to_upload_again(folder, monkeypatch, capsys):
    hub = FakeHub(monkeypatch)
    hub.error = OSError("the line is cut")
    assert run("--model", "demo", "-q", "--upload-repo", "me/tiny") == 1
    (error,) = errors(capsys.readouterr().err)
    assert "mlx_model is complete, but can't be uploaded to me/tiny: the line is cut" in error
    assert error.endswith("hf upload me/tiny mlx_model uploads it again")


def refusal(kind: type, status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None, text="")
    return kind("", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(hub_errors.RepositoryNotFoundError, 404), "nor a repository"),
        (refusal(hub_errors.GatedRepoError, 401), "accept its licence"),
        (hub_errors.LocalEntryNotFoundError("offline"), "can't be reached"),
        (hub_errors.DryRunError("offline"), "can't be reached"),
    ],
    ids=["unknown", "gated", "no network", "no network for a dry run"],
)
def test_what_the_hub_refuses_is_one_clear_line(folder, monkeypatch, capsys, error, message):
    def refuse(*_, dry_run=False, **__):
        if isinstance(error, hub_errors.DryRunError) and not dry_run:
            raise hub_errors.LocalEntryNotFoundError("offline")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert run("-q") == 1
    (line,) = errors(capsys.readouterr().err)
    assert message in line
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-q", "7"], 2, "affine has 2, 3, 4, 5, 6 or 8 bits; got 7"),
        (["-q", "--q-group-size", "48"], 2, "groups of 32, 64 or 128; got 48"),
        (["-q", "4", "--q-bits", "8"], 2, "differ"),
        (["-q", "--dequantize"], 2, "exclude each other"),
        (["-q", "--mlx-path", "no/where"], 1, "doesn't exist: make it first"),
        (["-q", "--mlx-path", "."], 1, ". exists"),
        (["-q", "--q-group-size", "128", "--components", "vae"], 2, "no layer can be quantized"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(folder, capsys, arguments, code, message):
    assert run("--model", "demo", *arguments) == code
    captured = capsys.readouterr()
    (line,) = errors(captured.err)
    assert message in line
    assert captured.out == ""
    assert list(folder.iterdir()) == []


def test_a_killed_conversion_leaves_no_folder_and_can_be_done_again(folder):
    command = [sys.executable, "-m", "mlx_cogvideo.convert", "--model", "demo", "-q", "--quiet"]
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([*command], stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(folder.glob(".mlx_model.*.part")):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
        if (folder / "mlx_model").exists():
            CogVideoXPipeline.from_pretrained("mlx_model")
            shutil.rmtree("mlx_model")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert os.listdir(folder) == ["mlx_model"]
    CogVideoXPipeline.from_pretrained("mlx_model")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--revision", "main"], "--revision needs a model of the hub"),
        (["--text-encoder", "2b"], "--text-encoder needs a checkpoint of the SAT code"),
        (["--quant-predicate", "mixed"], "--quant-predicate needs -q"),
        (["--components", "vae"], "--components needs -q, --dequantize or --dtype"),
    ],
)
def test_an_option_without_effect_is_refused_in_one_line(folder, capsys, options, words):
    assert run("--model", "demo", "--dry-run", *options) == 2
    assert errors(capsys.readouterr().err) == [f"error: {words}"]


def test_options_beside_info_are_a_warning(folder, capsys):
    assert run("--info", DEMO_PATH, "-q", 8) == 0
    assert "warning: --quantize: no effect beside --info" in capsys.readouterr().err
