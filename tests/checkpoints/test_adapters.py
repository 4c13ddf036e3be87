"""Adapters in use: ``load_lora``, ``generate.py --lora`` and ``convert --lora``."""

import json

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from adapters import ALPHA, RANK, make_adapter
from commands import ctrl_c_in_step, errors, generate, run
from support import relative_error

from mlx_cogvideo import CheckpointError, CogVideoXPipeline, ModelNotFoundError
from mlx_cogvideo.checkpoints import DEMO_PATH, read_config
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.nn.low_rank import LoRALinear
from mlx_cogvideo.nn.quantization import QuantizedLinear
from mlx_cogvideo.video import read_record, read_video

INPUTS = mx.random.normal((1, 3, 4, 6, 16), key=mx.random.key(1))


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "video.mp4"


def forward(pipe) -> mx.array:
    text = mx.random.normal(
        (1, 32, pipe.configs["transformer"].text_embed_dim), key=mx.random.key(2)
    )
    return pipe.transformer(INPUTS, text, mx.array([500]))


def test_a_quantized_model_keeps_its_packed_weights_under_an_adapter(adapter, tmp_path):
    assert convert(["--model", "demo", "-q", "4", "--mlx-path", str(tmp_path / "q4")]) == 0
    pipe = CogVideoXPipeline.from_pretrained(tmp_path / "q4")
    plain = forward(pipe)
    pipe.load_lora(adapter)
    layer = pipe.transformer.transformer_blocks[0].attn1.to_q
    assert isinstance(layer, LoRALinear) and isinstance(layer.linear, QuantizedLinear)
    x = mx.random.normal((7, layer.linear.scales.shape[1] * 64))
    (addition,) = layer.adapters
    expected = layer.linear(x) + x @ addition.product().T
    assert relative_error(layer(x), expected) < 1e-5
    assert relative_error(forward(pipe), plain) > 0.05


@pytest.mark.parametrize("bits", [None, 8])
def test_a_fused_folder_does_what_the_adapter_does(adapter, tmp_path, bits):
    other = make_adapter(tmp_path / "other", seed=7)
    options = ["--lora", str(adapter), "--lora", str(other), "0.5"]
    options += ["-q", str(bits)] if bits else []
    assert convert(["--model", "demo", "--mlx-path", str(tmp_path / "fused"), *options]) == 0
    fused = CogVideoXPipeline.from_pretrained(tmp_path / "fused", mx.float32)
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.float32)
    pipe.load_lora(adapter)
    pipe.load_lora(other, 0.5)
    # The demo is stored in 16 bits, and so is the fused model.
    assert relative_error(forward(fused), forward(pipe)) < (0.1 if bits else 0.02)
    report = read_config(tmp_path / "fused" / "conversion.json")
    assert [fused["scale"] for fused in report["lora"]] == [1.0, 0.5]
    card = (tmp_path / "fused" / "README.md").read_text()
    assert f"`{other}` is fused in, at 0.5" in card


def test_adapters_are_in_the_record_and_a_replay_has_them(adapter, output, capsys):
    other = make_adapter(output.parent / "other", seed=7)
    assert generate(output, "--lora", adapter, "--lora", other, 0.5) == 0
    assert f"lora     {adapter} at 1, {other} at 0.5" in capsys.readouterr().err
    recorded = [(a["source"], a["scale"]) for a in read_record(output)["settings"]["lora"]]
    assert recorded == [(str(adapter), 1.0), (str(other), 0.5)]
    assert run("--replay", output, "--output", output.with_name("again.mp4")) == 0
    again = read_video(output.with_name("again.mp4"))[0]
    assert (read_video(output)[0] == again).all()
    assert generate(output.with_name("plain.mp4")) == 0
    plain = read_video(output.with_name("plain.mp4"))[0].astype(int)
    assert np.abs(plain - again).max() > 20


def test_a_scale_may_be_a_fraction(adapter, output, capsys):
    """Adapters that were exported from SAT need 1 / rank."""
    assert generate(output, "--lora", adapter, "1/256", "--dry-run") == 0
    assert f"{adapter} at 0.00390625" in capsys.readouterr().err


def test_a_scale_of_zero_is_no_adapter(adapter, output):
    assert generate(output, "--lora", adapter, 0) == 0
    assert generate(output.with_name("plain.mp4")) == 0
    assert (read_video(output)[0] == read_video(output.with_name("plain.mp4"))[0]).all()


