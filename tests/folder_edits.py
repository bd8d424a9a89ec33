"""Random edits of a checkpoint folder, for property tests: each is a recipe that `apply` carries out."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from tests.folders import DREAM_CONFIG, LLADA_KEYS

_FILES = ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json", "vocab.json",
          "added_tokens.json", "special_tokens_map.json", "model.safetensors.index.json"]  # fmt: skip
_ALL = [*_FILES, "model.safetensors", "merges.txt", "chat_template.jinja"]
_KEYS = sorted({
    *LLADA_KEYS, *DREAM_CONFIG, "d_model", "n_heads", "n_layers", "n_kv_heads", "mlp_hidden_size", "mlp_ratio",
    "embedding_size", "max_sequence_length", "weight_tying", "include_qkv_bias", "include_bias", "block_type",
    "layer_norm_type", "activation_type", "rope", "rope_full_precision", "rope_parameters", "clip_qkv",
    "quantization_config", "head_dim", "layer_types", "attention_bias", "auto_map", "dtype", "num_experts",
    "tokenizer_class", "chat_template", "eos_token", "mask_token", "pad_token", "bos_token", "unk_token",
    "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "model_max_length", "padding_side",
    "clean_up_tokenization_spaces", "add_prefix_space", "vocab_file", "tokenizer_file", "merges_file", "init_inputs",
    "fast_tokenizer_files", "split_special_tokens", "model_input_names", "vocab", "merges", "model", "added_tokens",
    "normalizer", "pre_tokenizer", "decoder", "post_processor", "truncation", "padding", "version", "weight_map",
    "metadata", "errors", "is_causal", "transformers_weights", "name_or_path", "backend", "tokenizer_object",
})  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 2, 5, 7, 128, 256, 257, 260, 404, 10**6, 2**31, 2**40, 10**20, 0.0, 0.5, -0.5, 1e308,
        float("nan"), float("inf"), "", "1", "x", "silu", "default", "../../x", "/etc/passwd", "\x00", "\ud800", "é" * 50,
        [], {}, [1], [1, 4], ["1"], [None], [True], [[1]], {"a": 1}, {"full_attention": {"rope_type": "yarn"}},
        {"rope_type": "default", "rope_theta": 10000.0}, {"rope_type": "linear", "factor": 2.0}, {"type": "dynamic"},
        {"AutoTokenizer": ["tokenization_llada.Tokenizer", None]}, ["a.B", None], "Qwen2Tokenizer", "GPT2TokenizerFast",
        "LlamaTokenizer", "BertTokenizer", "Trainer", "PreTrainedTokenizer", "<|mask|>", "<|endoftext|>",
        {"content": "<x>", "special": True}, {"__type": "AddedToken", "content": "<y>"}, {"5": {"content": "<z>"}},
        {"-1": {"content": "<z>"}}, {"99999999999": {"content": "<z>"}}, "{{ messages }}", "{% for", "{{ raise_exception(1) }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "{{ ''.__class__ }}",
        [{"name": "chat", "template": "x"}], [{"name": "default", "template": "{% if %}"}],
    ]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=5,
    ),
)  # fmt: skip
_set = st.tuples(
    st.just("set"), st.sampled_from(_FILES[:4]), st.sampled_from(_KEYS) | st.text(max_size=6), _VALUES
)
_drop = st.tuples(st.just("drop"), st.sampled_from(_FILES[:4]), st.sampled_from(_KEYS))
_remove = st.tuples(st.just("remove"), st.sampled_from(_ALL))
_damage = st.tuples(
    st.just("damage"),
    st.sampled_from(_ALL),
    st.sampled_from([
        b"", b"{}", b"[]", b"null", b"x", b"{", b'{"a": 1', b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"\x00" * 64, b"[" * 3000,
        b'{"a": NaN}', b'{"a": 1, "a": 2}', b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "half", "twice", "folder",
    ]),
)  # fmt: skip
EDITS = st.lists(_set | _set | _set | _drop | _remove | _damage, min_size=1, max_size=3)


def apply(folder, edits):
    """Carry out edits; one that has nothing to work on is passed over."""
    for kind, name, *rest in edits:
        path = folder / name
        if kind == "remove":
            if not path.is_dir():
                path.unlink(missing_ok=True)
        elif kind == "damage":
            _damaged(path, rest[0])
        else:
            try:
                data = json.loads(path.read_text()) if path.exists() else {}
            except (ValueError, OSError, RecursionError):
                continue
            if not isinstance(data, dict):
                continue
            data.pop(rest[0], None)
            if kind == "set":
                data[rest[0]] = rest[1]
            path.write_text(json.dumps(data))


def _damaged(path, how):
    if isinstance(how, bytes):
        if not path.is_dir():
            path.write_bytes(how)
    elif path.is_file():
        data = path.read_bytes()
        path.unlink()
        if how == "folder":
            path.mkdir()
        else:
            path.write_bytes(data[: len(data) // 2] if how == "half" else data * 2)
