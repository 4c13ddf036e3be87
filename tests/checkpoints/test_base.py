"""A folder that has a part of a model, and a base that has the rest."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from clips import make_clip
from commands import ctrl_c_in_step, errors, generate, run

from mlx_cogvideo import CheckpointError, CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import DEMO_PATH, model_identity
from mlx_cogvideo.checkpoints.model_folder import ModelFolder
from mlx_cogvideo.cli.check import main as check
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.lora import main as lora
from mlx_cogvideo.video import read_record, read_video, write_video

SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}


@pytest.fixture
def finetune(tmp_path, monkeypatch):
    """A folder with a transformer alone, whose weights are the demo's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO_PATH / "transformer", "mine/transformer")
    return tmp_path / "mine"


@pytest.fixture
def other(tmp_path, finetune):
    """A whole model that isn't the demo: its transformer can't be used."""
    shutil.copytree(DEMO_PATH, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("vae", "text_encoder"):
        for file in (DEMO_PATH / name).glob("*.safetensors"):
            shutil.copy(file, tmp_path / "other" / name)
    return tmp_path / "other"


def test_a_base_gives_what_the_folder_lacks(finetune, other):
    pipe = CogVideoXPipeline.from_pretrained(finetune, base=other)
    whole = CogVideoXPipeline.from_pretrained("demo")
    assert (
        np.asarray(pipe("a red circle", **SMALL)) == np.asarray(whole("a red circle", **SMALL))
    ).all()
    assert pipe.component("transformer").parent == finetune
    assert pipe.component("vae").parent == other


def test_the_base_is_recorded_and_a_replay_and_a_resumed_run_have_it(finetune, other, capsys):
    model = ["--model", "mine", "--base", "other"]
    with ctrl_c_in_step(2):
        assert generate("a.mp4", *model) == 130
    assert run("--resume", "a.mp4") == 0
    recorded = read_record("a.mp4")["model"]
    assert recorded["name"] == "mine" and recorded["base"] == {"name": "other"}
    assert recorded["sha256"] == model_identity("demo", DEMO_PATH)["sha256"]
    assert "mine on other" in capsys.readouterr().err
    assert generate("b.mp4") == 0
    assert (read_video("a.mp4")[0] == read_video("b.mp4")[0]).all()
    assert run("--replay", "a.mp4", "--output", "c.mp4") == 0
    assert (read_video("a.mp4")[0] == read_video("c.mp4")[0]).all()
    assert "won't be the same" not in capsys.readouterr().err
    # A model that is named takes no base from the record.
    assert run("--replay", "a.mp4", "--output", "d.mp4", "--model", "demo", "--dry-run") == 0
    capsys.readouterr()
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    assert run("--replay", "a.mp4", "--output", "e.mp4", "--dry-run") == 0
    assert "the model's scheduler was" in capsys.readouterr().err


def test_a_converted_model_has_all_parts(finetune, other):
    options = ["--model", "mine", "--base", "other", "--mlx-path", "whole"]
    assert convert([*options, "--dry-run"]) == 0
    assert convert(options) == 0
    whole, rest = (model_identity(name, Path(name))["sha256"] for name in ("whole", "other"))
    assert whole["tokenizer"] == rest["tokenizer"] and whole["scheduler"] == rest["scheduler"]
    assert CogVideoXPipeline.from_pretrained("whole").base is None
    source = json.loads(Path("whole/conversion.json").read_text())["source"]
    assert source["name"] == "mine" and source["base"] == {"name": "other"}
    assert "`mine`, and the rest of `other`" in Path("whole/README.md").read_text()


def test_a_training_takes_a_base(finetune, other):
    Path("data").mkdir()
    write_video("data/a.mp4", make_clip(9), 8)
    Path("data/a.txt").write_text("a red circle")
    options = ["--data", "data", "--model", "mine", "--frames", "9", "--dry-run"]
    assert lora([*options, "--base", "other"]) == 0
    assert lora(options) == 1


def test_the_check_takes_a_base(finetune, monkeypatch):
    opened = []

    def check_stages(folder, dtype, base):
        opened.append(ModelFolder(folder, dtype, base).text_encoder)
        return []

    monkeypatch.setattr("mlx_cogvideo.cli.check.check_stages", check_stages)
    assert check(["--model", "mine", "--base", "demo", "--stages-only"]) == 0
    assert len(opened) == 1
    assert check(["--model", "mine", "--stages-only"]) == 1


def test_only_the_parts_that_lack_are_fetched(finetune, monkeypatch):
    asked = []

    def answer(repo, *, allow_patterns, **options):
        asked.append((repo, options["revision"], allow_patterns))
        return str(DEMO_PATH)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    CogVideoXPipeline.from_pretrained(finetune, base="2b", base_revision="v1")
    ((repo, revision, patterns),) = asked
    assert (repo, revision) == ("THUDM/CogVideoX-2b", "v1")
    assert "vae/*.safetensors" in patterns and "tokenizer/spiece.model" in patterns
    assert not any(pattern.startswith(("transformer", "*/")) for pattern in patterns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mine"], "it lacks text_encoder, tokenizer, vae, scheduler: name the model"),
        (["--model", "mine", "--base", "mine"], "neither mine nor mine has text_encoder"),
        (["--model", "demo", "--base", "demo"], "leave out the base"),
        (["--model", "mine", "--base", "none"], "no model 'none'"),
        (["--model", "mine", "--base", "mine/transformer"], "neither mine nor mine/transformer"),
    ],
    ids=["no base", "of itself", "nothing lacks", "unknown", "a part"],
)
def test_a_wrong_base_is_one_line(finetune, capsys, arguments, message):
    assert generate("a.mp4", *arguments, "--dry-run") in (1, 2)
    (error,) = errors(capsys.readouterr().err)
    assert message in error


def test_from_python_too(finetune):
    with pytest.raises(CheckpointError, match="name the model that it was made from"):
        CogVideoXPipeline.from_pretrained(finetune)
    with pytest.raises(InvalidInputError, match="leave out the base"):
        CogVideoXPipeline.from_pretrained("demo", base="demo")
