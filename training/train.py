"""Train the bundled model: a small LLaDA on word problems, from nothing, on a CPU.

    python training/train.py --output RUN_FOLDER [--steps 11000]

Stock transformers Llama, made bidirectional, trained as LLaDA's instruction tuning is
(arXiv:2502.09992, algorithm 2): the prompt stays clean, the answer, padded with EOS to a fixed
length, is masked at a rate t ~ U(0, 1), and the loss of each masked position is weighted 1/t.
Half of every batch has the masks of block-wise decoding instead: clean up to a block's start, rate t
inside the block, everything masked after it. Without those, block-wise decoding shows the model
canvases it almost never saw.

The run folder holds `state.pt` (written every --save-every steps; a run that finds one resumes) and,
at the end, `checkpoint/` in LLaDA's published format.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from word_problems import (
    BOS,
    CHAT_TEMPLATE,
    END_OF_TURN,
    EOS,
    MASK,
    Problem,
    problems,
    render,
    train_tokenizer,
)

ANSWER_LENGTH = 64
EASY_ANSWER_LENGTH = 40
BLOCK_LENGTHS = (8, 16, 32)
AFTER_BLOCK_WEIGHT = 0.1
MIN_RATE = 0.04

# LLaDA's tensor names; stock Llama's on the right. The package maps them back when it loads.
LLADA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def build_model(tokenizer: Tokenizer, hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        attn_implementation="eager",
        use_cache=False,
    )
    config.is_causal = False
    return LlamaForCausalLM(config)


def batches(tokenizer: Tokenizer, seed: int, size: int, *, easy: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (prompts, answers): all prompts of a batch are equally long, so nothing is padded."""
    eos = tokenizer.token_to_id(EOS)
    buckets: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    length = EASY_ANSWER_LENGTH if easy else ANSWER_LENGTH
    stream = problems(seed, held_out=False, easy=easy)
    while True:
        chunk = [next(stream) for _ in range(size)]
        prompts = tokenizer.encode_batch_fast([render(p.question) for p in chunk])
        answers = tokenizer.encode_batch_fast([p.answer for p in chunk])
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = answer.ids + [eos] * (length - len(answer.ids))
            bucket = buckets[len(prompt.ids)]
            bucket.append((prompt.ids, ids))
            if len(bucket) == size:
                yield torch.tensor([p for p, _ in bucket]), torch.tensor([a for _, a in bucket])
                bucket.clear()


