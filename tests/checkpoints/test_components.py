"""Components load as they are stored; wrong ones are refused, and the fault is named."""

import json

import mlx.core as mx
import numpy as np
import pytest
from components import CONFIG, FILE, make_model, write_component
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_cogvideo.checkpoints import load_component, read_config, save_component
from mlx_cogvideo.errors import CheckpointError
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel


@pytest.fixture
def folder(tmp_path):
    return write_component(tmp_path)


def rewrite(folder, change) -> None:
    """Applies `change` to the dictionary of stored tensors."""
    tensors = dict(mx.load(str(folder / FILE)))
    mx.eval(tensors)
    change(tensors)
    (folder / FILE).unlink()
    mx.save_safetensors(str(folder / FILE), tensors)


def shard(folder) -> None:
    """Splits the file into two shards with an index, as large checkpoints are."""
    tensors = dict(mx.load(str(folder / FILE)))
    mx.eval(tensors)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / FILE).unlink()
    (folder / f"{FILE}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def weights_equal(first, second) -> bool:
    pairs = zip(tree_flatten(first.parameters()), tree_flatten(second.parameters()), strict=True)
    return all(a == b and mx.array_equal(x, y).item() for (a, x), (b, y) in pairs)


def stray(folder) -> None:
    """Puts a single file of other weights beside the shards."""
    tensors = dict(mx.load(str(folder / FILE)))
    mx.eval(tensors)
    shard(folder)
    mx.save_safetensors(str(folder / FILE), {name: -2 * t for name, t in tensors.items()})


def test_an_index_has_priority_over_a_single_file_which_is_named(folder, caplog):
    stray(folder)
    loaded = load_component(make_model(), folder)
    mx.random.seed(0)
    assert weights_equal(loaded, make_model())
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{folder / FILE} isn't used: {FILE}.index.json names other files" in message


def test_an_index_of_one_file_is_no_reason_for_a_warning(folder, caplog):
    (folder / f"{FILE}.index.json").write_text(json.dumps({"weight_map": {"a": FILE}}))
    load_component(make_model(), folder)
    assert not caplog.records


@pytest.mark.parametrize(
    "index",
    [
        *("a shard is gone", "not JSON", "null", "[]", '{"a": 3}', "{}", '{"a": "/etc/passwd"}'),
        *('{"a": "../a.safetensors"}', '{"a": "' + 5000 * "x" + '"}', 200_000 * "["),
    ],
    ids=lambda index: index[:20],
)
def test_a_single_file_is_loaded_if_the_index_beside_it_is_broken(folder, index, caplog):
    stray(folder)
    if index == "a shard is gone":
        (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    else:
        text = index if index == "not JSON" else f'{{"weight_map": {index}}}'
        (folder / f"{FILE}.index.json").write_text(text)
    loaded = load_component(make_model(), folder)
    mx.random.seed(0)
    assert not weights_equal(loaded, make_model())
    assert not caplog.records
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"lacks|weight_map|JSON"):
        load_component(make_model(), folder)


def test_a_saved_component_loads_with_the_same_weights(folder):
    loaded = load_component(make_model(), folder)
    mx.random.seed(0)
    assert weights_equal(loaded, make_model())


def test_convolutions_are_stored_with_their_input_channels_second(folder):
    stored = mx.load(str(folder / FILE))["patch_embed.proj.weight"]
    assert stored.shape == (32, 16, 2, 2)


def test_shards_load_like_one_file(folder):
    whole = load_component(make_model(), folder)
    shard(folder)
    assert weights_equal(load_component(make_model(), folder), whole)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_weights_are_loaded_in_the_requested_dtype(folder, dtype):
    model = load_component(make_model(), folder, dtype)
    assert {weight.dtype for _, weight in tree_flatten(model.parameters())} == {dtype}


def test_a_copy_of_the_token_embedding_is_ignored(tmp_path):
    config = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5EncoderModel(T5Config.from_dict(config))
    folder = tmp_path / "text_encoder"
    save_component(folder, model, config)
    path = folder / "model.safetensors"
    tensors = dict(mx.load(str(path)))
    mx.eval(tensors)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    path.unlink()
    mx.save_safetensors(str(path), tensors)
    assert weights_equal(load_component(model, folder), model)


def refuses(folder, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_component(make_model(), folder)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("proj_out.bias"))
    refuses(folder, r"missing tensors: proj_out\.bias")


def test_an_unexpected_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"lora.weight": mx.zeros(3)}))
    refuses(folder, r"unexpected tensors: lora\.weight")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({"proj_out.bias": mx.zeros(3)}))
    refuses(folder, r"proj_out\.bias \[3\] instead of \[64\]")


def test_of_many_wrong_tensors_a_few_are_named(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)[:9]])
    refuses(folder, "and 6 more")


def test_a_missing_file_is_named(folder):
    (folder / FILE).unlink()
    refuses(folder, FILE)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    refuses(folder, "lacks diffusion_pytorch_model-00002-of-00002.safetensors")


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_file_is_refused(folder, keep):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: int(len(content) * keep)])
    refuses(folder, "is cut off")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_file_that_is_no_safetensors_is_refused(folder, content):
    (folder / FILE).write_bytes(content)
    refuses(folder, "is not a safetensors file")


def test_a_tensor_type_that_mlx_lacks_is_refused(folder):
    tensors = load_file(folder / FILE)
    tensors["proj_out.bias"] = tensors["proj_out.bias"].astype(np.int16)
    save_file(tensors, folder / FILE)
    refuses(folder, r"proj_out\.bias I16")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="JSON"):
        read_config(path)


def test_saving_leaves_no_partial_file(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", FILE]


def test_saving_replaces_what_was_there(folder):
    other = make_model()
    save_component(folder, other, CONFIG)
    assert weights_equal(load_component(make_model(), folder), other)
