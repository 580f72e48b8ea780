"""A language model given eyes: PaliGemma's recipe around a backbone of one's own."""

from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # one bar a read file is noise
