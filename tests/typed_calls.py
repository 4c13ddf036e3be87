"""Calls as a type checker sees them: mypy runs on this file and nothing else does.

A wrong argument that mypy accepted would leave its "type: ignore" unused, which mypy reports.
"""

import numpy as np

from mlx_cogvideo import CogVideoXPipeline, VideoOutput, generate_video
from mlx_cogvideo.pipeline.resolved import ResolvedSettings
from mlx_cogvideo.utils import export_to_video, load_video


def right(pipe: CogVideoXPipeline) -> None:
    pipe("a prompt", "a negative prompt", num_inference_steps=3, output_type="latent", seed=1)
    output: VideoOutput = pipe(["a", "b"], generator=[1, 2], num_videos_per_prompt=1)
    export_to_video(output.frames[0], "a.mp4", fps=8)
    pipe("a prompt", video=load_video("a.mp4"), use_dynamic_cfg=True).save("b.mp4")
    pipe.load_lora_weights("adapter", weight_name="a.safetensors", adapter_name="a")
    pipe.set_adapters(["a"], [0.5])
    settings: ResolvedSettings = pipe.request("a prompt", tile_size=(64, 64), dynamic_cfg=True)
    pipe.events(settings)
    frames: np.ndarray = generate_video("a prompt", "demo", cfg_scale=2.0, output_path="a.mp4")
    generate_video(prompt="a prompt", num_frames=len(frames))


def wrong(pipe: CogVideoXPipeline) -> None:
    pipe("a prompt", num_inference_step=3)  # type: ignore[call-arg]
    pipe("a prompt", num_inference_steps="3")  # type: ignore[arg-type]
    pipe(3)  # type: ignore[arg-type]
    pipe("a prompt", num_videos_per_prompt="2")  # type: ignore[arg-type]
    pipe("a prompt", "none", 49)  # type: ignore[call-arg]
    pipe.request("a prompt", output_type="np")  # type: ignore[call-arg]
    generate_video("a prompt", num_frame=9)  # type: ignore[call-arg]
