"""What watches a run and never changes it: clocks, metrics and their files, guards, what was received and what is forgotten."""
