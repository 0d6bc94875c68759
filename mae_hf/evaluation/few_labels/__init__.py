"""Measure an encoder with few labels: label sets, methods and results."""
