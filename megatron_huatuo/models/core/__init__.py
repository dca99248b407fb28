"""What every backbone is built of: attention over packed rows, norms, heads, positions, and the count of FLOPs."""
