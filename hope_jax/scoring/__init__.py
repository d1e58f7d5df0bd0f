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
    published       published data sets, from a folder of files or from the hub
    zeroshot        questions with choices: the tasks, their prompts and how they count answers
    choices         log-likelihoods of what may follow a prompt, many prompts at a time
    answers         questions with choices, answered with and without memorization
    harness         a checkpoint as a model of EleutherAI's harness
    documents       whole documents, memory off and on: bits per byte, by domain and position
    segments        domains or years of text, with documents to learn from and others to test
    sequence        a model that learns segments one after the other, and is tested on all
    forgetting      what is forgotten then, and what one segment does for another
    labelled        texts with labels whose classes arrive in groups
    incremental     classes that arrive in groups: which of those seen so far is a text's?
    features        what a frozen model makes of a text, and classifiers of that
"""
