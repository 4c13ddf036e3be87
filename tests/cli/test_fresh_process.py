"""Every public command and function in a process of its own.

Other tests have imported the package's submodules. A missing import fails in a user's process only.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from commands import PROMPT, SMALL
from support import environment

import mlx_cogvideo
from mlx_cogvideo import checkpoints, conversion, video
from mlx_cogvideo.video import write_latents, write_video

ROOT = Path(__file__).parents[2]
RUN = [*SMALL, "--seed", "1"]
COMMANDS = {
    "generate.py": [str(ROOT / "generate.py"), "--prompt", PROMPT, *RUN],
    "generate.py --lora": [str(ROOT / "generate.py"), "--prompt", "a", *RUN, "--lora", "adapter"],
    "generate.py --video": [str(ROOT / "generate.py"), "--prompt", "a", *RUN, "--video", "a.mp4"],
    "generate.py --show": [str(ROOT / "generate.py"), "--show", "a.mp4"],
    "generate.py --replay": [str(ROOT / "generate.py"), "--replay", "a.mp4", "-o", "b.mp4"],
    "generate.py 5b": [str(ROOT / "generate.py"), "--prompt", "a", "--model", "5b", "--dry-run"],
    "generate.py me": [str(ROOT / "generate.py"), "--prompt", "a", "--model", "me/it", "--dry-run"],
    "-m mlx_cogvideo": ["-m", "mlx_cogvideo", "generate", "-p", PROMPT, *RUN],
    "-m convert": ["-m", "mlx_cogvideo.convert", "--model", "demo", "-q"],
    "-m convert 5b": ["-m", "mlx_cogvideo.convert", "-q", "--dry-run"],
    "-m convert me": ["-m", "mlx_cogvideo.convert", "--model", "me/it", "--dry-run"],
    "-m convert --info": ["-m", "mlx_cogvideo.convert", "--info", str(checkpoints.DEMO_PATH)],
    "-m convert --lora": ["-m", "mlx_cogvideo.convert", "--model", "demo", "--lora", "adapter"],
    "-m check": ["-m", "mlx_cogvideo.check", "--help"],
    "-m lora": ["-m", "mlx_cogvideo.lora", "--help"],
    "lora.py": [
        *[str(ROOT / "lora.py"), "--data", "clips", "--iters", "1", "--rank", "2"],
        *["--frames", "9", "--height", "32", "--width", "48"],
    ],
}
NOT_THERE = {"generate.py me", "-m convert me"}
"""Commands that need the hub; without it they end with one line."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A clip with a record, a clip with a caption, latents and an adapter."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "clips").mkdir()
    write_video(folder / "clips" / "a.mp4", make_clip(9), 8)
    (folder / "clips" / "a.txt").write_text("a square")
    run(folder, *COMMANDS["generate.py"], "--output", "a.mp4")
    run(folder, *COMMANDS["lora.py"], "--adapter-path", "adapter")
    return folder


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    """Runs Python and checks how it ends."""
    ended = start(folder, *arguments)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_alone_in_its_process(material, tmp_path, name):
    for file in ("a.mp4", "adapter", "clips"):
        (tmp_path / file).symlink_to(material / file)
    ended = run(tmp_path, *COMMANDS[name], code=1 if name in NOT_THERE else 0)
    if name in NOT_THERE:
        begin = "error: 'me/it' is no folder here"
        assert ended.stderr.startswith(begin) and "isn't in the local cache" in ended.stderr


STUB = """
import huggingface_hub

class HfApi:
    def whoami(self): return {{"name": "me"}}
    def create_repo(self, repo, exist_ok): print("made", repo)
    def upload_folder(self, *, repo_id, folder_path, repo_type): print("sent", folder_path)

huggingface_hub.HfApi = HfApi
from mlx_cogvideo.cli.convert import main
raise SystemExit(main(["--model", "demo", "-q", "--upload-repo", "{repo}"]))
"""


def test_an_upload_works_alone_in_its_process(tmp_path):
    ended = run(tmp_path, "-c", STUB.format(repo="me/tiny"))
    assert ended.stdout.splitlines() == ["made me/tiny", "sent mlx_model", "mlx_model"]
    assert "--model me/tiny" in (tmp_path / "mlx_model" / "README.md").read_text()


def test_a_bad_name_for_an_upload_is_refused_alone_in_its_process(tmp_path):
    ended = run(tmp_path, "-c", STUB.format(repo="bad name"), code=2)
    assert ended.stderr.startswith("error: 'bad name' is no name for a repository")
    assert not (tmp_path / "mlx_model").exists()


