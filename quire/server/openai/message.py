"""What a chat completion tells of a parsed answer: the message, whole or as deltas of a stream, and why it ended."""

from quire.chat.events import Arguments, CallBroken, CallStart, Content, Event, Reasoning, fold
from quire.messages.outputs import CompletionOutput
from quire.server.conversation.answer_parser import ChoiceParser

Delta = dict[str, object]


def message_of(parser: ChoiceParser, completion: CompletionOutput) -> Delta:
    """The whole message of a finished completion."""
    parsed = fold(parser.events(completion))
    message: Delta = {"role": "assistant", "content": parsed.content, "refusal": None}
    if parsed.reasoning:
        message |= {"reasoning": parsed.reasoning, "reasoning_content": parsed.reasoning}
    if parsed.calls:
        message["content"] = parsed.content or None
        message["tool_calls"] = [
            {"id": parser.call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in parsed.calls
        ]
    return message


def deltas_of(parser: ChoiceParser, completion: CompletionOutput) -> list[Delta]:
    """What is new in a stream."""
    return [_delta(parser, event) for event in parser.events(completion)]


def finish_reason_of(parser: ChoiceParser, completion: CompletionOutput) -> str | None:
    """Why it ended: `tool_calls` where it chose to call tools and was not cut. To be asked when it has been parsed."""
    called = completion.finish_reason == "stop" and parser.chose_to_call()
    return "tool_calls" if called else completion.finish_reason


def _delta(parser: ChoiceParser, event: Event) -> Delta:
    match event:
        case Content(text) | CallBroken(_, text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning": text, "reasoning_content": text}
        case CallStart(index, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": parser.call_id(), "type": "function", "function": function}]}
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
