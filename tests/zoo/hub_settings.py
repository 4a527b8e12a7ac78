"""Settings of tiny models of transformers that are no causal language models, by ``model_type``."""

from __future__ import annotations

from typing import Any

from tests.zoo.hub_decoders import GROUPED, TEXT, VOCABULARY

IMAGE_TOKEN = VOCABULARY - 1
_IMAGES = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 3,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**TEXT, "num_labels": 3},
    "roberta": {**TEXT, "num_labels": 3, "max_position_embeddings": 40},
    "electra": {**TEXT, "embedding_size": 16, "num_labels": 3},
    "albert": {**TEXT, "embedding_size": 8, "num_labels": 3},
    "deberta": {**TEXT, "num_labels": 3, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**TEXT, "num_labels": 3},
    "mpnet": {**TEXT, "num_labels": 3, "max_position_embeddings": 40},
    "squeezebert": {
        **TEXT,
        "embedding_size": 16,
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "num_labels": 3,
    },
    "funnel": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "n_head": 4,
        "d_head": 4,
        "d_inner": 24,
        "block_sizes": [1, 1],
        "num_labels": 3,
    },
    "longformer": {**TEXT, "num_labels": 3, "attention_window": 4, "max_position_embeddings": 40},
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24, "num_labels": 3},
    "nystromformer": {**TEXT, "num_labels": 3, "num_landmarks": 7, "segment_means_seq_len": 7},
    "fnet": {**TEXT, "num_labels": 3, "tpu_short_seq_length": 7},
    "modernbert": {**TEXT, "num_labels": 3, "global_attn_every_n_layers": 2, "local_attention": 4},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "num_labels": 3},
}
"""Settings of classifiers of texts."""
VISION: dict[str, dict[str, Any]] = {
    "vit": _IMAGES,
    "beit": _IMAGES,
    "dinov2": _IMAGES,
    "vit_msn": _IMAGES,
    "deit": {**_IMAGES, "architectures": ["DeiTForImageClassification"]},
    "swinv2": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 3,
    },
    "convnextv2": {"num_channels": 3, "hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "num_labels": 3},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4, "num_labels": 3},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 4, "num_labels": 3},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 3},
    "pvt": {
        "image_size": 32,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "num_labels": 3,
    },
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 3,
    },
    "convnext": {"num_channels": 3, "hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "num_labels": 3},
    "resnet": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1], "num_labels": 3},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 4, "num_labels": 3},
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 12],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [2, 2],
        "mlp_ratios": [2, 2],
        "num_labels": 3,
    },
}
"""Settings of classifiers of images."""
_TOWER = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
_SOUND = {
    **TEXT,
    "conv_dim": [8, 8],
    "conv_kernel": [5, 3],
    "conv_stride": [3, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_feat_extract_layers": 2,
    "num_labels": 3,
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
    "bart": {**_SEQ2SEQ, "max_position_embeddings": 32},
}
"""Settings of encoder-decoders of texts."""
SPEECH: dict[str, dict[str, Any]] = {
    "whisper": {
        **_SEQ2SEQ,
        "num_mel_bins": 8,
        "max_source_positions": 10,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
}
"""Settings of encoder-decoders from speech to text."""
SOUNDS: dict[str, dict[str, Any]] = {"wav2vec2": _SOUND, "hubert": _SOUND}
"""Settings of classifiers of sounds."""
PAIRS: dict[str, dict[str, Any]] = {
    "clip": {"text_config": TEXT, "vision_config": _TOWER, "projection_dim": 8},
    "siglip": {"text_config": TEXT, "vision_config": _TOWER},
}
"""Settings of models that compare images with texts."""
IMAGE_TO_TEXT: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **GROUPED},
        "vision_config": {"model_type": "clip_vision_model", **_TOWER},
        "image_token_index": IMAGE_TOKEN,
    },
    "paligemma": {
        "text_config": {"model_type": "gemma", **GROUPED},
        "vision_config": {"model_type": "siglip_vision_model", **_TOWER},
        "image_token_index": IMAGE_TOKEN,
        "projection_dim": 16,
        "hidden_size": 16,
    },
    "blip-2": {
        "text_config": {"model_type": "opt", **TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16},
        "vision_config": _TOWER,
        "qformer_config": {**TEXT, "encoder_hidden_size": 16},
        "num_query_tokens": 4,
        "image_token_index": IMAGE_TOKEN,
    },
}
"""Settings of language models that read images: four tokens of them."""
