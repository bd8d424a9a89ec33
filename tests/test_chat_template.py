"""Chat templates: rendered as transformers renders them, and stopped where they would not end."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling import PromptError
from dllm_sampling.inputs.chat_template import render
from dllm_sampling.loading.checkpoint import load_tokenizer
from tests.folders import CHATML

QWEN = """{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- if message.reasoning %}{{ message.thinking ~ message.reasoning_content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA = """{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message.content is string %}{{- message['content'] | trim }}{% else %}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{{- '<|eot_id|>' }}{%- endfor %}
{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}"""
USES = """{% macro say(x) %}[{{ x | upper }}]{% endmacro %}{% for m in messages recursive %}{% if loop.first %}{% continue %}{% endif %}
{% generation %}{{ say(m.content) }}{% endgeneration %}{{ '%s-%03d' % (m.role, loop.index) }}{{ '{:>6}|{}'.format(m.role, 7) }}
{{ m | tojson(indent=2) }}{{ messages | map(attribute='role') | join(', ') }}{{ m.items() | list }}{{ [1, 2, 3] * 2 }}
{{ m.content.replace('a', 'bb') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 7 // 2 + 2 ** 5 }}{{ 'x' * 3 }}
{{ m.content | indent(3) }}{{ (m.content ~ 1 ~ none)[1:5] }}{{ {'a': [1, (2,)]} }}{{ dict(a=1) }}{{ m.missing | default('-') }}{{ ', '.join(m.keys()) }}
{{ messages | sum(attribute='content', start='') if false }}{{ m.content | wordwrap(5) | center(30) }}{{ range(3) | sort(reverse=true) }}{{ loop.last }}{% endfor %}"""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize(
    "template", [CHATML, QWEN, LLAMA, USES, "{{ messages }}{{ eos_token }}{{ nothing }}"]
)
@given(
    chat=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=30)},
            optional={"reasoning": st.text(max_size=5) | st.none()},
        ),
        min_size=1,
        max_size=4,
    ),
    prompt=st.booleans(),
)
def test_a_text_is_the_one_that_transformers_makes(tokenizer, template, chat, prompt):
    tokenizer.chat_template = template
    theirs = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    assert render(tokenizer, chat, add_generation_prompt=prompt) == theirs


def test_a_long_conversation_is_within_the_budget(tokenizer):
    tokenizer.chat_template = QWEN
    long = [
        {"role": "user", "content": "word " * 20_000},
        {"role": "assistant", "content": "<think>" * 9_000},
    ] * 10
    many = [{"role": "user" if i % 2 else "assistant", "content": "some words " * 20} for i in range(5_000)]
    for chat in (long, many):
        assert len(render(tokenizer, chat)) > 1_000_000


TWICE = "{{% set ns = namespace(x={0}) %}}{{% for i in range(99) %}}{{% set ns.x = {1} %}}{{% endfor %}}{2}"
ENDLESS = {
    "loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "loops with a condition": "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "a loop of filters": "{% for i in range(9999) %}{{ range(9999)|select|list|length }}{% endfor %}",
    "a macro of itself": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block of itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "times": "{{ 'x' * 10**10 }}", "times turned": "{{ 10**10 * [1] }}", "powers": "{{ 9**9999999999 }}",
    "doubled text": TWICE.format("'x'", "ns.x ~ ns.x", "{{ ns.x }}"),
    "added text": TWICE.format("'x'", "ns.x + ns.x", "{{ ns.x }}"),
    "doubled lists": TWICE.format("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "compared lists": TWICE.format("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"),
    "doubled mappings": TWICE.format("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
    "padding": "{{ 'x'.ljust(10**10) }}{{ 1 }}", "zfill": "{{ 'x'.zfill(10**10) }}", "center": "{{ 'x'|center(10**10) }}",
    "%": "{{ '%9999999999d' % 1 }}", "% with a star": "{{ '%*d' % (10**10, 1) }}", "format": "{{ '{:>9999999999}'.format(1) }}",
    "a nested format": "{{ '{:{w}}'.format(1, w=10**10) }}", "the format filter": "{{ '%9999999999d'|format(1) }}",
    "replace": "{% set a = 'x' * 1000000 %}{{ a.replace('x', a) }}", "join": "{% set a = 'x' * 1000000 %}{{ a.join(a) }}",
    "the replace filter": "{% set a = 'x' * 1000000 %}{{ a|replace('x', a) }}", "indent": "{{ 'a\n'|indent(10**10) }}",
    "a set block": "{% set a = 'x' * 1000000 %}{% set b %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endset %}{{ b }}",
    "sums": "{{ ([[1] * 100] * 1000)|sum(start=[])|length }}", "tags": "{{ ('<!---->' * 100000)|striptags }}",
    "batches": "{{ [1]|batch(10**9, 0)|list }}", "tojson": "{{ [1]|tojson(indent=10**10) }}", "bytes": "{{ (1).to_bytes(10**10) }}",
    "slices": "{% set a = 'x' * 900000 %}{% for i in range(9999) %}{% for j in range(99) %}{% set b = a[1:] %}{% endfor %}{% endfor %}",
    "searches": "{% set a = 'x' * 900000 %}{% for i in range(9999) %}{% for j in range(99) %}{{ 'y' in a }}{% endfor %}{% endfor %}",
}  # fmt: skip


def test_what_would_not_end_is_stopped_soon_and_in_little_memory(tokenizer):
    for what, template in ENDLESS.items():
        tokenizer.chat_template = template
        begun = time.process_time()
        with pytest.raises(PromptError, match=r"^chat template: "):
            render(tokenizer, [{"role": "user", "content": "hi"}])
        assert time.process_time() - begun < 10, what


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('system first') }}", "chat template: system first$"),
        ("{% for m in", "chat template: unexpected"),
        ("{{ ''.__class__.__mro__ }}", "chat template: access to attribute '__class__'.*unsafe"),
        ("{% set ns = namespace(_x=1) %}", "chat template: .*'_x'"),
        ("{% include '/etc/passwd' %}", "chat template: TypeError: no loader"),
        ("{{ 1 | nonesuch }}", "chat template: No filter named 'nonesuch'"),
        ("{{ a.b.c }}", "chat template: 'a' is undefined"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "chat template: "),
        ({"chat": CHATML, "tool_use": CHATML}, "chat template: .*no default"),
        (5, "chat template: it is text in Jinja, not a int"),
        (None, "chat template: .*not set"),
    ],
)
def test_what_a_template_refuses_is_a_sentence(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=message) as error:
        render(tokenizer, [{"role": "user", "content": "hi"}])
    assert "\n" not in str(error.value)


def test_what_is_no_plain_data_is_shown_by_its_type_alone(tokenizer):
    class Writes:
        def write(self):
            raise AssertionError("called")

    tokenizer.chat_template = "{{ messages[0].content }}{{ messages[0].content.write }}"
    assert render(tokenizer, [{"role": "user", "content": Writes()}]) == "<Writes>"
