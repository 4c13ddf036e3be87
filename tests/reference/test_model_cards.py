"""The snippets of the official model cards give the frames of diffusers, from one folder and the
same noise.

Of a snippet, only what a CPU and a tiny model ask for is changed: steps, frames and CUDA's lines.
"""

import json
import re
import shutil

import diffusers
import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from diffusers.models.autoencoders import vae as diffusers_vae
from diffusers.pipelines.cogvideo import (
    pipeline_cogvideox,
    pipeline_cogvideox_image2video,
    pipeline_cogvideox_video2video,
)
from diffusers.schedulers import scheduling_dpm_cogvideox
from PIL import Image
from support import relative_error
from torch_reference import channels_first, frames_first, ours, random, save_model

import mlx_cogvideo
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.nn.autoencoder import Posterior
from mlx_cogvideo.pipeline import pipeline
from mlx_cogvideo.video import read_record, read_video, write_video

TOLERANCE = 1e-3
SHAPE = (1, 5, 16, 8, 12)

TEXT_TO_VIDEO = """
import torch
from diffusers import CogVideoXPipeline
from diffusers.utils import export_to_video

prompt = "A panda, dressed in a small, red jacket and a tiny hat, sits on a wooden stool."

pipe = CogVideoXPipeline.from_pretrained(
    "THUDM/CogVideoX-2b",
    torch_dtype=torch.float16
)

pipe.enable_model_cpu_offload()
pipe.enable_sequential_cpu_offload()
pipe.vae.enable_slicing()
pipe.vae.enable_tiling()
video = pipe(
    prompt=prompt,
    num_videos_per_prompt=1,
    num_inference_steps=50,
    num_frames=49,
    guidance_scale=6,
    generator=torch.Generator(device="cuda").manual_seed(42),
).frames[0]

export_to_video(video, "output.mp4", fps=8)
"""

TRAILING = """
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline
from diffusers.utils import export_to_video

pipe = CogVideoXPipeline.from_pretrained(
    "THUDM/CogVideoX-5b", torch_dtype=torch.bfloat16
).to("cuda")
pipe.scheduler = CogVideoXDPMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing"
)
video = pipe(
    prompt="A panda plays a guitar.",
    num_inference_steps=50,
    num_frames=49,
    guidance_scale=6,
    use_dynamic_cfg=True,
).frames[0]
export_to_video(video, "output.mp4", fps=8)
"""

IMAGE_TO_VIDEO = """
import torch
from diffusers import CogVideoXImageToVideoPipeline
from diffusers.utils import export_to_video, load_image

prompt = "A little girl is riding a bicycle at high speed. Focused, detailed, realistic."
image = load_image(image="input.png")
pipe = CogVideoXImageToVideoPipeline.from_pretrained(
    "THUDM/CogVideoX-5b-I2V",
    torch_dtype=torch.bfloat16
)

pipe.enable_sequential_cpu_offload()
pipe.vae.enable_tiling()
pipe.vae.enable_slicing()

video = pipe(
    prompt=prompt,
    image=image,
    num_videos_per_prompt=1,
    num_inference_steps=50,
    num_frames=49,
    guidance_scale=6,
    generator=torch.Generator(device="cuda").manual_seed(42),
).frames[0]

export_to_video(video, "output.mp4", fps=8)
"""

VIDEO_TO_VIDEO = """
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXVideoToVideoPipeline
from diffusers.utils import export_to_video, load_video

pipe = CogVideoXVideoToVideoPipeline.from_pretrained(
    "THUDM/CogVideoX-5b", torch_dtype=torch.bfloat16
)
pipe.to("cuda")
pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)

input_video = load_video("hiker.mp4")
prompt = "An astronaut stands triumphantly at the peak of a towering mountain."
video = pipe(
    video=input_video,
    prompt=prompt,
    strength=0.8,
    guidance_scale=6,
    num_inference_steps=50,
).frames[0]
export_to_video(video, "output.mp4", fps=8)
"""

