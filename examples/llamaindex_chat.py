"""LlamaIndex against a running `quire serve`: a chat and a stream. Usage: llamaindex_chat.py [BASE_URL]"""

import sys

import openai
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = openai.OpenAI(base_url=URL, api_key="none").models.list().data[0].id

llm = OpenAILike(
    api_base=URL, api_key="none", model=MODEL, is_chat_model=True, context_window=1024, max_tokens=48, temperature=0
)
messages = [
    ChatMessage(role="system", content="You tell stories."),
    ChatMessage(role="user", content="It was a dark and stormy night."),
]
print("answer:", llm.chat(messages).message.content)
print("stream:", end=" ")
for chunk in llm.stream_chat(messages):
    print(chunk.delta, end="", flush=True)
print()
print("completion:", OpenAILike(api_base=URL, api_key="none", model=MODEL, max_tokens=16).complete("My name is").text)
