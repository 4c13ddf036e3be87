"""Checkpoints of the SAT code: written with PyTorch from diffusers' models, read without it."""

import argparse
import io
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from contextlib import suppress
from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest
import torch
from sat_checkpoints import PREFIX, convert, make_text_folder, sat_vae, vae
from support import relative_error
from torch_reference import (
    TOLERANCE,
    channels_first,
    frames_first,
    make_t5,
    make_transformer,
    ours,
    random,
    rotary_embedding,
)

from mlx_cogvideo.checkpoints.sat import open_sat
from mlx_cogvideo.checkpoints.torch_file import (
    IGNORED,
    TorchFile,
    TorchTensor,
    tensors_in,
)
from mlx_cogvideo.cli.convert import main
from mlx_cogvideo.errors import CheckpointError

VARIANTS = ["2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"]


def sat_transformer(model, variant: str) -> dict[str, torch.Tensor]:
    """A diffusers transformer's state dict with the names and layout of the SAT code."""
    state, sat = dict(model.state_dict()), {}
    for i in range(model.config.num_layers):
        block, layer = f"transformer_blocks.{i}.", f"transformer.layers.{i}."
        adaln = f"mixins.adaln_layer.adaLN_modulations.{i}.1."
        for part in ("weight", "bias"):
            take = lambda name: state.pop(f"{block}{name}.{part}")  # noqa: B023, E731
            fused = [take(f"attn1.{name}") for name in ("to_q", "to_k", "to_v")]
            sat[f"{layer}attention.query_key_value.{part}"] = torch.cat(fused)
            first, second = take("norm1.linear").chunk(2), take("norm2.linear").chunk(2)
            sat[f"{adaln}{part}"] = torch.cat([first[0], second[0], first[1], second[1]])
            sat[f"{layer}attention.dense.{part}"] = take("attn1.to_out.0")
            sat[f"mixins.adaln_layer.query_layernorm_list.{i}.{part}"] = take("attn1.norm_q")
            sat[f"mixins.adaln_layer.key_layernorm_list.{i}.{part}"] = take("attn1.norm_k")
            sat[f"{layer}input_layernorm.{part}"] = take("norm1.norm")
            sat[f"{layer}post_attention_layernorm.{part}"] = take("norm2.norm")
            sat[f"{layer}mlp.dense_h_to_4h.{part}"] = take("ff.net.0.proj")
            sat[f"{layer}mlp.dense_4h_to_h.{part}"] = take("ff.net.2")
    names = {
        "norm_final": "transformer.final_layernorm",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "ofs_embedding.linear_1": "ofs_embed.0",
        "ofs_embedding.linear_2": "ofs_embed.2",
        "patch_embed.proj": "mixins.patch_embed.proj",
        "patch_embed.text_proj": "mixins.patch_embed.text_proj",
        "norm_out.norm": "mixins.final_layer.norm_final",
        "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
        "proj_out": "mixins.final_layer.linear",
    }
    positions = state.pop("patch_embed.pos_embedding", torch.zeros(1, 4, 8))
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        sat[f"{names[layer]}.{part}"] = tensor
    if variant in ("2b", "5b-i2v"):
        sat["mixins.pos_embed.pos_embedding"] = positions
    if variant != "2b":
        sat["mixins.pos_embed.freqs_sin"] = torch.zeros(4, 8)
    sat["transformer.word_embeddings.weight"] = torch.zeros(1, 8)
    return sat


