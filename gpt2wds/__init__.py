"""GPT-2 from text: WebDataset shards, an exact loader, a compact trainer, HellaSwag."""

__version__ = "0.1.0"
