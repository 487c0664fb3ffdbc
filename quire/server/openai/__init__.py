"""OpenAI's dialect: chat completions, completions, models; and /tokenize and /detokenize, in vLLM's."""
