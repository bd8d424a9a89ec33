"""What cannot work is refused, with the parameter, its value and what is allowed."""

from __future__ import annotations

import json
import shutil
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_sampling import (
    CheckpointError,
    ConfigurationError,
    DecodingError,
    LogitsTransform,
    PromptError,
    RunConfig,
    Sampler,
    load_model,
)
from tests.models import DATA, hashed, prompts_of, tiny


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([[]], "prompt 0 is empty"),
        ([[1, 2], []], "prompt 1 is empty"),
        ("some text", "has no tokenizer"),
        ([[1, 99999]], r"prompt 0 holds ids outside \[0, 192\)"),
        (torch.zeros(3, dtype=torch.long), r"\[batch, prompt\] integers"),
        (torch.zeros(1, 3), r"\[batch, prompt\] integers"),
    ],
)
def test_prompts_that_cannot_be_decoded(prompts, message):
    with pytest.raises(PromptError, match=message):
        Sampler(tiny()).generate(prompts, gen_length=8)


def test_empty_text():
    with pytest.raises(PromptError, match="prompt 0 is empty"):
        Sampler(load_model()).generate("   ", gen_length=8)


def test_a_prompt_beyond_the_context():
    with pytest.raises(PromptError, match=r"prompt 0 has 500 tokens.*gen_length=20 exceed.*512"):
        Sampler(tiny()).generate(prompts_of([500]), gen_length=20)


def test_gen_length_0():
    with pytest.raises(PromptError, match="gen_length must be at least 1, got 0"):
        Sampler(tiny()).generate([[1]], gen_length=0)


def test_attention_mask_with_holes():
    with pytest.raises(PromptError, match="pad on the left"):
        Sampler(tiny()).generate(
            torch.ones(1, 3, dtype=torch.long), gen_length=8, attention_mask=torch.tensor([[1, 0, 1]])
        )


def test_a_canvas_without_targets():
    with pytest.raises(PromptError, match="canvas 0 has no target"):
        Sampler(tiny()).infill(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"unmasking": {"name": "confidence_threshold", "threshold": 0}},
            r"threshold.*greater than 0.*got 0",
        ),
        ({"unmasking": "confidence_treshold"}, "Did you mean 'confidence_threshold'"),
        ({"unmasking": {"name": "factor", "facto": 1}}, "unknown parameter 'facto'. Did you mean 'factor'"),
        ({"unmasking": {"factor": 1}}, "needs a name"),
        ({"unmasking": "dual"}, "unknown unmasking policy 'dual'"),
        ({"cache": {"name": "interval", "interval": 2}}, "policy: Field required"),
        ({"cache": {"name": "interval", "policy": "dul"}}, "unknown cache policy 'dul'. Did you mean 'dual'"),
        (
            {"schedule": {"name": "fixed_blocks", "block_length": 0}},
            "block_length.*greater than or equal to 1",
        ),
        ({"sampling": {"temperature": -1}}, "temperature.*greater than or equal to 0"),
        ({"sampling": {"temprature": 1}}, "setting in sampling 'temprature'. Did you mean 'temperature'"),
        ({"batch_size": 0}, "batch_size.*got 0"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampler(tiny(), **settings)


def test_unknown_settings_of_a_sampler_and_a_run():
    with pytest.raises(ConfigurationError, match=r"unknown setting 'unmaskin'. Did you mean 'unmasking'"):
        Sampler.from_config(tiny(), {"unmaskin": "factor"})
    with pytest.raises(ConfigurationError, match=r"unknown setting in sampler 'cach'. Did you mean 'cache'"):
        RunConfig.of({"sampler": {"cach": "dual"}})


def test_an_instance_of_another_kind():
    from dllm_sampling.caches import DualCache

    with pytest.raises(ConfigurationError, match="DualCache is a cache policy, not an unmasking policy"):
        Sampler(tiny(), unmasking=DualCache())


def test_steps_with_a_schedule_that_cannot_know_its_blocks():
    from tests.test_engine import SlidingWindow

    sampler = Sampler(hashed(), unmasking={"name": "fixed_k", "steps": 4}, schedule=SlidingWindow())
    with pytest.raises(ConfigurationError, match="does not know its blocks"):
        sampler.generate([[1, 2]], gen_length=8)


def test_logits_that_are_not_numbers():
    class Breaks(LogitsTransform):
        """Divides zero by zero."""

        name: ClassVar[str] = "breaks"

        def transform(self, state, observation):
            return observation.logits * torch.nan

    with pytest.raises(DecodingError, match="logits of forward 0, row 0, position 2 hold NaN"):
        Sampler(tiny(), transforms=[Breaks()]).generate([[1, 2]], gen_length=8)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.fixture(params=["llada", "dream"])
def folder(request, tmp_path):
    target = tmp_path / request.param
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DATA / request.param / name, target / name)
    return target


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop(sorted(tensors)[5]))
    with pytest.raises(CheckpointError, match="missing keys"):
        load_model(folder)


def test_an_unexpected_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with pytest.raises(CheckpointError, match="unexpected keys: stray"):
        load_model(folder)


def test_a_tensor_of_another_shape(folder):
    def shrink(tensors):
        name = next(n for n in tensors if "q_proj.weight" in n)
        tensors[name] = tensors[name][:3].clone()

    rewrite(folder, shrink)
    with pytest.raises(CheckpointError, match=r"do not fit|mismatched"):
        load_model(folder)


def test_a_truncated_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(folder)


def test_no_weights_no_config_no_folder(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(folder / "nowhere")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_family(folder):
    change_config(folder, model_type="gpt2")
    with pytest.raises(CheckpointError, match=r"model_type='gpt2'; known families: dream, llada"):
        load_model(folder)


def test_a_config_no_stock_class_computes(folder):
    name, value = ("alibi", True) if folder.name == "llada" else ("rope_scaling", {"factor": 2})
    change_config(folder, **{name: value})
    with pytest.raises(CheckpointError, match=name):
        load_model(folder)


def test_a_config_without_a_mask_id(folder):
    change_config(folder, mask_token_id=None)
    with pytest.raises(CheckpointError, match="mask_token_id"):
        load_model(folder)


def test_an_unknown_dtype_or_attention():
    with pytest.raises(ConfigurationError, match=r"unknown dtype 'float23'. Did you mean 'float32'"):
        load_model(DATA / "llada", dtype="float23")
    with pytest.raises((ConfigurationError, CheckpointError), match=r"attn|attention"):
        load_model(DATA / "llada", attn_implementation="no_such")
