"""Code lengths: exact log-likelihoods of documents, the model as a compressor, other codes."""
