"""LlamaIndex's embeddings against `quire serve` with a model that gives vectors: a small search.

Usage: llamaindex_embeddings.py [BASE_URL]
"""

import sys

import openai
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = openai.OpenAI(base_url=URL, api_key="none").models.list().data[0].id
TEXTS = ["The cat sleeps on the warm roof.", "Stock prices fell again on Monday.", "A train leaves for Lyon at nine."]

embedding = OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key="none", embed_batch_size=2)
vectors = embedding.get_text_embedding_batch(TEXTS)
print("values:", len(vectors[0]))
for topic, question in (("pets", "Where are pets lying?"), ("markets", "How did the market do?")):
    asked = embedding.get_query_embedding(question)
    best = max(range(len(TEXTS)), key=lambda i: embedding.similarity(asked, vectors[i]))
    print(f"{topic}:", TEXTS[best])
