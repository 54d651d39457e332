#!/usr/bin/env python3
"""Writes data/jinja_cases.json: templates, variables and what Python's jinja2 makes of them in Hugging Face's environment.

    pip install jinja2 && python3 tests/engine/text/make_jinja_cases.py
"""
import json
import os

from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


VARS = {
    "s": "  Hello World\n", "u": "h\u00e9llo w\u00f6rld \u4f60\u597d \U0001f600", "n": 7, "f": 2.5, "neg": -3, "z": 0, "yes": True, "no": False,
    "nil": None, "empty": "", "l": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "nested": [[1, 2], [3, 4]],
    "d": {"b": 1, "a": 2, "items": [1], "get": "x"}, "q": "it's \"quoted\" \\ \t<&>",
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cid", "age": 30, "boss": None}],
    "messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi <|im_end|>"},
                 {"role": "assistant", "content": "Yo", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": "z"}}}]},
                 {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
    "tools": [{"type": "function", "function": {"name": "get_w", "description": "W\u00e9ather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["A", "B"]}}, "required": ["city"]}}}],
}

CASES = """
plain text
{{ s }}|{{ n }}|{{ f }}|{{ yes }}|{{ nil }}|{{ l }}|{{ d }}|{{ missing }}|
{{ [1, 'a', "it's", 2.0, none, true, (1,), (1, 2), {'k': 'v'}] }}
{{ 1e20 }} {{ 1.5e-7 }} {{ 100.0 }} {{ 1e16 }} {{ 123456789.123 }} {{ 0.1 + 0.2 }} {{ 1/3 }} {{ -0.0 }} {{ 1e15 }} {{ 1_000 }}
{{ q }}{{ [q] }}{{ q|tojson }}{{ q|e }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 % 2 }} {{ -7.5 // 2 }}
{{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ (1 + 2) * 3 }} {{ +n }} {{ -f }} {{ - n }}
{{ 'a' ~ 1 ~ none ~ 2.0 ~ missing }} {{ 'ab' * 3 }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ [0] * 3 }} {{ 2 * 'x' }} {{ (1,) + (2,) }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'a' == 1 }} {{ none == none }} {{ missing == missing2 }} {{ true == 1 }} {{ 1 != 2 }} {{ d == {'a': 2, 'b': 1, 'get': 'x', 'items': [1]} }}
{{ 'a' in 'abc' }} {{ 1 in [1, 2] }} {{ 'b' in d }} {{ 'zz' not in d }} {{ 3 not in l }} {{ 'x' in missing }} {{ '' in '' }} {{ not 1 in [1] }}
{{ 1 and 2 }} {{ 0 and 2 }} {{ 0 or 'x' }} {{ '' or [] }} {{ not '' }} {{ not none and true }} {{ 1 if yes else 2 }} {{ 1 if no }}{{ 'a' if no else 'b' if no else 'c' }}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ s | trim }}|{{ '--a-'|trim('-') }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b c '.split() }} {{ ' a  b c '.split(none, 1) }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a<x>b<x>'.split('<x>')[-1] }}
{{ 'Hello'.startswith('He') }} {{ 'Hello'.endswith(('x', 'lo')) }} {{ 'a b-c d1e'.title() }} {{ 'a b-c d1e foo\\'s'|title }} {{ 'hELLO wORLD'.capitalize() }} {{ 'abc'.upper() }} {{ 'ABC'|lower }} {{ 'aBC'|capitalize }}
{{ 'hello'.replace('l', 'L') }} {{ 'hello'.replace('l', 'L', 1) }} {{ 'abc'.replace('', '-') }} {{ 'hello' | replace('l', '') }} {{ u.replace('', '.') }}
{{ 'hello'.find('l') }} {{ u.find('w') }} {{ 'x'.find('y') }} {{ 'hello'.rfind('l') }} {{ 'hello'.count('l') }} {{ ','.join(['a', 'b']) }} {{ 'prefix_x'.removeprefix('prefix_') }} {{ 'a.txt'.removesuffix('.txt') }} {{ '12'.isdigit() }} {{ 'a\\nb\\r\\nc'.splitlines() }}
{{ u[0] }}{{ u[1] }}{{ u[-1] }}{{ u[6:8] }}|{{ u[::-1] }}|{{ u[::2] }}|{{ u[-3:] }}|{{ u[100:] }}|{{ u[:-1] }}|{{ u|length }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:-1] }} {{ l[5:] }} {{ l[2:0:-1] }} {{ l[-2:] }} {{ l[99] }} {{ l[::2] }} {{ l[none:2] }} {{ nested.0.1 }} {{ nested[1][0] }}
{{ d.a }} {{ d['b'] }} {{ d.zzz }} {{ d['items'] }} {{ d.get('a') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d['get'] }} {{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }} {{ d|items|list }} {{ d|length }}
{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ', ' if not loop.last }}{% endfor %}
{% for x in l %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'h\u00e9y' %}[{{ c }}]{% endfor %}
{% for a, b in nested %}{{ a }}-{{ b }};{% endfor %}{% for x in [] %}no{% else %}empty{% endfor %}{% for x in missing %}no{% else %}undef{% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} {% else %}none{% endfor %}{% for x in range(10) if x % 2 == 0 %}{{ x }}{{ loop.last }}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in range(3) %}{% for y in range(2) %}{{ loop.depth }}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}
{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}
{% for x in range(5, 0, -2) %}{{ x }}{% endfor %} {{ range(3)|list }} {{ range(2, 5)|list }}
{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}{% set a, b = [8, 9] %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}
{% set ns = namespace(a=1, found=false) %}{% for i in l %}{% set ns.a = ns.a + i %}{% set ns.b = i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.found }}{{ ns.nope }}
{% set ns = namespace() %}{% set ns.l = [] %}{% for i in l %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }}{{ dict(a=1, b='x') }}{{ dict({'q': 1}, z=2) }}
{% set b %}<{{ n }}>{% set inner = 1 %}{% endset %}{{ b }}{{ b|length }}{{ inner }}{% set c | upper | replace('X', 'y') %}xa{% endset %}{{ c }}
{% macro m(a, b=2, c='z') %}[{{ a }},{{ b }},{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(b=1, a=2) }}{{ m() }}{{ m(1, 2, 3)|upper }}
{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n }}*{{ fact(n - 1) }}{% endif %}{% endmacro %}{{ fact(5) }}
{% macro show(l, depth=0) -%}{%- for x in l -%}{%- if x is iterable -%}({{ show(x, depth + 1) }}){%- else -%}{{ depth }}{{ x }} {%- endif -%}{%- endfor -%}{%- endmacro %}{{ show([1, [2, [3]], 4]) }}
{% set g = 5 %}{% macro m() %}{{ g }}{% set g = 6 %}{{ g }}{% endmacro %}{{ m() }}{{ g }}
{% macro box(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call box('b') %}in {{ n }}{% endcall %}
{% macro each(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(v) each(l) %}({{ v }}){% endcall %}
{% filter upper %}abc {{ n }} {{ 'x' }}{% endfilter %}{% filter replace('a', 'b')|upper %}aa{% endfilter %}
{% with a = 1, b = n %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ c }}
{% generation %}gen {{ n }}{% endgeneration %}
{% raw %}{{ not }} {% parsed %}{# x #}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  b
{# comment #}a{#- strip -#} b {# multi
line #}
c
  {% if yes %}
    x
  {% endif %}
  y
  {{ n }}
z
  {%- if yes -%}
    x
  {%- endif -%}
  y
a{% if yes %}
b
{% endif %}
   {%+ if yes %}kept{% endif +%}

   {{- n -}}   
  end
\\n\\n{% if yes %}\\n\\nx{% endif %}\\n\\n
{{ '\\\\n' }}{{ "a\\tb" }}{{ '\\u00e9\\x41' }}{{ 'a' 'b' }}{{ '\\q' }}{{ "it's" }}{{ 'say "x"' }}
{{ tools|tojson }}|{{ tools[0]|tojson(indent=2) }}|{{ {}|tojson(indent=4) }}{{ []|tojson }}{{ [1, [], {'a': []}]|tojson(indent=1) }}
{{ {'b': 1, 'a': [true, none, 1.5, 'x']}|tojson(sort_keys=true) }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ {'a': 1}|tojson(separators=(',', ':')) }} {{ 'a/b\\u007f\\u0001'|tojson }} {{ {1: 2, none: 3}|tojson }}
{{ missing|default('x') }} {{ empty|default('x') }} {{ empty|default('x', true) }} {{ nil|d('y') }} {{ nil|default('y', boolean=true) }} {{ d.q|default([]) }} {{ missing|default }}|
{{ l|join(',') }} {{ words|join }} {{ people|join(', ', attribute='name') }} {{ l|first }} {{ l|last }} {{ []|first }} {{ 'abc'|first }} {{ 'abc'|list }} {{ d|list }} {{ l|reverse|list }} {{ 'abc'|reverse }}
{{ l|sort }} {{ l|sort(reverse=true) }} {{ words|sort }} {{ words|sort(case_sensitive=true) }} {{ people|sort(attribute='age')|map(attribute='name')|list }} {{ words|unique|list }} {{ d|dictsort }} {{ l|max }} {{ l|min }} {{ l|sum }} {{ people|sum(attribute='age') }}
{{ people|map(attribute='name')|list }} {{ people|map(attribute='boss', default='-')|list }} {{ words|map('upper')|list }} {{ words|map('replace', 'p', 'P')|join('|') }} {{ people|map(attribute='tags.0')|list|length }}
{{ people|selectattr('age', 'equalto', 30)|map(attribute='name')|list }} {{ people|rejectattr('age', '==', 30)|map(attribute='name')|list }} {{ people|selectattr('tags')|list|length }} {{ people|selectattr('boss', 'defined')|list|length }} {{ l|select('odd')|list }} {{ l|reject('gt', 1)|list }} {{ [0, 1, '']|select|list }} {{ people|selectattr('name', 'in', ['Ann'])|list|length }}
{{ '12'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ '12.7'|int }} {{ 3.9|int }} {{ '1.5'|float }} {{ 'z'|float }} {{ 'ff'|int(0, 16) }} {{ true|int }} {{ 3|float }} {{ 12|string + 'x' }} {{ (-3)|abs }} {{ -2.5|abs }} {{ ' 42 '|int }}
{{ 2.567|round(2) }} {{ 2.5|round }} {{ 3.5|round }} {{ 2.1|round(0, 'ceil') }} {{ 2.9|round(method='floor') }} {{ 7|round }} {{ 0.125|round(2) }}
{{ 'a\\nb\\n\\nc'|indent }}|{{ 'a\\nb'|indent(2, true) }}|{{ 'a\\nb'|indent(width=1) }}|{{ 'x'|attr('upper')() }}|{{ '<a>'|safe }}|{{ 'abc'|count }}
{{ missing is defined }} {{ n is defined }} {{ missing is undefined }} {{ nil is none }} {{ nil is not none }} {{ s is string }} {{ d is mapping }} {{ l is mapping }} {{ l is sequence }} {{ s is sequence }} {{ d is iterable }} {{ n is iterable }} {{ missing is iterable }} {{ missing is sequence }}
{{ n is number }} {{ yes is number }} {{ yes is boolean }} {{ n is boolean }} {{ yes is true }} {{ no is false }} {{ n is true }} {{ n is integer }} {{ yes is integer }} {{ f is float }} {{ n is float }} {{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }} {{ n is equalto 7 }} {{ n is eq(7) }} {{ 'a' is in 'abc' }} {{ n is ge 7 }} {{ 'ABC' is upper }} {{ 'abc' is lower }} {{ s is not string }} {{ range is callable }} {{ n is sameas n }}
{% if n is defined and n is number and not n is string %}ok{% endif %}{% if messages[0]['role'] == 'system' and messages[0].content is string %}sys{% elif no %}x{% else %}y{% endif %}
{{ messages[1:]|length }} {{ messages[-1].content[0].text }} {{ messages[2].tool_calls[0].function.arguments|tojson }} {{ (messages|last).role }} {{ messages|map(attribute='role')|join('>') }}
{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.type }}{{ p.text if p.type == 'text' }}{% endfor %}{% endif %}|{% endfor %}
{{ [1, 2, 3,] }} {{ {'a': 1,} }} {{ () }} {{ (1) }} {{ (1,) }} {{ 1, 2 }} {{ [] }} {{ {} }} {{ {'a': {'b': {'c': 1}}}['a']['b'].c }}
{{ 'a' if missing is defined else 'b' }}{{ (missing or 'c') }}{{ missing|length }}{{ nil or '' }}
{{ 10 / 2 }} {{ 10 // 2.0 }} {{ 3 * 1.5 }} {{ 1 - 0.9 }} {{ 1e3 }} {{ 5 % 2.5 }} {{ true + true }} {{ 2 ** 0.5 }}
{{ loop is defined }}{{ raise_exception is defined }}{{ joiner_x is defined }}{{ namespace is callable }}
{{ 'abc'[1] ~ 'abc'[-1:] ~ 'abc'[:1] }}{{ 'x-y'.split('-')|last }}{{ ('a', 'b')|join('+') }}{{ 'A'.lower().upper().strip() }}
{{- '<|im_start|>' + messages[0].role + '\\n' -}}   {{- messages[0].content|trim -}} tail
{% set content = messages[0].content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ content.lstrip('\\n') }}
{{ "%s" }}{{ '{{' }}{{ '}}' }}{{ {'a': '}}'}['a'] }}{% if '%}' %}x{% endif %}
{%- set x = [1,
  2] -%}
{{ x }}
{{ 'no' if 'x' in {'x': none} and not {'x': none}['x'] }}
{{ [d, l]|tojson }}{{ d.items()|list|tojson }}
{{ (l|sort)[0] }}{{ l|sort|first }}{{ (n ~ '')|length }}{{ -l[0] }}{{ not l[0] == 3 }}
"""

TEMPLATES = {
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call functions.\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>}<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "llama": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | string | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
""",
    "nemotron": """{%- macro render_extra_keys(json_dict, handled_keys) -%}
  {%- if json_dict is mapping %}
    {%- for json_key in json_dict if json_key not in handled_keys %}
      {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and json_dict[json_key] is not string) %}
        {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) ~ '</' ~ json_key ~ '>' }}
      {%- else %}
        {{-'\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) ~ '</' ~ json_key ~ '>' }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
{%- endmacro -%}
{%- set enable_thinking = enable_thinking if enable_thinking is defined else True %}
{%- for tool in tools %}
  {%- if tool.function is defined %}{% set tool = tool.function %}{% endif %}
  {{- '\\n<function>\\n<name>' ~ tool.name ~ '</name>' }}
  {%- if tool.description is defined %}
    {{- '\\n<description>' ~ (tool.description | trim) ~ '</description>' }}
  {%- endif %}
  {%- if tool.parameters is defined and tool.parameters is mapping and tool.parameters.properties is defined and tool.parameters.properties is mapping %}
    {%- for param_name, param_fields in tool.parameters.properties|items %}
      {{- '\\n<parameter>\\n<name>' ~ param_name ~ '</name>' }}
      {%- if param_fields.enum is defined %}
        {{- '\\n<enum>' ~ (param_fields.enum | tojson | safe) ~ '</enum>' }}
      {%- endif %}
      {%- set handled_keys = ['name', 'type', 'description', 'enum'] %}
      {{- render_extra_keys(param_fields, handled_keys) }}
    {%- endfor %}
  {%- endif %}
  {{- render_extra_keys(tool.parameters, ['type', 'properties', 'required']) }}
  {{- render_extra_keys(tool, ['type', 'name', 'description', 'parameters']) }}
{%- endfor %}
{%- for message in messages %}
{%- if loop.previtem and loop.previtem.role != message.role %}|{% endif %}{{ loop.index }}
{%- endfor %}
""",
}

ERRORS = ["{{ missing.x }}", "{{ missing + 1 }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ nosuch() }}", "{{ n() }}", "{{ 1 < 'a' }}", "{{ 1 in 2 }}", "{{ [] | tojson + 1 }}",
          "{{ missing | tojson }}", "{{ raise_exception('Only one system message, please') }}", "{% for x in 5 %}{% endfor %}", "{% set d.a = 1 %}",
          "{% for a, b in [[1]] %}{% endfor %}", "{{ l.append(1) }}", "{{ 'x' | nosuchfilter }}", "{{ 'x' is nosuchtest }}", "{% nosuchtag %}",
          "{% if %}{% endif %}", "{% if x %}", "{% for x in y %}", "{% endif %}", "{{ x", "{% if x", "{# x", "{{ 'x }}", "{{ (1 }}", "{{ 1 ) }}", "{{ }}", "{{ a b }}",
          "{% raw %} x", "{% break %}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=1) }}",
          "{{ $ }}", "{% include 'x' %}", "{% set 1 = 2 %}", "{{ a[] }}", "{{ l[::0] }}", "{{ nil.x.y }}", "{{ 1 | length }}", "{% else %}", "{{ {[]: 1} }}"]


def split_cases(text):
    """A case is a line; a run of lines that begins with an indented, open or continued one belongs together: see below."""
    return [line for line in text.strip("\n").split("\n")]


def main():
    env = environment()
    lines = split_cases(CASES)
    # Every line by itself where that parses, and growing windows of lines for the white-space rules.
    sources = {f"line {i}": line for i, line in enumerate(lines)}
    for size in (2, 4, 7):
        for i in range(0, len(lines) - size + 1, max(1, size // 2)):
            sources[f"lines {i}+{size}"] = "\n".join(lines[i:i + size])
    sources = {k: v.replace("\\n", "\n") if v.startswith("\\n") else v for k, v in sources.items()}
    sources.update(TEMPLATES)
    out, seen = [], set()
    for name, source in sources.items():
        if source in seen:
            continue
        seen.add(source)
        variants = [{}]
        if name in TEMPLATES:
            text_only = [m for m in VARS["messages"] if isinstance(m["content"], str)]
            variants = [{"bos_token": "<s>", "tools": VARS["tools"], "add_generation_prompt": True},
                        {"bos_token": "<s>", "tools": None, "messages": VARS["messages"][:2], "add_generation_prompt": False},
                        {"bos_token": "<s>", "tools": None, "messages": text_only + VARS["messages"][1:2], "add_generation_prompt": True, "enable_thinking": False}]
        for k, extra in enumerate(variants):
            case = {"name": f"{name} {k}" if extra else name, "template": source}
            if extra:
                case["vars"] = extra
            try:
                case["output"] = env.from_string(source).render(**{**VARS, **extra})
            except Raised as error:
                case["error"] = str(error)
            except Exception:
                continue  # a window that cuts a tag
            out.append(case)
    for source in ERRORS:
        try:
            env.from_string(source).render(**VARS)
            raise SystemExit(f"no error from {source}")
        except Raised as error:
            out.append({"name": source, "template": source, "error": str(error)})
        except Exception:
            out.append({"name": source, "template": source, "error": ""})
    os.makedirs(os.path.join(HERE, "data"), exist_ok=True)
    with open(os.path.join(HERE, "data", "jinja_cases.json"), "w", encoding="utf-8") as file:
        json.dump({"vars": VARS, "cases": out}, file, ensure_ascii=False, indent=0)
        file.write("\n")
    print(len(out), "cases")


if __name__ == "__main__":
    main()
