"""Tables and pictures of results.

    tables       markdown
    comparison   models trained on the same batches: table and curves
    page         results of evaluations as one page of HTML
    heatmap      what is found in contexts, by their length and its depth
    learned      what is learned one after the other: a matrix of losses, curves of accuracies
    gain         what memory gains by the position in a document
    document     a page without server or network: sections, pictures, tables
    runs         pages of runs and checkpoints
    memorized_text   a text, token by token, by what was learned of it
    memorized    what a text did to each memory
"""
