"""The Hugging Face Hub: model files that others publish are fetched, and the project's own are published."""
