"""Chat templates: renders byte for byte, and {% generation %} spans, equal to Transformers'.

templates/*.jinja follow the public templates of the families they are named after; Qwen3's own comes
with its tokenizer. Each meets every conversation here. Where Python raises, we must refuse, too.
"""
import datetime
import glob
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from text_client import TextTool, need, qwen3_tokenizer

need("transformers", "jinja2")
from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def source(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def call(name, arguments, id="call_abcdefghi"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a city, <b>now</b> & 'then'",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Größe \"ü\" 北京"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "days": {"type": ["integer", "null"], "minimum": 1.0, "maximum": 1e-05},
            "items": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "number"}}}},
            "either": {"oneOf": [{"type": "string"}, {"type": "integer", "default": 3}]}}}}},
    {"type": "function", "function": {"name": "noop", "description": "  Does nothing ",
                                      "parameters": {"type": "object", "properties": {}}}},
]
S = {"role": "system", "content": "S"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


ARGUMENTS = {"city": "Zürich \"Nord\"\n", "n": 3, "x": 1.0, "y": 1e-07, "z": 1.5e20, "deep": {"a": [1, None, True]},
             "emoji": "👩‍👩‍👧", "empty": {}, "list": []}
CONVERSATIONS = {
    "one turn": [user("Q1"), assistant("A1")],
    "system": [S, user("Q1"), assistant("A1"), user("Q2"), assistant("A2")],
    "reasoning in content": [S, user("Q1"), assistant("<think>\nR1\n</think>\n\nA1"), user("Q2"), assistant("A2")],
    "reasoning_content": [user("Q1"), assistant("A1", reasoning_content="R1\n"), user("Q2"),
                          assistant("A2", reasoning_content="\nR2 multi\nline")],
    "empty content": [user("Q1"), assistant(""), user(""), assistant("A2")],
    "unicode and space": [S, user("  汉字 \n\t ünï 👩‍👩‍👧 "), assistant(" A \n\n"), user("e\u0301"), assistant("한국어\u00a0")],
    "markup": [user("{{ 7*7 }} {% if %} {# #} <b>&amp;</b> '\"\\"), assistant("a\\nb {% generation %}")],
    "ends with user": [S, user("Q1"), assistant("A1"), user("Q2")],
    "user only": [user("Q1")],
    "system twice": [S, S, user("Q1"), assistant("A1")],
    "assistant first": [assistant("A0"), user("Q1"), assistant("A1")],
    "tool call": [S, user("weather?"), assistant("", tool_calls=[call("get_weather", ARGUMENTS)]),
                  {"role": "tool", "content": "{\"t\": 3.5}", "name": "get_weather"}, assistant("3.5 degrees")],
    "tool call, arguments as text": [
        user("weather?"), assistant("let me see", tool_calls=[call("get_weather", "{\"city\": \"X\"}")]),
        {"role": "tool", "content": "sunny"}, assistant("sunny")],
    "two calls, two results": [
        user("both"), assistant("", tool_calls=[call("get_weather", {"city": "A"}), call("noop", {}, "call_000000002")]),
        {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, assistant("done"), user("thanks"),
        assistant("welcome")],
    "tool result first": [{"role": "tool", "content": "1"}, user("Q"), assistant("A")],
    "content parts": [user([{"type": "text", "text": "part 1"}, {"type": "text", "text": "part 2"}]), assistant("A1")],
    "unknown role": [{"role": "narrator", "content": "N"}, user("Q1"), assistant("A1")],
    "many turns": [S] + [m for i in range(6) for m in (user(f"Q{i}"), assistant(f"A{i}"))],
}
VARIABLES = [
    {}, {"add_generation_prompt": True}, {"tools": TOOLS}, {"tools": TOOLS, "add_generation_prompt": True},
    {"enable_thinking": False, "add_generation_prompt": True}, {"enable_thinking": True},
    {"tools": TOOLS, "tools_in_user_message": False}, {"builtin_tools": ["get_weather", "code_interpreter"]},
    {"reasoning_effort": "high", "date_string": "1 Jan 2025"},
]

# One feature each; `x` is in the context. Spec: tokenizers.md 11.2, first and second group.
VALUE = {"d": {"items": 1, "b": [1, 2, 3], "c": {"n": None}}, "l": [3, 1, 2], "s": " aBc dEf\n", "n": 5, "f": 2.0,
         "t": True, "z": None, "m": [{"r": "u", "v": 1}, {"r": "a", "v": 2}, {"r": "u", "v": 3}], "e": [], "u": "ünï汉"}
FEATURES = [
    "{{ x.s | trim }}|{{ x.s.strip() }}|{{ x.s.lstrip() }}|{{ x.s.rstrip('\\n') }}|{{ x.s.upper() }}|{{ x.s | lower }}",
    "{{ x.l | length }} {{ x.u | length }} {{ x.d | length }} {{ 'abc'[1:] }} {{ x.u[-1] }} {{ x.u[::-1] }} {{ x.l[::-1] }}",
    "{{ x.l[-1] }} {{ x.l[1:][0] }} {{ x.l[:-1] }} {{ x.m[::-1][0].v }} {{ x.l[0:3:2] }}",
    "{{ x.d.items() | list | length }} {{ x.d['items'] }} {% for k, v in x.d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in x.d | items %}{{ k }}{% endfor %} {{ x.d.keys() | list }} {{ x.d.get('q', 'no') }} {{ x.d.get('b') }}",
    "{{ x.t }} {{ x.z }} {{ x.f }} {{ x.n }} {{ x.l }} {{ x.d }} {{ x.e }} {{ [1, 'a', none, true, 1.5] }}",
    "{{ x.q }}|{{ x.q is defined }} {{ x.z is none }} {{ x.z is defined }} {{ x.n is number }} {{ x.t is number }}",
    "{{ x.n is integer }} {{ x.f is float }} {{ x.t is boolean }} {{ x.s is string }} {{ x.d is mapping }} {{ x.l is iterable }}",
    "{{ x.s is iterable }} {{ x.s is sequence }} {{ x.d is sequence }} {{ x.n is odd }} {{ x.n is even }} {{ x.t is true }} {{ x.t is false }}",
    "{{ x.n is not none }} {{ x.q is undefined }} {{ x.n is iterable }} {{ x.d is iterable }} {{ x.n is string }} {{ x.n is divisibleby 5 }}",
    "{{ 1 == true }} {{ 0 == false }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ none == false }} {{ [1] == [1.0] }} {{ 2 > 1 }} {{ 'a' < 'b' }}",
    "{{ 1 in x.l }} {{ 'Bc' in x.s }} {{ 'b' in x.d }} {{ 9 not in x.l }} {{ 'r' in x.m[0] }}",
    "{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 3 }} {{ 1 + 2.0 }} {{ 'a' * 3 }} {{ [1] + [2] }} {{ 6 / 2 }} {{ -7 // 2 }}",
    "{{ 'a' ~ 1 ~ 'b' }} {{ 'x' if x.q else 'y' }} {{ 'x' if x.q }}|{{ x.q or 'dflt' }} {{ x.n and x.l }} {{ not x.e }}",
    "{{ x.s | default('q') | trim }} {{ x.q | default('q') }} {{ '' | default('q', true) }} {{ x.z | default('q') }} {{ x.z | default('q', true) }}",
    "{{ x.l | join(', ') }} {{ x.l | join }} {{ ', '.join(['a', 'b']) }} {{ x.m | map(attribute='r') | join('-') }}",
    "{{ x.m | selectattr('r', 'equalto', 'u') | list | length }} {{ x.m | rejectattr('r', 'equalto', 'u') | map(attribute='v') | list }}",
    "{{ x.l | select('gt', 1) | list }} {{ x.l | reject('equalto', 1) | join(',') }} {{ x.l | sort }} {{ x.l | first }} {{ x.l | last }}",
    "{{ x.l | max }} {{ x.l | min }} {{ x.l | sum }} {{ [1, 1, 2] | unique | list }} {{ x.l | reverse | list }} {{ 'abc' | reverse }}",
    "{{ 'hello world' | title }} {{ 'hELLO' | capitalize }} {{ 'a-b' | replace('-', '+') }} {{ 'aXbXc'.replace('X', '-', 1) }} {{ 'hi' | upper }}",
    "{{ 3.7 | int }} {{ '12' | int + 1 }} {{ '1.5' | float }} {{ -3 | abs }} {{ 2.567 | round(1) }} {{ 2.5 | round | int }} {{ 'x' | int(7) }}",
    "{{ x | tojson }}", "{{ x.d | tojson(indent=2) }}", "{{ x.d | tojson(indent=4) }}|{{ x.e | tojson(indent=4) }} {{ {} | tojson(indent=2) }}",
    "{{ x.u | tojson }} {{ x.u | tojson(ensure_ascii=True) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }} {{ '</s>\\u2028\\x7f\\x01' | tojson }}",
    "{{ [1.0, 1e16, 1e15, 1e-4, 1e-5, 123456789.123, 0.1, 1e22, 5e-324, -0.0, 100000] | tojson }}",
    "{{ [1.0, 1e16, 1e15, 0.0001, 0.00001, -0.0] }} {{ 1e100 }} {{ 3 * 1.0 }}",
    "{{ x.d | tojson(separators=(',', ':')) }}",
    "{% set ns = namespace(a=1, b='x') %}{% for i in x.l %}{% set ns.a = ns.a + i %}{% set q = i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ q is defined }}",
    "{% for i in x.l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }};{% endfor %}",
    "{% for i in x.l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% else %}none{% endfor %}{% for i in x.e %}{% else %}none{% endfor %}",
    "{% for i in x.l if i != 1 %}{{ loop.index }}:{{ i }} {% endfor %}{% for a, b in [[1, 2], [3, 4]] %}{{ a + b }} {% endfor %}",
    "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(3) %}{% for j in range(i) %}{{ loop.index }}{{ i }}{% endfor %}{% endfor %} {{ range(2, 8, 3) | list }}",
    "{% macro f(a, b='d', c=none) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c=2) }} {{ f('x', 'y', 'z') | upper }}",
    "{% macro g(n) %}{{ n }}{% if n > 0 %}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(3) }}",
    "{% macro h() %}[{{ caller() }}]{% endmacro %}{% call h() %}in{% endcall %}",
    "{% set a %}block {{ x.n }}{% endset %}{{ a }}{{ a | length }}{% filter upper %}abc{% endfilter %}{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}{% raw %}{{ not }} {% rendered %}{% endraw %}",
    "{% if x.n > 3 and x.n < 9 %}in{% elif x.n %}mid{% else %}out{% endif %} {{ 1 < x.n < 9 }} {{ 1 < 2 < 2 }}",
    "{{ x.s.split() }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a--b'.split('--')[-1] }} {{ ''.split(',') }} {{ 'x\\ny'.splitlines() }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('q') }} {{ 'aXa'.count('a') }}",
    "{{ 'hello'.title() }} {{ 'Abc'.lower() }} {{ 'abc'.capitalize() }} {{ 'ab'.isdigit() }} {{ '12'.isdigit() }} {{ 'xxabcxx'.strip('x') }}",
    "{{ 'prefix-body'.removeprefix('prefix-') }} {{ 'body.txt'.removesuffix('.txt') }} {{ '{} and {}'.format(1, 'b') }} {{ '%s=%d' | format('a', 3) }}",
    "{{ x.m | map(attribute='v') | list }} {{ x.l | map('string') | join('') }} {{ [1, [2]] | string }} {{ true | string }} {{ none | string }}",
    "{{ x['d']['b'][0] }} {{ x.d.c.n }} {{ x.d.c.nope }}|{{ {'a': 1}.a }} {{ {'a': 1, 'b': [2]} }} {{ (1, 2)[0] }}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a  {%- if true -%}  b  {%- endif -%}  c", "{# c #}\nx {#- c -#} y\n  {# z #}\nend",
    "  {%+ if true %}x{% endif +%}\ny", "{{ 'a' }}\n{{ 'b' }}\n\n", "x\n\n", "{% for i in x.l %}\n  - {{ i }}\n{% endfor %}\n",
    "{%- set a = 'q' -%}\n\n {{- a -}} \n\n z", "line\r\n{% if true %}\r\nb\r\n{% endif %}\r\n",
    "{{ x.s | indent(2) }}|{{ 'a\nb\nc' | indent }}|{{ 'a\nb' | indent(4, true) }}", "{{ x.l | batch(2) | list }} {{ x.l | slice(2) | list }}",
    "{{ 'a' is in ['a'] }} {{ 'x' is eq 'x' }} {{ 3 is gt 2 }} {{ 'ABC' is upper }} {{ 'q' is sameas 'q' }}",
    "{{ x.d.c | list }} {{ x.u | list }} {{ dict(a=1, b=2) }} {{ x.l | list | string | length }}", "{{ 10 | string | int }} {{ '' | length }}",
    "{{ x.l ~ x.d }} {{ x.m | string | length }} {{ x.l + [9] }} {{ x.l == [3, 1, 2] }} {{ x.l[1] }} {{ x.e ~ '' }} {{ x.m | trim }}",
    "{{ '{:>5}|{:03d}'.format('a', 7) }} {{ '%05.1f' | format(2.25) }}", "{{ x.l | tojson }} {{ (x.l + [1.0]) | tojson }}",
    "{{ x.m | sort(attribute='v', reverse=true) | map(attribute='v') | join }}",
    "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 7 | round }} {{ 2.1 | round(0, 'ceil') }}", 
    "{{ true ~ none ~ 1.0 }}", "{{ raise_exception('no ' ~ x.n) }}", "{{ x.q.r }}", "{{ x.l.append(4) }}", "{{ nope() }}", "{{ x.n.foo() }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}",
    "{% generation %}a{% endgeneration %}b{%- generation -%} c {%- endgeneration %} d\n{% generation %}\ne\n{% endgeneration %}\nf",
    "{% for i in x.l %}{% generation %}{{ i }}{% set k = i %}{% endgeneration %}{{ k is defined }}{% endfor %}",
    "{% set ns = namespace(a=0) %}{% for i in x.l %}{% generation %}{% set ns.a = ns.a + i %}{{ loop.index }}é{% endgeneration %}{% endfor %}{{ ns.a }}",
]
# Where minijinja differs from Jinja2, knowingly: the difference is pinned here, so that a new version
# which changes it is noticed.
KNOWN_DIFFERENT = {
    # Not implemented: an error that names the construct, never another text.
    "{% set c = cycler('a', 'b') %}{{ c.next() }}": "ERROR",
    "{{ 'a b c' | wordcount }}": "ERROR", "{{ 'abc' | center(9) }}": "ERROR", "{{ 'abcdef' | truncate(4) }}": "ERROR",
    "{{ x.m | sum(attribute='v') }}": "ERROR", "{% extends 'other' %}": "ERROR", "{% import 'm' as m %}": "ERROR",
    # Tuples print as lists.
    "{{ x.m[0].items() | list }}": "[['r', 'u'], ['v', 1]]",
}


class TemplatesTest(unittest.TestCase):
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.tool = TextTool()

    @classmethod
    def tearDownClass(cls):
        cls.tool.close()

    def reference(self, template, context):
        """('text', spans in bytes) or the exception."""
        variables = dict(context)
        messages = variables.pop("messages", [])
        generation = "generation" in template and "{%" in template
        try:
            rendered, spans = render_jinja_template(
                [messages], chat_template=template, return_assistant_tokens_mask=generation, **variables)
        except Exception as error:  # jinja2's, TypeError, ...: whatever the template ran into
            return error
        text = rendered[0]
        in_bytes = [[len(text[:b].encode()), len(text[:e].encode())] for b, e in (spans[0] if spans else [])]
        return text, in_bytes

    def compare(self, template, contexts, what):
        got = self.tool(op="render", template=template, contexts=contexts)
        compared = 0
        for i, context in enumerate(contexts):
            want = self.reference(template, context)
            name = f"{what} #{i}: {json.dumps(context, ensure_ascii=True)[:300]}"
            mine = got["renders"][i] if "renders" in got else got
            if isinstance(want, Exception):
                self.assertIn("error", mine, f"{name}\nPython raises {want!r}")
                continue
            self.assertNotIn("error", mine, name)
            self.assertEqual(mine["text"], want[0], name)
            self.assertEqual(mine["spans"], want[1], name)
            compared += 1
        return compared

    def test_every_template_with_every_conversation(self):
        templates = {os.path.basename(p): source(p)
                     for p in sorted(glob.glob(os.path.join(HERE, "templates", "*.jinja")))}
        self.assertGreaterEqual(len(templates), 9)
        if qwen3_tokenizer() is not None:
            templates["Qwen3's own"] = self.tool(op="special", tokenizer=qwen3_tokenizer())["template"]
            self.assertIsNotNone(templates["Qwen3's own"])
        contexts = [{"messages": messages, **SPECIALS, **variables}
                    for messages in CONVERSATIONS.values() for variables in VARIABLES]
        for name, template in templates.items():
            with self.subTest(name):
                compared = self.compare(template, contexts, name)
                self.assertGreater(compared, len(contexts) // 4)  # most conversations do render

    def test_features(self):
        for template in FEATURES:
            with self.subTest(template):
                self.compare(template, [{"x": VALUE}], template)

    def test_known_differences(self):
        for template, expected in KNOWN_DIFFERENT.items():
            with self.subTest(template):
                got = self.tool(op="render", template=template, contexts=[{"x": VALUE}])
                mine = got["renders"][0] if "renders" in got else got
                self.assertEqual(mine.get("text", "ERROR"), expected)

    def test_golden_renders_of_the_families(self):
        """Texts written down from the public models' documentation, not computed here."""
        messages = CONVERSATIONS["reasoning in content"]
        if qwen3_tokenizer() is not None:
            template = self.tool(op="special", tokenizer=qwen3_tokenizer())["template"]
            got = self.tool(op="render", template=template, contexts=[{"messages": messages}])
            self.assertEqual(got["renders"][0]["text"],
                             "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n"
                             "A1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
                             "<think>\n\n</think>\n\nA2<|im_end|>\n")
        path = os.path.join(HERE, "templates", "deepseek_like.jinja")
        got = self.tool(op="render", template=source(path),
                        contexts=[{"messages": messages, "bos_token": "<bos>"}])
        self.assertEqual(got["renders"][0]["text"],
                         "<bos>S<｜User｜>Q1<｜Assistant｜>\n\nA1<｜end▁of▁sentence｜><｜User｜>Q2<｜Assistant｜>A2"
                         "<｜end▁of▁sentence｜>")

    def test_date(self):
        got = self.tool(op="render", template="{{ strftime_now('%Y-%m-%d') }}", contexts=[{}])
        today = datetime.date.today()
        self.assertIn(got["renders"][0]["text"], [str(today - datetime.timedelta(days=1)), str(today)])

    def test_errors_name_the_line(self):
        got = self.tool(op="render", template="a\n{{ raise_exception('why ' ~ x) }}", contexts=[{"x": 1}, {"x": 2}])
        self.assertEqual(got["renders"][0]["error"], "chat template, line 2: the template raised: why 1")
        got = self.tool(op="render", template="a\nb\n{% if %}", contexts=[{}])
        self.assertIn("line 3", got["error"])
        got = self.tool(op="render", template="{{ a }}", contexts=[[1]])
        self.assertIn("not a JSON object", got["renders"][0]["error"])

    def test_text_with_our_markers_is_refused_not_misread(self):
        template = "{% generation %}{{ a }}{% endgeneration %}"
        got = self.tool(op="render", template=template, contexts=[{"a": "x\U0010fffcy"}, {"a": "fine"}])
        self.assertIn("U+10FFFC", got["renders"][0]["error"])
        self.assertEqual(got["renders"][1], {"text": "fine", "spans": [[0, 4]]})


if __name__ == "__main__":
    unittest.main(verbosity=2)
