"""HOPE language models of Nested Learning in JAX:
memories that write themselves while they read.
"""