@pytest.fixture
def text_folder(tmp_path):
    return make_text_folder(tmp_path / "text")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_transformer_gives_the_numbers_of_diffusers(tmp_path, text_folder, variant):
    # SAT files don't contain the native sizes, so that the official ones are used.
    sizes = {"sample_width": 90, "sample_height": 60, "sample_frames": 49}
    if variant.startswith("1.5"):
        sizes = {"sample_width": 300, "sample_height": 300, "sample_frames": 81}
    model = make_transformer(variant, max_text_seq_length=226, **sizes)
    folder = tmp_path / "sat"
    (folder / "1").mkdir(parents=True)
    (folder / "vae").mkdir()
    wrapped = {PREFIX + name: tensor for name, tensor in sat_transformer(model, variant).items()}
    twin = {"model_ema.diffusion_model" + name: tensor + 1 for name, tensor in wrapped.items()}
    torch.save({"module": wrapped | twin}, folder / "1" / "mp_rank_00_model_states.pt")
    (folder / "1-ema").mkdir()
    shutil.copy(folder / "1" / "mp_rank_00_model_states.pt", folder / "1-ema")
    torch.save({"state_dict": sat_vae(vae())}, folder / "vae" / "3d-vae.pt")

    pipe = convert(folder, text_folder)
    frames = 2 if model.config.patch_size_t else 1
    latents = random(2, frames, model.config.in_channels, 60, 90)
    text = random(2, 226, 24, seed=1)
    with torch.no_grad():
        expected = model(
            latents,
            text,
            torch.tensor([7, 7]),
            ofs=torch.full((1,), 2.0) if model.config.ofs_embed_dim else None,
            image_rotary_emb=rotary_embedding(model, frames, 60, 90),
        ).sample
    result = pipe.transformer(ours(frames_first(latents)), ours(text), mx.array([7, 7]))
    assert relative_error(result, frames_first(expected)) < TOLERANCE


def test_a_file_with_all_networks_needs_only_a_tokenizer(tmp_path, text_folder):
    model, t5, autoencoder = make_transformer("5b"), make_t5(d_model=24), vae()
    everything = {
        **{PREFIX + name: tensor for name, tensor in sat_transformer(model, "5b").items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in sat_vae(autoencoder).items()},
        **{f"conditioner.embedders.0.transformer.{n}": t for n, t in t5.state_dict().items()},
    }
    torch.save({"module": everything}, tmp_path / "all.pt")
    shutil.rmtree(text_folder / "text_encoder")
    pipe = convert(tmp_path / "all.pt", text_folder)
    ids, pixels = torch.tensor([[5, 9, 2, 1]]), random(1, 3, 9, 32, 32)
    with torch.no_grad():
        text = t5(ids).last_hidden_state
        latents = autoencoder.encode(pixels).latent_dist.mean
        decoded = autoencoder.decode(latents).sample
    assert relative_error(pipe.text_encoder(ours(ids)), text) < TOLERANCE
    encoded = pipe.vae.encode(ours(channels_first(pixels))).mean
    assert relative_error(encoded, channels_first(latents)) < TOLERANCE
    result = pipe.vae.decode(ours(channels_first(latents)))
    assert relative_error(result, channels_first(decoded)) < TOLERANCE


def test_a_sat_checkpoint_can_be_quantized_at_once(tmp_path, text_folder):
    everything = {
        **{
            PREFIX + n: t.bfloat16()
            for n, t in sat_transformer(make_transformer("5b"), "5b").items()
        },
        **{f"first_stage_model.{name}": tensor for name, tensor in sat_vae(vae()).items()},
    }
    torch.save(everything, tmp_path / "all.pt")
    pipe = convert(tmp_path / "all.pt", text_folder, "-q", "8", "--q-group-size", "32")
    assert pipe.transformer.transformer_blocks[0].norm1.linear.weight.dtype == mx.uint32


def test_tensors_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {
        "contiguous": base,
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "half": torch.randn(5).half(),
        "brain": torch.randn(7, 3).bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
    }
    others = {"step": 3, "name": "x", "list": [1, (2.5, None)]}
    torch.save({"state_dict": saved, **others}, tmp_path / "a")
    contents = TorchFile(tmp_path / "a").contents
    assert {name: contents[name] for name in others} == others
    read = tensors_in(contents)
    assert read.keys() == saved.keys()
    for name, expected in torch.load(tmp_path / "a", weights_only=True)["state_dict"].items():
        found = np.array(read[name].read().astype(mx.float32))
        assert found.shape == tuple(expected.shape), name
        assert (found == expected.detach().float().numpy()).all(), name


