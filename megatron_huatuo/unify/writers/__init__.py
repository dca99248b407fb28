"""Who writes pairs: a model, a template, a second model that answers; their prompts, styles and settings."""
