"""What a document is, and how rows of tokens are made of documents."""