CARDS = {
    "2b": ("2b", "CogVideoX-2b", TEXT_TO_VIDEO),
    "5b": ("5b", "CogVideoX-5b", TRAILING),
    "5b-i2v": ("5b-i2v", "CogVideoX-5b-I2V", IMAGE_TO_VIDEO),
    "v2v": ("5b", "CogVideoX-5b", VIDEO_TO_VIDEO),
}


def make_folder(folder, variant):
    """A tiny official folder that both libraries open by the name of the real one."""
    save_model(folder, variant, max_text_seq_length=226)
    shutil.copytree(DEMO_PATH / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    index = json.loads((DEMO_PATH / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))


def inject_noise(monkeypatch):
    """Sets all draws of noise, the same on both sides."""
    latents, drawn = random(*SHAPE), random(1, 16, 5, 8, 12, seed=7)
    steps = [random(*SHAPE, seed=100 + step) for step in range(4)]
    taken = {"theirs": 0, "ours": 0}
    for module in (
        pipeline_cogvideox,
        pipeline_cogvideox_image2video,
        pipeline_cogvideox_video2video,
    ):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: latents)
    monkeypatch.setattr(
        diffusers_vae, "randn_tensor", lambda shape, *_, **__: drawn[:, :, : shape[2]]
    )
    monkeypatch.setattr(
        scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: steps[taken["theirs"]]
    )
    their_step = diffusers.CogVideoXDPMScheduler.step
    our_step = mlx_cogvideo.CogVideoXDPMScheduler.step

    def counted(*args, **kwargs):
        result = their_step(*args, **kwargs)
        taken["theirs"] += 1
        return result

    def injected(*args, **kwargs):
        noise = ours(frames_first(steps[taken["ours"]]))
        taken["ours"] += 1
        return our_step(*args, **kwargs, noise=noise)

    def sample(self, key=None):
        noise = ours(channels_first(drawn))[:, : self.mean.shape[1]]
        return self.mean + mx.exp(0.5 * self.logvar) * noise

    monkeypatch.setattr(diffusers.CogVideoXDPMScheduler, "step", counted)
    monkeypatch.setattr(mlx_cogvideo.CogVideoXDPMScheduler, "step", injected)
    monkeypatch.setattr(pipeline, "initial_noise", lambda _: ours(frames_first(latents)))
    monkeypatch.setattr(Posterior, "sample", sample)


@pytest.mark.parametrize("card", CARDS)
def test_a_snippet_gives_the_frames_of_diffusers(card, tmp_path, monkeypatch):
    variant, name, snippet = CARDS[card]
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "THUDM" / name, variant)
    write_video("hiker.mp4", make_clip(17, 64, 96), fps=8)
    Image.fromarray(make_clip(1, 64, 96)[0]).save("input.png")
    inject_noise(monkeypatch)
    # Four divides 1000: elsewhere diffusers rounds the timestep before.
    snippet = snippet.replace("steps=50", "steps=4").replace("frames=49", "frames=17")
    snippet = snippet.replace('device="cuda"', "")

    # diffusers reads and writes clips with packages that the tests don't have.
    theirs = re.sub(r"^(pipe\.(vae\.)?enable|pipe\.to|export).*$", "", snippet, flags=re.M)
    theirs = re.sub("torch.b?float16", "torch.float32", theirs).replace('.to("cuda")', "")
    theirs = theirs.replace("load_video(", "read(")
    theirs = theirs.replace(").frames", '    output_type="np",\n).frames')  # theirs are pictures
    found = {"read": lambda path: [Image.fromarray(frame) for frame in read_video(path)[0]]}
    exec(compile(theirs, "theirs", "exec"), found)

    mine = snippet.replace("from diffusers", "from mlx_cogvideo")
    made = {}
    exec(compile(mine, "ours", "exec"), made)
    assert made["video"].shape == (17, 64, 96, 3) and made["video"].dtype == np.float32
    assert relative_error(made["video"], found["video"]) < TOLERANCE
    written, fps = read_video("output.mp4")
    assert (len(written), fps) == (17, 8)
    assert read_record("output.mp4") is None
