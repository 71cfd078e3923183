"""A small Llama with random weights, written to a directory from which vLLM can serve it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 320
TOKENS_PER_BLOCK = 32


@dataclass(frozen=True)
class Shape:
    """How large a model is; by default as small as vLLM can serve."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512

    @property
    def bytes_per_block(self) -> int:
        """Bytes of the keys and values of one block, over all layers, in bfloat16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2 * TOKENS_PER_BLOCK


SMALLEST = Shape()
BYTES_PER_BLOCK = SMALLEST.bytes_per_block

_SPECIAL = ("<s>", "</s>", "<pad>")
_SPREAD = 0.15
"""Standard deviation of the weights. With the usual 0.02 the answers hardly depend on the keys and values, so that
even a load of zeros would go unnoticed."""


def make_model(directory: Path, shape: Shape = SMALLEST) -> Path:
    """Write a model: configuration, tokenizer and weights, the same ones every time."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_configuration(shape), indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 257}))
    _write_tokenizer(directory)
    _write_weights(directory, shape)
    return directory


def _configuration(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16_384,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": _SPREAD,
        "torch_dtype": "bfloat16",
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import (  # type: ignore[import-not-found]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *_SPECIAL]
    words += [f"<unused{i}>" for i in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": 16_384,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(directory: Path, shape: Shape) -> None:
    import torch
    from safetensors.torch import save_file  # type: ignore[import-not-found]

    random = torch.Generator().manual_seed(7)

    spread = _SPREAD * float((SMALLEST.hidden / shape.hidden) ** 0.5)  # wider layers add up more

    def weights(*sizes: int) -> torch.Tensor:
        return (torch.randn(sizes, generator=random) * spread).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": weights(VOCABULARY, shape.hidden),
        "lm_head.weight": weights(VOCABULARY, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": weights(shape.heads * shape.head_dim, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": weights(shape.kv_heads * shape.head_dim, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": weights(shape.kv_heads * shape.head_dim, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": weights(shape.hidden, shape.heads * shape.head_dim),
            f"{prefix}.mlp.gate_proj.weight": weights(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": weights(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.down_proj.weight": weights(shape.hidden, shape.intermediate),
            f"{prefix}.input_layernorm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
        }
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
