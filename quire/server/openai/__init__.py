"""OpenAI's endpoints: chat completions, completions, responses, models; /tokenize and /detokenize in vLLM's dialect.

Tools, thoughts, frames and prompts of a dialogue are here, too: Anthropic's messages are translated into chats.
"""
