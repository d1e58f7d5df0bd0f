"""Texts that are read and written, one stream each, with what the model remembers of them.

    reader          a chunk: read, be told what came next, write
    backward        the outer gradient of chunks, as far as it is to flow
    sequences       a batch of whole sequences: read, or learned from
    study           a text that is learned at test time
    stream          a text that is generated
    conversation    the fast state of a stream on disk
    opening         a run opened for reading
"""
