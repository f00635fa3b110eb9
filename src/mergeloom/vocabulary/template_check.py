"""Whether a chat template is one: parsed, and rendered once on a conversation."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mergeloom.errors import Problem, RecipeError

if TYPE_CHECKING:
    from mergeloom.vocabulary.template_sandbox import Sandbox

# Words no template has a reason to change, and no marks that could be taken for tokens.
_SYSTEM = {"role": "system", "content": "Answer briefly."}
_QUESTION = {"role": "user", "content": "What is the sum of two and three?"}
_ANSWER = {"role": "assistant", "content": "Five."}
_LAST = {"role": "user", "content": "And of four and six?"}
_CONVERSATIONS = ([_SYSTEM, _QUESTION, _ANSWER, _LAST], [_QUESTION, _ANSWER, _LAST], [_LAST])
# What transformers passes besides the messages. Plain words for the special tokens, so that a
# token's name in the output comes from the template.
_VARIABLES = {
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "BOS",
    "eos_token": "EOS",
    "unk_token": "UNK",
    "pad_token": "PAD",
}
_TOKEN = re.compile(
    r"<[|｜][^\s<>|｜]{1,60}[|｜]?>|<[^\s<>|｜]{1,60}[|｜]>"  # <|im_start|>, <｜User｜>, <|turn>
    r"|\[\|[^\s\[\]|]{1,60}\|\]"  # [|user|]
    r"|\[/?[A-Z][A-Z_]{1,60}\]"  # [INST], [/TOOL_CALLS]
    r"|</?s>|<(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio)>"
    r"|<(?:start|begin|end)_of_[a-z_]{1,60}>"
)


def check_template(text: str, origin: str = "the template") -> None:
    """Refuse a text that is no working chat template.

    It must parse, and must print the messages of a conversation. A template may refuse some
    conversations through ``raise_exception`` (many know no system message) or want the content
    of a message as a list of parts; it has to take one of those that are tried. It is run in
    a sandbox that bounds its work (see ``template_sandbox``).

    Args:
        text: the Jinja text.
        origin: what messages call it.

    Raises:
        RecipeError: with the line of the template and the reason.
    """
    _printed(text, origin)


def needed_tokens(text: str) -> tuple[str, ...]:
    """The special tokens a template writes by name, in order: ``<|im_start|>``, ``[INST]``, ...

    They are found in its text and in what it prints of a conversation, where names are that it
    puts together (``'<|' + role + '|>'``). ``bos_token`` and the like are no names.

    Raises:
        RecipeError: the template does not pass :func:`check_template`.
    """
    from mergeloom.vocabulary.template_sandbox import literals

    printed = _printed(text, "the template")
    found = [token for piece in (*literals(text), printed) for token in _TOKEN.findall(piece)]
    return tuple(dict.fromkeys(found))


def _printed(text: str, origin: str) -> str:
    """What a template prints of the first conversation that it takes."""
    from mergeloom.vocabulary.template_sandbox import RefusedError, Sandbox, TooMuchWorkError

    sandbox = _parsed(text, origin, Sandbox)
    outcomes: list[Exception | None] = []  # None: rendered, but without the messages
    for messages in _conversations():
        try:
            printed = sandbox.render({**_VARIABLES, "messages": messages})
        except TooMuchWorkError as error:
            raise RecipeError(_why(text, origin, error)) from None
        except Exception as error:  # noqa: BLE001 (a stranger's program; told below)
            outcomes.append(error)
        else:
            if _LAST["content"] in printed:
                return printed
            outcomes.append(None)
    told = [outcome for outcome in outcomes if not isinstance(outcome, RefusedError)]
    raise RecipeError(_why(text, origin, (told or outcomes)[0]))


def _parsed(text: str, origin: str, sandbox: type[Sandbox]) -> Sandbox:
    from mergeloom.vocabulary.template_sandbox import LONGEST

    if len(text) > LONGEST:
        message = f"{origin} has {len(text):,} characters; {LONGEST:,} are the most that is read"
        raise RecipeError(Problem("chat_template", message))
    try:
        text.encode()
        return sandbox(text)
    except Exception as error:  # noqa: BLE001 (whatever jinja2 and Python's compiler raise)
        raise RecipeError(_why(text, origin, error)) from None


def _conversations() -> Iterator[list[dict[str, Any]]]:
    """Those tried: with a system message and without, content as text and as parts."""
    for messages in _CONVERSATIONS:
        yield [dict(message) for message in messages]
    for messages in _CONVERSATIONS:
        yield [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]


def _why(text: str, origin: str, error: Exception | None) -> Problem:
    from jinja2.exceptions import TemplateSyntaxError

    from mergeloom.vocabulary.template_sandbox import (
        WORK,
        RefusedError,
        TooMuchWorkError,
        undeclared,
    )

    if error is None:
        known = (*_VARIABLES, "messages")
        unknown = ", ".join(name for name in undeclared(text) if name not in known)
        return Problem(
            "chat_template",
            f"{origin} does not print the messages of a conversation",
            "They are in the list messages, each with role and content"
            + (f"; nothing gives it {unknown}." if unknown else "."),
        )
    if isinstance(error, RefusedError):
        message = f"{origin} refuses every conversation: {_line_of_text(error)}"
        return Problem("chat_template", message)
    if isinstance(error, TemplateSyntaxError):
        message = f"line {error.lineno} of {origin}: {_line_of_text(error.message)}"
        return Problem("chat_template", message)
    line = _line(error)
    place = f"line {line} of {origin}: " if line else f"{origin}: "
    if isinstance(error, TooMuchWorkError):
        reason = f"it takes more work than any chat template needs (over {WORK:,} steps)"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply, or calls itself without end"
    elif isinstance(error, UnicodeEncodeError):
        reason = "it holds half a character (a lone surrogate)"
    else:
        reason = f"it cannot be rendered: {_line_of_text(error) or type(error).__name__}"
    return Problem("chat_template", place + reason)


def _line(error: Exception) -> int | None:
    """The line of the template an exception comes from, as jinja2 put it into the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return lines[-1] if lines else None


def _line_of_text(value: object) -> str:
    """A stranger's words as a part of one line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
