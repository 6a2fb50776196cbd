"""Models and processors by name: folders, the Hub, adapters, tokenizers."""
