"""Prompts and examples from files: lines, encodings, JSON, tables, nulls, templates."""

from __future__ import annotations

import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError, PromptError, Task, registry
from dllm_sampling.cli.prompt_files import read_prompts
from dllm_sampling.errors import DllmSamplingError

BREAKS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"


@pytest.fixture
def read(tmp_path, monkeypatch):
    def of(content, name="p.jsonl"):
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        if name is None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            return read_prompts([], None)
        (tmp_path / name).write_bytes(data)
        return read_prompts([], tmp_path / name)

    return of


def rows(*objects, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in objects)


# Prompt files ---------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", "a\n\n  b\r\nc", ["a", "  b", "c"]),
        ("p", f"a{BREAKS}b\nc\n", [f"a{BREAKS}b", "c"]),
        ("p.txt", b"\xef\xbb\xbfa\n", ["a"]),
        ("p.JSONL", rows({"prompt": f"a{BREAKS}b"}, {"question": "c", "id": 3}), [f"a{BREAKS}b", "c"]),
        ("p.jsonl", "\ufeff" + rows({"prompt": "a"}, {"prompt": "b"}, end="\r\n\r\n"), ["a", "b"]),
        ("p.ndjson", rows({"messages": CHAT}, {"prompt": [1, 2]}, {"prompt": CHAT}), [CHAT, [1, 2], CHAT]),
        ("p.jsonl", rows({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}), [CHAT]),
        ("p.json", json.dumps(["a", {"prompt": "b"}, {"messages": CHAT}, CHAT, [1]], indent=1), ["a", "b", CHAT, CHAT, [1]]),
        ("p.json", json.dumps({"question": "a"}), ["a"]),
        ("p.txt", rows({"prompt": "a"}, {"prompt": "b"}), ["a", "b"]),
        (None, rows({"prompt": "a"}, {"prompt": "b"}), ["a", "b"]),
        (None, rows({"prompt": "a"}), ["a"]),
        (None, json.dumps(["a", "b"], indent=2), ["a", "b"]),
        (None, "Hello, world\nA [link] and {braces}\n", ["Hello, world", "A [link] and {braces}"]),
        (None, "{braces} first\n[1] a citation\n", ["{braces} first", "[1] a citation"]),
        (None, "yes, no\nmaybe so\n", ["yes, no", "maybe so"]),
        ("p.jsonl", rows({"prompt": "x" * 10**6}), ["x" * 10**6]),
    ],
)  # fmt: skip
def test_prompts_of_a_file(read, name, content, prompts):
    assert read(content, name) == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "prompt\nx\n", r"p.csv: prompts cannot be read from .csv; a file holds one prompt a line \(.txt\), JSON Lines"),
        ("p.TSV", "x", "read from .tsv"),
        ("p.parquet", b"PAR1", "read from .parquet"),
        ("p.yaml", "- x", "read from .yaml"),
        ("p.jsonl", "", "the input is empty"),
        ("p.json", " ", "the input is empty"),
        ("p.json", "[]", "the input is empty"),
        (None, "\n \n", "the input is empty"),
        ("p.json", "5", "holds 5, not a list of prompts"),
        ("p.json", "[5]", "entry 0: is 5, not a JSON object with prompt, question or messages"),
        ("p.json", '{"data": []}', "p.json: a JSON object without prompt, question or messages"),
        ("p.json", json.dumps(CHAT), 'entry 0: is a message; a chat is {"messages"'),
        ("p.jsonl", '{"prompt": "a"}\n\n\n{"x": 1}\n', "line 4: a JSON object without prompt"),
        ("p.jsonl", '{"promt": "a"}', "line 1: has no prompt, question or messages. Did you mean 'prompt' by 'promt'"),
        ("p.jsonl", '{"prompt": "a", "question": "b"}', "line 1: has prompt and question; give one"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: an object has the key 'prompt' twice"),
        ("p.jsonl", '{"prompt": "a", "x": {"y": 1, "y": 2}}', "line 1: an object has the key 'y' twice"),
        ("p.jsonl", '{"prompt": null}', "line 1: prompt is None"),
        ("p.jsonl", '{"prompt": " "}', "line 1: prompt is empty"),
        ("p.jsonl", '{"prompt": 5}', "line 1: prompt is 5"),
        ("p.jsonl", '{"prompt": ["a", "b"]}', "line 1: prompt is a list with text in it"),
        ("p.jsonl", '{"prompt": [1.5]}', "line 1: prompt, token 0 is 1.5"),
        ("p.jsonl", '{"prompt": [true]}', "line 1: prompt, token 0 is True"),
        ("p.jsonl", '{"messages": "x"}', "line 1: messages must be a list of messages, got 'x'"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "line 1: messages, message 0: content must be text"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', r"line 1: prompt: character 0 is '\\ud83d', half of a character"),
        ("p.jsonl", "[1]", r"line 1: is \[1\], not a JSON object"),
        ("p.jsonl", "nonsense", "line 1: not JSON"),
        ("p.jsonl", "[" * 100_000, "line 1: not readable as JSON: nested too deeply"),
        ("p.jsonl", '{"prompt": ' + "1" * 5000 + "}", "line 1: not JSON: Exceeds the limit"),
        ("p.txt", "x\n".encode("utf-16"), "p.txt: is written in UTF-16; save it as UTF-8"),
        ("p.txt", "x\n".encode("utf-16-le"), "line 1: holds a NUL character"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "line 2: byte 0xe9 is no UTF-8"),
        (None, b"\xff", "standard input, line 1: byte 0xff"),
        (None, "id,question\n1,How many?\n2,Why?\n", r"standard input: is a table \(id, question\)"),
        ("p.txt", "question;answer\nHow many, and why?;5\n", r"is a table \(question, answer\)"),
        ("p", "id\ttext\n1\tx\n", "is a table"),
        (None, '{\n  "prompt": "a",\n', "standard input: not JSON"),
        (None, '{"prompt": "a"}\nnonsense', "standard input, line 2: not JSON"),
        (None, '{"a": 1}\n', 'text that is JSON is {"prompt": "..."}'),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_told_with_file_and_line(read, name, content, message):
    with pytest.raises(PromptError, match=message.replace('{"', r"\{\"")) as caught:
        read(content, name)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_missing_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(PromptError, match=r"Is a directory|No such file"):
            read_prompts([], path)


def test_an_argument_is_text_unless_it_is_meant_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text("{}")
    given = ["How many? see p.jsonl", '{"a": 1}', "{", "x" * 10_000, "no.txt", "a\0.txt"]
    assert read_prompts(given, None) == given
    with pytest.raises(PromptError, match=r"prompt 1 is 'p.jsonl', a file: give it with --file"):
        read_prompts(["x", "p.jsonl"], None)
    with pytest.raises(PromptError, match="prompt 0 is a JSON object"):
        read_prompts(['{"prompt": "x"}'], None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 500) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["prompt", "question", "messages", "role", "content", "type", "text", "x"]), inner, max_size=3
    ),
    max_leaves=8,
)  # fmt: skip
lines = st.one_of(
    json_values.map(json.dumps), json_values.map(lambda v: json.dumps({"prompt": v}, ensure_ascii=False)),
    json_values.map(lambda v: json.dumps({"messages": v})), st.text(max_size=8), st.just(""),
).map(lambda line: line.encode("utf-8", "surrogatepass"))  # fmt: skip
contents = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]), st.lists(lines, max_size=4)).map(
        lambda parts: parts[0] + b"\n".join(parts[1])
    ),
)
endings = st.sampled_from([".jsonl", ".json", ".txt", ""])


