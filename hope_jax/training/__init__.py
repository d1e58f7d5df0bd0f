"""Training: one step, the loop around it, and what it costs.

    steps          one optimizer step, one evaluation step
    optimizer      the outer optimizer, as an optax chain
    matrices       parameters as it sees them: every matrix and every vector apart
    groups         of parameters: sizes, norms of gradients and updates
    activity       what does nothing: closed gates, dead levels
    spikes         bad steps change nothing
    loop           evaluate, save, draw, step, log
    evaluations    programs that score a step that is saved
    changes        a run that goes on with another configuration
    stack          a trained model gets levels: --init_from
    costs          parameters, FLOPs, memory, time to compile
    budget         as many tokens, FLOPs or seconds for several models
    collectives    what a device sends to others in a compiled program
"""