def test_a_run_with_an_adapter_isnt_resumed_without_it(adapter, output, capsys):
    with ctrl_c_in_step(2):
        assert generate(output, "--lora", adapter) == 130
    assert generate(output, "--resume") == 2
    assert "lora was" in capsys.readouterr().err
    assert run("--resume", output) == 0
    assert read_record(output)["settings"]["lora"][0]["source"] == str(adapter)


def test_an_adapter_on_the_time_embedding_goes_with_teacache(output):
    adapter = make_adapter(output.parent / "time", targets=("time_embedding.linear_1",))
    assert generate(output, "--lora", adapter, "--cache", "teacache") == 0


def test_an_adapter_is_off_when_it_is_unloaded_while_the_transformer_is_kept(adapter):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    plain = forward(pipe)
    with pipe.keeping("transformer"):
        pipe.load_lora(adapter)
        assert relative_error(forward(pipe), plain) > 0.05
        pipe.unload_lora()
        assert relative_error(forward(pipe), plain) == 0


FILE = "pytorch_lora_weights.safetensors"
FIRST = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"


def lokr(**shapes) -> dict[str, mx.array]:
    """Returns LoKr of the first layer, which has 192 inputs and outputs."""
    name = FIRST.replace("lora_A.weight", "lokr_")
    return {name + part: mx.ones(shape) for part, shape in shapes.items()}


def altered(folder, change, metadata=None, config=None, name=FILE):
    """Replaces the tensors, metadata and configuration of the adapter in `folder`."""
    file = folder / name
    tensors = change(mx.load(str(file)))
    for other in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / other).unlink(missing_ok=True)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    file.unlink()
    mx.save_safetensors(str(file), tensors, metadata or {})
    return folder


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: {**t, "x.ranks": mx.ones(1)}, None, "that aren't LoRA of a known kind"),
        (lambda t: {"x.hada_w1_a": mx.ones(1)}, None, "has LoHa, in x.hada_w1_a: only LoRA, DoRA"),
        (lambda t: t, {"peft_type": "LOHA"}, 'is an adapter of the kind "LOHA": only LoRA, DoRA'),
        (lambda t: {**t, "x.lora_magnitude_vector": mx.ones(1)}, None, "no linear layers x"),
        (
            lambda t: {**t, FIRST.replace("lora_A.weight", "dora_scale"): mx.ones((1, 192))},
            None,
            r"192 outputs here, and magnitude \[1, 192\] .* don't fit",
        ),
        (lambda t: t, {"use_dora": True}, "is a DoRA adapter without magnitudes of"),
        (lambda t: lokr(w1=(8, 8), w2=(24, 23)), None, "w1 .8, 8. and w2 .24, 23. don't fit"),
        (lambda t: lokr(w1=(8, 8), w2=(24, 24, 1, 1)), None, "w2 .24, 24, 1, 1. don't fit"),
        (lambda t: lokr(w1=(8, 8), w2_a=(24, 2), w2_b=(3, 24)), None, "don't fit"),
        (lambda t: lokr(w1=(8, 8), w2_a=(24, 0), w2_b=(0, 24)), None, "don't fit"),
        (lambda t: lokr(w1=(8, 8), w2_a=(24, 25), w2_b=(25, 24)), None, "don't fit"),
        (lambda t: lokr(w1=(8, 8), w2_a=(24, 2)), None, "has an incomplete set of tensors of"),
        (lambda t: lokr(w1=(8, 8), w2=(24, 24), t2=(2, 2, 3, 3)), None, "LoKr for convolutions"),
        (
            lambda t: {
                **lokr(w1=(8, 8), w2=(24, 24)),
                FIRST.replace("lora_A.weight", "dora_scale"): mx.ones(192),
            },
            None,
            "has magnitudes of DoRA beside LoKr",
        ),
        (
            lambda t: lokr(w1=(8, 8), w2=(24, 24)),
            {"peft_type": "LOKR", "r": 0, "alpha": 8},
            "the rank of transformer_blocks.0.attn1.to_q is 0",
        ),
        (lambda t: {**t, "lora_unet__x.alpha": mx.ones(1)}, None, "no linear layers x"),
        (
            lambda t: {**t, FIRST.replace("lora_A.weight", "alpha"): mx.ones(2)},
            None,
            r"should be one number; it is \[2\]",
        ),
        (
            lambda t: {k: v for k, v in t.items() if k != FIRST},
            None,
            "has an incomplete set of tensors of",
        ),
        (lambda t: {**t, FIRST: t[FIRST][:, :-8]}, None, "is for another model: .* don't fit"),
        (
            lambda t: {k.replace("blocks.0", "blocks.99"): v for k, v in t.items()},
            None,
            "is for another model: this one has no linear layers transformer_blocks.99",
        ),
        (
            lambda t: {**t, FIRST.replace("lora_A.weight", "lora.down.weight"): t[FIRST]},
            None,
            "to_q.lora.*, of which one can be used",
        ),
        (lambda t: {"x": mx.ones(1)}, None, "that aren't LoRA"),
        (lambda t: {**t, FIRST: t[FIRST].astype(mx.int32)}, None, "as I32: only F32, F16, BF16"),
        (lambda t: {**t, FIRST: mx.to_fp8(t[FIRST])}, None, "as U8: only F32"),
        (lambda t: t, {"alpha_pattern": [1]}, r"alpha_pattern is \[1\]"),
        (lambda t: t, {"alpha_pattern": {"(": 1}}, "alpha_pattern is .*can't be understood"),
        # Matching these could take for ever, or nearly.
        (lambda t: t, {"alpha_pattern": {"(([a-z0-9_.])+)+!": 4}}, "can't be understood"),
        (lambda t: t, {"alpha_pattern": {"(a|.)" * 40 + "!": 4}}, "can't be understood"),
        (lambda t: t, {"alpha_pattern": {".*" * 20 + "!": 4}}, "can't be understood"),
        (lambda t: t, {"alpha_pattern": dict.fromkeys(map(str, range(3000)), 4)}, "can't be und"),
    ],
    ids=[
        *("foreign", "LoHa", "LOHA", "dora of another", "magnitudes of inputs", "no magnitudes"),
        *(
            "lokr size",
            "lokr of a convolution",
            "lokr ranks",
            "lokr rank 0",
            "lokr rank 25",
            "lokr half",
        ),
        *("lokr tucker", "lokr and dora", "lokr config"),
        *("stray", "alpha", "half", "shape", "layer", "two names", "none"),
        *("whole numbers", "8 bits", "pattern", "expression"),
        *("repeated group", "many groups", "many repeats", "many patterns"),
    ],
)
def test_an_adapter_that_doesnt_fit_is_an_error_before_any_weight_is_read(
    adapter, change, config, message
):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    with pytest.raises(CheckpointError, match=message):
        pipe.load_lora(altered(adapter, change, config=config))
    assert not pipe.loaded and not pipe.adapters


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "isn't JSON"),
        ("[" * 10_000, "isn't JSON"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "alpha of .* should be a number"),
        ('{"lora_alpha": NaN}', "alpha of .* should be a number"),
        ('{"alpha_pattern": {"' + "(" * 9_000 + '": 1}}', "alpha_pattern"),
    ],
    ids=["cut off", "deep", "huge alpha", "no alpha", "deep pattern"],
)
def test_metadata_that_cant_be_understood_is_an_error(adapter, metadata, message):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    with pytest.raises(CheckpointError, match=message) as raised:
        pipe.load_lora(altered(adapter, lambda t: t, {"lora_adapter_metadata": metadata}))
    assert len(str(raised.value)) < 300


