"""Compiles the RASP program ``reverse`` to the weights of a transformer, ``reverse.safetensors`` (Lindner et al. 2023).

Run once, in an environment of its own: ``pip install tracr-pypi safetensors``, then
``python tests/evaluation/compile_reverse.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

TOKENS = ("a", "b", "c", "d")
MOST_TOKENS = 6


def main() -> None:
    program = lib.make_reverse(rasp.tokens)
    compiled = compiling.compile_rasp_to_model(
        program, vocab=set(TOKENS), max_seq_len=MOST_TOKENS, compiler_bos="BOS", causal=False
    )
    assert compiled.apply(["BOS", "a", "b", "c", "d"]).decoded == ["BOS", "d", "c", "b", "a"]
    weights = {
        "tokens.weight": compiled.params["token_embed"]["embeddings"],
        "positions.weight": compiled.params["pos_embed"]["embeddings"],
    }
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "linear": "o_proj"}
    for layer in range(compiled.model_config.num_layers):
        of_tracr = f"transformer/layer_{layer}"
        for name, own in names.items():
            parameters = compiled.params[f"{of_tracr}/attn/{name}"]
            weights[f"layers.{layer}.attention.{own}.weight"] = parameters["w"].T
            weights[f"layers.{layer}.attention.{own}.bias"] = parameters["b"]
        for name, own in (("linear_1", "fc1"), ("linear_2", "fc2")):
            parameters = compiled.params[f"{of_tracr}/mlp/{name}"]
            weights[f"layers.{layer}.mlp.{own}.weight"] = parameters["w"].T
            weights[f"layers.{layer}.mlp.{own}.bias"] = parameters["b"]
    # A token's logit is the share of its direction in the residual stream.
    directions = [compiled.residual_labels.index(f"reverse_1:{token}") for token in TOKENS]
    weights["unembed.weight"] = np.eye(len(compiled.residual_labels), dtype=np.float32)[directions]
    content = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    about = {"token_ids": json.dumps(compiled.input_encoder.encoding_map), "num_heads": "1"}
    save_file(content, Path(__file__).with_name("reverse.safetensors"), about)


if __name__ == "__main__":
    main()
