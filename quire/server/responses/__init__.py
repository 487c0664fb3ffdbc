"""OpenAI's younger dialect: responses, whole, streamed or made in the background, and their memory."""
