"""How a template wants the content of a message: as a text, or as a list of parts that it loops over.

Found from the template's syntax tree, as vLLM does, so that nobody has to say it with a flag. Called by
`ChatTemplate`.
"""

from typing import Literal

from jinja2 import nodes

from quire.chat.messages import Message

ContentForm = Literal["text", "either", "parts"]
"""The template writes content as it is (text), loops over lists but writes texts (either), or always loops (parts)."""


def content_form(tree: nodes.Template) -> ContentForm:
    """What form of content a template reads."""
    names = _names_of_content(tree)
    if not any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For)):
        return "text"
    return "either" if any(test.name == "string" for test in tree.find_all(nodes.Test)) else "parts"


def _names_of_content(tree: nodes.Template) -> set[str]:
    """Variables that stand for a message's content: set from it, or a macro's argument of that name."""
    names = {arg.name for macro in tree.find_all(nodes.Macro) for arg in macro.args if arg.name == "content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    return names


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names


def fit_content(message: Message, form: ContentForm) -> Message:
    """The message with its content in the form that the template reads."""
    content = message.get("content")
    if form == "text" and isinstance(content, list):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    if form == "parts" and isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return message
