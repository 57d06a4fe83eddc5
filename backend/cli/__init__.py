"""The command line: `python -m backend COMMAND`, the same backend as the app."""
