"""LangChain's embeddings against `quire serve` with a model that gives vectors (all-MiniLM-L6-v2, ...): a small search.

Usage: langchain_embeddings.py [BASE_URL]
"""

import sys

import openai
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = openai.OpenAI(base_url=URL, api_key="none").models.list().data[0].id
TEXTS = ["The cat sleeps on the warm roof.", "Stock prices fell again on Monday.", "A train leaves for Lyon at nine."]

# It would count tokens with OpenAI's tokenizer; the server counts with the model's own.
embeddings = OpenAIEmbeddings(base_url=URL, api_key="none", model=MODEL, check_embedding_ctx_length=False)
print("values:", len(embeddings.embed_query("a question")))
store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
print("pets:", store.similarity_search("Where are pets lying?", k=1)[0].page_content)
print("markets:", store.similarity_search("How did the market do?", k=1)[0].page_content)
