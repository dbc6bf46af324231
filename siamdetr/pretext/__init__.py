"""Pretext tasks: pretraining a detector on images without labels.

One method, one file, one entry in `registry.py`.
"""