def test_what_trainers_save_beside_the_weights_is_ignored(tmp_path):
    """SAT saves states of random number generators, counters and arguments."""
    rng = np.random.RandomState(0).get_state()
    saved = {
        "module": {"a": torch.ones(2)},
        "np_rng_state": rng,
        "torch_rng_state": torch.get_rng_state(),
        "args": argparse.Namespace(a=1),
        "names": {"x", "y"},
        "loss": np.float64(3.0),
    }
    torch.save(saved, tmp_path / "a.pt")
    assert list(tensors_in(TorchFile(tmp_path / "a.pt").contents)) == ["a"]


class Rebuilt:
    """A tensor in a pickle, with a state that is set after it is rebuilt, as BUILD does."""

    def __init__(self, tensor, state, shape=None, strides=None):
        self.tensor, self.state = tensor, state
        self.shape = tuple(tensor.shape) if shape is None else shape
        self.strides = tensor.stride() if strides is None else strides

    def __reduce__(self):
        storage = self.tensor.untyped_storage()
        storage = torch.storage.TypedStorage(
            wrap_storage=storage, dtype=self.tensor.dtype, _internal=True
        )
        arguments = (storage, 0, self.shape, self.strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments, self.state


BELOW = {"strides": (-1, -3)}
STATES = {
    "below the storage": BELOW,
    "far away": {"strides": (-(2**40), 1)},
    "beyond the storage": {"shape": (2**16, 2**16)},
    "another offset": {"offset": 2**40},
    "slots": (None, BELOW),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_tensor_that_is_changed_after_its_checks_is_refused(tmp_path, state):
    tensor = torch.arange(6.0).reshape(2, 3)
    torch.save({"module": {"a": Rebuilt(tensor, None)}}, tmp_path / "valid.pt")
    read = tensors_in(TorchFile(tmp_path / "valid.pt").contents)["a"].read()
    assert (np.array(read) == tensor.numpy()).all()

    torch.save({"module": {"a": Rebuilt(tensor, state)}}, tmp_path / "a.pt")
    with pytest.raises((pickle.UnpicklingError, TypeError, RuntimeError)):
        torch.load(tmp_path / "a.pt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"damaged pickle: .* is given another state"):
        TorchFile(tmp_path / "a.pt")


def test_a_crafted_checkpoint_writes_no_model(tmp_path, text_folder, capsys):
    everything = {
        **{
            PREFIX + n: tensor
            for n, tensor in sat_transformer(make_transformer("5b"), "5b").items()
        },
        **{f"first_stage_model.{name}": tensor for name, tensor in sat_vae(vae()).items()},
        **{
            f"conditioner.embedders.0.transformer.{n}": t for n, t in make_t5().state_dict().items()
        },
    }
    name = PREFIX + "transformer.layers.0.mlp.dense_h_to_4h.weight"
    _, columns = everything[name].shape
    everything[name] = Rebuilt(everything[name], {"strides": (-columns, -1)})
    torch.save({"module": everything}, tmp_path / "all.pt")
    arguments = ["--model", tmp_path / "all.pt", "--text-encoder", text_folder]
    assert main([str(a) for a in [*arguments, "--mlx-path", tmp_path / "out"]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "damaged pickle" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "strides", "message"),
    [
        ((2, 3), (5, -2), "impossible shape"),
        ((2, 3), (-1, 1), "impossible shape"),
        ((2, 3), (1,), "impossible shape"),
        ((2, 3), ("a", 1), "impossible shape"),
        ((3, 3), (3, 1), "reaches past the end of its storage"),
        ((2, 3), (2**39, 1), "reaches past the end of its storage"),
        ((1, 4), (2**62, 1), "impossible shape"),
        ((0, 2**31 - 1, 2**31 - 1), (1, 1, 1), "impossible shape"),
        ((2**29,), (0,), "impossible shape"),
        ((2**31, 2**31), (0, 0), "impossible shape"),
        ((2**40,), (0,), "impossible shape"),
        ((1,) * 70, (1,) * 70, "impossible shape"),
    ],
    ids=str,
)
def test_a_tensor_outside_its_storage_or_larger_than_any_weight_is_refused(
    tmp_path, shape, strides, message
):
    tensor = torch.arange(6.0).reshape(2, 3)
    torch.save({"module": {"a": Rebuilt(tensor, None, shape, strides)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        TorchFile(tmp_path / "a.pt")


def test_a_tensor_is_checked_again_before_it_is_read(tmp_path):
    torch.save({"module": {"a": torch.arange(6.0).reshape(2, 3)}}, tmp_path / "a.pt")
    tensor = tensors_in(TorchFile(tmp_path / "a.pt").contents)["a"]
    for field, value in {"strides": (-3, 1), "shape": (9, 9), "offset": -1}.items():
        before = getattr(tensor, field)
        object.__setattr__(tensor, field, value)
        with pytest.raises(CheckpointError, match=r"impossible shape|past the end"):
            tensor.read()
        object.__setattr__(tensor, field, before)
    assert (np.array(tensor.read()) == np.arange(6).reshape(2, 3)).all()


def archive(path, pickled: bytes, compression=zipfile.ZIP_STORED) -> TorchFile:
    """Opens a file with this pickle and a storage of 64 bytes."""
    with zipfile.ZipFile(path, "w", compression) as stream:
        stream.writestr("archive/data.pkl", pickled)
        stream.writestr("archive/data/0", bytes(64))
    return TorchFile(path)


DAMAGED = {
    "a length beyond memory": b"\x80\x04\x8d" + b"\xff" * 8,
    "a number of bytes beyond memory": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little"),
    "an empty stack": b"\x80\x02\x85.",
    "no end": b"\x80\x02}",
    "escape codes in a name": b"\x80\x02cos\x1b[31m\nsystem\n.",
    "a key of 2**60 tuples": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "an id of 2**60 tuples": b"\x80\x02(X\x07\x00\x00\x00storage)q\x00"
    + b"h\x00h\x00\x86q\x00" * 60
    + b"tQ.",
    "more values than a checkpoint has": b"\x80\x02](" + b"N" * 2**21 + b"e.",
    "the last place of a memo": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "an end without an object": b"\x80\x02(.",
}


@pytest.mark.parametrize("pickled", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_pickle_is_one_line(tmp_path, pickled):
    with pytest.raises(CheckpointError) as caught:
        archive(tmp_path / "a.pt", pickled)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_dictionary_inside_itself_holds_no_tensors(tmp_path):
    pickled = b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."
    assert tensors_in(archive(tmp_path / "a.pt", pickled).contents) == {}


def test_a_compressed_tensor_is_refused(tmp_path):
    torch.save({"module": {"a": torch.zeros(100)}}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as stored,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match="has a compressed tensor"):
        TorchFile(tmp_path / "b.pt")


def test_a_file_that_isnt_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match="doesn't exist"):
        open_sat(tmp_path / "mp_rank_00_model_states.pt")


def test_a_flipped_byte_is_read_or_refused(tmp_path):
    torch.save({"module": {"a": torch.arange(6.0)}}, tmp_path / "a.pt")
    whole, random_ = (tmp_path / "a.pt").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random_.integers(len(whole))] ^= 1 << random_.integers(8)
        (tmp_path / "b.pt").write_bytes(damaged)
        with suppress(CheckpointError):
            for tensor in tensors_in(TorchFile(tmp_path / "b.pt").contents).values():
                tensor.read()


def test_no_object_that_a_pickle_receives_accepts_a_state(tmp_path):
    """This includes functions and classes, whose changes would outlive the file."""
    names = [(module, name) for module, name in sorted(IGNORED)] + [
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch", "FloatStorage"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
    ]
    for module, name in names:
        for state in ({"__doc__": "changed"}, (None, {"__doc__": "changed"})):
            stream = io.BytesIO()
            pickler = pickle._Pickler(stream, 2)
            pickler.write(pickle.PROTO + b"\x02" + f"c{module}\n{name}\n".encode())
            pickler.save(state)
            pickler.write(pickle.BUILD + pickle.STOP)
            with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
                archive.writestr("archive/data.pkl", stream.getvalue())
            with pytest.raises(CheckpointError, match="damaged pickle"):
                TorchFile(tmp_path / "a.pt")


def test_the_vae_is_found_beside_the_folder_of_a_named_transformer(tmp_path, text_folder):
    """The official 1.5 has two transformers and one VAE."""
    state = {PREFIX + n: t for n, t in sat_transformer(make_transformer("5b"), "5b").items()}
    for name in ("transformer_t2v/1000", "transformer_i2v/1000", "vae"):
        (tmp_path / "sat" / name).mkdir(parents=True)
    for name in ("transformer_t2v", "transformer_i2v"):
        torch.save(state, tmp_path / "sat" / name / "1000" / "mp_rank_00_model_states.pt")
    torch.save({"state_dict": sat_vae(vae())}, tmp_path / "sat" / "vae" / "3d-vae.pt")
    assert main(["--model", str(tmp_path / "sat"), "--text-encoder", str(text_folder)]) == 1
    convert(tmp_path / "sat/transformer_t2v/1000/mp_rank_00_model_states.pt", text_folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("transformer.final_layernorm.bias", "has missing tensors: norm_final.bias"),
        ("transformer.final_layernorm.weight", "missing tensors: norm_final.weight"),
        ("mixins.patch_embed.text_proj.weight", "it lacks patch_embed.text_proj.weight"),
    ],
)
def test_an_incomplete_file_is_one_clear_line(tmp_path, text_folder, capsys, gone, message):
    state = {PREFIX + n: t for n, t in sat_transformer(make_transformer("5b"), "5b").items()}
    del state[PREFIX + gone]
    torch.save(state, tmp_path / "a.pt")
    assert main(["--model", str(tmp_path / "a.pt"), "--text-encoder", str(text_folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


class Evil:
    """An object whose pickle runs a program when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_a_program_is_refused_by_name_and_nothing_ran(tmp_path, protocol):
    marker = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"module": Evil(marker)}, protocol))
    with pytest.raises(CheckpointError, match=r"posix\.system, which is no tensor"):
        TorchFile(tmp_path / "evil.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [eval, torch.nn.Linear(2, 2), torch.device("cpu"), os.getcwd, Fraction(1, 2)]
)
def test_any_other_object_is_refused_by_name(tmp_path, value):
    torch.save({"module": value}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="which is no tensor"):
        TorchFile(tmp_path / "a.pt")


def refuse_text(path):
    path.write_text("no archive")


def refuse_legacy(path):
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def refuse_cut_off(path):
    torch.save({"a": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:3000])


def refuse_nothing(path):
    torch.save({"module": {"step": 3}}, path)


def refuse_another_model(path):
    torch.save({"module": {f"{PREFIX}blocks.0.attn.weight": torch.zeros(2)}}, path)


@pytest.mark.parametrize(
    "make",
    [refuse_text, refuse_legacy, refuse_cut_off, refuse_nothing, refuse_another_model],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_line(tmp_path, text_folder, capsys, make):
    make(tmp_path / "model.pt")
    arguments = ["--model", tmp_path / "model.pt", "--text-encoder", text_folder]
    assert main([str(a) for a in (*arguments, "--mlx-path", tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/model.pt")
    assert not (tmp_path / "out").exists()


def test_a_missing_vae_is_named(tmp_path, text_folder, capsys):
    state = sat_transformer(make_transformer("5b"), "5b")
    torch.save({PREFIX + name: tensor for name, tensor in state.items()}, tmp_path / "a.pt")
    arguments = ["--model", tmp_path / "a.pt", "--text-encoder", text_folder]
    assert main([str(a) for a in arguments]) == 1
    assert "holds no VAE: put 3d-vae.pt" in capsys.readouterr().err


def test_lazy_tensors_know_their_shapes_before_they_are_read(tmp_path):
    torch.save({"a": torch.zeros(3, 4).bfloat16()}, tmp_path / "a.pt")
    tensor = TorchFile(tmp_path / "a.pt").contents["a"]
    assert isinstance(tensor, TorchTensor)
    assert (tensor.dtype, tensor.shape) == ("BF16", (3, 4))
