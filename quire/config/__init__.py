"""What the user asks for, and what comes of it.

`fields` has the settings (one field = one flag = one environment name = one file key = one line of documentation),
`sources` collects them, `resolve` turns them with the facts of model and platform into a `RunSpec` without "auto".
"""
