"""HOPE language models of Nested Learning in JAX, whose memories write themselves as they read."""