def test_an_adapter_with_nan_in_it_is_an_error(adapter, tmp_path):
    altered(adapter, lambda t: {**t, FIRST: t[FIRST] * float("nan")})
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    with pytest.raises(CheckpointError, match="has NaN or infinity in it"):
        pipe.load_lora(adapter)
        forward(pipe)
    options = ["--lora", str(adapter), "--mlx-path", str(tmp_path / "fused")]
    assert convert(["--model", "demo", *options]) == 1
    assert not (tmp_path / "fused").exists()


def test_an_adapter_may_be_called_anything(adapter, tmp_path):
    file = tmp_path / "adapter.bin"
    file.write_bytes((adapter / FILE).read_bytes())
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    pipe.load_lora(file)
    assert forward(pipe).shape == INPUTS.shape


def test_alpha_beside_the_file_counts_and_in_the_file_counts_more(adapter, tmp_path):
    def scale(folder):
        pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
        pipe.load_lora(folder)
        return set(pipe.adapters[0][0].scales.values())

    assert scale(adapter) == {ALPHA / RANK}
    (adapter / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 1}')
    assert scale(adapter) == {ALPHA / RANK}
    altered(adapter, lambda t: t, config={"r": RANK, "lora_alpha": 1})
    assert scale(adapter) == {1 / RANK}
    (adapter / "adapter_config.json").unlink()
    assert scale(adapter) == {1.0}


