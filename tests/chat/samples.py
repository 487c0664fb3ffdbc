"""Chat templates in the styles that public models use, written for these tests, and conversations for them."""

CHATML = """{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message['content'] is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

# Header tokens around the role, texts trimmed, a date, tools as JSON.
HEADERS = """{{- bos_token }}
{%- if tools is not none %}{{- '<|im_start|>tools\\n' + tools | tojson(indent=2) + '<|im_end|>' }}{%- endif %}
{%- set system_message = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|im_start|>system<|im_end|>\\n\\nToday: ' + strftime_now('%Y') + '\\n\\n' + system_message + '<|endoftext|>' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' + message['content'] | trim + '<|endoftext|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_end|>\\n\\n' }}{%- endif %}"""

# Instruction brackets, roles that must alternate, eos after each answer.
BRACKETS = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{% endif %}{% endfor %}"""

# A role of another name, a namespace, break and continue, no system role.
TURNS = """{{ bos_token }}{% set ns = namespace(seen=false) %}
{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% if message.content == 'skip' %}{% continue %}{% endif %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<|im_start|>' ~ role ~ '\n' ~ (message.content | trim) ~ '<|im_end|>\n' }}
{% set ns.seen = true %}
{% endfor %}
{% if add_generation_prompt and ns.seen %}{{ '<|im_start|>model\n' }}{% endif %}"""

TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "brackets": BRACKETS, "turns": TURNS}

CONVERSATIONS = [
    [{"role": "user", "content": "hello world"}],
    [{"role": "user", "content": " naïve\n\ncafé "}, {"role": "assistant", "content": "Yes, 你好."}],
    [
        {"role": "user", "content": "What is the town?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNorwich. "},
        {"role": "user", "content": ""},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'tell {{ me }} "x" & <b>'}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "skip"}],
]

HANGING = "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}"
"""Numbers squared again and again: no long loop, no output, and one multiplication takes longer than anybody waits."""
