"""Makes a video of a prompt."""

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

# Or "2b", "5b", "1.5-5b", a folder or a hub id; those have settings of their own, so leave out
# what is given below.
pipe = CogVideoXPipeline.from_pretrained("demo")
video = pipe(
    "a red circle moves right on a white background",
    num_frames=17,
    num_inference_steps=10,
    guidance_scale=2,
    seed=1,
)
write_video("text_to_video.mp4", video, fps=pipe.fps)
