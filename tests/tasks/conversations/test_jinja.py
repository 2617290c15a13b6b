"""Chat templates render as transformers renders them, and reach nothing that its sandbox keeps from them."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError

from tasks.conversations.jinja import compiled

MESSAGES = [
    {"role": "user", "content": " Hello <b> & 'you' "},
    {
        "role": "assistant",
        "content": "Hi.",
        "items": "a key",
        "tool_calls": [{"name": "f", "arguments": {"ä": [1, None]}}],
    },
]
SAME = [
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ m.role }}{{ m.content.strip() }}{% endfor %}",
    "{% for m in messages %}{{ m.items() | list | length }}{{ m['items'] }}{{ m.get('role') }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.no }}",
    "{{ messages[1].tool_calls | tojson }}{{ messages[1].tool_calls | tojson(indent=2) }}{{ messages | tojson }}",
    "{% generation %}{{ messages[1].content }}{% endgeneration %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "{{ messages[0].content.upper() }}{{ '%s' | format('x') }}{{ messages[0].content.split(' ') }}",
    "{{ messages[0].absent is defined }}{{ messages[0].absent.deeper is defined }}",
    "{% if true %}\n  a\n{% endif %}\n  b",
]
FORBIDDEN = [
    "{{ messages.__class__ }}",
    "{{ messages[0].__class__.__mro__ }}",
    "{{ messages[0].content.__class__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages[0].content.format.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{% set ns = namespace() %}{{ ns.__class__ }}{{ ns.__init__.__globals__ }}",
    "{% for m in messages %}{{ loop.__class__ }}{{ loop._iterable }}{% endfor %}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
]


def outcome(render: object) -> tuple[str, str]:
    try:
        return "text", render()  # type: ignore[operator]
    except (TemplateError, TypeError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("source", [*SAME, *FORBIDDEN, "{{ raise_exception('no') }}", "{{ messages[0].no.no }}"])
def test_a_template_gives_what_transformers_gives(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    ours = outcome(lambda: compiled(source).render(messages=MESSAGES, tools=None, documents=None))
    theirs = outcome(lambda: render_jinja_template([MESSAGES], chat_template=source)[0][0])
    assert ours == theirs


@pytest.mark.parametrize("source", FORBIDDEN)
def test_a_template_reaches_no_insides_and_changes_no_message(source: str) -> None:
    before = [dict(message) for message in MESSAGES]
    try:
        text = compiled(source).render(messages=MESSAGES)
    except TemplateError:
        text = ""
    assert "class" not in text
    assert "globals" not in text
    assert before == MESSAGES
