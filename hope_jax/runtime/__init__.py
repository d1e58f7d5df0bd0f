"""How programs run: beginning and end, processes, signals, time, and what is written down.

    program     flags, how a result was made, errors of one line
    startup     what programs that use jax share: devices, kept compilations, talking to a person
    hosts       many processes: how they meet, agree and end
    lock        one process at a time
    signals     being told to stop
    goodput     where the time of a run went
    metrics     JSON lines, speed
    boards      where they are shown: TensorBoard, Weights & Biases, Trackio
"""
