"""Chat templates: Jinja programs that write a conversation as one text.

They are run as the `transformers` library runs them, so that a template means the same here and there. A template comes with
somebody's model: it is a stranger's program, and sees nothing but the messages and the names of special tokens, from inside
a sandbox in which it can neither fill the memory nor loop for ever (`luban.data._sandbox`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from luban.data._messages import Message, UnreadableError
from luban.errors import DataError

if TYPE_CHECKING:
    import jinja2

__all__ = ["BUILT_IN", "render", "special_tokens"]

_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

BUILT_IN = {
    # OpenAI, 2023; what most open models are tuned on.
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Llama 3 (Grattafiori et al., 2024).
    "llama3": (
        "{{ '<|begin_of_text|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    # Alpaca (Taori et al., 2023): headings in plain words, so that no token is needed but the one that ends a text.
    "alpaca": (
        "{% if not messages or messages[0]['role'] != 'system' %}{{ '" + _ALPACA + "\\n\\n' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
        "{% elif message['role'] == 'tool' %}{{ '### Input:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    # A line each, without a word of its own.
    "plain": (
        "{% for message in messages %}"
        "{{ message['content'] + (eos_token if message['role'] == 'assistant' else '') + '\\n' }}"
        "{% endfor %}"
    ),
}
"""Name → source."""

_LONGEST = 2**18  # characters of a template; those of today have some ten thousand
_FIXED, _EACH = 2**24, 1024
"""Characters that a template may make in all: some, and so many for each character of the conversation."""

_SPECIAL = re.compile(r"<\|[^|<>\s'\"]{1,40}\|>")


def special_tokens(source: str) -> list[str]:
    """Return the tokens that a template writes out by name.

    Example:
        >>> special_tokens(BUILT_IN["chatml"])
        ['<|im_start|>', '<|im_end|>']
    """
    return list(dict.fromkeys(_SPECIAL.findall(source)))


def render(
    source: str,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    tokens: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> str:
    """Return a conversation as one text.

    Args:
        source: of the template.
        messages: in order.
        prompt: whether an answer is to follow: its opening is added.
        tokens: names of special tokens by the variable that the template knows (``bos_token``, ``eos_token``).
        now: what the template takes for the present.

    Raises:
        DataError: if the template is no Jinja.
        UnreadableError: if the template refuses the conversation, or fails at it.

    Example:
        >>> render(BUILT_IN["plain"], [{"role": "user", "content": "1 + 1"}], prompt=True)
        '1 + 1\\n'
    """
    from luban.data._sandbox import budget

    template = _compiled(source)
    moment = now or datetime.now()
    size = sum(len(one["content"]) for one in messages)
    try:
        with budget(_FIXED + _EACH * size):
            return template.render(
                messages=messages,
                add_generation_prompt=prompt,
                tools=None,
                documents=None,
                strftime_now=moment.strftime,
                **(tokens or {}),
            )
    except Exception as error:  # a template is somebody's program, and may fail in any way
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UnreadableError(f"the template refuses it: {reason}") from None


@cache
def _compiled(source: str) -> jinja2.Template:
    import jinja2

    if len(source) > _LONGEST:
        raise DataError(
            f"the chat template has {len(source):,} characters, and at most {_LONGEST:,} are read"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the chat template is no Jinja (line {error.lineno}: {error.message})") from None
    except (SyntaxError, RecursionError, MemoryError) as error:  # of the Python that Jinja makes of it
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"the chat template is nested too deeply to be compiled ({reason})") from None


@cache
def _environment() -> jinja2.Environment:
    from luban.data._sandbox import Bounded

    return Bounded()
