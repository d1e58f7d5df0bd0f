"""From raw text to shards, at any size: pip install 'hope_jax[data]'.

    recipe           from where, through which filters, into which shards
    build            all stages, in order
    stages           tasks of a stage, each done once, and how far they are
    parts            the files that one task reads
    store            files that are whole or not there
    refine           the stages from sources to documents
    filters          rules of Gopher and C4, languages
    words            words as numbers
    contamination    words in a row of an evaluation's texts
    near             near duplicates by MinHash
    tokens           the stages from documents to tokenizer and shards
    manifest         what was made from what; whether it still is
    page             a page that shows it
    coverage         whether the tokenizer reads a text as well as it did
"""
