"""Weights that are quantized while they are read, beside those of a converted folder."""

import mlx.core as mx
import numpy as np
import pytest
from components import CONFIG, FILE, write_component
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, load_component, read_config
from mlx_cogvideo.checkpoints.components import check_component
from mlx_cogvideo.checkpoints.networks import make_network
from mlx_cogvideo.checkpoints.packing import LoadPlan
from mlx_cogvideo.conversion import convert, plan_conversion
from mlx_cogvideo.errors import CheckpointError, InvalidInputError
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from mlx_cogvideo.nn.quantization import Quantization, standard_packings

FOUR_BITS = Quantization(4, 64)
NETWORKS = ("transformer", "text_encoder", "vae")


def converted(destination, source=DEMO_PATH, bits=4, **options):
    quantization = Quantization(bits, 64) if bits else None
    convert(plan_conversion("demo", source, quantization=quantization, **options), destination)
    return destination


def parameters(pipe, network) -> dict[str, tuple]:
    """The types and bytes of a network's parameters, by name."""
    return {
        name: (array.dtype, np.array(array.view(mx.uint8)).tobytes())
        for name, array in tree_flatten(getattr(pipe, network).parameters())
    }


@pytest.mark.parametrize(
    ("bits", "stored", "dtype"),
    [(4, None, None), (3, None, "float16"), (8, mx.bfloat16, "float32")],
)
def test_the_bytes_are_those_of_a_converted_folder(tmp_path, bits, stored, dtype):
    source = DEMO_PATH if stored is None else converted(tmp_path / "16", bits=None, dtype=stored)
    small = CogVideoXPipeline.from_pretrained(converted(tmp_path / "small", source, bits), dtype)
    pipe = CogVideoXPipeline.from_pretrained(source, dtype, quantize=bits)
    assert pipe.quantize == bits and small.quantize is None
    assert pipe.dtype == small.dtype
    for network in NETWORKS:
        assert pipe.is_packed(network) == small.is_packed(network)
        assert pipe.weight_bytes(network) == small.weight_bytes(network)
        found, expected = parameters(pipe, network), parameters(small, network)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []


def test_layers_that_groups_do_not_divide_stay_as_they_are(tmp_path):
    folder = write_component(tmp_path)
    network = make_network("transformer", CONFIG)
    packings = standard_packings(network, FOUR_BITS)
    assert packings == {"transformer_blocks.0.ff.net.2": FOUR_BITS}
    found = dict(tree_flatten(load_component(network, folder, None, packings).parameters()))
    stored = mx.load(str(folder / FILE))
    packed = mx.quantize(stored["transformer_blocks.0.ff.net.2.weight"], group_size=64, bits=4)
    for part, array in zip(("weight", "scales", "biases"), packed, strict=True):
        assert mx.array_equal(found[f"transformer_blocks.0.ff.net.2.{part}"], array)
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert mx.array_equal(found[name], stored[name])


def test_no_more_than_a_tensor_is_held_beside_the_packed_weights():
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, "float16", quantize=4)
    tensors = pipe.load_plan.in_files["transformer"].values()
    largest, whole = max(each.bytes for each in tensors), sum(each.bytes for each in tensors)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert pipe.transformer is not None
    peak, packed = mx.get_peak_memory() - before, mx.get_active_memory() - before
    assert packed == pytest.approx(pipe.weight_bytes("transformer"), rel=0.05)
    assert packed + 3 * largest < whole  # or the next line would prove nothing
    assert peak < packed + 3 * largest


def test_nan_is_named_before_it_becomes_a_number(tmp_path):
    folder = write_component(tmp_path)
    stored, name = load_file(folder / FILE), "transformer_blocks.0.ff.net.2.weight"
    stored[name][0, 0] = np.nan
    save_file(stored, folder / FILE)
    network = make_network("transformer", CONFIG)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {name}: take another copy"):
        load_component(network, folder, None, standard_packings(network, FOUR_BITS))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The demo in 4 bits."""
    return converted(tmp_path_factory.mktemp("converted") / "small")


def test_a_model_that_has_these_bits_already_stays_as_it_is(small, caplog):
    pipe = CogVideoXPipeline.from_pretrained(small, quantize=4)
    assert pipe.quantize is None and pipe.precision == pipe.dtype_name
    assert [r.getMessage() for r in caplog.records] == [
        "quantize has no effect: the model is quantized to 4 bits already"
    ]
    assert parameters(pipe, "transformer") == parameters(
        CogVideoXPipeline.from_pretrained(small), "transformer"
    )


def test_a_model_of_other_bits_is_refused(small):
    with pytest.raises(InvalidInputError, match=r"quantized to 4 bits already and can't be .* 8"):
        CogVideoXPipeline.from_pretrained(small, quantize=8)


def test_of_a_half_quantized_model_the_other_half_is_quantized(tmp_path, small, caplog):
    half = converted(tmp_path / "half", components=("transformer",))
    whole = CogVideoXPipeline.from_pretrained(small)
    pipe = CogVideoXPipeline.from_pretrained(half, quantize=4)
    assert pipe.quantize == 4 and caplog.records == []
    assert parameters(pipe, "transformer") == parameters(whole, "transformer")
    assert parameters(pipe, "text_encoder") == parameters(whole, "text_encoder")


@pytest.mark.parametrize("bits", [7, 0, True, 4.0, "4", [4]])
def test_bits_that_mlx_lacks_are_refused_before_a_download(bits):
    with pytest.raises(InvalidInputError, match="quantize must be 2, 3, 4, 5, 6 or 8; got"):
        CogVideoXPipeline.from_pretrained("nobody/nothing", quantize=bits)


def test_a_model_without_a_layer_to_quantize_is_refused(tmp_path):
    vae = DEMO_PATH / "vae"
    config = AutoencoderConfig.from_dict(read_config(vae / "config.json"))
    in_files = {"vae": check_component(AutoencoderKLCogVideoX(config), vae)}
    with pytest.raises(InvalidInputError, match="no layer can be quantized with groups of 64"):
        LoadPlan({"vae": (config, vae)}, in_files, FOUR_BITS)
