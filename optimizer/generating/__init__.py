"""Text generation between the model and its user: choosing tokens, prompts into tokens, tokens into text."""
