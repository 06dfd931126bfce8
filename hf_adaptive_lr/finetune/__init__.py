"""The main job: fine-tuning a text or image classifier from the command line."""
