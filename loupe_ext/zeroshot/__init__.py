"""Zero-shot use: retrieval, grounding and detection with no box and no fine-tuning."""
