from __future__ import annotations

import pytest

from coar_dist.components.places import Place, places

LLAMA = [f"model.layers.{layer}.self_attn" for layer in range(12)]
T5 = [
    "encoder.block.0.layer.0.SelfAttention",
    "encoder.block.1.layer.0.SelfAttention",
    "decoder.block.0.layer.0.SelfAttention",
    "decoder.block.0.layer.1.EncDecAttention",
]
LLAVA = [
    "model.vision_tower.vision_model.encoder.layers.2.self_attn",
    "model.vision_tower.vision_model.head.attention",
    "model.language_model.layers.0.self_attn",
    "model.language_model.layers.2.self_attn",
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (LLAMA, [f"L{layer}" for layer in range(12)]),
        (T5, ["encoder.L0", "encoder.L1", "decoder.L0.SelfAttention", "decoder.L0.EncDecAttention"]),
        (LLAVA, ["vision.L2", "vision.head.attention", "language.L0", "language.L2"]),
        (["model.layers.7.self_attn"], ["L7"]),  # one attention layer in a hybrid
        (["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"], ["L0.0", "L0.1", "L1.0"]),
        (["encoder.groups.0.inner_layers.0.attention"], ["L0"]),  # ALBERT
        (["0.model.h.0.attn", "0.model.h.1.attn"], ["L0", "L1"]),  # wrapped in a Sequential
        (["stages.0.b.0.block.attn", "stages.0.b.0.grid.attn"], ["L0.block", "L0.grid"]),
        (["blocks.0.attn", "blocks.1.attn", "attn_pool"], ["L0", "L1", "attn_pool"]),
        (["blocks.0.attn", "blocks_token_only.0.attn"], ["blocks.L0", "blocks_token_only.L0"]),
        (["text_model.layers.0.a", "text_tower.layers.0.a"], ["text_model.L0", "text_tower.L0"]),
        (
            ["m.vision.near.layers.0", "m.vision.far.layers.0", "m.text.layers.0"],
            ["vision.near.L0", "vision.far.L0", "text.L0"],
        ),
        (["l.0.mlp.wi", "l.1.mlp.experts.a.wi", "l.1.mlp.experts.b.wi"], ["L0.wi", "L1.experts.a", "L1.experts.b"]),
        (["fc0", "fc1"], ["fc0", "fc1"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_places(names: list[str], found: list[str]) -> None:
    assert [str(place) for place in places({"heads": names})["heads"]] == found


def test_kinds_agree_on_the_layer() -> None:
    attention = ["stages.1.blocks.1.attn", "stages.2.blocks.1.attn"]  # alone, the second number would say nothing
    mlps = [f"stages.{stage}.blocks.{block}.mlp" for stage in range(3) for block in range(2)]
    found = places({"heads": attention, "neurons": mlps})
    assert [str(place) for place in found["heads"]] == ["L1.1", "L2.1"]
    assert [str(place) for place in found["neurons"]] == ["L0.0", "L0.1", "L1.0", "L1.1", "L2.0", "L2.1"]


def test_two_kinds_in_one_layer_need_no_parts() -> None:
    found = places({"heads": ["layers.0.attn", "layers.1.attn"], "neurons": ["layers.0.mlp", "layers.1.mlp"]})
    assert {place.part for kind in found.values() for place in kind} == {""}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Place(), "H5"),
        (Place(layer="3"), "L3H5"),
        (Place("vision", "3"), "vision.L3H5"),
        (Place("decoder", "1.0", "cross"), "decoder.L1.0.cross.H5"),
        (Place(part="attn_pool"), "attn_pool.H5"),
    ],
)
def test_names_of_components(place: Place, name: str) -> None:
    assert place.named("H", 5) == name
