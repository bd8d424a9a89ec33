"""The compile setting: same tokens, few shapes, its cost apart, and a way back; quantised and parallel weights."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.common import write_checkpoint
from dllm_sampling import ConfigurationError, RunConfig, Sampler, load_model
from dllm_sampling.backbones import execution, packing
from dllm_sampling.backbones.packing import PackedLinear
from tests import tolerance
from tests.models import DATA, prompts_of

RAGGED = [5, 9, 9, 17, 30, 40, 41]


def settings(cache="dual", **more):
    return {
        "unmasking": {"name": "fixed_k", "k": 3},
        "cache": cache,
        "schedule": {"name": "fixed_blocks", "block_length": 16},
        "batch_size": 4,
        **more,
    }


def uncompiled(family="llada"):
    """A model whose steps take the compiled path, shapes and all, with plain torch at its end."""
    model = load_model(DATA / family)
    model.execution._compiled = model.logits
    return model


def agree(mine, reference):
    assert torch.equal(mine.sequences, reference.sequences)
    assert torch.equal(mine.forward_of_position, reference.forward_of_position)
    assert torch.allclose(mine.confidence, reference.confidence, atol=1e-4, equal_nan=True)
    for count in ("tokens", "row_forwards", "row_forced", "row_refreshes"):
        assert torch.equal(getattr(mine, count), getattr(reference, count)), count


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", {"name": "interval", "policy": "dual"}])
def test_padded_shapes_and_packed_weights_decode_the_same(family, cache):
    prompts = prompts_of(RAGGED, family)
    reference = Sampler(load_model(DATA / family, compile="off"), **settings(cache)).generate(prompts, 40)
    for model in (load_model(DATA / family), uncompiled(family)):
        agree(Sampler(model, **settings(cache)).generate(prompts, 40), reference)


def test_a_real_compilation_decodes_the_same_and_is_paid_once():
    prompts = prompts_of([9, 14, 20])
    reference = Sampler(load_model(DATA / "llada", compile="off"), **settings()).generate(prompts, 32)
    sampler = Sampler(load_model(DATA / "llada", compile="on"), **settings())
    first, second = sampler.generate(prompts, 32), sampler.generate(prompts, 32)
    agree(first, reference)
    agree(second, reference)
    assert first.execution == "packed weights and compiled steps"
    assert first.compile_seconds > first.seconds
    assert second.compile_seconds == 0


def test_ragged_prompts_compile_a_handful_of_times():
    model = uncompiled()
    sampler = Sampler(model, **settings())
    sampler.generate(prompts_of(range(3, 60)), 40)  # lengths 43 to 99, the last block of 8
    assert model.execution._shapes == {(rows, width, width, 128) for rows in (4, 1) for width in (16, 8)}, (
        "batches of 4 and the one prompt left over; whole blocks and the rest"
    )


def test_rows_leave_a_compiled_batch_at_block_ends_and_to_powers_of_two():
    model = uncompiled()
    eos = model.facts.eos_token_ids[0]
    prompts = prompts_of([6] * 8)

    def batches(model):
        run = Sampler(model, **settings("dual", batch_size=8)).steps(prompts, 64)
        sizes = []
        for step in run:
            sizes.append((step.region.span.start, step.state.batch))
            if step.state.forward_index == 2:  # five rows end themselves early in the first block
                tokens = step.observation.tokens.clone()
                ends = torch.tensor([i in (0, 2, 3, 5, 7) for i in step.state.rows])
                column = step.observation.masked.long().argmax(1)
                commit = torch.zeros_like(step.decision.commit)
                commit[torch.arange(len(ends)), column] = True
                tokens[ends, column[ends]] = eos
                step.decision = type(step.decision)(commit, tokens=tokens)
        return sizes, run.result

    sizes, result = batches(model)
    eager_sizes, reference = batches(load_model(DATA / "llada", compile="off"))
    agree(result, reference)
    inside = {batch for start, batch in sizes if start == 6}
    assert inside == {8}
    assert {batch for start, batch in sizes if start > 6} == {4}
    assert {batch for start, batch in eager_sizes if start > 6} == {3}


def test_what_cannot_be_compiled_runs_eagerly_and_says_why():
    def broken(*inputs):
        raise RuntimeError("no compiler\nand more")

    model = load_model(DATA / "llada")
    model.execution._compiled = broken
    prompts = prompts_of([9])
    with pytest.warns(UserWarning, match="run eagerly: RuntimeError: no compiler$"):
        result = Sampler(model, **settings()).generate(prompts, 32)
    agree(result, Sampler(load_model(DATA / "llada"), **settings()).generate(prompts, 32))
    assert "no compiler" in result.execution
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler(model, **settings()).generate(prompts, 32)  # warned once


def test_too_many_shapes_are_run_eagerly(monkeypatch):
    monkeypatch.setattr(execution, "MOST_SHAPES", 1)
    model = uncompiled()
    prompts = prompts_of([9])
    with pytest.warns(UserWarning, match="more than 1 shapes") as seen:
        result = Sampler(model, **settings()).generate(prompts, 40)
    assert len(seen) == 1
    agree(result, Sampler(load_model(DATA / "llada"), **settings()).generate(prompts, 40))


def test_a_buffer_is_used_again_and_starts_empty():
    model = uncompiled()
    sampler = Sampler(model, **settings(batch_size=2))
    first = sampler.generate(prompts_of([30, 31]), 32)
    buffer = model.execution._free
    storage = buffer._layers[0]._storage[0]
    buffer._layers[0]._storage[0].fill_(torch.nan)
    agree(sampler.generate(prompts_of([30, 31]), 32), first)
    assert model.execution._free is buffer
    assert buffer._layers[0]._storage[0].data_ptr() == storage.data_ptr()
    one, other = sampler.steps(prompts_of([30]), 32), sampler.steps(prompts_of([31], seed=1), 32)
    next(one), next(other)  # two runs at a time never share
    agree(one.finish(), sampler.generate(prompts_of([30]), 32))
    agree(other.finish(), sampler.generate(prompts_of([31], seed=1), 32))


def test_packing_leaves_no_second_copy_and_what_is_not_plain_alone():
    model = load_model(DATA / "llada").model
    assert not [m for m in model.modules() if isinstance(m, nn.Linear)]
    with packing.kept_packed():
        assert not [n for n, _ in model.named_parameters() if "proj" in n]
    assert isinstance(model.lm_head, PackedLinear)
    assert "PackedLinear(in_features=64" in str(model)
    assert isinstance(load_model(DATA / "llada", compile="off").model.lm_head, nn.Linear)
    assert load_model(DATA / "llada", dtype="float64").execution.packed == 0
    assert "float64" in str(load_model(DATA / "llada", dtype="float64").execution)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("choice", ["auto", "on"])
def test_a_processor_that_cannot_multiply_packed_weights_runs_plain_torch_and_says_so(
    monkeypatch, dtype, choice
):
    monkeypatch.setattr(packing, "processor_multiplies", lambda dtype: False)
    model = load_model(DATA / "llada", dtype=dtype, compile=choice)
    assert not model.execution.packed
    assert f"{dtype} weights are not packed: this processor" in str(model.execution)
    model.execution._compiled = None
    mine = Sampler(model, **settings()).generate(prompts_of([9, 20]), 32)
    agree(
        mine,
        Sampler(load_model(DATA / "llada", dtype=dtype, compile="off"), **settings()).generate(
            prompts_of([9, 20]), 32
        ),
    )


_LIMITED = """
import torch
from dllm_sampling import Sampler, load_model
from dllm_sampling.backbones.packing import processor_multiplies

