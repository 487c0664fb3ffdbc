"""The command line. `main` knows the commands by name only; each one is a module with `add_arguments` and `run`.

Nothing here imports torch: commands that compute ask the engine, which loads it then.
"""
