"""Changes files of all kinds at random, gives them to the commands, and looks at how these end.

    python tools/checks/fuzz.py --cases 400
    python tools/checks/fuzz.py --kinds configurations --first 1234 --cases 1 --keep /tmp/case

A case changes one to three files and runs a command in a process of its own. It is right if the
command works, or says in a line what is wrong. It is wrong if there is a traceback, a signal, no
end within `SECONDS`, more than `MEMORY` beside the files' sizes, or a control character on stderr.
The number of a case is its seed, so that it can be repeated alone.
"""

import argparse
import base64
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from commands import ctrl_c_in_step

from mlx_cogvideo.checkpoints.resolve import DEMO_PATH
from mlx_cogvideo.checkpoints.torch_file import TorchFile, tensors_in
from mlx_cogvideo.cli import convert, generate, lora
from mlx_cogvideo.errors import CogVideoXError
from mlx_cogvideo.video import ClipSpec, read_clip, read_image, write_video

SECONDS = 10
"""The longest time that a command may take; it is stopped after this."""
MEMORY = 2**30
"""Bytes that a process may hold beside the size of its files."""
ADDRESS_SPACE = 2**35
"""Bytes that a process can ask the system for, so that this machine survives a fault."""
WORKERS = 2
TRACEBACK = 99

CONFIGS = ("json", "toml", "yaml")
SMALL = ["--frames", "9", "--height", "32", "--width", "48"]
RUN = ["--prompt", "a red circle", "--steps", "1", *SMALL, "--quiet"]
STRANGE = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "x" * 10_000, "1", "\x1b[2J", "\x00", "\ud800", "../../x",
    "/dev/zero", "https://example.com/x", [], [1], [0, 0, 0], [None], ["x"], {}, {"x": 1}, {"": {}},
]  # fmt: skip


# --- changes


def change(content: bytes, name: str, dice: random.Random) -> bytes:
    """A file's content with one change that fits its kind, or that ignores it."""
    if dice.random() < 0.25:
        return change_bytes(content, dice)
    if name.endswith(".json"):
        return change_json(content, dice)
    if name.endswith((".safetensors", ".resume")):
        return change_header(content, dice)
    if name.endswith((".txt", ".csv", ".jsonl", ".toml", ".yaml")):
        return change_text(content, dice)
    if name.endswith(".pt"):
        return change_archive(content, dice)
    return change_bytes(content, dice)


