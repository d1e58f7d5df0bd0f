"""What a model is worth: scores, their baselines and intervals.

    validation      loss, bits per byte and accuracy on validation windows
    bigram          the baseline that a language model must beat
    intervals       bootstrap intervals, paired differences, shares
    results         the file of a result: how it was made, of which model, what the memories did
    needles         contexts of exactly L tokens with something to be found in them
    haystack        what a needle is hidden in, and where
    facts           words that needles are made of, and facts that are asked for in other words
    replies         what streams answer after what they have read
    retrieval       how well what lies in a context is found, by length and depth
    programs        evaluations as functions, for suites and for training
    babi            questions about facts that are scattered in a long text
    recalled        what the programs niah, passkey and babi share
    memorization    the options of programs that read with memories on
"""
