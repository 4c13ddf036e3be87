"""The identity of a model's weights."""

import hashlib
import shutil
from pathlib import Path

from mlx_cogvideo.checkpoints import DEMO_PATH, model_identity


def test_the_bundled_demo_is_called_demo_and_identified_by_its_files():
    identity = model_identity(DEMO_PATH, DEMO_PATH)
    assert identity["name"] == "demo"
    assert set(identity["sha256"]) == {
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
        "scheduler",
    }
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    lines = [
        f"{hashlib.sha256((DEMO_PATH / 'vae' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in files
    ]
    assert identity["sha256"]["vae"] == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_copy_has_the_same_content_under_its_own_name(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(DEMO_PATH, copy)
    (copy / "README.md").write_text("a card that changes nothing")
    original, copied = model_identity("demo", DEMO_PATH), model_identity(copy, copy)
    assert copied == {"name": str(copy), "sha256": original["sha256"]}
    with (copy / "transformer" / "config.json").open("a") as config:
        config.write("\n")
    changed = model_identity(copy, copy)["sha256"]
    differing = [name for name in changed if changed[name] != original["sha256"][name]]
    assert differing == ["transformer"]


def test_a_snapshot_of_the_hub_is_identified_by_its_commit():
    folder = Path("/cache/models--THUDM--CogVideoX-5b/snapshots") / ("a1" * 20)
    expected = {"name": "THUDM/CogVideoX-5b", "revision": "a1" * 20}
    assert model_identity("5b", folder) == expected