def change_bytes(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    start = dice.randrange(len(data) + 1)
    if dice.random() < 0.5:  # where most formats have what matters
        start = min(start, dice.randrange(200))
    how = dice.randrange(5)
    if how == 0:
        del data[start:]
    elif how == 1:
        del data[start : start + dice.randrange(1, 64)]
    elif how == 2:
        data[start:start] = dice.randbytes(dice.randrange(1, 64))
    elif how == 3:
        data[start : start + 8] = struct.pack("<q", dice.choice([-1, 0, 2**31, 2**62, 255]))
    else:
        for _ in range(dice.randrange(1, 16)):
            if data:
                data[min(len(data) - 1, start + dice.randrange(32))] = dice.randrange(256)
    return bytes(data)


def change_json(content: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.02:
        return b"[" * 100_000
    tree = json.loads(content)
    places = list(_places(tree))
    if not places:
        return json.dumps(dice.choice(STRANGE)).encode()
    holder, key = dice.choice(places)
    if dice.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and dice.random() < 0.1:
        holder[dice.choice(["x", "", "\x1b]0;x\x07", "_class_name"])] = dice.choice(STRANGE)
    else:
        holder[key] = dice.choice([*STRANGE, dice.choice(places)[0]])
    try:
        return json.dumps(tree).encode()
    except (ValueError, RecursionError):  # it holds itself
        return json.dumps(dice.choice(STRANGE)).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def change_header(content: bytes, dice: random.Random) -> bytes:
    """Changes the JSON in a safetensors header, or a record or numbers inside it."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    inside = [key for key, text in metadata.items() if text.startswith("{")]
    if inside and dice.random() < 0.7:
        key = dice.choice(inside)
        metadata[key] = change_json(metadata[key].encode(), dice).decode()
        changed = json.dumps(header).encode()
    elif dice.random() < 0.8:
        changed = change_json(json.dumps(header).encode(), dice)
    else:
        changed, data = json.dumps(header).encode(), change_bytes(data or b"0", dice)
    return struct.pack("<Q", len(changed)) + changed + data


def change_text(content: bytes, dice: random.Random) -> bytes:
    lines = content.decode().split("\n")
    i = dice.randrange(len(lines))
    odd = dice.choice([",", '"', "'", "\t", "\x00", "\x1b[2J", "\ufeff", "{", "&a [*a]", "@@", ";"])
    at = dice.randrange(len(lines[i]) + 1)
    changes = [
        lambda: lines.pop(i),
        lambda: lines.insert(i, lines[dice.randrange(len(lines))]),
        lambda: lines.insert(i, lines[i] * 3000),
        lambda: lines.__setitem__(i, lines[i][:at] + odd + lines[i][at:]),
        lambda: lines.__setitem__(i, json.dumps(dice.choice(STRANGE))),
    ]
    dice.choice(changes)()
    return "\n".join(lines).encode(dice.choice(["utf-8"] * 5 + ["utf-16"]), "surrogatepass")


def change_archive(content: bytes, dice: random.Random) -> bytes:
    """Changes the pickle inside a PyTorch file."""
    changed = io.BytesIO()
    compression = dice.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(changed, "w", compression) as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data = dice.choice(PICKLES) if dice.random() < 0.3 else change_bytes(data, dice)
            new.writestr(name, data)
    return changed.getvalue()


def _nested(depth: int) -> bytes:
    """A dictionary whose key is a tuple of twice the same tuple, of twice the same ...: 2^depth."""
    return b"\x80\x02})" + b"2\x86" * depth + b"Ns."


PICKLES = [
    b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",  # a dictionary that holds itself
    _nested(60),
    b"\x80\x02]" + b"(" + b"N" * 3_000_000 + b"e.",
    b"\x80\x02Nr\xff\xff\xff\x7f.",  # the last place of a memo
    b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    b"cos\nsystem\n(X\x02\x00\x00\x00lstR.",
    b"\x80\x04\x8b\xff\xff\xff\x7f.",  # a number of 2 GiB
    b"\x80\x02X\xff\xff\xff\x7f.",
]


# --- files and commands


@dataclass(frozen=True)
class Kind:
    """Files of one kind and the commands that read them.

    Attributes:
        write: writes whole files into a folder.
        changed: patterns of the files to change.
        read: runs the commands on a folder.
    """

    write: Callable[[Path], None]
    changed: tuple[str, ...]
    read: Callable[[Path], Any]


def write_model(folder: Path) -> None:
    shutil.copytree(DEMO_PATH, folder / "model")


def write_shards(folder: Path) -> None:
    convert.main(["--model", "demo", "--mlx-path", str(folder / "model"), "--quiet"])
    part = folder / "model" / "transformer"
    file = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(2):
        shard = f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[i::2]}, part / shard)
        weight_map |= dict.fromkeys(names[i::2], shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def write_finetune(folder: Path) -> None:
    """A folder with a transformer alone, and a whole one that gives it the rest."""
    write_model(folder)
    shutil.copytree(folder / "model" / "transformer", folder / "mine" / "transformer")
    shutil.copy(folder / "model" / "model_index.json", folder / "mine")


def write_fast_tokenizer(folder: Path) -> None:
    """A model with the ``tokenizer.json`` that transformers saves today."""
    write_model(folder)
    tokenizer = folder / "model" / "tokenizer"
    spiece = sentencepiece.SentencePieceProcessor(str(tokenizer / "spiece.model"))
    vocabulary = [[spiece.id_to_piece(i), spiece.get_score(i)] for i in range(len(spiece))]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    # The table of the normalizer is the last of the file, after its length in three bytes.
    table = (tokenizer / "spiece.model").read_bytes().partition(b"nmt_nfkc\x12")[2][3:]
    contents = {
        "added_tokens": [{"content": vocabulary[i][0], "special": True} for i in range(3)],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(table).decode(),
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [space]},
        "model": {"type": "Unigram", "unk_id": spiece.unk_id(), "vocab": vocabulary},
    }
    (tokenizer / "spiece.model").unlink()
    (tokenizer / "tokenizer.json").write_text(json.dumps(contents))


def write_adapter(folder: Path) -> None:
    config = json.loads((DEMO_PATH / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    prefix = "transformer.transformer_blocks.0.attn1.to_q."
    tensors = {
        f"{prefix}lora_A.weight": np.ones((2, width), np.float32),
        f"{prefix}lora_B.weight": np.ones((width, 2), np.float32),
        f"{prefix}lora_magnitude_vector": np.ones(width, np.float32),
        f"{prefix.replace('to_q', 'to_k')}lokr_w1": np.ones((2, 4), np.float32),
        f"{prefix.replace('to_q', 'to_k')}lokr_w2_a": np.ones((width // 2, 2), np.float32),
        f"{prefix.replace('to_q', 'to_k')}lokr_w2_b": np.ones((2, width // 4), np.float32),
    }
    about = {"r": 2, "lora_alpha": 2, "alpha_pattern": {"to_q": 4}, "target_modules": ["to_q"]}
    text = json.dumps({f"transformer.{name}": value for name, value in about.items()})
    (folder / "adapter").mkdir()
    file = folder / "adapter" / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, {"lora_adapter_metadata": text})
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))


def write_record(folder: Path) -> None:
    generate.main([*RUN, "-o", str(folder / "video.safetensors")])
    with ctrl_c_in_step(1):
        generate.main([*RUN, "--steps", "3", "-o", str(folder / "video.mp4")])


def write_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a red circle\na blue square moves left\n\n# a remark\n")
    settings = {"prompt": "x", "steps": 1, "seed": 3, "guidance": 2.5, "frames": 9}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "config.toml").write_text('prompt = "x"\nsteps = 1\nseed = [3]\nframes = 9\n')
    (folder / "config.yaml").write_text("prompt: x\nsteps: 1\nseed: [3]\nframes: 9\nquiet: yes\n")


def write_data(folder: Path) -> None:
    for layout in ("csv", "jsonl", "txt"):
        (folder / layout).mkdir()
        write_clip(folder / layout / "a.mp4")
        shutil.copy(folder / layout / "a.mp4", folder / layout / "b.mp4")
    (folder / "csv" / "metadata.csv").write_text('file_name,text\na.mp4,"a, b"\nb.mp4,c\n')
    rows = [{"file_name": f"{name}.mp4", "text": name} for name in "ab"]
    (folder / "jsonl" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "txt" / "a.txt").write_text("a red circle")


def write_clip(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8)
    write_video(path, noise, 8)


def write_clips(folder: Path) -> None:
    for name in ("clip.mp4", "clip.gif"):
        write_clip(folder / name)


def write_pictures(folder: Path) -> None:
    import av

    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    codecs = {"png": "png", "jpg": "mjpeg", "bmp": "bmp", "tiff": "tiff", "webp": "libwebp"}
    for suffix, codec in codecs.items():
        with av.open(str(folder / f"picture.{suffix}"), "w", format="image2") as container:
            stream = container.add_stream(codec, 1, width=48, height=32)
            stream.pix_fmt = {"mjpeg": "yuvj420p", "bmp": "bgr24", "libwebp": "yuv420p"}.get(
                codec, "rgb24"
            )
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())


def write_torch(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(["a.weight", "b.weight"], (2, 3)))
        for key in range(2):
            archive.writestr(f"archive/data/{key}", np.arange(6, dtype=np.float32).tobytes())


def _pickled(names: list[str], shape: tuple[int, int]) -> bytes:
    """The pickle of a state dict as PyTorch writes it, instruction by instruction."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    pickled = b"\x80\x02}(" + text("module") + b"}("
    for key, name in enumerate(names):
        pickled += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        pickled += text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu")
        pickled += bytes([ord("K"), shape[0] * shape[1]]) + b"tQK\x00"
        pickled += bytes([ord("K"), shape[0], ord("K"), shape[1], 0x86])
        pickled += bytes([ord("K"), shape[1], ord("K"), 1, 0x86])
        pickled += b"\x89ccollections\nOrderedDict\n)RtR"
    return pickled + b"uu."


def generate_with(*options: str) -> Callable[[Path], Any]:
    """Plans a run, and in every fifth case makes it."""

    def read(folder: Path) -> Any:
        given = [option.format(folder=folder) for option in options]
        planned = generate.main([*RUN, *given, "-o", str(folder / "out.mp4"), "--dry-run"])
        if planned == 0 and int(folder.name) % 5 == 0:
            return generate.main([*RUN, *given, "-o", str(folder / "out.mp4")])
        return planned

    return read


def read_records(folder: Path) -> None:
    file = str(folder / "video.safetensors")
    generate.main(["--show", file])
    generate.main(["--replay", file, "-o", str(folder / "out.mp4"), "--dry-run", "--quiet"])
    saved = str(folder / "video.mp4.resume")
    generate.main(["--resume", saved, "-o", str(folder / "out.mp4"), "--quiet"])


def read_prompts(folder: Path) -> None:
    common = ["-o", str(folder / "out.mp4"), "--dry-run", "--quiet"]
    configs = [["--config", str(folder / f"config.{suffix}")] for suffix in CONFIGS]
    prompts = ["--prompt-file", str(folder / "prompts.txt"), "--frames", "9"]
    for options in (*configs, [*prompts, "--output", str(folder / "out-{index}.mp4")]):
        with suppress(SystemExit):
            generate.main([*common, *options])


def read_data(folder: Path) -> None:
    for layout in ("csv", "jsonl", "txt"):
        data = ["--data", str(folder / layout), "--adapter-path", str(folder / "adapter")]
        lora.main([*data, *SMALL, "--dry-run", "--quiet"])


def read_media(folder: Path) -> None:
    for file in [*folder.glob("clip.*"), *folder.glob("picture.*")]:
        if file.stem == "clip":
            _tried(lambda file=file: read_clip(file, ClipSpec(9, 32, 48, 8)))
        _tried(lambda file=file: read_image(file, 32, 48))


def read_torch(folder: Path) -> None:
    def read() -> None:
        for tensor in tensors_in(TorchFile(folder / "model.pt").contents).values():
            tensor.read()

    _tried(read)


def _tried(read: Callable[[], Any]) -> None:
    try:
        read()
    except CogVideoXError as error:
        print(f"error: {error}", file=sys.stderr)


MODEL = generate_with("--model", "{folder}/model")
KINDS = {
    "configurations": Kind(write_model, ("*/*/*config.json", "*/model_index.json"), MODEL),
    "tokenizers": Kind(write_model, ("*/tokenizer/*",), MODEL),
    "fast_tokenizers": Kind(write_fast_tokenizer, ("*/tokenizer/*",), MODEL),
    "finetunes": Kind(
        write_finetune,
        ("*/transformer/config.json", "*/model_index.json"),
        generate_with("--model", "{folder}/mine", "--base", "{folder}/model"),
    ),
    "weights": Kind(write_model, ("*/*/*.safetensors",), MODEL),
    "indexes": Kind(write_shards, ("*/transformer/*.json",), MODEL),
    "adapters": Kind(write_adapter, ("*/*",), generate_with("--lora", "{folder}/adapter")),
    "records": Kind(write_record, ("*.safetensors", "*.resume"), read_records),
    "prompts": Kind(write_prompts, ("*",), read_prompts),
    "data": Kind(write_data, ("*/*.csv", "*/*.jsonl", "*/*.txt"), read_data),
    "clips": Kind(write_clips, ("clip.*",), read_media),
    "pictures": Kind(write_pictures, ("picture.*",), read_media),
    "torch": Kind(write_torch, ("model.pt",), read_torch),
}


# --- processes


@dataclass
class Case:
    """A command that runs in a process of its own."""

    kind: str
    number: int
    folder: Path
    process: int
    ends: float
    size: int

    @property
    def heard(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def verdict(self, status: int, peak: int) -> str:
        """How the command ended, in a word."""
        if os.WIFSIGNALED(status):
            return "no end" if time.monotonic() > self.ends else f"signal {os.WTERMSIG(status)}"
        if os.WEXITSTATUS(status) == TRACEBACK:
            return "traceback"
        if peak > MEMORY + self.size:
            return "memory"
        if any((ord(c) < 32 and c not in "\n\t\r") or 127 <= ord(c) < 160 for c in self.heard):
            return "control character"
        return "error" if "error: " in self.heard else "works"


def start(kind: str, number: int, seeds: Path, place: Path) -> Case:
    """Changes a file and starts the commands that read it."""
    dice, folder = random.Random(f"{kind} {number}"), place / str(number)
    shutil.copytree(seeds, folder)
    files = sorted(file for pattern in KINDS[kind].changed for file in folder.glob(pattern))
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        file = dice.choice([file for file in files if file.is_file()])
        try:
            file.write_bytes(change(file.read_bytes(), file.name, dice))
        except Exception:
            file.write_bytes(change_bytes(file.read_bytes(), dice))  # it was damaged before
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    process = in_a_process(lambda: KINDS[kind].read(folder), folder)
    return Case(kind, number, folder, process, time.monotonic() + SECONDS, size)


def in_a_process(work: Callable[[], Any], folder: Path) -> int:
    """The number of a new process that does the work and writes its output into `folder`.

    It is a copy of this one, because importing MLX takes longer than a case.
    """
    process = os.fork()
    if process:
        return process
    code = TRACEBACK
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        for name, stream in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(folder)
        work()
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(running: list[Case]) -> Iterator[tuple[Case, str]]:
    """The cases that have ended, and how; ends those that take too long."""
    for case in list(running):
        process, status, usage = os.wait4(case.process, os.WNOHANG)
        if not process and time.monotonic() > case.ends:
            os.kill(case.process, 9)
            process, status, usage = os.wait4(case.process, 0)
        if process:
            running.remove(case)
            unit = 1 if sys.platform == "darwin" else 1024
            yield case, case.verdict(status, usage.ru_maxrss * unit)


def fuzz(kind: str, numbers: range, keep: Path | None) -> Counter[str]:
    """Tries the cases of a kind and prints those that end as they should not."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        seeds = place / "seeds"
        seeds.mkdir()
        os.waitpid(in_a_process(lambda: KINDS[kind].write(seeds), place), 0)
        running: list[Case] = []
        waiting = iter(numbers)
        number = next(waiting, None)
        while running or number is not None:
            if number is not None and len(running) < WORKERS:
                running.append(start(kind, number, seeds, place))
                number = next(waiting, None)
                continue
            for case, verdict in finished(running):
                seen[verdict] += 1
                if verdict not in ("works", "error"):
                    last = (case.heard.strip().splitlines() or [""])[-1]
                    print(f"{kind} {case.number}: {verdict}: {last[:200]!r}", flush=True)
                if keep is not None:
                    shutil.copytree(case.folder, keep / f"{kind}-{case.number}")
                shutil.rmtree(case.folder)
            time.sleep(0.002)
    return seen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--cases", type=int, default=100, help="cases of each kind (default: 100)")
    add("--first", type=int, default=0, help="number of the first case (default: 0)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(default: all)")
    add("--keep", type=Path, help="folder to keep the cases in")
    args = parser.parse_args(arguments)
    whole: Counter[str] = Counter()
    for kind in args.kinds:
        began = time.monotonic()
        seen = fuzz(kind, range(args.first, args.first + args.cases), args.keep)
        print(f"{kind}: {dict(seen)}, {time.monotonic() - began:.0f} s", flush=True)
        whole += seen
    wrong = whole.total() - whole["works"] - whole["error"]
    print(f"{whole.total()} cases, {wrong} ended as they should not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
