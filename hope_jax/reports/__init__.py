"""Tables and pictures of results.

    tables       markdown
    memorized    what a text did to each memory
"""
