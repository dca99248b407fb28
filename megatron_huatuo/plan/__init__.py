"""What a run will need, before it runs: memory per GPU and time, from arithmetic alone."""