def read_or_error(folder, content, ending):
    """Prompts, or an error that names the file in one line."""
    path = folder / f"data{ending}"
    path.write_bytes(content)
    try:
        return read_prompts([], path)
    except DllmSamplingError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(contents, endings)
def test_whatever_a_file_holds_there_are_prompts_or_an_error_that_names_it(tmp_path, content, ending):
    prompts = read_or_error(tmp_path, content, ending)
    assert prompts is None or (len(prompts) > 0 and all(isinstance(p, (str, list)) and p for p in prompts))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_comes_back_from_json_lines(tmp_path, texts):
    content = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts)
    assert read_or_error(tmp_path, content.encode(), ".jsonl") == texts


# File tasks -----------------------------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path):
    def of(content, prompt="{{ q }}", answer="{{ a }}", name="d.jsonl", **settings):
        path = tmp_path / name
        if isinstance(content, list):
            pq.write_table(pa.Table.from_pylist(content), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        task = {"name": "file", "path": str(path), "prompt": prompt, "answer": answer, **settings}
        return [(e.prompt, e.answer) for e in registry().build(Task, task).examples()]

    return of


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"q": f"a{BREAKS}b"}, "{{ q }}", f"a{BREAKS}b"),
        ({"my question": "x"}, "{{ row['my question'] }}", "x"),
        ({"q": "x", "class": "y"}, "{{ row.q }}{{ row['class'] }}", "xy"),
        ({"row": "x"}, "{{ row }}", "x"),
        ({"q": 5}, "{{ q }}", "5"),
        ({"q": 5.0}, "{{ q }}", "5.0"),
        ({"q": True}, "{{ q }}", "true"),
        ({"q": ["a", None, 1]}, "{{ q }}", '["a", null, 1]'),
        ({"q": {"é": False}}, "{{ q }}", '{"é": false}'),
        ({"q": ["a", "b"]}, "{{ q | join(', ') }}", "a, b"),
        ({"q": ["a", "b"]}, "{% for x in q %}{{ loop.index }}{{ x }}{% endfor %}", "1a2b"),
        ({"q": None}, "x{{ q | default('none given') }}", "xnone given"),
        ({"q": None}, "{% if q is none %}x{% else %}{{ q }}{% endif %}", "x"),
        ({"q": None}, "{% if q %}{{ q }}{% endif %}x", "x"),
        ({"q": None}, "{{ 'x' if q == none and q is defined }}", "x"),
        ({"q": {"a": None}}, "{{ q | tojson }}", '{"a": null}'),
        ({"q": "<b>"}, "{{ q }}{{ q | tojson }}\n", '<b>"<b>"\n'),
        ({"q": None, "x": 1}, "x", "x"),
    ],
)
def test_what_a_template_writes(examples, row, prompt, text):
    assert examples(rows(row), prompt, "1") == [(text, "1")]


