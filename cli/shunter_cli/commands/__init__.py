"""One module per group of commands; each has ``attach(app)``."""
