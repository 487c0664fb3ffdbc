"""The brain: who runs, and how many tokens of each sequence a step computes. Pure Python, no torch, no clock.

It decides and never touches a tensor; it speaks to the ranks only through `StepPlan` and `StepResult`.
"""