def corrupt(answers: Tensor, mask_id: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masked answers and the loss weight of each position, both [batch, answer]."""
    batch, length = answers.shape
    # One stratum a row, so that every batch sees all rates.
    rates = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    rates = rates[torch.randperm(batch, generator=generator)].clamp_min(MIN_RATE)[:, None]
    noise = torch.rand(batch, length, generator=generator)
    masked = noise < rates
    weights = (1 / rates).expand(batch, length).clone()

    rows = int(batch * share)
    position = torch.arange(length)
    widths = torch.tensor(BLOCK_LENGTHS)[torch.randint(3, (rows, 1), generator=generator)]
    blocks = (torch.rand(rows, 1, generator=generator) * (length / widths).ceil()).long()
    start = blocks * widths
    after = position >= start + widths
    masked[:rows] &= position >= start
    masked[:rows] |= after
    weights[:rows] = torch.where(after, torch.tensor(AFTER_BLOCK_WEIGHT), 2 * weights[:rows])
    return answers.masked_fill(masked, mask_id), weights * masked


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: Tokenizer, chosen: list[Problem], block: int, k: int
) -> float:
    """Share of right final numbers, block-wise, k tokens a forward: a plain loop, for monitoring."""
    mask_id = tokenizer.token_to_id(MASK)
    groups: dict[int, list[tuple[list[int], Problem]]] = defaultdict(list)
    for problem in chosen:
        ids = tokenizer.encode(render(problem.question)).ids
        groups[len(ids)].append((ids, problem))
    right = 0
    for length, group in groups.items():
        canvas = torch.full((len(group), length + ANSWER_LENGTH), mask_id)
        canvas[:, :length] = torch.tensor([ids for ids, _ in group])
        for start in range(length, canvas.shape[1], block):
            for _ in range(block // k):
                window = canvas[:, start : start + block]
                logits = model(canvas, use_cache=False).logits[:, start : start + block]
                logits[..., mask_id] = -torch.inf
                confidence, tokens = logits.softmax(-1).max(-1)
                best = confidence.where(window == mask_id, -1.0).topk(k, -1).indices
                window.scatter_(1, best, tokens.gather(1, best))
        for row, (_, problem) in zip(canvas[:, length:].tolist(), group, strict=True):
            text = tokenizer.decode(row)
            right += text.split("####")[-1].strip() == problem.result
    return right / len(chosen)


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a checkpoint folder as LLaDA's are: config, safetensors, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    tensors = {}
    for name, tensor in model.state_dict().items():
        new = name.replace("model.layers.", "model.transformer.blocks.")
        for stock, llada in LLADA_NAMES.items():
            new = new.replace(f".{stock}.", f".{llada}.")
        new = new.replace("model.embed_tokens.", "model.transformer.wte.")
        new = new.replace("model.norm.", "model.transformer.ln_f.")
        new = new.replace("lm_head.", "model.transformer.ff_out.")
        tensors[new] = tensor.detach().float().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {t: tokenizer.token_to_id(t) for t in (BOS, EOS, MASK)}
    llada = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "mlp_hidden_size": config.intermediate_size,
        "mlp_ratio": 4,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "rms_norm_eps": config.rms_norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": config.rope_parameters["rope_theta"],
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "alibi": False,
        "multi_query_attention": None,
        "mask_token_id": ids[MASK],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[EOS],
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(llada, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "extra_special_tokens": {"eot_token": END_OF_TURN},
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main() -> None:  # noqa: PLR0915 - one straight script
    parser = argparse.ArgumentParser(description="Train the bundled word-problem model.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=11000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--easy-until", type=int, default=3000, help="easy problems before this step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--evaluate-every", type=int, default=1000)
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed)
    mask_id = tokenizer.token_to_id(MASK)
    model = build_model(tokenizer, args.hidden, args.layers)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        progress = step / args.steps
        return min((step + 1) / args.warmup, 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))

    state_file = args.output / "state.pt"
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        print(f"resumed at step {step}", flush=True)

    forward = torch.compile(model.model, dynamic=True)
    # A resumed run continues on fresh problems and masks.
    easy, hard = (batches(tokenizer, args.seed + 1 + step, args.batch, easy=easy) for easy in (True, False))
    generator = torch.Generator().manual_seed(args.seed + 1 + step)
    watched = problems(random.Random(99).getrandbits(32), held_out=True)
    monitor = [next(watched) for _ in range(100)]
    watched = problems(args.seed + 99, held_out=True, easy=True)
    easy_monitor = [next(watched) for _ in range(100)]
    mean, begun = 0.0, time.perf_counter()
    while step < args.steps:
        is_easy = step < args.easy_until
        prompts, answers = next(easy if is_easy else hard)
        corrupted, weights = corrupt(answers, mask_id, 0.25 if is_easy else 0.5, generator)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = forward(input_ids=torch.cat([prompts, corrupted], 1)).last_hidden_state
            chosen = weights > 0
            logits = model.lm_head(hidden[:, -answers.shape[1] :][chosen])
        losses = F.cross_entropy(logits.float(), answers[chosen], reduction="none")
        loss = (losses * weights[chosen]).sum() / answers.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        mean += loss.item()
        if step % 200 == 0:
            seconds = spent + time.perf_counter() - begun
            print(f"step {step:6d}  loss {mean / 200:.4f}  {seconds:7.0f} s", flush=True)
            mean = 0.0
        if step % args.save_every == 0 or step == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": spent + time.perf_counter() - begun,
            }
            partial = state_file.with_suffix(".tmp")
            torch.save(state, partial)
            partial.replace(state_file)
            export(model, tokenizer, args.output / "checkpoint")
        if step % args.evaluate_every == 0 or step == args.steps:
            scores = {
                f"block {block}, k {k}": accuracy(
                    model, tokenizer, easy_monitor if is_easy else monitor, block, k
                )
                for block, k in ((64, 1), (16, 1), (16, 8))
            }
            print(f"step {step:6d}  {scores}", flush=True)


if __name__ == "__main__":
    main()
