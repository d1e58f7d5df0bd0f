"""Texts that are read and written, one stream each, with what the model remembers of them.

    reader          a chunk: read, be told what came next, write
    backward        the outer gradient of chunks, as far as it is to flow
    sequences       a batch of whole sequences: read, or learned from
    study           a text that is learned at test time
    stream          a text that is generated
    chat            a conversation by the model's own template
    conversation    the fast state of a stream on disk
    merging         what a stream has learned, in the parameters
    opening         a run opened for reading
"""
