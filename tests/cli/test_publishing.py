"""``lora.py``: the card of an adapter, and its upload to the hub."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from adapters import make_adapter
from commands import errors
from huggingface_hub import ModelCard
from huggingface_hub import errors as hub_errors
from trainings import lora
from uploads import WRITER, FakeHub

from mlx_cogvideo.cli.main import main as mlx_cogvideo

ADAPTER = {
    *("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"),
    *("README.md", "loss.svg"),
}
HOSTILE = 'a **kite** | "x" <b>\n---\nlicense: mit\n```'
READER = {"name": "me", "auth": {"accessToken": {"role": "read"}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clips) -> Path:
    """A finished training with a sample, on a model with an adapter."""
    folder = tmp_path_factory.mktemp("private")
    options = ["--sample-every", 2, "--sample-steps", 2, "--sample-prompt", HOSTILE]
    options += ["--lora", make_adapter(folder / "base"), 0.5, "--trigger-word", "TAKE"]
    assert lora(clips, folder / "kites", "--iters", 2, "--save-every", 1, *options) == 0
    return folder / "kites"


@pytest.fixture
def adapter(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "kites")


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    return FakeHub(monkeypatch)


def upload(clips, adapter, trained, *options) -> int:
    """Resumes the finished training to upload it."""
    base = ["--lora", trained.with_name("base"), 0.5]
    return lora(clips, adapter, "--iters", 2, *base, "--resume", *options)


def front_matter(text: str) -> dict:
    start, header, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header)


def test_a_card_says_what_the_adapter_is_and_was_made_with(trained):
    text = (trained / "README.md").read_text()
    about = front_matter(text)
    assert about == ModelCard(text).data.to_dict()  # as the hub reads it
    assert about["library_name"] == "diffusers" and about["pipeline_tag"] == "text-to-video"
    assert {"lora", "cogvideox", "mlx", "text-to-video"} <= set(about["tags"])
    assert about["instance_prompt"] == "TAKE"
    assert "needs them: base at 0.5" in text and "Use **TAKE** in the prompt" in text
    for row in (
        *("| clips | 3 |", "| size | 9 frames of 48x32\\, 8 a second |", "| updates | 2 |"),
        *("| rank | 4 |", "| alpha | 4 |", "| layers | to\\_q to\\_k to\\_v to\\_out\\.0 |"),
        *("| optimizer | adamw |", "| learning rate | 0\\.0001\\, constant after 1 update of"),
    ):
        assert row in text


def test_texts_of_users_stay_texts(trained):
    text = (trained / "README.md").read_text()
    sample = {"text": " ".join(HOSTILE.split()), "output": {"url": "samples/0000002-0.mp4"}}
    about = front_matter(text)
    assert about["widget"] == [sample] and "license" not in about
    (row,) = (line for line in text.splitlines() if line.startswith("| [0000002-0.mp4]"))
    prompt = r"a \*\*kite\*\* \| \"x\" \<b\> \-\-\- license\: mit \`\`\`"
    assert row == f"| [0000002-0.mp4](samples/0000002-0.mp4) | {prompt} |"


def test_what_is_published_has_no_path_of_this_machine(trained, clips):
    for name in ("README.md", "adapter_config.json", "loss.svg"):
        text = (trained / name).read_text()
        assert "/" + "tmp" not in text and trained.parent.name not in text, name
        assert clips.name not in text or name != "README.md"
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    (base,) = config["base_adapters"]
    assert (base["source"], base["scale"]) == ("base", 0.5)


def test_the_card_s_command_makes_a_video(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    text = (trained / "README.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("mlx-cogvideo "))
    assert "--model demo --lora base 0.5 --lora kites --frames 9 --height 32 --width 48" in line
    words = line.replace('"..."', "it").split()[1:]
    assert mlx_cogvideo([*words, "--dry-run"]) == 0
    assert "base at 0.5, kites at 1" in capsys.readouterr().err


def test_a_finished_training_is_uploaded_without_what_is_private(clips, adapter, trained, hub):
    assert upload(clips, adapter, trained, "--upload-repo", "kites") == 0
    files = hub.files["me/kites"]
    assert files.keys() == ADAPTER | {"samples/0000002-0.mp4"}
    weights = "pytorch_lora_weights.safetensors"
    assert files[weights] == (trained / weights).read_bytes()
    assert "--lora base 0.5 --lora me/kites --frames" in files["README.md"].decode()


def test_a_card_that_its_user_has_changed_is_kept(clips, adapter, trained, hub, capsys):
    (adapter / "README.md").write_text("My own words.\n")
    assert upload(clips, adapter, trained, "--upload-repo", "us/kites") == 0
    assert hub.files["us/kites"]["README.md"] == b"My own words.\n"
    assert "README.md is your own and stays as it is" in capsys.readouterr().err


def test_a_failed_upload_keeps_everything_and_says_how_to_upload_again(
    clips, adapter, trained, hub, capsys
):
    hub.error = OSError("the line is cut")
    assert upload(clips, adapter, trained, "--upload-repo", "kites") == 1
    (error,) = errors(capsys.readouterr().err)
    assert error == (
        f"error: {adapter} is complete, but can't be uploaded to me/kites: the line is cut; the "
        "same command with --resume uploads it again"
    )
    hub.error = None
    assert upload(clips, adapter, trained, "--upload-repo", "kites") == 0
    assert "README.md" in hub.files["me/kites"]


@pytest.mark.parametrize(
    ("repo", "login", "message"),
    [
        ("a b", WRITER, "'a b' is no name for a repository"),
        ("kites", hub_errors.LocalTokenNotFoundError("none"), "nobody is logged in"),
        ("kites", READER, "the login of me may only read"),
        ("other/kites", WRITER, "me is logged in and can't upload to other/kites: give me/kites"),
        ("kites", ConnectionError("no route"), "can't say who is logged in"),
    ],
    ids=["name", "nobody", "reader", "other", "offline"],
)
def test_an_upload_that_must_fail_is_refused_before_the_training(
    clips, tmp_path, hub, capsys, repo, login, message
):
    hub.login = login
    assert lora(clips, tmp_path / "new", "--upload-repo", repo) != 0
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not (tmp_path / "new").exists() and hub.files == {}


def test_clips_that_are_shown_arent_uploaded(clips, tmp_path, hub, capsys):
    assert lora(clips, tmp_path / "new", "--show-clips", 1, "--upload-repo", "kites") == 2
    assert "leave out --upload-repo" in errors(capsys.readouterr().err)[0]


def test_a_dry_run_says_what_would_be_uploaded_and_asks_nobody(clips, tmp_path, hub, capsys):
    hub.login = AssertionError("asked")
    options = ["--upload-repo", "me/kites", "--trigger-word", "zorb", "--dry-run"]
    assert lora(clips, tmp_path / "new", *options) == 0
    shown = capsys.readouterr().err
    assert "upload   to me/kites: pytorch_lora_weights.safetensors, " in shown
    assert "no caption contains the trigger word 'zorb'" in shown


def test_a_model_is_uploaded_with_its_card_and_its_samples(clips, tmp_path, hub):
    full = ["--fine-tune-type", "full", "--iters", 1, "--warmup", 0]
    sample = ["--sample-every", 1, "--sample-steps", 2, "--sample-prompt", "a red circle"]
    size = ["--frames", 9, "--height", 32, "--width", 48]
    again = ["--upload-repo", "kites", "--resume"]
    assert lora(clips, tmp_path / "new", *full, *sample, small=size) == 0
    assert "--model new/model --frames 9" in (tmp_path / "new/model/README.md").read_text()
    assert lora(clips, tmp_path / "new", *full, *again, small=size) == 0
    files = hub.files["me/kites"]
    assert {"model_index.json", "transformer/config.json", "vae/config.json"} <= files.keys()
    assert not any(part in name for name in files for part in ("checkpoints", "log", "cache"))
    about = front_matter(files["README.md"].decode())
    assert about["widget"][0]["text"] == "a red circle" and "lora" not in about["tags"]
    assert "samples/0000001-0.mp4" in files
    assert "--model me/kites --frames 9" in files["README.md"].decode()
    (tmp_path / "new/model/README.md").write_text("My own words.\n")
    assert lora(clips, tmp_path / "new", *full, *again, small=size) == 0
    assert hub.files["me/kites"]["README.md"] == b"My own words.\n"
