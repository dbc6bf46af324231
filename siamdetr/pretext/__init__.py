"""Pretext tasks: what a detector learns from images without labels.

One method, one file, one entry in `registry.py`.
"""