@pytest.mark.parametrize(
    ("row", "prompt", "message"),
    [
        ('{"q": null}', "{{ q }}", "row 1: 'q' is null; its fields: q"),
        ('{"q": null}', "{{ q ~ '' }}", "'q' is null"),
        ('{"q": null}', "{{ q | upper }}", "'q' is null"),
        ('{"q": null}', "{{ '%s' | format(q) }}", "'q' is null"),
        ('{"q": null}', "{{ q + 'x' }}", "'q' is null"),
        ('{"q": null}', "{% for c in q %}{{ c }}{% endfor %}", "'q' is null"),
        ('{"q": null}', "{{ q.x }}", "'q' is null"),
        ('{"q": ["x", null]}', "{{ q | join }}", r"'q\[1\]' is null"),
        ('{"q": {"a": null}}', "{{ q.a }}", "'q.a' is null"),
        ('{"my q": null}', "{{ row['my q'] }}", "'my q' is null"),
        ('{"q": NaN}', "{{ q }}", "'q' is nan"),
        ('{"q": -Infinity}', "{{ q }}", "'q' is -inf"),
        ('{"q": 1}', "{{ none }}", "a value that is printed is none"),
        ('{"q": 1}', "{{ 1 / 0 }}", "ZeroDivisionError"),
        ('{"q": 1}', "{{ ''.__class__ }}", "unsafe|undefined"),
        ('{"q": 1}', "{{ 'x' * 10 ** 10 }}", "more than 4000000"),
        ('{"q": 1}', "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "come to an end"),
        ('{"q": 1, "q": 2}', "{{ q }}", "line 1: an object has the key 'q' twice"),
        ("[" * 100_000, "x", "nested too deeply"),
        ("5", "x", "line 1: not an object"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_filled(examples, row, prompt, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        examples(row, prompt, "1")
    assert "d.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_a_file_have_their_true_place(examples):
    with pytest.raises(ConfigurationError, match="line 4, row 2: 'a' is null"):
        examples('\ufeff{"q": "x", "a": "1"}\r\n\r\n\n{"q": "x", "a": null}\n')


def test_nulls_of_parquet(examples):
    table = [{"q": "x", "a": "1"}, {"q": "y", "a": None}]
    with pytest.raises(ConfigurationError, match="row 2: 'a' is null"):
        examples(table, name="d.parquet")
    assert examples(table, answer="{{ a | default('2') }}", name="d.parquet") == [("x", "1"), ("y", "2")]


def test_a_parquet_file_in_a_folder_that_is_named_like_a_partition(examples, tmp_path):
    (tmp_path / "a=9").mkdir()
    assert examples([{"q": "x", "a": "1"}], name="a=9/d.parquet") == [("x", "1")]


@pytest.mark.parametrize(
    ("check", "answer"), [("last_number", "none"), ("multiple_choice", "b"), ("multiple_choice", "E")]
)
def test_an_answer_that_can_never_be_right(examples, check, answer):
    with pytest.raises(
        ConfigurationError, match=rf"row 1: the answer '{answer}' can never be right with check="
    ):
        examples(rows({"q": "x", "a": answer}), check=check)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    task = registry().build(Task, {"name": "file", "path": str(tmp_path / "d.jsonl"), "prompt": "x"})
    with pytest.raises(ConfigurationError, match="is a folder"):
        task.examples()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    contents,
    st.sampled_from(["{{ prompt }}", "{{ row }}", "{{ row['x'] ~ '' }}", "{{ messages[0].content }}"]),
)
def test_whatever_a_task_file_holds_there_are_examples_or_an_error_that_names_it(examples, content, prompt):
    try:
        found = examples(content, prompt, "{{ prompt | default('1') }}")
    except DllmSamplingError as error:
        found, message = [], str(error)
        named = "d.jsonl" in message and "\n" not in message
    else:
        named = True
    assert named
    assert all("None" not in answer for _, answer in found)
