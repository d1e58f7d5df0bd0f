"""Memories that are written while a stream is read: pure functions, which know no model or file.

    products         matrix products with tidy gradients
    chunks           a loop over the chunks of a call
    delta_rule       chunk-parallel writes of rank-one updates
    recurrence       linear memories read by every token, in chunks
    write_rule       options, step sizes and the bound of self-modifying memories
    linear_memory    memories M(z) = W z: read and write one chunk
    mlp_memory       memories M(z) = z + W1 gelu(W2 z): the same
    self_modifying   the operator on either kind: reads and writes a call chunk by chunk
    neural_memory    Titans' memory: steps with momentum and forgetting, of any depth
    inner_rules      inner optimizers, as optax transforms that see a layer's inputs
    level            what a level computes, and its gradient token by token
    level_write      when and how a level is written in a stream
    closed_form      several updates of a level in a chunk at once
    teach_signal     the teach signal, its schedule and the surprise
"""
