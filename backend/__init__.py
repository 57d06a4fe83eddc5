"""Everything behind the app: models, methods, training and the command line; never imports gradio."""
