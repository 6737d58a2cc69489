"""Chat templates: Jinja programs that write a conversation as one text.

They are run as the `transformers` library runs them, so that a template means the same here and there. A template comes with
somebody's model: it is a stranger's program, and sees nothing but the messages and the names of special tokens, from inside
Jinja's sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

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

_LARGEST_POWER, _LARGEST_PRODUCT, _LONGEST_RANGE = 64, 2**20, 1000
"""What a template may compute: loops over numbers nest, and strings grow, faster than a sandbox can stop them."""


def _counted(*bounds: int) -> range:
    """A range of a thousand numbers at the most; templates count turns and tools with it."""
    numbers = range(*bounds)
    if len(numbers) > _LONGEST_RANGE:
        raise ValueError(
            f"a template may count to {_LONGEST_RANGE}, and this one counts {len(numbers)} numbers"
        )
    return numbers


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
    template = _compiled(source)
    moment = now or datetime.now()
    try:
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

    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the chat template is no Jinja (line {error.lineno}: {error.message})") from None


@cache
def _environment() -> jinja2.Environment:
    """Return the environment that `transformers` renders in (`utils/chat_template_utils.py`)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a model writes; here that is found without marks, and their inside is kept."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Return what stands between the marks."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        """One whose names give no way to Python's inner attributes."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            values = dict(*args, **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own escapes for HTML.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    class Bounded(ImmutableSandboxedEnvironment):
        """One in which a stranger's template can neither count to a billion nor fill the memory by a product."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(one) if isinstance(one, str | list | tuple) else abs(one) for one in (left, right)]
            if (operator == "**" and max(sizes) > _LARGEST_POWER) or sizes[0] * sizes[1] > _LARGEST_PRODUCT:
                raise jinja2.exceptions.SecurityError(f"a template may not compute so large a {operator}")
            return super().call_binop(context, operator, left, right)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals["range"] = _counted
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals["namespace"] = Namespace
    return environment
