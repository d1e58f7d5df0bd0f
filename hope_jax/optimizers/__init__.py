"""Outer optimizers, one a file, found by its name: optim.name. Their fields are sections of the
configuration, which knows them without jax: optax is imported where it is used.

    adamw        AdamW
    muon         matrices by Muon, all else by AdamW
    full_muon    matrices and embeddings by Muon, vectors by AdamW
    m3           matrices by a fast and a slow momentum (NL Algorithm 1), all else by AdamW

FIELDS: {field: default}. WHOLE: whether a matrix has to be on one device while it is stepped.
make(config, rate, matrices) -> optax transform, with its learning rate and decay, whose updates are
proportional to the rate. rate: peak -> optax schedule. matrices: parameters -> the same tree of
bools, False at embeddings and vectors; with (parameters, groups) True at those of these groups. A
matrix is the last two axes of an array; where it is to be WHOLE, heads are axes before them, too
(training/matrices.py).
"""
