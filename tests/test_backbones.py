"""Model families on stock transformers classes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dllm_sampling import ConfigurationError, Sampler, load_model
from dllm_sampling.backbones.llada import LLaDA
from tests import tolerance
from tests.models import DATA, prompts_of, tiny
from tests.test_engine import BLOCKS


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_eager_attention_decodes_as_sdpa_does_with_padding(family, cache):
    eager = load_model(DATA / family, attn_implementation="eager")
    prompts = prompts_of([4, 9])
    settings = {"unmasking": {"name": "fixed_k", "k": 2}, "cache": cache, "schedule": BLOCKS}
    one = Sampler(eager, **settings).generate(prompts, gen_length=16)
    other = Sampler(tiny(family), **settings).generate(prompts, gen_length=16)
    assert one.sequences.equal(other.sequences)
    bound = tolerance.of_confidence(eager)
    torch.testing.assert_close(one.confidence, other.confidence, atol=bound, rtol=0, equal_nan=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_rotates_in_float32_as_published_and_keeps_its_frequencies(attention):
    model = load_model(DATA / "llada", dtype="bfloat16", attn_implementation=attention)
    rotary = model.model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert model.model.dtype == torch.bfloat16
    cosine, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), torch.arange(5)[None])
    assert cosine.dtype == torch.float32
    result = Sampler(model, cache="dual", schedule=BLOCKS).generate(prompts_of([4, 9]), gen_length=16)
    assert not result.confidence[result.forward_of_position >= 0].isnan().any()


def test_a_checkpoint_that_rotates_in_its_own_precision_is_left_alone(tmp_path):
    config = json.loads((DATA / "llada" / "config.json").read_text()) | {"rope_full_precision": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((DATA / "llada" / "model.safetensors").read_bytes())
    model = load_model(tmp_path, dtype="bfloat16")
    assert model.model.config._attn_implementation == "sdpa"


def test_llada_with_qkv_biases_grouped_heads_tied_weights_and_padded_embeddings(tmp_path):
    config = json.loads((DATA / "llada" / "config.json").read_text())
    config |= {"include_qkv_bias": True, "n_kv_heads": 2, "weight_tying": True, "vocab_size": 180}
    config |= {"embedding_size": 192, "mask_token_id": 179, "eos_token_id": 178}
    tensors = load_file(DATA / "llada" / "model.safetensors")
    del tensors["model.transformer.ff_out.weight"]
    for name in list(tensors):
        for projection in ("q_proj", "k_proj", "v_proj"):
            if name.endswith(f"{projection}.weight"):
                rows = 64 if projection == "q_proj" else 32
                tensors[name] = tensors[name][:rows].clone()
                tensors[name.replace("weight", "bias")] = torch.randn(rows)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path)
    assert model.model.config.model_type == "qwen2"
    result = Sampler(model, cache="dual", schedule=BLOCKS, stop_at_eos=False).generate(
        [[1, 2, 3]], gen_length=16
    )
    assert not (result.sequences == 179).any()


def test_special_ids_come_from_the_checkpoint_and_its_template():
    facts = load_model().facts
    tokenizer = facts.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(facts.eos_token_ids)) == ["<|endoftext|>", "<|eot_id|>"]
    assert tokenizer.convert_ids_to_tokens(facts.mask_token_id) == "<|mdm_mask|>"
    assert not facts.allowed[facts.mask_token_id]
    assert tiny("dream").facts.eos_token_ids == (198,)


def test_published_llada_config_is_understood(tmp_path):
    published = {
        "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32,
        "mlp_hidden_size": 12288, "mlp_ratio": 4, "vocab_size": 126464, "embedding_size": 126464,
        "max_sequence_length": 4096, "activation_type": "silu", "block_type": "llama",
        "block_group_size": 1, "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "rope": True,
        "rope_full_precision": True, "rope_theta": 500000.0, "weight_tying": False, "alibi": False,
        "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False,
        "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "input_emb_norm": False,
        "scale_logits": False, "multi_query_attention": None, "mask_token_id": 126336,
        "eos_token_id": 126081, "pad_token_id": 126081,
    }  # fmt: skip
    assert LLaDA.matches(published)
    stock, config, _ = LLaDA.stock(published)
    assert stock.__name__ == "LlamaForCausalLM"
    assert (config.hidden_size, config.intermediate_size, config.mask_token_id) == (4096, 12288, 126336)


@pytest.fixture
def flash_stub():
    """An attention that refuses position ids, as flash attention's packed-sequence trap would use them."""
    seen = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, query, key, value, mask, **kwargs):
        seen.append("position_ids" in kwargs)
        mask = None if mask is None else mask[:, None, None, :].bool()
        return sdpa(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("flash_stub", attend)
    AttentionMaskInterface.register("flash_stub", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    return seen


def test_flash_attention_never_sees_position_ids(flash_stub):
    # Loading by that name would ask for the kernel itself.
    stock = load_model(DATA / "llada").model
    stock.config._attn_implementation = "flash_stub"
    model = LLaDA(stock)
    settings = {"unmasking": {"name": "fixed_k", "k": 2}, "cache": "dual", "schedule": BLOCKS}
    one = Sampler(model, **settings).generate(prompts_of([9]), gen_length=16)
    assert flash_stub
    assert not any(flash_stub)
    assert one.sequences.equal(Sampler(tiny(), **settings).generate(prompts_of([9]), gen_length=16).sequences)
    with pytest.raises(ConfigurationError, match="flash attention aligns its padding mask"):
        Sampler(model, **settings).generate(prompts_of([4, 9]), gen_length=16)
    padded = Sampler(model, **(settings | {"cache": "prefix"})).generate(prompts_of([4, 9]), gen_length=16)
    exact = Sampler(tiny(), **(settings | {"cache": "prefix"})).generate(prompts_of([4, 9]), gen_length=16)
    assert padded.sequences.equal(exact.sequences)
