"""The grammar of a whole answer: thoughts, calls of tools, content of a form; None where the model may write anything.

`tool_choice`, `strict`, `response_format`, and the state of the thoughts come together here, because one grammar rules
an answer from its first token to its last. What it accepts is what `StreamSplitter` takes apart again.
"""

import json

import msgspec

from quire.base.errors import RequestError
from quire.base.lark import ANY, expression, json_of
from quire.chat.grammar import Rules, Tool
from quire.messages.structured import StructuredOutputsParams
from quire.server.conversation.answer_parser import markers_of
from quire.server.conversation.reasoning import ReasoningState
from quire.server.conversation.tools import ToolSet
from quire.server.service import Service

BUDGET = "thinking_token_budget"

_SPACE = r"/[ \n]{0,4}/"


def framed(
    service: Service,
    tool_set: ToolSet,
    form: StructuredOutputsParams | None,
    thinking: ReasoningState,
    budget: int | None,
) -> StructuredOutputsParams | None:
    """What an answer must be.

    Args:
        tool_set: the tools.
        form: of the content, as asked for.
        thinking: whether the answer begins with thoughts.
        budget: most tokens of thoughts.

    Raises:
        RequestError: what is asked for cannot be enforced for this model.
    """
    thinks = thinking in (ReasoningState.OPEN, ReasoningState.MAY)
    limited = budget is not None and thinks
    held = tool_set.required or tool_set.strict
    if not (held or limited or (form is not None and (thinks or tool_set.listed))):
        return form
    own = form is not None and (form.grammar is not None or form.structural_tag is not None)
    if own and not (thinks or tool_set.listed):
        return form
    rules = Rules(lambda text: _special(service, text), markers_of(service, tool_set), service.template_source)
    body = _body(rules, service, tool_set, form)
    if thinks:
        body = f"{_thoughts(rules, service, thinking, budget)} {body}"
    source = rules.source(body)
    if form is not None and own and not tool_set.required:
        return msgspec.structs.replace(form, frame=source)
    return StructuredOutputsParams(grammar=source)


def limits_thoughts(service: Service) -> bool:
    """Whether a budget of thoughts can be kept to: their end is one token."""
    return service.reasoning_format is not None and _special(service, service.reasoning_format.end) is not None


def _body(rules: Rules, service: Service, tool_set: ToolSet, form: StructuredOutputsParams | None) -> str:
    """What follows the thoughts."""
    lead = service.reasoning_format.lead if service.reasoning_format else ""
    content = f"{rules.literal(lead)} {_content(rules, form)}" if form is not None else None
    format = service.tool_format
    if not tool_set.listed or format is None:
        return content or _free(rules, service, tool_set)
    if format.calls is None:
        if tool_set.required or tool_set.strict:
            raise _cannot(
                "tools", "this model's way to call tools cannot be enforced; leave out strict, or say 'auto'."
            )
        raise _cannot("tools", "this model's way to call tools cannot be combined with response_format.")
    tools = [Tool(name, schema, name in tool_set.strict) for name, schema in tool_set.schemas.items()]
    if tool_set.required:
        return format.calls(rules, tools, tool_set.parallel)
    if content is not None:
        return rules.one_of([rules.rule(format.calls(rules, tools, tool_set.parallel)), rules.rule(content)])
    return _auto(rules, service, tool_set, tools) if tool_set.strict else _free(rules, service, tool_set)


def _auto(rules: Rules, service: Service, tool_set: ToolSet, tools: list[Tool]) -> str:
    """Words and calls in any order; what begins as a call must become one."""
    format = service.tool_format
    assert format is not None and format.calls is not None
    if format.bare:
        several = rules.rule(format.calls(rules, tools, tool_set.parallel))
        plain = rules.rule(f"/([^ \\n\\{format.bare}](?s:.*))?/")
        return rules.one_of([f"{_SPACE} {several}", plain])
    one = format.calls(rules, tools, False)
    if service.reasoning_format is not None and service.reasoning_format.channels is not None:
        return _channels(rules, one)
    text = rules.text_but(format.openers)
    if one.lstrip("( ").startswith("<["):
        return f"( {text} {one} )* {text}"
    if not one.startswith('"'):
        raise _cannot("tools", "strict cannot be enforced with this model's tokenizer; leave it out.")
    # The words and the beginning of a call are one lexeme, or the words would go on through the call.
    first, end = json.JSONDecoder().raw_decode(one)
    lead = rules.rule(f"{text} {json.dumps(first, ensure_ascii=False)}", "[lazy]")
    return f"( {lead} {one[end:]} )* {text}"


def _channels(rules: Rules, call: str) -> str:
    """Messages of an answer that names its channels."""
    named = f"{rules.literal('<|channel|>')} /analysis|commentary|final/ {rules.literal('<|message|>')} {ANY}"
    message = rules.rule(f"{named} | {call}")
    return f"{message} ( {rules.literal('<|end|><|start|>assistant')} {message} )*"


def _free(rules: Rules, service: Service, tool_set: ToolSet) -> str:
    """Any text, with the markers that may stand in it."""
    ids = sorted({id for marker in markers_of(service, tool_set) if (id := rules.token(marker)) is not None})
    text = rules.rule("/(?s:.+)/")
    return f"( {text} | <[{','.join(map(str, ids))}]> )*" if ids else f"{text}?"


def _thoughts(rules: Rules, service: Service, thinking: ReasoningState, budget: int | None) -> str:
    format = service.reasoning_format
    assert format is not None
    if budget is not None and rules.token(format.end) is None:
        raise _cannot(BUDGET, "the end of this model's thoughts is no token of its own, so they cannot be limited.")
    inner = rules.literal(format.end) if budget == 0 else rules.until(format.end, budget)
    after = rules.literal(format.after) if format.after else _SPACE
    if thinking is ReasoningState.OPEN:
        return f"{inner} {after}"
    space = "" if format.after else _SPACE
    return f"{space} ( {rules.literal(format.start)} {inner} {after} )?"


def _content(rules: Rules, form: StructuredOutputsParams) -> str:
    if form.regex is not None:
        return expression(form.regex)
    if form.choice is not None:
        return rules.one_of([json.dumps(text, ensure_ascii=False) for text in form.choice])
    if form.grammar is not None or form.structural_tag is not None:
        return "@form"
    return json_of(form.schema(), spaced=not form.disable_any_whitespace)


def _special(service: Service, text: str) -> int | None:
    """The id of a text that the tokenizer, and the grammar library, take for a special token."""
    tokenizer = service.engine.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and (ids[0] in tokenizer.special_ids or (text.startswith("<") and text.endswith(">"))):
        return ids[0]
    return None


def _cannot(param: str, why: str) -> RequestError:
    return RequestError(f"{param}: {why}", param, "unsupported_parameter")
