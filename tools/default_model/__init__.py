"""The parts of the recipe that makes the small model shipped with the package.

`corpus` cleans and splits the books, `conversations` cuts chats out of them, `network` and `optimiser` hold the
training forward and update, `trainer` runs one phase of the plan, `export` writes the checkpoint and `report` the
figures. `tools/train_default_model.py` strings them together.
"""
