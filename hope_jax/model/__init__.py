"""The language model: its parts, its state, what it writes, and on which devices it lies.

    contract         what a token mixer must offer; a row of the table of parameters
    mixers           the table of token mixers
    parameters       the table of parameters: axes, optimizer group, exported name
    state            FastState (per stream) and TrainState
    slots            where a call's tokens go: documents, positions, chunks, padding
    layers           convolution, initial values
    blockwise        causal attention of long sequences, in blocks
    attention        softmax attention, its cache
    selfmod          self-modifying Titans
    gru              gated recurrent unit
    projections      what linear memories have around them
    gated_deltanet   the gated delta rule
    mamba            selective state space
    titans           Titans' neural memory
    titans_mac       its answers as context of attention
    mlp              gated MLP
    cms              continuum memory system
    titan            the Titan memory of the hybrids and its self-modifier
    plan             what a configuration writes while it reads: memories, layers, how often
    axes             logical axes, and what a program says of them inside
    sharding         which device holds what: from the table to a mesh of devices
    checks           what values of a configuration make sense together
    block            token mixer, Titan memory and channel mixer of a layer
    stacks           trees of stacked layers, cut into periods of a pattern
    lm               the language model
"""
