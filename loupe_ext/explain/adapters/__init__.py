"""What `explain` needs of models that people run: masked encoders of CLIP-like ones, tokens of late interaction."""
