"""Metrics: tensors in, one number per image or per set out; libraries do the mathematics wherever they can."""
