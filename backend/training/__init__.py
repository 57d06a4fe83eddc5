"""Training of every shipped model; nothing here is needed to run the app."""
