"""Tasks from files and from the evaluation harness, and a sampler as the harness's model."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dllm_sampling
from dllm_sampling import ConfigurationError, Example, PromptError, Sampler, Task, load_model, registry
from dllm_sampling.integrations.lm_eval_task import _loaded
from dllm_sampling.tasks.checkers import CHECKERS
from tests.study_files import command, finished, small

BUNDLED = Path(dllm_sampling.__file__).parent / "bundled" / "word_problems.jsonl"
PROBLEMS = [json.loads(line) for line in BUNDLED.read_text().splitlines()[:6]]


def file_task(**settings):
    return registry().build(Task, {"name": "file", **settings})


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(p) for p in PROBLEMS) + "\n\n")
    return path


# Checkers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "option", "text", "answer", "right"),
    [
        ("exact", "", " 42\n", "42", True),
        ("exact", "", "42.", "42", False),
        ("regex", r"#### (\S+)", "#### 1\n#### 42", "42", True),
        ("regex", r"#### (\S+)", "#### 42\n#### 1", "42", False),
        ("regex", r"\d+", "so 42", "42", True),
        ("regex", r"\d+", "none", "42", False),
        ("regex", r"a(b)?", "a", "b", False),
        ("last_number", "", "2+40=42 pens", "42", True),
        ("last_number", "", "it is 1,042.50 dollars", "so\n#### 1042.5", True),
        ("last_number", "", "42 or 43", "42", False),
        ("last_number", "", "-7", "7", False),
        ("last_number", "", "no number", "7", False),
        ("last_number", "", "7", "no number", False),
        ("last_number", "", "the answer is 42.", "42", True),
        ("multiple_choice", "ABCD", "The answer is (B).", "B", True),
        ("multiple_choice", "ABCD", "A is tempting, but the answer: C", "C", True),
        ("multiple_choice", "ABCD", "B", "(B)", True),
        ("multiple_choice", "ABCD", "a good question", "A", False),
        ("multiple_choice", "ABCD", "E", "E", False),
        ("multiple_choice", "ABCDE", "E", "E", True),
        ("multiple_choice", "ABCD", "Because", "B", False),
    ],
)  # fmt: skip
def test_checkers(check, option, text, answer, right):
    assert CHECKERS[check](text, answer, option) is right


# Files ------------------------------------------------------------------------------------------------


def test_a_jsonl_file_with_templates(jsonl):
    task = file_task(path=str(jsonl), prompt="Q: {{ question }}", answer="{{ result }}", check="last_number")
    examples = task.examples()
    assert [e.prompt for e in examples] == [f"Q: {p['question']}" for p in PROBLEMS]
    assert task.is_correct(PROBLEMS[0]["answer"], examples[0])
    assert not task.is_correct("no", examples[0])


def test_a_parquet_file_is_the_same(jsonl, tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(PROBLEMS), path)
    settings = {
        "prompt": "{{ question }}",
        "check": "regex",
        "pattern": r"#### (\d+)",
        "answer": "{{ result }}",
    }
    from_parquet, from_lines = (file_task(path=str(p), **settings).examples() for p in (path, jsonl))
    assert from_parquet == from_lines


def test_another_tasks_checker(jsonl):
    task = file_task(path=str(jsonl), prompt="{{ question }}", answer="{{ result }}", check="word_problems")
    assert task.is_correct(PROBLEMS[0]["answer"], task.examples()[0])
    assert not task.is_correct(PROBLEMS[0]["result"], task.examples()[0])  # that one wants ####


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check": "last_numbr"}, "unknown check 'last_numbr'. Did you mean 'last_number'"),
        ({"check": "file"}, "unknown check 'file'"),
        ({"check": "regex"}, "check='regex' needs a pattern"),
        ({"check": "regex", "pattern": "("}, r"pattern '\('"),
        ({"check": "exact", "pattern": "x"}, "pattern has no effect with check='exact'"),
        ({"check": "exact", "letters": "AB"}, "letters has no effect"),
        ({"promt": "x"}, "Did you mean 'prompt'"),
    ],
)
def test_a_file_tasks_settings_are_checked(jsonl, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        file_task(**{"path": str(jsonl), "prompt": "{{ question }}", **settings})


@pytest.mark.parametrize(
    ("name", "content", "prompt", "message"),
    [
        ("a.csv", "", "x", "unknown ending '.csv'"),
        ("missing.jsonl", None, "x", "no such file"),
        ("a.jsonl", '{"q": 1}\n{"q"', "x", "line 2: not JSON"),
        ("a.jsonl", "[1]", "x", "line 1: not an object"),
        ("a.jsonl", '{"q": 1}', "{{ qestion }}", "row 1: 'qestion' is undefined; its fields: q"),
        ("a.jsonl", '{"q": 1}', "{{ q", "is no template"),
        ("a.parquet", "not parquet", "x", "not readable as Parquet"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, prompt, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    task = file_task(path=str(tmp_path / name), prompt=prompt, answer="1")
    with pytest.raises(ConfigurationError, match=message):
        task.examples()


def test_tasks_are_listed_with_their_parameters():
    code, out, err = finished("tasks")
    assert code == 0, err
    assert "file(gen_length=256, chat_template=True, path, prompt" in out
    assert "word_problems(gen_length=64" in out
    code, out, err = finished("tasks", "harness")
    assert "num_fewshot" in out
    code, out, err = finished("tasks", "harnes")
    assert code == 2
    assert "unknown task 'harnes'. Did you mean 'harness'" in err


def test_a_task_of_a_plugin_with_parameters_runs_in_a_study(tmp_path):
    (tmp_path / "parity.py").write_text(
        "from dllm_sampling import Example, Task\n"
        "class Parity(Task):\n"
        "    name = 'parity'\n"
        "    gen_length: int = 16\n"
        "    count: int = 3\n"
        "    def examples(self):\n"
        "        return [Example(f'Mia has {i} pens.', str(i % 2)) for i in range(1, self.count + 1)]\n"
        "    def is_correct(self, text, example):\n"
        "        return len(text) % 2 == int(example.answer)\n"
        "def register():\n"
        "    return [Parity]\n"
    )
    (tmp_path / "study.yaml").write_text(
        "name: x\nbaseline: a\nsamplers: [{name: a, cache: dual}]\ntasks: [{name: parity, count: 4}]\n"
    )
    arguments = ["compare", tmp_path / "study.yaml", "--output", tmp_path / "out", "--plugins-dir", tmp_path]
    code, out, err = finished(*arguments)
    assert code == 0, err
    assert "bundled, parity: 4 prompts" in out


# The harness ------------------------------------------------------------------------------------------

DEFINITION = """
task: local_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}, train: {path}}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n", "STOP"], max_gen_toks: 64, do_sample: false}}
filter_list:
  - name: strict
    filter: [{{function: regex, regex_pattern: "#### (\\\\d+)"}}, {{function: take_first}}]
  - name: any
    filter: [{{function: regex, group_select: -1, regex_pattern: "(\\\\d+)"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["(?s).*#### "]}}
"""
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["1", "2"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def harness(jsonl, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(jsonl.parent / "cache"))
    folder = jsonl.parent / "definitions"
    folder.mkdir()
    (folder / "words.yaml").write_text(DEFINITION.format(path=jsonl))
    (folder / "choice.yaml").write_text(CHOICE.format(path=jsonl))
    return folder


def harness_task(folder, **settings):
    return registry().build(
        Task, {"name": "harness", "include_path": str(folder), "task": "local_words", **settings}
    )


def test_a_harness_task_has_its_prompts_and_scores(harness):
    task = harness_task(harness)
    examples = task.examples()
    assert [e.prompt for e in examples] == [p["question"] for p in PROBLEMS]
    right = PROBLEMS[0]["answer"]
    assert task.is_correct(right, examples[0])
    assert not task.is_correct(right, examples[1])
    assert not task.is_correct(f"STOP{right}", examples[0])  # nothing behind a stop string counts
    assert not task.is_correct(PROBLEMS[0]["result"], examples[0])
    assert harness_task(harness, filter="any").is_correct(PROBLEMS[0]["result"], examples[0])
    # Loading is slow: the same task, now asking for what no sampler does.
    (loaded,) = _loaded(task).values()
    loaded.set_config(key="generation_kwargs", value={"num_beams": 10}, update=True)
    with pytest.raises(ConfigurationError, match="num_beams=10 cannot be honoured"):
        task.examples()


def test_a_groups_tasks_follow_one_another(harness):
    (harness / "more.yaml").write_text(
        (harness / "words.yaml").read_text().replace("local_words", "local_again").replace("#### (", "=(")
    )
    (harness / "group.yaml").write_text("group: local_group\ntask: [local_words, local_again]\n")
    task = harness_task(harness, task="local_group")
    examples = task.examples()
    assert [e.data["part"] for e in examples] == ["local_again"] * 6 + ["local_words"] * 6
    assert task.is_correct(PROBLEMS[0]["answer"], examples[6])
    assert not task.is_correct(f"#### {PROBLEMS[0]['result']}", examples[0])


def test_few_shot_prompts_are_the_same_every_time(harness):
    task = harness_task(harness, num_fewshot=2)
    first, second = task.examples(), task.examples()
    assert first == second
    assert first[0].prompt.count("How many") == 3
    assert harness_task(harness, num_fewshot=2, fewshot_seed=7).examples() != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "local_word"}, "unknown task of the harness 'local_word'. Did you mean 'local_words'"),
        ({"task": "local_choice"}, "a multiple_choice task; a sampler can only run generate_until"),
        ({"task": "humaneval"}, "could not load|runs code"),
    ],
)
def test_a_harness_task_that_cannot_be_run_is_refused(harness, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        harness_task(harness, **settings).examples()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "exact_mach"}, "Did you mean 'exact_match'"),
        ({"filter": "strikt"}, "Did you mean 'strict'"),
    ],
)
def test_a_misspelt_metric_or_filter_is_told(harness, settings, message):
    task = harness_task(harness, **settings)
    with pytest.raises(ConfigurationError, match=message):
        task.is_correct("#### 1", task.examples()[0])


def test_harness_and_study_agree_on_every_answer(harness, tmp_path):
    """Our sampler as the harness's model, and the harness's task in a study: one score."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from dllm_sampling.integrations.lm_eval_model import SamplerLM

    lm = SamplerLM(cache="dual", chat_template=True, batch_size=4)
    found = lm_eval.simple_evaluate(
        lm, tasks=["local_words"], task_manager=TaskManager(include_path=str(harness)), bootstrap_iters=0
    )
    entry = {"name": "harness", "task": "local_words", "include_path": str(harness), "gen_length": 64}
    samplers = [{"name": "threshold", "cache": "dual"}]
    results = small(limit=6, tasks=[entry], samplers=samplers, baseline="threshold").run(tmp_path / "out")
    (row,) = results.rows
    assert found["results"]["local_words"]["exact_match,strict"] == row.estimates["accuracy"].value
    samples = sorted(
        (s for s in found["samples"]["local_words"] if s["filter"] == "strict"), key=lambda s: s["doc_id"]
    )
    (table,) = results.tables.values()
    assert [s["resps"][0][0] for s in samples] == [t.split("\n\n")[0] for t in table["text"].to_pylist()]
    info = lm.get_model_info()
    assert info["tokens_per_forward"] == pytest.approx(row.estimates["tokens_per_forward"].value)
    assert info["dllm_sampling"]["sampler"]["cache"] == {"name": "dual"}


def test_the_harnesss_command_line_takes_our_settings(harness, tmp_path):
    (tmp_path / "run.yaml").write_text("sampler: {cache: prefix}\nchat_template: true\n")
    running = command(
        "harness", "run", "--tasks", "local_words", "--include_path", harness, "--batch_size", "3",
        "--model_args", f"config={tmp_path / 'run.yaml'},unmasking=factor,unmasking.factor=0.5",
        "--output_path", tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert "local_words" in out
    assert "exact_match" in out
    (path,) = tmp_path.glob("out/**/results*.json")
    run = json.loads(path.read_text())["config"]["dllm_sampling"]
    assert run["sampler"]["cache"] == {"name": "prefix"}
    assert run["sampler"]["unmasking"]["factor"] == 0.5
    assert run["sampler"]["batch_size"] == 3


def test_a_misspelt_model_arg_is_told_without_a_traceback(harness, tmp_path):
    running = command(
        "harness", "run", "--tasks", "local_words", "--include_path", harness, "--model_args", "cach=dual", cwd=tmp_path
    )  # fmt: skip
    _, err = running.communicate()
    assert running.returncode == 2
    assert "unknown setting 'cach'. Did you mean 'cache'" in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def lm():
    pytest.importorskip("lm_eval")
    from dllm_sampling.integrations.lm_eval_model import SamplerLM

    return SamplerLM(cache="dual", batch_size=2)


class TestModel:
    """The harness's model on its own."""

    def request(self, context, **settings):
        from lm_eval.api.instance import Instance

        return Instance("generate_until", {}, (context, settings), 0)

    def test_answers_keep_their_order_whatever_their_lengths(self, lm):
        contexts = [lm.apply_chat_template([{"role": "user", "content": p["question"]}]) for p in PROBLEMS]
        requests = [self.request(c, max_gen_toks=64 if i % 2 else 48) for i, c in enumerate(contexts)]
        answers = lm.generate_until(requests, disable_tqdm=True)
        sampler = Sampler(load_model(), cache="dual")
        for i, problem in enumerate(PROBLEMS):
            alone = sampler.generate(problem["question"], gen_length=64 if i % 2 else 48)
            assert answers[i] == alone.texts[0]

    def test_text_ends_at_the_first_stop_string(self, lm):
        context = lm.apply_chat_template([{"role": "user", "content": PROBLEMS[0]["question"]}])
        whole, cut = (
            lm.generate_until([self.request(context, max_gen_toks=64, until=u)], disable_tqdm=True)[0]
            for u in ([], ["\n", "####"])
        )
        assert cut == whole.split("\n")[0]

    def test_a_temperature_that_is_not_the_samplers_is_refused(self, lm):
        with pytest.raises(ConfigurationError, match=r"sampling.temperature=0.7"):
            lm.generate_until([self.request("x", do_sample=True, temperature=0.7)])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temperature": 0.8}, r"says temperature=0.8, the sampler's temperature is 0: give sampling.temperature=0.8"),
            ({"do_sample": True}, "says do_sample=True, the sampler's temperature is 0"),
            ({"do_sample": True, "temperature": 0}, "do_sample=True contradicts temperature=0"),
            ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
            ({"temperature": "hot"}, "temperature must be a number of at least 0, got 'hot'"),
            ({"temperature": float("nan")}, "temperature must be a number"),
            ({"top_p": 0.5}, "says top_p=0.5, no effect at temperature 0: give sampling.top_p=0.5"),
            ({"top_k": 5, "do_sample": False}, "says top_k=5, no effect at temperature 0"),
            ({"num_beams": 4}, "num_beams=4 cannot be honoured by a sampler: give num_beams=1 in --gen_kwargs"),
            ({"repetition_penalty": 2.0}, "repetition_penalty=2.0 cannot be honoured"),
            ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 cannot be honoured"),
            ({"min_new_tokens": 30}, "min_new_tokens=30 cannot be honoured"),
            ({"max_length": 30}, "max_length=30 cannot be honoured: the targets behind a prompt are max_gen_toks"),
            ({"stop": ["x"]}, "stop strings are until"),
            ({"temprature": 1}, "unknown generation setting 'temprature'. Did you mean 'temperature'"),
            ({"max_gen_toks": 16, "max_tokens": 8}, "max_gen_toks=16 and max_tokens=8 contradict each other"),
            ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
            ({"max_tokens": "16"}, "max_tokens must be a whole number of at least 1, got '16'"),
            ({"until": 5}, "until must be a text or a list of texts, got 5"),
            ({"until": ["x", None]}, "until must be a text"),
        ],
    )  # fmt: skip
    def test_a_setting_that_cannot_be_honoured_is_refused_by_name(self, lm, settings, message):
        with pytest.raises(ConfigurationError, match=message):
            lm.generate_until([self.request("x", **settings)], disable_tqdm=True)

    @pytest.mark.parametrize(
        "name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"]
    )
    def test_a_length_is_honoured_under_each_of_its_names(self, lm, name):
        neutral = {
            "do_sample": False, "temperature": 1, "top_p": 1.0, "top_k": 0, "num_beams": 1, "repetition_penalty": 1.0,
            "min_new_tokens": 0, "until": "no such text",
        }  # fmt: skip
        before = lm.tokens
        lm.generate_until([self.request(PROBLEMS[0]["question"], **{name: 3}, **neutral)], disable_tqdm=True)
        assert lm.tokens - before <= 3

    def test_what_a_sampler_that_samples_is_asked_for(self):
        from dllm_sampling.integrations.lm_eval_model import SamplerLM

        lm = SamplerLM(**{"sampling.temperature": 0.5, "sampling.top_p": 0.9, "gen_length": 2})
        for fits in ({}, {"do_sample": True}, {"temperature": 0.5}, {"do_sample": True, "top_p": 0.9}):
            lm.generate_until([self.request("x", **fits)], disable_tqdm=True)
        for other, message in (
            (
                {"do_sample": False},
                "says do_sample=False, the sampler's temperature is 0.5: give .*do_sample=true,temp",
            ),
            ({"temperature": 0.0}, "says temperature=0.0"),
            ({"top_p": 1.0}, "says top_p=1.0, the sampler's is 0.9: give sampling.top_p=1 in"),
            ({"top_k": 7}, "says top_k=7, the sampler's is None: give sampling.top_k=7 in"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                lm.generate_until([self.request("x", **other)], disable_tqdm=True)

    def test_a_prompt_that_is_none_is_named(self, lm):
        for context, message in ((" ", "prompt 0 is empty"), ("\ud800", "prompt 0: character 0")):
            with pytest.raises(PromptError, match=message):
                lm.generate_until([self.request(context)], disable_tqdm=True)

    def test_a_chat_may_end_in_the_beginning_of_the_answer(self, lm, monkeypatch):
        chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "It is "}]
        # The bundled template takes spaces off.
        assert lm.apply_chat_template(chat, add_generation_prompt=False).endswith("\n\nIt is")
        monkeypatch.setattr(
            lm._tokenizer(), "chat_template", "{% for m in messages %}{{ m.content }}|{% endfor %}"
        )
        assert lm.apply_chat_template(chat, add_generation_prompt=False) == "How many?|It is "

    def test_likelihoods_are_refused(self, lm):
        with pytest.raises(ConfigurationError, match="only generate_until"):
            lm.loglikelihood([])
        with pytest.raises(ConfigurationError, match="only generate_until"):
            lm.loglikelihood_rolling([])

    def test_a_batch_size_that_is_no_number_is_refused(self):
        from dllm_sampling.integrations.lm_eval_model import SamplerLM

        with pytest.raises(ConfigurationError, match="batch_size must be a number, got 'auto'"):
            SamplerLM(batch_size="auto")

    def test_the_configs_gen_length_stands_above_the_tasks(self):
        from dllm_sampling.integrations.lm_eval_model import SamplerLM

        lm = SamplerLM(gen_length=8)
        lm.generate_until([self.request(PROBLEMS[0]["question"], max_gen_toks=64)], disable_tqdm=True)
        assert lm.tokens <= 8


def test_examples_may_be_chats():
    assert Example([{"role": "user", "content": "x"}], "y").prompt[0]["role"] == "user"
