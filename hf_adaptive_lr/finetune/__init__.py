"""`hf-adaptive-lr finetune`: fine-tunes a text or image classifier from the command line."""
