"""From text to batches of token windows.

    files        files of text, packed or not, and what their bytes mean
    zstd         files packed with Zstandard
    units        the documents of one file
    corpus       documents of a source
    pieces       what all tokenizers have: the bytes of every token, decoding, streaming
    byte_pairs   tokenizers of the library of that name
    tokenizer    SentencePiece; which tokenizer a folder has
    tokenized    the folder of token shards, built once and checked whenever it is used
    shard        a file of tokens that is watched while it is read
    windows      documents packed into windows
    heldout      documents that no training saw, chosen by a hash
    recall       the associative recall task
    synthetic    tasks that need memory and no text: recall, copying, formal languages
    pipeline     from raw text to shards, by a recipe
    loader       batches for training and evaluation
    __main__     python -m hope_jax.data: builds, verifies, shows
"""
