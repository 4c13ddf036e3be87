"""Training of image-to-video models, on tiny ones made with PyTorch."""

import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from torch_reference import save_model

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import model_identity
from mlx_cogvideo.cli.lora import main as train
from mlx_cogvideo.training.clips import find_clips
from mlx_cogvideo.training.latent_cache import Cache
from mlx_cogvideo.training.prepare import IMAGE_DRAWS, ClipOptions, noisy_images, prepare
from mlx_cogvideo.training.settings import TrainingSettings
from mlx_cogvideo.training.trainer import Trainer
from mlx_cogvideo.video import ClipSpec, write_video


@pytest.mark.parametrize("variant", ["5b-i2v", "1.5-5b-i2v"])
def test_an_image_to_video_model_learns_from_noisy_first_frames(tmp_path, variant):
    model = save_model(tmp_path / "model", variant)
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        write_video(data / f"{name}.mp4", make_clip(17, 64, 96), 8)
        (data / f"{name}.txt").write_text(f"take {name}")
    size = ["--frames", 9 if variant == "5b-i2v" else 17, "--height", 64, "--width", 96]
    command = ["--data", data, "--model", model, "--adapter-path", tmp_path / "adapter", *size]
    command += ["--rank", 4, "--iters", 3, "--val-every", 3]
    command += ["--image-dropout", 0, "--batch-size", 2]
    assert train([str(part) for part in command]) == 0
    assert CogVideoXPipeline.from_pretrained(model).takes_image

    pipe = CogVideoXPipeline.from_pretrained(model)
    spec = ClipSpec(size[1], 64, 96, 8)
    clips = find_clips(data)
    cache = Cache(data / ".mlx_cogvideo")
    samples, texts = prepare(pipe, model_identity(model, model), clips, ClipOptions((spec,)), cache)
    with pipe.keeping("transformer"):
        settings = TrainingSettings(image_dropout=0.5, batch_size=16, caption_dropout=0)
        trainer = Trainer(pipe, samples, texts[""], settings, tmp_path)
        batch = trainer.batches.draw(0)
    frames = batch.latents.shape[1]
    # 17 frames are 5 latent frames, and CogVideoX 1.5 adds a leading one.
    assert frames == {9: 3, 17: 6}[size[1]]
    largest = np.abs(np.array(batch.image_latents)).max(axis=(2, 3, 4))
    assert (largest[:, 1:] == 0).all()
    kept = largest[:, 0] > 0
    assert 2 <= kept.sum() <= 14, "about half of the 16 pictures are dropped"

    # A picture is the clip's first frame: its latents differ from that frame's only by noise.
    scale = {"5b-i2v": pipe.configs["vae"].scaling_factor, "1.5-5b-i2v": 1.0}[variant]
    clean = np.array(pipe.encode_video(make_clip(1, 64, 96), 1).mean * scale)[0, 0]
    pictures = np.array(batch.image_latents)[kept][:, 0]
    errors = np.abs(pictures - clean).mean(axis=(1, 2, 3))
    assert errors.min() > 0
    assert np.abs(pictures.mean(0) - clean).mean() < errors.min(), "noise averages out"
    assert len({round(float(error), 6) for error in errors}) > 1


def test_the_noise_on_each_picture_has_a_log_normal_strength():
    image = np.full((64, 64, 3), 128, np.uint8)
    noisy = [np.array(noisy_images(image, mx.random.key(seed))) for seed in range(100)]
    sigma = np.concatenate(noisy).reshape(100 * IMAGE_DRAWS, -1).std(axis=1)
    assert abs(np.log(sigma).mean() + 3) < 0.1
    assert abs(np.log(sigma).std() - 0.5) < 0.05
