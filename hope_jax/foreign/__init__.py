"""Models that other programs have made, read and written: the Llama family.

    source        what a reader of a format gives: configuration, tensors, tokenizer
    families      config.json and our configuration
    names         tensors by Hugging Face's names and our parameters
    folder        a folder of Hugging Face: config.json, safetensors, tokenizer.json
    writing       such a folder, written
    gguf_file     a GGUF file
    vocabulary    tokenizer.json with what we add to it, from a folder or a GGUF's metadata
"""
