"""How families of models write tool calls and thoughts: a file per family, data and a small parser."""
