"""Zero-shot use: retrieval and grounding with no box and no fine-tuning."""
