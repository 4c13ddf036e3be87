"""Weights under the names that diffusers and transformers give them; others are refused."""

import json
import os

import mlx.core as mx
import numpy as np
import pytest
from components import FILE, make_model, write_component
from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from mlx_cogvideo.checkpoints import load_component, read_config, save_component
from mlx_cogvideo.errors import CheckpointError
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel

T5 = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
STEM = FILE.removesuffix(".safetensors")
INDEX = f"{FILE}.index.json"


@pytest.fixture
def folder(tmp_path):
    return write_component(tmp_path)


def numbers(folder) -> dict[str, np.ndarray]:
    model = load_component(make_model(), folder)
    return {name: np.array(weight) for name, weight in tree_flatten(model.parameters())}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all((first[n] == second[n]).all() for n in first)


def split(folder, *names: str) -> dict[str, str]:
    """Distributes the tensors over files of these names; returns the weight map."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    weight_map = {}
    for i, name in enumerate(names):
        part = {t: tensors[t] for t in sorted(tensors)[i :: len(names)]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    return weight_map


def refuses(folder, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_component(make_model(), folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "index"),
    [
        ([f"{STEM}.fp16.safetensors"], None),
        ([f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)], "fp16."),
        ([f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)], None),
        ([f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)], "fp16."),
        ([f"{STEM}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], None),
        ([f"{STEM}.non_ema.safetensors"], None),
    ],
    ids=["variant", "both", "no index", "formerly", "shards", "another variant"],
)
def test_files_of_other_names_are_read(folder, names, index):
    whole = numbers(folder)
    weight_map = split(folder, *names)
    if index is not None:
        text = json.dumps({"weight_map": weight_map})
        (folder / f"{FILE}.index.{index}json").write_text(text)
    assert same(numbers(folder), whole)


def test_a_variant_is_ignored_beside_the_files_without_one(folder):
    whole = numbers(folder)
    save_file({"x": np.ones(1)}, folder / f"{STEM}.fp16.safetensors")
    assert same(numbers(folder), whole)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{STEM}.fp16.safetensors", f"{STEM}.bf16.safetensors"], "several variants, bf16, fp16"),
        ([f"{STEM}-0000{i}-of-00003.safetensors" for i in (1, 3)], "lacks shards of 3: 2"),
        (
            [f"{STEM}-00001-of-00001.safetensors", f"{STEM}-00001-of-00002.safetensors"],
            "shards of several savings",
        ),
        ([f"{STEM}-00000-of-00001.safetensors"], "lacks shards of 1: 1"),
        (["model.safetensors"], "but model.safetensors: rename it"),
    ],
    ids=["variants", "a missing shard", "two savings", "counted from 0", "another stem"],
)
def test_files_that_arent_clear_are_named(folder, names, message):
    split(folder, *names)
    refuses(folder, message)


@pytest.mark.parametrize("name", [f"{STEM}.bin", f"{STEM}.bin.index.json", "model.gguf", "x.pth"])
def test_weights_of_another_kind_are_named_with_what_to_do(folder, name):
    (folder / FILE).unlink()
    (folder / name).write_bytes(b"PK\3\4")
    refuses(folder, "save_pretrained" if "index" not in name else "holds neither")


def test_a_link_to_a_file_that_is_gone_is_named_as_one(folder):
    """As in a cache of the hub from which a blob was removed."""
    (folder / FILE).unlink()
    (folder / FILE).symlink_to("gone")
    refuses(folder, "links to files that are gone")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_configuration_that_isnt_a_file_is_missing(folder, make):
    (folder / "config.json").unlink(missing_ok=True)
    make(folder / "config.json")
    with pytest.raises(CheckpointError, match="is missing"):
        read_config(folder / "config.json")


@pytest.mark.parametrize(
    "weight_map",
    [
        *(None, [], ["a"], 3, "a", {}, {"x": None}, {"x": 3}, {"x": ["a"]}, {"x": ""}),
        *({"x": "../a.safetensors"}, {"x": "/a.safetensors"}, {"x": "b/a.safetensors"}),
        *({"x": ".."}, {"x": "none.safetensors"}, {"x": "\ud800"}, {"x": "a\0b"}, {"x": "a" * 300}),
    ],
    ids=repr,
)
def test_an_odd_index_is_refused_alone_and_ignored_beside_a_whole_file(folder, weight_map):
    whole = numbers(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert same(numbers(folder), whole)
    (folder / FILE).unlink()
    refuses(folder, "weight_map|lacks")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"metadata": {}}', "[" * 100_000])
def test_a_damaged_index_is_refused_alone_and_ignored_beside_a_whole_file(folder, text):
    whole = numbers(folder)
    (folder / INDEX).write_text(text)
    assert same(numbers(folder), whole)
    (folder / FILE).unlink()
    refuses(folder, "index.json")


def test_an_index_of_some_of_the_shards_is_refused(folder):
    weight_map = split(folder, "a.safetensors", "b.safetensors")
    part = {name: file for name, file in weight_map.items() if file == "a.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": part}))
    refuses(folder, "missing tensors")


def test_a_tensor_in_two_shards_is_refused(folder):
    weight_map = split(folder, "a.safetensors", "b.safetensors")
    name = next(name for name, file in weight_map.items() if file == "a.safetensors")
    other = load_file(folder / "b.safetensors")
    save_file({**other, name: np.ones(1)}, folder / "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refuses(folder, f"two of its files hold: {name}")


def test_float64_is_read_as_float32_beside_every_other_type(folder):
    tensors = load_file(folder / FILE)
    half = {n: t.astype(np.float16) for n, t in tensors.items() if n != "proj_out.bias"}
    bias = np.linspace(-1, 1, tensors["proj_out.bias"].size) / 3
    save_file({**half, "proj_out.bias": bias}, folder / FILE)
    loaded = numbers(folder)
    assert loaded["proj_out.bias"].dtype == np.float32
    assert (loaded["proj_out.bias"] == bias.astype(np.float32)).all()
    # The only other type that NumPy has; bfloat16 is a view of 16-bit integers.
    kept = loaded["proj_out.weight"]
    assert kept.dtype == np.float16 and (kept == half["proj_out.weight"]).all()


def test_bfloat16_beside_float64_keeps_its_bits(folder):
    weights = dict(mx.load(str(folder / FILE)))
    mx.eval(weights)
    half = {name: weight.astype(mx.bfloat16) for name, weight in weights.items()}
    bits = half["proj_out.weight"].view(mx.uint16)
    (folder / FILE).unlink()
    mx.save_safetensors(str(folder / FILE), half)
    declare(folder / FILE, "norm_final.bias", "F64", 4)
    weight = load_component(make_model(), folder).proj_out.weight
    assert weight.dtype == mx.bfloat16 and mx.array_equal(weight.view(mx.uint16), bits)


def declare(file, name: str, dtype: str, times: int) -> None:
    """Rewrites a file so that a tensor of 16 bits is one of zeros of another type."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    made, offset = b"", 0
    for tensor, entry in header.items():
        first, end = entry["data_offsets"]
        part = data[first:end]
        if tensor == name:
            part, entry["dtype"] = bytes(times * (end - first)), dtype
        entry["data_offsets"] = [offset, offset + len(part)]
        made, offset = made + part, offset + len(part)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + made)