torch.set_num_threads(1)
assert processor_multiplies(torch.float32) or not torch.backends.mkldnn.is_available()
print(processor_multiplies(torch.bfloat16))
question = "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?"
for dtype in ("float32", "bfloat16"):
    for choice in ("auto", "off"):
        result = Sampler(load_model(dtype=dtype, compile=choice)).generate([question], gen_length=48)
        print(dtype, choice, result.texts[0].split()[-1], result.execution)
"""


def test_a_processor_without_avx512_answers_alike():
    """This machine kept from using more than AVX2, where bfloat16 is not packed; the others test all it has."""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | limits,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    can, *lines = done.stdout.splitlines()
    assert can == "False"
    assert len(lines) == 4
    for line in lines:
        dtype, choice, answer, execution = line.split(" ", 3)
        assert answer == "33"
        if choice == "off":
            assert execution == "eager"
        elif dtype == "bfloat16":
            assert execution.startswith("eager; bfloat16 weights are not packed: this processor")
        else:
            assert execution == "packed weights"


# A packed model is a whole one -----------------------------------------------------------------------


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(2, 40)[None]).logits


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded_again(model):
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return model


@pytest.mark.parametrize(
    "ask", [copy.deepcopy, pickled, loaded_again, lambda model: model.to("cpu", torch.float32)]
)
def test_copies_of_a_packed_model_compute_the_same(ask):
    plain, packed = load_model(DATA / "dream", compile="off"), load_model(DATA / "dream")
    count = packed.execution.packed
    assert str(packed.execution) == "packed weights"
    close = {"atol": tolerance.of_logits(plain, logits_of(plain.model)), "rtol": 0}
    torch.testing.assert_close(logits_of(ask(packed.model)), logits_of(plain.model), **close)
    torch.testing.assert_close(logits_of(packed.model), logits_of(plain.model), **close)
    assert (
        str(packed.execution) == f"eager; {count} of {count} layers unpacked, as their weights were asked for"
    )


def test_a_packed_model_shows_and_saves_all_of_its_weights(tmp_path):
    plain, packed = load_model(DATA / "llada", compile="off").model, load_model(DATA / "llada").model
    expected = dict(plain.named_parameters())
    assert packed.num_parameters() == plain.num_parameters()
    for name, parameter in load_model(DATA / "llada").model.named_parameters():
        assert parameter.equal(expected.pop(name)), name
    assert not expected
    load_model(DATA / "llada").model.save_pretrained(tmp_path)
    saved, original = (
        load_file(tmp_path / "model.safetensors"),
        load_file(DATA / "llada" / "model.safetensors"),
    )
    assert saved.keys() == original.keys()
    assert all(saved[name].equal(original[name]) for name in original)


def test_what_is_done_to_the_weights_of_a_packed_model_has_effect():
    backbone = load_model(DATA / "llada")
    before = logits_of(backbone.model)
    for parameter in backbone.model.parameters():
        parameter.data.mul_(0.5)
    assert not torch.allclose(logits_of(backbone.model), before)
    backbone.model.lm_head.weight.data.zero_()
    assert logits_of(backbone.model).abs().max() == 0


def test_packed_layers_under_autocast_and_with_gradients():
    plain, packed = load_model(DATA / "llada", compile="off").model, load_model(DATA / "llada")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = logits_of(packed.model), logits_of(plain)
    assert mine.dtype == theirs.dtype
    assert torch.allclose(mine.float(), theirs.float(), atol=0.05)
    gradients = []
    for model in (packed.model, plain):
        embedded = model.get_input_embeddings()(torch.arange(2, 9)[None]).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.square().sum().backward()
        gradients.append(embedded.grad)
    assert torch.allclose(*gradients, rtol=1e-3)
    assert str(packed.execution) == "packed weights"


@pytest.mark.parametrize("value", ["off", "on", "auto"])
def test_yaml_may_leave_the_quotes_out(value):
    assert RunConfig.of(overrides=[f"model.compile={value}"]).model.compile == value


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigurationError, match=r"compile 'onn'.*'on'"):
        load_model(DATA / "llada", compile="onn")


# Weights that are not plain -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose sizes every quantisation takes."""
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "model", "tiny", sharpness=12.0)


