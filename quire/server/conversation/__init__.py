"""What all dialects of conversations share: what is asked, as a chat, and what is answered, as events and blocks.

Tools, thoughts, sampling and forms of answers as clients ask for them (completions read the last two as well), the
rendered prompt, the grammar of an answer and its parser. Knows no dialect: `openai`, `responses`, `anthropic`.
"""
