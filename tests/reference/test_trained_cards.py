"""The card of what was trained, and its adapter, as the hub, diffusers and PEFT read them."""

import ast
from dataclasses import replace

import diffusers
import mlx.core as mx
import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from mlx_cogvideo.checkpoints import save_adapter
from mlx_cogvideo.checkpoints.adapter_card import TrainedCard
from mlx_cogvideo.checkpoints.variants import NAMES
from mlx_cogvideo.nn.low_rank import LowRank

OWN = "https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE"


def card(alias: str, **changes) -> TrainedCard:
    variant = NAMES[alias]
    made = TrainedCard(
        name="me/kites",
        is_full=False,
        base=variant.repo,
        model=variant.repo,
        variant=variant,
        takes_image="i2v" in alias,
        trigger_word=None,
        adapters=[],
        shape=(49, 480, 720),
        fps=8.0,
        settings={"clips": "3"},
        samples={},
        plot=None,
    )
    return replace(made, **changes)


def about(made: TrainedCard) -> dict:
    return ModelCard(made.text()).data.to_dict()


def in_python(made: TrainedCard) -> str:
    return made.text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("is_full", [False, True])
def test_the_hub_reads_the_base_model_and_its_license(is_full):
    relation = "finetune" if is_full else "adapter"
    base = {"base_model": "THUDM/CogVideoX-2b", "base_model_relation": relation}
    found = about(card("2b", is_full=is_full))
    assert found.items() >= {**base, "license": "apache-2.0"}.items()
    assert ("lora" in found["tags"]) is not is_full
    own = {"license": "other", "license_name": "cogvideox-license", "license_link": OWN}
    assert about(card("5b", is_full=is_full)).items() >= own.items()


@pytest.mark.parametrize("alias", ["5b", "1.5-5b-i2v"])
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("adapters", [[], [("us/style", 0.5)]])
def test_the_code_for_diffusers_calls_what_it_has(alias, is_full, adapters):
    made = card(alias, is_full=is_full, adapters=adapters)
    code = in_python(made)
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    for node in imported:
        module = diffusers if node.module == "diffusers" else diffusers.utils
        assert all(hasattr(module, alias.name) for alias in node.names)
    pipeline = getattr(diffusers, imported[0].names[0].name)
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    methods = {f.attr for f in calls if isinstance(f, ast.Attribute) and f.value.id == "pipe"}
    assert all(hasattr(pipeline, name) for name in methods)
    assert ("load_lora_weights" in methods) is not is_full
    assert ("set_adapters" in methods) is (bool(adapters) and not is_full)
    assert ("image=load_image" in code) is (alias == "1.5-5b-i2v")


def test_a_model_that_comes_from_the_base_is_named_too():
    sentence = "The training began with kites\\/model, which comes from that model."
    assert sentence in card("5b", model="kites/model").text()
    assert "began" not in card("5b").text()


def test_a_model_is_used_by_its_own_name():
    text = card("5b", is_full=True, adapters=[("us/style", 0.5)]).text()
    assert "mlx-cogvideo generate --model me/kites --frames 49" in text
    assert 'from_pretrained("me/kites"' in text
    assert "fused into the base model before: us\\/style at 0.5" in text


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_peft_opens_an_adapter_that_names_others(tmp_path):
    additions = {"transformer_blocks.0.attn1.to_q": LowRank(mx.ones((4, 8)), mx.ones((8, 4)), 2)}
    others = [{"source": "us/style", "scale": 0.5, "sha256": "0"}]
    save_adapter(tmp_path, additions, rank=4, alpha=8, others=others)
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"attn1.to_q"})
