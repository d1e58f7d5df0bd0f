"""Tables and pictures of results.

    tables       markdown
    gain         what memory gains by the position in a document
    memorized    what a text did to each memory
"""
