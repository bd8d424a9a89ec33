"""Checkpoint folders as people publish them: tiny weights, and all that lies beside them.

Each holds code, a pickle and an `auto_map` in every file that has one. Whatever of it runs leaves a file
`ran` beside the folder.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dllm_sampling.loading.folder import BUNDLED

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What LLaDA's published configs hold besides sizes and ids.
LLADA_KEYS = {
    "alibi_bias_max": 8.0, "attention_dropout": 0.0, "attention_layer_norm_with_affine": True,
    "embedding_dropout": 0.0, "flash_attention": False, "init_cutoff_factor": None, "init_device": "meta",
    "init_fn": "mitchell", "init_std": 0.02, "layer_norm_with_affine": True, "precision": "amp_bf16",
    "residual_dropout": 0.0, "transformers_version": "4.46.3", "use_cache": False,
}  # fmt: skip
DREAM_CONFIG = {
    "architectures": ["DreamModel"], "attention_dropout": 0.0, "bos_token_id": 256, "eos_token_id": 256,
    "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.02, "intermediate_size": 32,
    "mask_token_id": 260, "max_position_embeddings": 128, "max_window_layers": 28, "model_type": "Dream",
    "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1, "pad_token_id": 256,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.46.2",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 272,
}  # fmt: skip
GENERATION = {"_from_model_config": True, "transformers_version": "4.46.2", "temperature": 0.7, "top_p": 0.9}
START, END = 257, 258


class _Runs:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def edit(folder, name, **changes):
    """Change keys of a JSON file; `...` deletes one."""
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    for key, value in changes.items():
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def _published(folder, family):
    """Code, a pickle and papers beside a checkpoint."""
    trace = folder.parent / "ran"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for module in ("configuration", "modeling", "tokenization", "generation_utils"):
        (folder / f"{module}_{family}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs(trace)))
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    auto = {
        "AutoConfig": f"configuration_{family}.Config",
        "AutoModel": f"modeling_{family}.Model",
        "AutoModelForCausalLM": f"modeling_{family}.Model",
    }
    edit(folder, "config.json", auto_map=auto)
    edit(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": [f"tokenization_{family}.Tokenizer", None]},
    )
    edit(folder, "generation_config.json", **GENERATION)
    return folder


def llada(root, config=None, tokenizer=None, weights=None):
    """The bundled checkpoint, dressed as the published ones are."""
    folder = root / "llada"
    shutil.copytree(BUNDLED, folder)
    edit(folder, "config.json", **LLADA_KEYS)
    _published(folder, "llada")
    edit(folder, "config.json", **(config or {}))
    edit(folder, "tokenizer_config.json", **(tokenizer or {}))
    if weights is not None:
        tensors = weights(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def dream(root, config=None, tokenizer=None, weights=None):
    """A Dream of one layer: vocab.json and merges.txt, a tokenizer class of its own, a padded vocabulary."""
    folder = root / "dream"
    folder.mkdir(parents=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    vocabulary = {chr(b if b in printable else next(others)): b for b in range(256)}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    added = {token: 256 + i for i, token in enumerate(special)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    edit(
        folder, "tokenizer_config.json",
        add_prefix_space=False, additional_special_tokens=["<|beginoftext|>", "<|mask|>"],
        added_tokens_decoder={str(i): {"content": token, **plain} for token, i in added.items()},
        bos_token="<|beginoftext|>", chat_template=CHATML, eos_token="<|endoftext|>", errors="replace",
        mask_token="<|mask|>", model_max_length=131072, pad_token="<|endoftext|>",
        tokenizer_class="DreamTokenizer", unk_token=None,
    )  # fmt: skip
    edit(folder, "config.json", **DREAM_CONFIG)
    _published(folder, "dream")
    c = json.loads((folder / "config.json").read_text())
    width, inner, size = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    half = width * c["num_key_value_heads"] // c["num_attention_heads"]
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (size, width), "model.norm.weight": (width,), "lm_head.weight": (size, width),
        layer + "input_layernorm.weight": (width,), layer + "post_attention_layernorm.weight": (width,),
        layer + "self_attn.q_proj.weight": (width, width), layer + "self_attn.q_proj.bias": (width,),
        layer + "self_attn.k_proj.weight": (half, width), layer + "self_attn.k_proj.bias": (half,),
        layer + "self_attn.v_proj.weight": (half, width), layer + "self_attn.v_proj.bias": (half,),
        layer + "self_attn.o_proj.weight": (width, width), layer + "mlp.gate_proj.weight": (inner, width),
        layer + "mlp.up_proj.weight": (inner, width), layer + "mlp.down_proj.weight": (width, inner),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape)
        if "norm" in name
        else torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    edit(folder, "config.json", **(config or {}))
    edit(folder, "tokenizer_config.json", **(tokenizer or {}))
    if weights is not None:
        tensors = weights(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


FAMILIES = {"llada": llada, "dream": dream}
