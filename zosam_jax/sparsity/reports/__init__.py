"""Reports on masks: weights, FLOPs, collapsed layers."""
