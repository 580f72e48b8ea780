"""Connects a backbone to a language model, as PaliGemma and FastVLM do, so that it answers questions about photos."""

from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # it would print a bar for every file
