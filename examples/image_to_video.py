"""Makes a video that begins with a picture."""

from pathlib import Path

from mlx_cogvideo import generate_video

generate_video(
    "a purple triangle moves right on a black background",
    model="demo-i2v",  # or "5b-i2v", "1.5-5b-i2v"
    image=Path(__file__).with_name("triangle.png"),
    num_frames=17,
    num_inference_steps=10,
    guidance_scale=2,
    seed=1,
    output_path="image_to_video.mp4",
)