@pytest.mark.parametrize("both", [True, False])
def test_the_token_embedding_is_read_under_either_name(tmp_path, both):
    mx.random.seed(0)
    model, folder = T5EncoderModel(T5Config.from_dict(T5)), tmp_path / "text_encoder"
    save_component(folder, model, T5)
    tensors = load_file(folder / "model.safetensors")
    shared = tensors["shared.weight"].copy()
    tensors["encoder.embed_tokens.weight"] = shared
    if not both:
        del tensors["shared.weight"]
    save_file(tensors, folder / "model.safetensors")
    loaded = load_component(T5EncoderModel(T5Config.from_dict(T5)), folder)
    assert (np.array(loaded.shared.weight) == shared).all()


def test_a_file_that_is_too_long_is_not_called_cut_off(folder):
    with (folder / FILE).open("ab") as stream:
        stream.write(b"12")
    refuses(folder, "is longer than its header says")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + bytes(60), "is a PyTorch file: save it again"),
        (b"\x80\x02\x8a\nl\xfc\x9cF", "is a PyTorch file of an old form"),
        (b"GGUF" + bytes(60), "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "is not a safetensors file: fetch it again"),
    ],
    ids=["zip", "pickle", "gguf", "lfs", "html"],
)
def test_what_is_in_place_of_safetensors_is_named(folder, content, message):
    (folder / FILE).write_bytes(content)
    refuses(folder, message)


@pytest.mark.parametrize(
    "entry",
    [
        *({}, [], None, {"dtype": "F32"}, {"dtype": "F32", "shape": [1], "data_offsets": []}),
        {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, None]},
        {"dtype": [1], "shape": [1], "data_offsets": [0, 4]},
    ],
    ids=repr,
)
def test_an_odd_header_is_refused(folder, entry):
    text = json.dumps({"x": entry}).encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refuses(folder, "is not a safetensors file")


@pytest.mark.parametrize("spans", [[(0, 8), (4, 12)], [(0, 4), (8, 12)], [(4, 8), (8, 12)]])
def test_tensors_lie_side_by_side(folder, spans):
    """As in the safetensors library: bytes are read once each."""
    entries = {
        f"x{i}": {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for i, (begin, end) in enumerate(spans)
    }
    text = json.dumps(entries).encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    refuses(folder, "has gaps or overlaps between its tensors")
    with pytest.raises(SafetensorError):
        safe_open(folder / FILE, framework="numpy")
