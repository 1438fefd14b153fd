"""Chat templates are programs of others: limits of time, memory and text, a fixed date, and pieces that are kept."""

from __future__ import annotations

import time

import pytest
from tiny_export import edit_json, save_export
from transformers import PreTrainedTokenizerBase

from pixel_sail.data import chat_template
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.chat_template import TemplateError, applied
from pixel_sail.serve.predictor import Predictor
from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|im_start|>system\\n\\nToday Date: " + date_string + "<|im_end|>" }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}no{% endif %}{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""  # noqa: E501
# As Qwen3's: only the last answer keeps its thought, and a question that wants none asks behind an empty one.
QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
PAST = "('it' if message['role'] == 'assistant' and not loop.last else message['role']) +"
CLEVER = """{% set ns = namespace(count=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{% set ns.count = ns.count + 1 %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% else %}{{ {'n': ns.count, 'é': 1} | tojson }}{{ m.content }}{% endif %}{% endfor %}{{ dict(a=1).a }}"""  # noqa: E501
CHATS = [
    ([{"role": "user", "content": "What is it?"}], True),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "ü"}],
        False,
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer([" the red box"] * 3, 300)
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, QWEN, CLEVER, LLAMA.replace("strftime_now", "nothing")])
def test_as_transformers_writes_it(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    expected = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begun)
        for messages, begun in CHATS
    ]
    assert applied(tokenizer, CHATS) == expected


def test_the_date_is_fixed(tokenizer: PreTrainedTokenizerBase, capsys) -> None:
    tokenizer.chat_template = LLAMA
    chat = ChatFormat.of("template", tokenizer)
    assert "Today Date: 26 Jul 2024" in chat.before(0, "x") and "2024" not in chat.before(1, "x")
    assert "the chat template writes the date of the day; a fixed date is written instead" in capsys.readouterr().err
    tokenizer.chat_template = QWEN
    ChatFormat.of("template", tokenizer)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "computes longer than 1 s"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * 10**10 }}", "more than .* bytes of memory"),
        ("{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxx' }}{% endfor %}", "writes more than .* characters"),
        ("{{ 'x'.ljust(10**12) }}", "memory|OverflowError"),
        ("{" + "{" + "(" * 5000 + "1" + ")" * 5000 + "}" + "}", "nested too deep|breaks its reader"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.mkdir('x') }}", "SecurityError"),
        ("x" * 600_000, "has 600,000 characters; 500,000 are accepted"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}<e>", "cannot be continued turn by turn"),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "changes the text of the message 'QUESTION-ONE'"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes nothing that ends an answer"),
        (
            QWEN + "{% if messages|length > 1 and add_generation_prompt %}!{% endif %}",
            "one text in every turn is expected",
        ),
        (QWEN + "{% if add_generation_prompt %}<think>\n{% endif %}", "cannot be continued turn by turn"),
        (QWEN.replace("message['role'] +", PAST), "turn by turn"),
    ],
)
def test_templates_that_are_refused(tokenizer: PreTrainedTokenizerBase, template: str, message: str) -> None:
    tokenizer.chat_template = template
    start = time.monotonic()
    with pytest.raises(TemplateError, match=message):
        ChatFormat.of("template", tokenizer)
    assert time.monotonic() - start < 30


def test_a_model_that_can_think_is_asked_for_the_answer_in_every_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = QWEN3
    chat = ChatFormat.of("template", tokenizer)
    asked = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert chat.before(0, "a") == f"<|im_start|>user\na{asked}"
    assert chat.before(1, "b") == f"\n<|im_start|>user\nb{asked}" and chat.end == "<|im_end|>"
    one = [{"role": "user", "content": "a"}]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    assert chat.before(0, "a") == tokenizer.apply_chat_template(one, **options)
    answered = tokenizer.apply_chat_template([*one, {"role": "assistant", "content": "x"}], tokenize=False)
    assert chat.before(0, "a") + chat.answer("x") + chat.end == answered.rstrip("\n")


def test_the_pieces_are_kept_and_the_template_is_not_run_again(tmp_path, monkeypatch) -> None:
    export = save_export(tmp_path / "export")
    before = Predictor.from_pretrained(export, "cpu").encoder
    for file in (export / "chat_template.jinja", export / "checksums.json"):
        file.unlink(missing_ok=True)
    edit_json(export / "tokenizer_config.json", lambda values: values.update(chat_template="{% for"))
    after = Predictor.from_pretrained(export, "cpu").encoder
    assert after.chat == before.chat and after.chat.name == "template"
    edit_json(export / "config.json", lambda values: values.pop("chat_pieces"))  # as older folders are
    with pytest.raises(TemplateError, match=f"{export}: .*cannot be applied"):
        Predictor.from_pretrained(export, "cpu")
    edit_json(export / "tokenizer_config.json", lambda values: values.update(chat_template=CHAT_TEMPLATE))
    assert Predictor.from_pretrained(export, "cpu").encoder.chat == before.chat
