"""What a trained model is worth: losses, samples, multiple-choice scores."""
