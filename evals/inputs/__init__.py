"""What is evaluated: images, documents, generated files, clips."""