FUNCTIONS = {
    mlx_cogvideo: {
        **dict.fromkeys(("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")),
        **dict.fromkeys(("CogVideoXDPMPlusPlusScheduler", "VideoOutput")),
        "CogVideoXImageToVideoPipeline": "CogVideoXImageToVideoPipeline.from_pretrained("
        "'demo-i2v')",
        "CogVideoXPipeline": "CogVideoXPipeline.from_pretrained('demo')('a', num_frames=9, "
        "height=32, width=48, num_inference_steps=1)",
        "CogVideoXVideoToVideoPipeline": "CogVideoXVideoToVideoPipeline.from_pretrained('demo')",
        "generate_video": "generate_video('a', num_frames=9, height=32, width=48, "
        "num_inference_steps=1, output_path='b.mp4')",
    },
    checkpoints: {
        "Adapter": None,
        "check_component": "check_component(T5EncoderModel(T5), DEMO_PATH / 'text_encoder')",
        "component_folder": "component_folder(DEMO_PATH, 'vae')",
        "default_model": "default_model()",
        "download_bytes": "download_bytes('5b')",
        "holds_adapter": "holds_adapter(Path('adapter'))",
        "hub_cache": "hub_cache()",
        "hub_id": "hub_id('5b')",
        "load_component": "load_component(T5EncoderModel(T5), DEMO_PATH / 'text_encoder')",
        "model_identity": "model_identity('demo', DEMO_PATH)",
        "open_adapter": "open_adapter('adapter', {})",
        "read_config": "read_config(DEMO_PATH / 'model_index.json')",
        "read_header": "read_header(Path('a.safetensors'))",
        "resolve_configuration": "resolve_configuration('5b')",
        "resolve_model": "resolve_model('5b')",
        "resolve_text_encoder": "resolve_text_encoder('2b')",
        "save_adapter": "save_adapter(Path('saved'), {}, rank=4, alpha=4.0, base_model='demo')",
        "save_arrays": "save_arrays(Path('arrays.safetensors'), {'a': mx.zeros(2)})",
        "save_component": "save_component(Path('text_encoder'), T5EncoderModel(T5), {})",
        "write_config": "write_config(Path('a.json'), {})",
    },
    conversion: {
        **dict.fromkeys(("ComponentPlan", "ConversionPlan", "TensorPlan")),
        "check_destination": "check_destination(Path('new'), 1)",
        "check_free": "check_free(Path('new'))",
        "convert": "convert(plan_conversion('demo', DEMO), Path('new'))",
        "describe_folder": "describe_folder(DEMO)",
        "lock_destination": "lock_destination(Path('new')).__enter__()",
        "plan_conversion": "plan_conversion('demo', DEMO)",
    },
    video: {
        **dict.fromkeys(
            ("ClipInfo", "ClipSpec", "FrameWriter", "GifWriter", "PngWriter", "VideoWriter")
        ),
        "check_output_path": "check_output_path('b.mp4')",
        "content_digest": "content_digest(Path('a.mp4'))",
        "measure": "measure(Path('a.mp4'), 8)",
        "open_writer": "open_writer('b.gif', 8).__enter__().write(FRAME)",
        "read_clip": "read_clip(Path('a.mp4'), ClipSpec(9, 32, 48, 8))",
        "read_frames": "next(iter(read_frames('a.mp4')))",
        "read_image": "read_image('a.mp4', 32, 48)",
        "read_record": "read_record('a.mp4')",
        "read_video": "read_video('a.mp4')",
        "write_latents": "write_latents('b.safetensors', np.zeros((1, 1, 2, 2, 4), np.float32))",
        "write_video": "write_video('b.mp4', FRAME, 8)",
    },
}
PREPARED = {
    mlx_cogvideo: "",
    checkpoints: "import mlx.core as mx\nfrom mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel\n"
    "T5 = T5Config.from_dict(read_config(DEMO_PATH / 'text_encoder' / 'config.json'))",
    conversion: "DEMO = __import__('mlx_cogvideo').checkpoints.DEMO_PATH",
    video: "import numpy as np\nFRAME = np.zeros((1, 32, 48, 3), np.uint8)",
}


def test_submodules_need_no_import_of_their_own():
    code = (
        "import mlx_cogvideo as m, sys; assert 'mlx.core' not in sys.modules; "
        "assert set(m.__all__) | {'pipeline', 'utils'} <= set(dir(m)); "
        "print(m.utils.load_video.__name__, m.pipeline.__name__, m.errors.OutputError is "
        "m.OutputError, hasattr(m, 'nothing'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.stdout == "load_video mlx_cogvideo.pipeline True False\n", done.stderr


def test_every_public_function_is_called():
    for module, calls in FUNCTIONS.items():
        public = {name for name in module.__all__ if callable(getattr(module, name))}
        errors = {name for name in public if name.endswith("Error")}
        assert calls.keys() == public - errors


CALLS = {
    f"{module.__name__}.{name}": (module, call)
    for module, calls in FUNCTIONS.items()
    for name, call in calls.items()
    if call is not None
}


@pytest.fixture(scope="module")
def ended(material, tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
    """Each of the calls in a process of its own, as many at a time as there are cores."""

    def call(name: str) -> subprocess.CompletedProcess:
        folder = tmp_path_factory.mktemp("call")
        for file in ("a.mp4", "adapter"):
            (folder / file).symlink_to(material / file)
        write_latents(folder / "a.safetensors", np.zeros((1, 1, 2, 2, 4), np.float32))
        module, code = CALLS[name]
        lines = [
            "from pathlib import Path",
            f"from {module.__name__} import *",
            "from mlx_cogvideo import CogVideoXError",
            *PREPARED[module].split("\n"),
            "try:",
            f"    {code}",
            "except CogVideoXError as error:  # nothing here can reach a hub",
            "    print(error)",
        ]
        return start(folder, "-c", "\n".join(lines))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(CALLS, pool.map(call, CALLS), strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_a_function_alone_in_its_process(ended, name):
    assert ended[name].returncode == 0, ended[name].stderr
