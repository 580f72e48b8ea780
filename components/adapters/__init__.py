"""Classifiers on a backbone: heads on its frozen outputs, low-rank updates, and fine-tuning."""