def test_each_file_of_an_adapter_has_its_scale(adapter, tmp_path, caplog):
    def scale(file):
        pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
        pipe.load_lora(file)
        return set(pipe.adapters[0][0].scales.values())

    for name in (FILE, "adapter_model.safetensors"):
        (adapter / name).rename(tmp_path / "renamed.safetensors")
        assert scale(tmp_path / "renamed.safetensors") == {ALPHA / RANK}
    assert not caplog.records
    mx.save_safetensors(
        str(tmp_path / "bare.safetensors"), mx.load(str(tmp_path / "renamed.safetensors"))
    )
    assert scale(tmp_path / "bare.safetensors") == {1.0}
    (record,) = caplog.records
    assert "alpha isn't known" in record.getMessage()


def test_a_configuration_in_the_folder_doesnt_change_a_foreign_file(adapter):
    """kohya's file has its alpha in it; a file of another name without one has alpha = rank."""

    def with_alpha(tensors):
        alphas = {n.replace("lora_A.weight", "alpha"): mx.array(2.0) for n in tensors if "_A" in n}
        return tensors | alphas

    def scale(file):
        pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
        pipe.load_lora(file)
        return set(pipe.adapters[0][0].scales.values())

    config = {"r": RANK, "lora_alpha": 8, "use_rslora": True}
    altered(adapter, with_alpha, config=config)
    assert scale(adapter) == {2 / RANK}
    (adapter / FILE).rename(adapter / "kohya.safetensors")
    assert scale(adapter / "kohya.safetensors") == {2 / RANK}
    altered(
        adapter,
        lambda tensors: {n: x for n, x in tensors.items() if "alpha" not in n},
        config=config,
        name="kohya.safetensors",
    )
    assert scale(adapter / "kohya.safetensors") == {1.0}
    (adapter / "kohya.safetensors").rename(adapter / "adapter_model.safetensors")
    assert scale(adapter) == {8 / RANK**0.5}


def test_an_adapter_that_isnt_there_is_an_error(tmp_path):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    with pytest.raises(ModelNotFoundError, match="give a file, a folder or a hub id"):
        pipe.load_lora("no/such/adapter")
    with pytest.raises(
        ModelNotFoundError, match=r"holds neither pytorch_lora_weights\.safetensors"
    ):
        pipe.load_lora(tmp_path)
    for name in "ab":
        mx.save_safetensors(str(tmp_path / f"{name}.safetensors"), {"x": mx.ones(1)})
    with pytest.raises(ModelNotFoundError, match=r"but a.safetensors, b.safetensors: name one"):
        pipe.load_lora(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-file"], 1, "no adapter 'no-such-file'"),
        (["a", "b"], 2, "takes an adapter and at most one number"),
        (["a", "1", "2"], 2, "takes an adapter and at most one number"),
        (["a", "1/0"], 2, "takes an adapter and at most one number"),
        ([""], 2, "takes an adapter"),
        (["loras/none.safetensors"], 1, "no adapter 'loras/none.safetensors': give a file"),
        (["my/loras/none.safetensors"], 1, "there is no file my/loras/none.safetensors here"),
        (["my/--/none.safetensors"], 1, "can't be the name of a hub repository"),
    ],
)
def test_a_wrong_adapter_is_one_line(output, capsys, arguments, code, message):
    assert generate(output, "--lora", *arguments) == code
    (error,) = errors(capsys.readouterr().err)
    assert message in error


def test_a_scale_must_be_finite(adapter, output, capsys):
    assert generate(output, "--lora", adapter, "nan") == 2
    (error,) = errors(capsys.readouterr().err)
    assert "finite" in error


def test_an_adapter_comes_from_the_hub(adapter, monkeypatch):
    asked = []

    def answer(repo, *, allow_patterns, **options):
        asked.append((repo, sorted(allow_patterns)))
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    pipe = CogVideoXPipeline.from_pretrained("demo")
    pipe.load_lora("someone/adapter", 0.5)
    assert asked[0][0] == "someone/adapter"
    assert "pytorch_lora_weights.safetensors" in asked[0][1]
    here = CogVideoXPipeline.from_pretrained("demo")
    here.load_lora(adapter, 0.5)
    assert mx.array_equal(forward(pipe), forward(here))

    (adapter / "orbit left.safetensors").write_bytes((adapter / FILE).read_bytes())
    there = CogVideoXPipeline.from_pretrained("demo")
    there.load_lora("someone/adapter/orbit left.safetensors", 0.5)
    assert asked[-1] == ("someone/adapter", ["adapter_config.json", "orbit left.safetensors"])
    assert mx.array_equal(forward(there), forward(here))
