"""The dual encoder that the library trains: images, text, regions and heat maps."""
