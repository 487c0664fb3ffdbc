"""LangChain against a running server: chat, stream, object, tool. Usage: langchain_chat.py [BASE_URL]

`quire serve MODEL` does for a model that knows tools; the one that ships with quire is told how to write calls:
`quire serve --tool-call-parser hermes`.
"""

import sys
from typing import Annotated

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = openai.OpenAI(base_url=URL, api_key="none").models.list().data[0].id


class Person(BaseModel):
    """Somebody in a story."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@tool
def weather(city: Annotated[str, Field(max_length=20)], days: Annotated[int, Field(ge=0, le=9)]) -> str:
    """The weather of a city in so many days."""
    return f"sun in {city} in {days} days"


chat = ChatOpenAI(base_url=URL, api_key="none", model=MODEL, max_tokens=48, temperature=0)
messages = [SystemMessage("You tell stories."), HumanMessage("It was a dark and stormy night.")]
answer = chat.invoke(messages)
print("answer:", answer.content)
print("tokens:", answer.usage_metadata["total_tokens"])

print("stream:", end=" ")
for chunk in chat.stream(messages):
    print(chunk.content, end="", flush=True)
print()

roomy = ChatOpenAI(base_url=URL, api_key="none", model=MODEL, max_tokens=300, temperature=0)
print("object:", roomy.with_structured_output(Person, method="json_schema").invoke(messages))

# `any` is `required`: the server holds the model to a call of the tool and to its schema.
called = roomy.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke(messages)
for call in called.tool_calls:
    print("call:", call["name"], sorted(call["args"]))
