"""Everything behind the app: models, methods, training and the command line; never imports gradio."""

__version__ = "0.2.0"
