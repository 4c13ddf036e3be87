"""Makes a video of each prompt, with a preview that is drawn again after each step."""

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.runs.preview import Preview
from mlx_cogvideo.video import write_video

pipe = CogVideoXPipeline.from_pretrained("demo")
preview = Preview(pipe)


def show(index, timestep, latents):
    preview.write("preview.gif", latents)


for seed, prompt in enumerate(["a red circle moves right", "a blue square grows"]):
    settings = {"num_frames": 17, "num_inference_steps": 10, "guidance_scale": 2, "seed": seed}
    write_video(f"{seed}.mp4", pipe(prompt, callback_on_step_end=show, **settings), fps=pipe.fps)