@pytest.mark.parametrize("name", ["torchao-int8", "bitsandbytes-int8", "bitsandbytes-nf4"])
def test_quantised_weights_decode(wide, name):
    pytest.importorskip(name.partition("-")[0])
    prompts = prompts_of([9, 20])
    full = load_model(wide, compile="off")
    small = load_model(wide, quantization=name)
    weight = small.model.model.layers[0].mlp.up_proj.weight
    assert type(weight) is not nn.Parameter or weight.dtype != torch.float32
    ids = torch.tensor(prompts[1:])
    rows = torch.arange(20)
    logits = [m.logits(ids, rows[None], None, None, rows) for m in (full, small)]
    error = (logits[1] - logits[0]).pow(2).mean() / logits[0].pow(2).mean()
    assert 0 < error < 0.05
    result = Sampler(small, **settings(stop_at_eos=False)).generate(prompts, 32)
    assert result.tokens.tolist() == [32, 32]


def test_transformers_own_mapping_is_taken_and_others_are_refused(wide):
    pytest.importorskip("bitsandbytes")
    model = load_model(wide, quantization={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "Linear4bit" in str(model.model)
    with pytest.raises(ConfigurationError, match=r"'int9'.*torchao-int8"):
        load_model(wide, quantization="int9")
    with pytest.raises(ConfigurationError, match="quant_method"):
        load_model(wide, quantization={"bits": 4})


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"model.layers.0": "disk", "": "cpu"}])
def test_layers_spread_by_a_device_map_decode_the_same(device_map):
    pytest.importorskip("accelerate")
    prompts = prompts_of([9, 20])
    if "disk" in str(device_map):  # the first layer stays on the disk between forwards
        layers = load_model(DATA / "llada").model.config.num_hidden_layers
        names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
        names += [f"model.layers.{i}" for i in range(1, layers)]
        device_map = {"model.layers.0": "disk"} | dict.fromkeys(names, "cpu")
    model = load_model(DATA / "llada", device_map=device_map)
    reference = Sampler(load_model(DATA / "llada", compile="off"), **settings()).generate(prompts, 32)
    agree(Sampler(model, **settings()).generate(prompts, 32), reference)


