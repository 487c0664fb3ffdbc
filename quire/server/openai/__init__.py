"""OpenAI's endpoints: chat completions, completions, models; and /tokenize and /detokenize in vLLM's dialect."""
