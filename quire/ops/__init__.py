"""What is computed. An op is defined by its reference in plain PyTorch, with sample inputs and a tolerance beside it.

How it is computed on a device is the business of `kernels/`; which provider runs is resolved once, while a model is
built.
"""
