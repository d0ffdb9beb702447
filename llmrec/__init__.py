"""Turn a Hugging Face language model into a recommender for your catalog."""