def test_placements_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigurationError, match="leave device and tensor_parallel out"):
        load_model(DATA / "llada", device_map="auto", tensor_parallel=True)
    with pytest.raises(ConfigurationError, match="torchrun"):
        load_model(DATA / "llada", tensor_parallel=True)


def test_two_ranks_write_what_one_writes():
    """Tensor parallel over two processes with gloo, by the command line: one of them prints."""
    prompt = "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?"
    command = ["generate", "--gen-length", "64", "--cache", "dual", "--json", prompt]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = {"capture_output": True, "text": True, "env": environment}
    module = [sys.executable, "-m"]
    one = subprocess.run([*module, "dllm_sampling.cli", *command], check=True, **run)
    torchrun = [*module, "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    split = ["-m", "dllm_sampling.cli", *command, "--set", "model.tensor_parallel=true"]
    two = subprocess.run([*torchrun, *split], check=True, **run)
    alone, together = json.loads(one.stdout), json.loads(two.stdout)
    assert together["results"] == alone["results"]
    assert together["execution"] == "eager"


# Memory ---------------------------------------------------------------------------------------------

_PEAK = """
import re, sys
from pathlib import Path
import torch
from dllm_sampling import Sampler, load_model

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

checkpoint, way = sys.argv[1:]
torch.set_num_threads(1)
load_model()  # what a process needs in any case
before = kilobytes("VmRSS")
model = load_model(checkpoint)
loaded = kilobytes("VmRSS")
prompts = torch.randint(0, 14000, (4, 256))
Path("/proc/self/clear_refs").write_text("5")
if way == "bare":  # one refresh, its keys and values, and the logits of one block
    canvas = torch.cat([prompts, torch.full((4, 256), 14335)], 1)
    buffer = model.new_buffer(512)
    rows = torch.arange(256, 288)
    with torch.no_grad():
        model.logits(
            canvas, torch.arange(512).expand(4, -1), None, buffer.at(slice(0, 512), None), rows
        )
else:
    sampler = Sampler(model, unmasking={"name": "fixed_k", "k": 32}, cache="dual", batch_size=4)
    sampler.generate(prompts, 256)
print(loaded - before, kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own accounts")
def test_the_peak_is_weights_and_buffer_and_one_refresh(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", "25M")
    weights = (checkpoint / "model.safetensors").stat().st_size / 1024
    found = {}
    # Large blocks go back to the system when they are freed: memory is measured, not its fragments.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    for way in ("bare", "engine"):
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(checkpoint), way],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        found[way] = [int(x) for x in done.stdout.split()]
    buffer = 2 * 8 * 384 * 4 * 513 * 4 / 1024
    loaded, bare = found["bare"]
    assert 0.9 * weights < loaded < 1.15 * weights  # packed, once
    assert bare > weights + buffer  # the yardstick holds what it should
    assert found["engine"][1] < 1.1 * bare
