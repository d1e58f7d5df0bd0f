"""Tables and pictures of results.

    tables       markdown
    comparison   models trained on the same batches: table and curves
    gain         what memory gains by the position in a document
    memorized    what a text did to each memory
"""
