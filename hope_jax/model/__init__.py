"""The language model: its parts, its state, what it writes, and on which devices it lies.

    state        FastState (per stream) and TrainState
    slots        where a call's tokens go: documents, positions, chunks, padding
    layers       gated MLP, convolution, initial values
    attention    softmax attention, its cache
    selfmod      self-modifying Titans: the scan over chunks, and the module
    cms          continuum memory system
    titan        the Titan memory of the hybrids and its self-modifier
    plan         what a configuration writes while it reads: which memories, in which layers, how often
    sharding     which device holds what: rules from names to a mesh of devices
    checks       what values of a configuration make sense together
    lm           the language model
"""
