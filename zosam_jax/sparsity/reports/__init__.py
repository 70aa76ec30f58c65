"""What a mask amounts to: weights, FLOPs, layers that collapse."""
