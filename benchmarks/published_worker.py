"""Runs the unmodified Fast-dLLM code on request: started by against_published.py, in its own interpreter.

    PYTHON published_worker.py CHECKOUT CHECKPOINT THREADS

Reads a JSON object a line (cache, prompt, gen_length, block_length, threshold), answers with tokens, forwards
and seconds. Imports nothing of ours.
"""

import json
import sys
import time

checkout, checkpoint, threads = sys.argv[1:4]
sys.path.insert(0, f"{checkout}/llada")

import generate as published  # noqa: E402 - as above
import torch  # noqa: E402 - the path comes first
from model.configuration_llada import LLaDAConfig  # noqa: E402 - as above
from model.modeling_llada import LLaDAModelLM  # noqa: E402 - as above
from safetensors.torch import load_file  # noqa: E402 - as above

torch.set_num_threads(int(threads))
with open(f"{checkpoint}/config.json") as file:
    settings = json.load(file)
config = LLaDAConfig(
    **{k: v for k, v in settings.items() if k not in ("architectures", "model_type", "torch_dtype")}
)
model = LLaDAModelLM(config)
report = model.load_state_dict(load_file(f"{checkpoint}/model.safetensors"), strict=False)
assert not report.unexpected_keys, report.unexpected_keys
assert not report.missing_keys, report.missing_keys
model.eval()
ways = {
    "none": published.generate,
    "prefix": published.generate_with_prefix_cache,
    "dual": published.generate_with_dual_cache,
}
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "step" in job:  # one dual step: the window over a filled cache
        canvas = torch.tensor([job["canvas"]])
        start, stop = job["step"]
        with torch.no_grad():
            past = model(canvas, use_cache=True).past_key_values
            where = torch.zeros_like(canvas, dtype=torch.bool)
            where[:, start:stop] = True
            times = []
            for _ in range(job["repeats"]):
                begun = time.perf_counter()
                logits = model(
                    canvas[:, start:stop], past_key_values=past, use_cache=True, replace_position=where
                ).logits
                mask = canvas[:, start:stop] == job["mask_id"]
                published.get_transfer_index(
                    logits, 0.0, "low_confidence", mask, canvas[:, start:stop], None, job["threshold"]
                )
                times.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": times}), flush=True)
        continue
    prompt = torch.tensor([job["prompt"]])
    begun = time.perf_counter()
    tokens, forwards = ways[job["cache"]](
        model,
        prompt,
        steps=job["gen_length"],
        gen_length=job["gen_length"],
        block_length=job["block_length"],
        threshold=job["threshold"],
        mask_id=settings["mask_token_id"],
    )
    seconds = time.perf_counter() - begun
    print(json.dumps({"tokens": tokens[0].tolist(), "forwards": forwards, "seconds": seconds}), flush=True)
