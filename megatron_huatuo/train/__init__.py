"""Training: settings, model and optimizer, the step, the loop, what is logged and what is saved."""
