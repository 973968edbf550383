"""What several methods need and no method owns: validation, randomness, files, information, training."""
