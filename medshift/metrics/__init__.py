"""Metrics: tensors in, one number per image or per set out; the mathematics is torchmetrics' and scipy's wherever it can be."""
