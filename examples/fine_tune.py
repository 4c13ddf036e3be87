"""Trains an adapter on clips, and makes a video with it. The demo makes the clips here."""

import subprocess
import sys
from pathlib import Path

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

settings = {"num_frames": 17, "num_inference_steps": 10, "guidance_scale": 2, "seed": 1}
pipe = CogVideoXPipeline.from_pretrained("demo")
Path("clips").mkdir()
write_video("clips/one.mp4", pipe("a red circle moves right", **settings), fps=pipe.fps)
Path("clips/one.txt").write_text("a red ball rolls")
train = "-m mlx_cogvideo.lora --data clips --model demo --iters 20 --adapter-path adapters"
subprocess.run([sys.executable, *train.split()], check=True)
pipe.load_lora("adapters")
write_video("fine_tuned.mp4", pipe("a red ball rolls", **settings), fps=pipe.fps)
